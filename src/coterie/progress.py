"""What a person sees while a run goes on: lines of text, and a bar with the last epoch's numbers."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

# Where there is no terminal, and so no bar.
SECONDS_BETWEEN_LINES = 30.0


def say(console: Console, text: str) -> None:
    """Print `text` as it is: names may hold brackets and colons, and a path must stay in one piece."""
    console.print(Text(text), soft_wrap=True)


class Progress:
    """A bar over all images of one training on a terminal; elsewhere a line now and then, after an epoch."""

    def __init__(self, console: Console, name: str, epochs: int, images: int, done: int = 0) -> None:
        self.console = console
        self.name = name
        self.epochs = epochs
        self.last: dict[str, Any] = {}
        self._last_line = time.monotonic()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=epochs * images, completed=done * images, note="")

    def advance(self, images: int) -> None:
        """Count `images` more; the speed shown is the bar's own."""
        self._bar.advance(self._task, images)
        speed = self._bar.tasks[0].speed
        if speed:
            numbers = f"{self._numbers()}  " if self.last else ""
            self._bar.update(self._task, note=f"{numbers}{speed:.0f} images/s")

    def epoch_done(self, line: dict[str, Any]) -> None:
        """Take in the numbers of a finished epoch."""
        self.last = line
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(self.console, f"{self.name}: {self._numbers()}  {line['images_per_second']:.0f} images/s")

    def _numbers(self) -> str:
        map_ = "-" if self.last["val_mAP"] is None else f"{self.last['val_mAP']:.1f}"
        return f"epoch {self.last['epoch']}/{self.epochs}  loss {self.last['loss']:.3f}  val mAP {map_}"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
