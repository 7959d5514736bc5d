"""What a person sees while a training runs: one bar, with images per second and the last epoch's numbers."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar over all images of one training. On a terminal it moves; elsewhere one line is printed at the
    end.
    """

    def __init__(self, console: Console, name: str, epochs: int, images: int, done: int = 0) -> None:
        self.console = console
        self.name = name
        self.epochs = epochs
        self.last: dict[str, Any] = {}
        self._seen = 0
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
            self._note(f"{speed:.0f} images/s")

    def epoch_done(self, line: dict[str, Any]) -> None:
        """Take in the numbers of a finished epoch."""
        self.last = line

    def _note(self, speed: str) -> None:
        if not self.last:
            self._bar.update(self._task, note=speed)
            return
        map_ = "-" if self.last["val_mAP"] is None else f"{self.last['val_mAP']:.1f}"
        note = (
            f"epoch {self.last['epoch']}/{self.epochs}  loss {self.last['loss']:.3f}  val mAP {map_}  {speed}"
        )
        self._bar.update(self._task, note=note)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
