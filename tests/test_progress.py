"""What a person sees while a run goes on, on a terminal and in a log file."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

import coterie.progress
from coterie.progress import Bars, say

LINE: dict[str, Any] = {"epoch": 3, "loss": 1.25, "val_mAP": 61.54, "images_per_second": 99.6}


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_text_is_printed_as_it_is_and_in_one_line() -> None:
    console = Console(file=io.StringIO(), width=20)
    say(console, "runs/a [b]/:cat: holds [red]more[/red] than twenty characters")
    assert printed(console) == "runs/a [b]/:cat: holds [red]more[/red] than twenty characters\n"


def test_without_a_terminal_a_long_training_prints_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coterie.progress, "SECONDS_BETWEEN_LINES", 0)
    console = Console(file=io.StringIO())
    with Bars(console) as bars, bars.watch("student", epochs=5, images=100) as progress:
        progress.advance(100)
        progress.epoch_done(LINE)
        progress.epoch_done(LINE | {"epoch": 4, "val_mAP": None})
    assert printed(console).splitlines() == [
        "student: epoch 3/5  loss 1.250  val mAP 61.5  100 images/s",
        "student: epoch 4/5  loss 1.250  val mAP -  100 images/s",
    ]


def test_without_a_terminal_a_short_training_prints_nothing() -> None:
    console = Console(file=io.StringIO())
    with Bars(console) as bars, bars.watch("student", epochs=5, images=100) as progress:
        progress.epoch_done(LINE)
    assert printed(console) == ""


def test_on_a_terminal_each_training_has_a_bar_that_counts_images_and_shows_the_last_epoch() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    with (
        Bars(console) as bars,
        bars.watch("student", epochs=5, images=100, done=2) as progress,
        bars.watch("baseline", epochs=5, images=100) as other,
    ):
        other.advance(40)
        progress.epoch_done(LINE)
        progress.advance(40)
        progress.advance(40)
        bars.rich.refresh()
    assert "40/500" in printed(console)
    assert "280/500" in printed(console)
    assert "epoch 3/5  loss 1.250  val mAP 61.5" in printed(console)
