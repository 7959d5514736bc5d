"""Runs side by side: their numbers, what differs, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from coterie.config import load_config
from coterie.errors import ConfigError, RunError
from coterie.intervals import bootstrap_differences, interval
from coterie.pipeline import Run, run
from coterie.report import write_comparison
from coterie.report.classes import difference
from coterie.report.comparison import comparison_content, short_names
from coterie.report.reading import read_run
from tests.tiny import CLASS_NAMES, RUN_WORDS


@pytest.fixture(scope="module")
def other_run(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the same data with one teacher, another student and the classes the other way round."""
    folder = tmp_path_factory.mktemp("other")
    source = finished_run.config.data.source
    words = (*RUN_WORDS, "k=1", "student.lr=0.03", "threshold=0.4", f"data={source}", f"out={folder / 'run'}")
    return run(load_config([*words, f"data.class_names={json.dumps(CLASS_NAMES)}"]))


@pytest.fixture(scope="module")
def content(finished_run: Run, other_run: Run) -> dict[str, Any]:
    return comparison_content([read_run(one.folder) for one in (finished_run, other_run)])


def test_results_stand_side_by_side(content: dict[str, Any], finished_run: Run, other_run: Run) -> None:
    for part in content["results"]:
        for row in part["rows"]:
            values = [
                one.metrics[part["name"]].get(row["model"], {}).get(row["metric"])
                for one in (finished_run, other_run)
            ]
            assert row["values"] == values
            assert row["differences"][1] == difference(values[1], values[0])
            assert row["differences"][0] == (None if values[0] is None else 0)
    assert content["models"][:2] == ["baseline", "student"]
    assert {"CGP teachers", "teacher"} <= set(content["models"])


def test_classes_are_met_by_name(content: dict[str, Any], finished_run: Run, other_run: Run) -> None:
    first, other = (read_run(one.folder) for one in (finished_run, other_run))
    assert first.class_names != other.class_names
    for row in content["classes"]:
        values = [
            one.metrics["test"]["student"]["AP"][one.class_names.index(row["name"])] for one in (first, other)
        ]
        assert row["values"] == values
        assert row["differences"] == [values[1] - values[0]]


def test_intervals_are_of_the_same_images_and_each_run_has_its_threshold(
    content: dict[str, Any], finished_run: Run, other_run: Run
) -> None:
    first, other = (read_run(one.folder) for one in (finished_run, other_run))
    (row,) = [
        row for row in content["results"][1]["rows"] if (row["model"], row["metric"]) == ("student", "OF1")
    ]
    columns = [other.class_names.index(name) for name in first.class_names]
    old, new = first.logits("test"), other.logits("test")
    expected = bootstrap_differences(
        new.models["student"][:, columns], old.models["student"], old.targets, (np.log(0.4 / 0.6), 0.0)
    )
    assert row["intervals"] == [None, interval(expected.metrics["OF1"])]


def test_only_settings_that_differ_are_listed(content: dict[str, Any]) -> None:
    rows = {row["key"]: row["values"] for row in content["settings"]}
    assert rows["k"] == ["2", "1"]
    assert rows["student.lr"] == ["0.01", "0.03"]
    assert rows["threshold"] == ["0.5", "0.4"]
    assert set(rows) == {"out", "k", "student.lr", "threshold", "data.class_names"}


def test_runs_have_names_that_tell_them_apart(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a" / "x", tmp_path / "a" / "y"]) == ["x", "y"]
    assert short_names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]


def test_other_classes_and_other_splits_are_refused(finished_run: Run, run_copy: Run, odd_run: Run) -> None:
    with pytest.raises(RunError, match=r"is of other classes than .*on one side only; compare runs of the"):
        write_comparison([finished_run.folder, odd_run.folder], run_copy.folder / "compare.html")
    path = run_copy.folder / "data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"split_hash": "0" * 64}))
    with pytest.raises(RunError, match=r"other images in its splits .*\(split 000000000000 and "):
        write_comparison([finished_run.folder, run_copy.folder], run_copy.folder / "compare.html")
    assert not (run_copy.folder / "compare.html").exists()


def test_other_labels_of_the_same_images_are_refused(finished_run: Run, run_copy: Run) -> None:
    path = run_copy.folder / "logits" / "test" / "targets.npy"
    targets = np.load(path)
    targets[3, 1] = -1
    np.save(path, targets)
    with pytest.raises(RunError, match="has other labels on split 'test' than"):
        write_comparison([finished_run.folder, run_copy.folder], run_copy.folder / "compare.html")


def test_two_runs_are_needed(finished_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name two runs or more"):
        write_comparison([finished_run.folder], tmp_path / "compare.html")
    with pytest.raises(ConfigError, match="a run is named twice"):
        write_comparison([finished_run.folder, finished_run.folder / "."], tmp_path / "compare.html")


def test_the_page_works(page: Page, finished_run: Run, other_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "compare.html"
    size = write_comparison([finished_run.folder, other_run.folder], out)
    assert out.stat().st_size == size
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(out.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_label("Find a class").fill("stripes")
    expect(page.locator("#class-table tbody tr:visible")).to_have_count(1)
    page.get_by_label("Find a setting").fill("student")
    expect(page.locator("#setting-table tbody tr:visible th")).to_have_text("student.lr")
    page.get_by_role("button", name="Dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
