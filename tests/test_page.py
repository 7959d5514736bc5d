"""The pages that measured numbers make, and the tables of the demo in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import demo, page


def test_a_page_without_numbers_says_so_and_keeps_what_is_around(tmp_path: Path) -> None:
    marks = [f"<!-- {name}: by benchmarks.page -->\n<!-- end -->\n" for name in ("rows", "ideas")]
    new = page.renewed(f"{marks[0]}between\n{marks[1]}", tmp_path)
    assert new.count("Not measured yet.\n<!-- end -->") == 2
    assert "<!-- end -->\nbetween\n<!-- ideas" in new


def test_only_what_is_between_marks_is_made_anew(tmp_path: Path) -> None:
    content = {
        "words": ["a=2"],
        "trials": [{"step": "s", "choice": "c", "words": ["a=2"], "val": {"0": 1}, "mean": 1}],
    }
    (tmp_path / "search-student.json").write_text(json.dumps(content))
    text = "before\n<!-- search-student: by benchmarks.page -->\nold\n<!-- end -->\nafter\n"
    new = page.renewed(text, tmp_path)
    assert new.startswith("before\n<!-- search-student: by benchmarks.page -->\n| step |")
    assert "| s | c | **1.00** | 1.00 |\n<!-- end -->\nafter\n" in new
    assert page.renewed(new, tmp_path) == new


def test_the_pages_are_what_their_numbers_make() -> None:
    texts = [path.read_text(encoding="utf-8") for path in page.PAGES]
    for text in texts:
        assert page.renewed(text, page.NUMBERS) == text
    # none is missing, and none stands twice
    assert sorted(found["name"] for text in texts for found in page.MARKED.finditer(text)) == sorted(
        page.BLOCKS
    )


def of_seed(seed: int, minutes: float | None, gain: float, doubling: float = -2.0) -> dict[str, Any]:
    """A run whose baseline has 60 mAP on test and 40 on the shifted split."""

    def split(baseline: float, gain: float) -> dict[str, dict[str, float]]:
        values = dict.fromkeys(demo.MODELS, baseline + 1) | {"student": baseline + gain}
        values |= {"baseline": baseline, demo.DOUBLED: baseline + doubling}
        return {name: {"mAP": value, "CF1": value - 10, "OF1": value - 20} for name, value in values.items()}

    metrics = {"test": split(60, gain), "test_shifted": split(40, 2 * gain)}
    return {"seed": seed, "minutes": minutes, "cores": 2, "epochs": 70, "metrics": metrics}


def test_the_demo_shows_every_measure_of_its_first_seed() -> None:
    lines = demo.run_table({"runs": [of_seed(4, 2.94, 3.0), of_seed(5, 1.0, 4.0)]}).splitlines()
    assert lines[0].startswith("| seed 4, 2.9 minutes on 2 cores | baseline | CGP teachers | DGP teachers |")
    assert lines[2] == "| test mAP | 60.00 | 61.00 | 61.00 | 61.00 | 63.00 | +3.00 |"
    assert lines[-1] == "| test_shifted OF1 | 20.00 | 21.00 | 21.00 | 21.00 | 26.00 | +6.00 |"
    assert len(lines) == 2 + 2 * 3


def test_a_stopped_demo_has_no_minutes() -> None:
    assert demo.run_table({"runs": [of_seed(4, None, 3.0)]}).startswith("| seed 4 | baseline |")


def test_the_demo_is_compared_at_each_seed() -> None:
    lines = demo.seeds_table({"runs": [of_seed(0, 3.0, 3.0), of_seed(1, 3.0, 4.0)]}).splitlines()
    assert lines[0] == "| test mAP, 70 epochs | seed 0 | seed 1 | mean | sd |"
    assert "| student | 63.00 | 64.00 | 63.50 | 0.71 |" in lines
    assert "| student - baseline | +3.00 | +4.00 | +3.50 | 0.71 |" in lines
    assert "| doubling - baseline | -2.00 | -2.00 | -2.00 | 0.00 |" in lines
    assert "| student - baseline, shifted | +6.00 | +8.00 | +7.00 | 1.41 |" in lines
    assert lines[-1] == "| doubling - baseline, shifted | -2.00 | -2.00 | -2.00 | 0.00 |"


@pytest.mark.parametrize(
    ("minutes", "gain", "doubling", "status"),
    [(3.0, 2.0, 0.4, 0), (3.0, 1.9, 0.4, 1), (3.0, 2.0, 0.6, 1), (4.1, 2.0, 0.4, 1), (None, 2.0, 0.4, 1)],
)
def test_the_demo_is_judged(minutes: float | None, gain: float, doubling: float, status: int) -> None:
    runs = [of_seed(0, 3.0, gain, doubling), of_seed(1, minutes, gain, doubling)]
    assert demo.judged({"runs": runs}) == status


def test_a_measured_demo_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(seed: int, *_: object) -> dict[str, Any]:
        asked.append(seed)
        return of_seed(seed, 3.0, 3.0)

    monkeypatch.setattr(demo, "measured", measured)
    for seeds in (["0"], ["0", "1"], ["1"]):
        monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path), "--seeds", *seeds])
        assert demo.main() == 0
    assert asked == [0, 1]
    content = json.loads((tmp_path / "demo.json").read_text())
    assert [each["seed"] for each in content["runs"]] == [0, 1]
    monkeypatch.setattr("sys.argv", ["demo", "k=2", "--out", str(tmp_path)])
    assert demo.main() == 2
    assert json.loads((tmp_path / "demo.json").read_text()) == content
    assert (content["settings"]["k"], "seed" in content["settings"]) == (4, False)
    # the recipe leaves the precision to the machine: another must not add its seeds
    monkeypatch.setattr(demo, "environment", lambda: {"processor": "another"})
    monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path), "--seeds", "2"])
    assert demo.main() == 2
    assert asked == [0, 1]


def test_a_page_is_renewed_from_a_folder_that_holds_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "<!-- demo-run: by benchmarks.page -->\n<!-- end -->\n"
    pages = (tmp_path / "README.md", tmp_path / "results.md")
    for each in pages:
        each.write_text(text)
    monkeypatch.setattr(page, "PAGES", pages)
    monkeypatch.setattr(page, "NUMBERS", tmp_path / "numbers")
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["page", str(out)])
    assert page.main() == 2  # a wrong folder is no reason to say that all is renewed
    assert f"no numbers in {out}" in capsys.readouterr().err
    assert pages[0].read_text() == text
    out.mkdir()
    (out / "demo.json").write_text(json.dumps({"words": [], "runs": [of_seed(4, 2.94, 3.0)]}))
    assert page.main() == 0
    assert all("| seed 4, 2.9 minutes on 2 cores |" in each.read_text() for each in pages)
    assert (tmp_path / "numbers" / "demo.json").read_text() == (out / "demo.json").read_text()


def test_a_page_does_not_lose_rows_or_seeds_to_a_call_for_some_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, out = tmp_path / "numbers", tmp_path / "out"
    for folder in (numbers, out):
        folder.mkdir()
    before = {"words": [], "runs": [of_seed(4, 2.94, 3.0), of_seed(5, 2.94, 3.0)]}
    (numbers / "demo.json").write_text(json.dumps(before))
    (out / "demo.json").write_text(json.dumps(before | {"runs": before["runs"][:1]}))
    monkeypatch.setattr(page, "PAGES", ())
    monkeypatch.setattr(page, "NUMBERS", numbers)
    monkeypatch.setattr("sys.argv", ["page", str(out)])
    assert page.main() == 2
    assert "seed 5" in (said := capsys.readouterr().err)
    assert "seed 4" not in said
    assert json.loads((numbers / "demo.json").read_text()) == before
    monkeypatch.setattr("sys.argv", ["page", str(out), "--fewer"])
    assert page.main() == 0
    assert len(json.loads((numbers / "demo.json").read_text())["runs"]) == 1


def test_what_numbers_hold_is_rows_ideas_and_seeds() -> None:
    content = {"seeds": [0, 1], "rows": [{"row": "psd"}, {"row": "psd"}], "ideas": [{"name": "mixup"}]}
    assert page.held(content) == {"seed 0", "seed 1", "row psd", "idea mixup"}


def test_the_demo_has_its_own_precision_where_another_demo_has_settled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "runs" / "demo"
    elsewhere.mkdir(parents=True)
    (elsewhere / "config.yaml").write_text("precision: fp16\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "measured", lambda seed, *_: of_seed(seed, 3.0, 3.0))
    monkeypatch.setattr("sys.argv", ["demo", "device=cpu", "--out", "measured", "--seeds", "0"])
    assert demo.main() == 0
    content = json.loads((tmp_path / "measured" / "demo.json").read_text())
    assert content["settings"]["precision"] in ("fp32", "bf16")
