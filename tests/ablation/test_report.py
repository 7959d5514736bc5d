"""The report: means, paired differences and costs by hand, and what is written of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from coterie.ablation.report import (
    Ablation,
    Failure,
    Interval,
    Outcome,
    as_csv,
    as_json,
    as_markdown,
    plot,
    show_report,
    spread,
    summary,
    write_plot,
    write_tables,
)
from coterie.ablation.rows import BASELINE, Row
from coterie.errors import RunError

PSD = Row("psd", "both | PSD")
CGP = Row("cgp", "CGP only")


def leaning(recall: float | None, false_positives: float | None) -> dict[str, Any]:
    return {"recall": {"difference": recall}, "false_positives": {"difference": false_positives}}


def outcome(
    row: str,
    seed: int,
    val: float | None,
    test: float | None,
    *,
    recall: float | None = 0.0,
    **seconds: float,
) -> Outcome:
    lean = leaning(recall, 4.0)
    metrics = {"val": {"mAP": val}, "test": {"mAP": test}}
    return Outcome(row, seed, f"runs/{row}-s{seed}", metrics, {"val": lean, "test": lean}, seconds)


@pytest.fixture
def ablation() -> Ablation:
    """Three rows over seeds 0, 1, 2; the baseline lacks seed 2, CGP has seed 0 alone."""
    return Ablation(
        (BASELINE, CGP, PSD),
        (0, 1, 2),
        (
            outcome("baseline", 0, 50, 60, base0=60),
            outcome("baseline", 1, 54, 70, base1=120),
            outcome("psd", 0, 53, 66, recall=2.0, co0=30, dis0=40, student0=50),
            outcome("psd", 1, 53, 72, recall=None, co1=31, student1=51),
            outcome("psd", 2, 60, 90, recall=5.0, co2=32, student2=52),
            outcome("cgp", 0, None, 61, co0=30, cgp0=20),
        ),
        (Failure("cgp", 1, "the loss is nan"), Failure("baseline", 2, "no")),
        {"test": {"psd": Interval(-1.5, 8.25)}},
    )


def test_a_spread_has_the_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 6.0]) == pytest.approx((3.0, (14 / 2) ** 0.5, 3))
    assert spread([4.0]) == (4.0, None, 1)
    assert spread([]) == (None, None, 0)


def test_differences_are_paired_by_seed(ablation: Ablation) -> None:
    assert ablation.spread("psd", "test") == pytest.approx((76.0, (312 / 2) ** 0.5, 3))
    # 66 - 60 and 72 - 70: seed 2 has no baseline
    assert ablation.difference("psd", "test") == pytest.approx((4.0, 8**0.5, 2))
    assert ablation.difference("psd", "val") == pytest.approx((1.0, 8**0.5, 2))
    assert ablation.difference("cgp", "test") == (1.0, None, 1)
    assert ablation.difference("cgp", "val") == (None, None, 0)


def test_leaning_is_a_mean_over_the_seeds_that_have_it(ablation: Ablation) -> None:
    assert ablation.leaning("psd", "test", "recall") == 3.5
    assert ablation.leaning("psd", "test", "false_positives") == 4.0


def test_a_shared_training_costs_the_first_row_that_needs_it(ablation: Ablation) -> None:
    costs = ablation.costs()
    assert costs == {
        "baseline": (180.0, 180.0),
        "cgp": (50.0, 50.0),
        "psd": (286.0, 256.0),
    }
    different = {key: value for each in ablation.outcomes for key, value in each.seconds.items()}
    assert sum(added for _, added in costs.values()) == sum(different.values())


def test_the_summary_has_a_record_for_each_row_and_split(ablation: Ablation) -> None:
    records = summary(ablation)
    assert [(record["row"], record["split"]) for record in records] == [
        (row, split) for row in ("baseline", "cgp", "psd") for split in ("val", "test")
    ]
    assert records[5] == {
        "row": "psd",
        "title": "both | PSD",
        "split": "test",
        "seeds": 3,
        "mAP": 76.0,
        "mAP_sd": pytest.approx(156**0.5),
        "difference_seeds": 2,
        "difference": 4.0,
        "difference_sd": pytest.approx(8**0.5),
        "difference_low": -1.5,
        "difference_high": 8.25,
        "leaning_recall": 3.5,
        "leaning_false_positives": 4.0,
        "seconds": 286.0,
        "added_seconds": 256.0,
    }


def test_markdown_holds_the_table_and_what_failed(ablation: Ablation) -> None:
    lines = as_markdown(ablation).splitlines()
    assert lines[0] == "# Ablation over seeds 0, 1, 2"
    assert lines[2] == (
        "| row |  | val mAP | val - baseline | test mAP | test - baseline | leaning: recall "
        "| leaning: false positives | minutes | of them added |"
    )
    assert lines[4] == (
        "| baseline | baseline | 52.00 ± 2.83 (n = 2) |  | 65.00 ± 7.07 (n = 2) |  "
        "| +0.0 | +4.0 | 3.0 | 3.0 |"
    )
    assert lines[5] == "| cgp | CGP only | - | - | 61.00 (n = 1) | +1.00 (n = 1) | +0.0 | +4.0 | 0.8 | 0.8 |"
    assert lines[6] == (
        "| psd | both \\| PSD | 55.33 ± 4.04 | +1.00 ± 2.83 (n = 2) | 76.00 ± 12.49 | +4.00 ± 2.83 (n = 2) "
        "[-1.50, +8.25] | +3.5 | +4.0 | 4.8 | 4.3 |"
    )
    assert lines[-2:] == ["- cgp at seed 1: the loss is nan", "- baseline at seed 2: no"]


def test_csv_holds_the_summary_and_leaves_what_is_unknown_empty(ablation: Ablation) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(ablation))))
    expected = [
        {key: "" if value is None else str(value) for key, value in record.items()}
        for record in summary(ablation)
    ]
    assert rows == expected


def test_json_holds_every_number(ablation: Ablation) -> None:
    content = json.loads(as_json(ablation))
    assert content["schema_version"] == 1
    assert content["seeds"] == [0, 1, 2]
    assert [row["name"] for row in content["rows"]] == ["baseline", "cgp", "psd"]
    assert content["outcomes"][2]["metrics"]["test"]["mAP"] == 66
    assert content["outcomes"][2]["seconds"] == {"co0": 30, "dis0": 40, "student0": 50}
    assert content["failures"][0] == {"row": "cgp", "seed": 1, "message": "the loss is nan"}
    assert content["summary"] == summary(ablation)


def test_the_plot_has_a_dot_and_an_interval_for_each_row(ablation: Ablation) -> None:
    val, test = plot(ablation).axes
    assert [test.get_xlabel(), val.get_xlabel()] == ["test mAP", "val mAP"]
    assert [label.get_text() for label in val.get_yticklabels()] == ["baseline", "CGP only", "both | PSD"]
    dots = [(container[0].get_xdata()[0], container[0].get_ydata()[0]) for container in test.containers]
    assert dots == [(65.0, 0), (61.0, 1), (76.0, 2)]
    assert len(val.containers) == 2  # nothing is known of CGP on val
    sd = 156**0.5
    (segment,) = test.containers[2][2][0].get_segments()
    assert segment[:, 0] == pytest.approx([76 - sd, 76 + sd])


def test_the_report_is_written(ablation: Ablation, tmp_path: Path) -> None:
    write_tables(ablation, tmp_path)
    write_plot(ablation, tmp_path)
    assert (tmp_path / "ablation.md").read_text() == as_markdown(ablation)
    assert (tmp_path / "ablation.csv").read_text() == as_csv(ablation)
    assert (tmp_path / "ablation.json").read_text() == as_json(ablation)
    with Image.open(tmp_path / "ablation.png") as picture:
        assert picture.format == "PNG"


def shown(ablation: Ablation, out: Path, width: int) -> list[str]:
    file = io.StringIO()
    show_report(ablation, out, Console(file=file, width=width))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_a_table_of_each_split_is_printed(ablation: Ablation, tmp_path: Path) -> None:
    lines = shown(ablation, tmp_path, 120)
    assert [line for line in lines if line in ("val", "test")] == ["val", "test"]
    psd = [line for line in lines if line.startswith("psd")]
    assert psd[1] == "psd 76.00 ± 12.49 +4.00 ± 2.83 (n = 2) [-1.50, +8.25] +3.5 +4.0 4.8 (4.3)"


def test_a_terminal_of_80_columns_holds_every_number(ablation: Ablation, tmp_path: Path) -> None:
    lines = shown(ablation, tmp_path, 80)
    assert not any("…" in line for line in lines)
    assert "baseline 52.00 ± 2.83 (n = +0.0 +4.0 3.0 (3.0)" in lines


def test_an_ablation_without_outcomes_has_a_report_too(tmp_path: Path) -> None:
    nothing = Ablation((BASELINE, PSD), (0,), (), (Failure("psd", 0, "no"),))
    write_tables(nothing, tmp_path)
    write_plot(nothing, tmp_path)
    assert "- psd at seed 0: no" in (tmp_path / "ablation.md").read_text()
    assert not (tmp_path / "ablation.png").exists()


def test_failures_are_one_error_that_names_each(ablation: Ablation) -> None:
    with pytest.raises(RunError, match=r"^some rows failed.*\ncgp at seed 1: the loss is nan\nbaseline at"):
        ablation.raise_failures()
    Ablation((BASELINE,), (0,), (), ()).raise_failures()
