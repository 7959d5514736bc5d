"""What a person sees while a run goes on: lines of text, and a bar for each training that is under way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

Thing = TypeVar("Thing")
# Where there is no terminal, and so no bar.
SECONDS_BETWEEN_LINES = 30.0


def say(console: Console, text: str) -> None:
    """Print `text` as it is: names may hold brackets and colons, and a path must stay in one piece."""
    console.print(Text(text), soft_wrap=True)


class Bars:
    """On a terminal a bar for each training under way, elsewhere a line now and then, after an epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @contextmanager
    def watch(self, name: str, epochs: int, images: int, done: int = 0) -> Iterator[Progress]:
        """The bar of one training of `epochs` of `images` each, `done` epochs of which lie behind."""
        progress = Progress(self, name, epochs, images, done)
        try:
            yield progress
        finally:
            progress.close()

    def note(self, text: str) -> None:
        """Print a line."""
        say(self.console, text)

    def __enter__(self) -> Self:
        self.rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rich.stop()


class Progress:
    """The bar of one training over all its images, with the last epoch's numbers."""

    def __init__(self, bars: Bars, name: str, epochs: int, images: int, done: int = 0) -> None:
        self.name = name
        self.epochs = epochs
        self.last: dict[str, Any] = {}
        self._console = bars.console
        self._rich = bars.rich
        self._last_line = time.monotonic()
        self._task = self._rich.add_task(name, total=epochs * images, completed=done * images, note="")

    def advance(self, images: int) -> None:
        """Count `images` more; the speed shown is the bar's own."""
        self._rich.advance(self._task, images)
        (speed,) = [task.speed for task in self._rich.tasks if task.id == self._task]
        if speed:
            numbers = f"{self._numbers()}  " if self.last else ""
            self._rich.update(self._task, note=f"{numbers}{speed:.0f} images/s")

    def epoch_done(self, line: dict[str, Any]) -> None:
        """Take in the numbers of a finished epoch."""
        self.last = line
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(self._console, f"{self.name}: {self._numbers()}  {line['images_per_second']:.0f} images/s")

    def close(self) -> None:
        """Take the bar away."""
        self._rich.remove_task(self._task)

    def _numbers(self) -> str:
        map_ = "-" if self.last["val_mAP"] is None else f"{self.last['val_mAP']:.1f}"
        return f"epoch {self.last['epoch']}/{self.epochs}  loss {self.last['loss']:.3f}  val mAP {map_}"


class Counter:
    """Counts things of unknown number: on a terminal a line with the speed, elsewhere nothing."""

    def __init__(self, what: str, console: Console) -> None:
        self._rich = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.completed:,.0f} {task.description}"),
            TextColumn("{task.fields[speed]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._task = self._rich.add_task(what, total=None, speed="")

    def advance(self) -> None:
        """Count one more."""
        self._rich.advance(self._task)
        task = self._rich.tasks[0]
        if task.speed:
            self._rich.update(self._task, speed=f"{task.speed:.0f}/s")

    def each(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """The things, each counted."""
        for thing in things:
            yield thing
            self.advance()

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()
