"""`coterie explain`: what it writes, and that bad input is one message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from coterie import fonts
from coterie.cli import main
from coterie.explain.sheet import CELL, GAP
from coterie.pipeline import Run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`coterie explain WORDS…` in this process: exit status, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        words = ("coterie", "explain", *words, "--model", "tests.tiny:Net")
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def photos(finished_run: Run) -> Path:
    return Path(finished_run.config.data.source).parent


def test_the_maps_of_a_run_are_drawn_for_named_classes(
    explain: Command, finished_run: Run, photos: Path, tmp_path: Path
) -> None:
    status, output, _ = explain(
        finished_run.folder, photos / "000.png", "--classes", "stripes", "red", "--out", tmp_path / "maps.png"
    )
    assert (status, output) == (0, f"written to {tmp_path / 'maps.png'}\n")
    with Image.open(tmp_path / "maps.png") as sheet:
        assert sheet.width == GAP + 5 * (CELL + GAP)
        assert sheet.height > 2 * CELL  # two rows


def test_names_that_no_font_here_can_draw_are_noted_and_drawn(
    explain: Command, finished_run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.fonts._system_fonts", lambda: ())
    fonts._fallbacks.cache_clear()
    cat = tmp_path / "猫.png"
    cat.write_bytes((photos / "000.png").read_bytes())
    status, output, _ = explain(finished_run.folder / "student", cat, "--out", tmp_path / "maps.png")
    fonts._fallbacks.cache_clear()
    assert status == 0
    assert "note: no font here has 1 character of the names (猫): a box" in output.splitlines()[1]


def test_a_folder_gets_a_sheet_for_each_picture_and_a_broken_one_is_named(
    explain: Command, finished_run: Run, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    Image.open(photos / "000.png").save(tmp_path / "a" / "good.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"")
    status, output, error = explain(
        finished_run.folder / "student", tmp_path / "a", "--top", 2, "--out", tmp_path / "maps"
    )
    assert status == 1
    assert output == f"written to {tmp_path / 'maps' / 'good.png'}\n"
    bad = tmp_path / "a" / "bad.png"
    assert error == f"error: 1 of 2 pictures cannot be read; the first: {bad} (the file is empty)\n"
    with Image.open(tmp_path / "maps" / "good.png") as sheet:
        assert sheet.width == GAP + 3 * (CELL + GAP)


def test_a_model_is_compared_with_another(
    explain: Command, finished_run: Run, photos: Path, tmp_path: Path
) -> None:
    student, out = finished_run.folder / "student", tmp_path / "maps.png"
    status, _, _ = explain(
        student, photos / "000.png", "--against", finished_run.folder, "--out", out, "--layer", "convolution"
    )
    assert status == 0
    with Image.open(out) as sheet:
        assert sheet.width == GAP + 3 * (CELL + GAP)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "strpes"], "the model has no class 'strpes'; did you mean 'stripes'?"),
        (["--classes", "a=b"], "the model has no class 'a=b'"),
        (["--classes", ""], "name at least one class"),
        (["--layer", "norms"], "the model has no layer 'norms'; did you mean 'norm'?"),
        (["--out", "maps.gif"], "maps.gif must end in .png"),
        (["--against", "nowhere"], "there is no run or checkpoint at nowhere"),
    ],
)
def test_bad_words_are_one_message(
    explain: Command, finished_run: Run, photos: Path, words: list[str], message: str
) -> None:
    status, output, error = explain(finished_run.folder, photos / "000.png", *words)
    assert (status, output) == (1, "")
    assert error.startswith("error: ")
    assert error.count("error: ") == 1
    assert message in error


def test_a_folder_without_pictures_is_told(explain: Command, finished_run: Run, tmp_path: Path) -> None:
    status, _, error = explain(finished_run.folder, tmp_path)
    assert status == 1
    assert "holds no picture" in error


def test_no_picture_at_all_is_wrong_usage(explain: Command, finished_run: Run) -> None:
    assert explain(finished_run.folder)[0] == 2
