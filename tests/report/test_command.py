"""`coterie report` and `coterie compare` as commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.cli import main
from coterie.pipeline import Run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def coterie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`coterie WORDS…` in this process: exit status, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["coterie", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return call


def test_a_report_is_written_and_what_is_missing_is_said(
    coterie: Command, run_copy: Run, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "page.html"
    status, output, _ = coterie("report", run_copy.folder, "--out", out)
    note, written = output.splitlines()
    assert status == 0
    assert note.startswith("note: there are no class activation maps here: ")
    assert written == f"written to {out} ({out.stat().st_size / 1e3:.0f} kB)"
    status, output, _ = coterie("report", run_copy.folder, "--model", "tests.tiny:Net")
    assert (status, output.count("\n")) == (0, 1)
    assert (run_copy.folder / "report.html").stat().st_size > out.stat().st_size


def test_an_unwritable_place_is_one_message_and_leaves_nothing(
    coterie: Command, run_copy: Run, tmp_path: Path
) -> None:
    for out, message in (
        (tmp_path, "Is a directory"),
        (run_copy.folder / "data.json" / "x.html", "is a file"),
    ):
        status, _, error = coterie("report", run_copy.folder, "--pictures", 0, "--out", out)
        assert status == 1
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    assert not list(tmp_path.glob("*.tmp"))


def test_runs_are_compared_and_what_is_no_run_is_one_message(
    coterie: Command, finished_run: Run, run_copy: Run, tmp_path: Path
) -> None:
    out = tmp_path / "both.html"
    status, output, _ = coterie("compare", finished_run.folder, run_copy.folder, "--out", out)
    assert (status, output) == (0, f"written to {out} ({out.stat().st_size / 1e3:.0f} kB)\n")
    status, _, error = coterie("compare", finished_run.folder, tmp_path)
    assert (status, error) == (1, f"error: there is no run at {tmp_path}: it has no manifest.json\n")
    assert coterie("compare")[0] == 2
