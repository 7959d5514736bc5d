"""Groups of trainings that workers do: what these say on the way, and what happens when one of them dies."""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from coterie.errors import OUT_OF_MEMORY, CoterieError, RunError, is_out_of_memory
from coterie.files import atomic_write
from coterie.progress import Bars, Progress
from coterie.ranks import ALONE, Ranks, joined
from coterie.runfolder import Training
from coterie.trainer import Reporter, uses_cuda
from coterie.training import Failed, Job, Workshop

CRASH_FILE = "crash.txt"
# A message for every step would cost more than a step of a small model.
SECONDS_BETWEEN_MESSAGES = 0.1

Message = tuple[Any, ...]
Send = Callable[[Message], object]
W = TypeVar("W", bound="Worker")


def do_group(
    workshop: Workshop,
    jobs: Sequence[Job],
    manifest: Sequence[Training],
    device: int,
    send: Send,
    ranks: Ranks = ALONE,
) -> None:
    """Do a group of jobs in this process, and `send` how it goes: what a `Worker` takes in.

    Each of the `ranks` that do the group together calls this, with the address of the first in its
    environment. The first sends all of it, another only why it failed.
    """
    reporter: Reporter = _Sender(send) if ranks.is_first else Bars(Console(quiet=True))
    with sending_failures(send), joined(ranks, uses_cuda(workshop.config)):
        for result in workshop.train(jobs, reporter, manifest, device, ranks):
            send(("result", result))


@contextmanager
def sending_failures(send: Send) -> Iterator[None]:
    """An error in the block is sent, as what to do where it says that, else with its traceback."""
    try:
        yield
    except CoterieError as error:
        send(("failed", str(error), None))
    except OSError as error:
        send(("failed", error.strerror or str(error), None))
    except Exception as error:
        what = OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        send(("failed", what.splitlines()[0], traceback.format_exc()))


def dispatch(
    groups: Sequence[Sequence[Job]],
    slots: int,
    retries: int,
    bars: Bars,
    start: Callable[[Sequence[Job], int], W],
    wait: Callable[[Sequence[W]], object],
) -> Iterator[Training | Failed]:
    """Do `groups` of jobs, up to `slots` at once, in their order; the manifest's entry of each training as it
    is finished, or with why it failed.

    `start` makes the worker of a group in a slot, `wait` returns when one of the workers has something to
    say. The trainings of a worker that dies are started again up to `retries` times, each by itself, and go
    on from what they have kept. One that says what is wrong would say it again, and is not.
    """
    waiting, free = deque(groups), list(reversed(range(slots)))
    left = dict.fromkeys((job.training.name for group in groups for job in group), retries)
    running: list[tuple[W, int]] = []
    try:
        while waiting or running:
            while waiting and free:
                slot = free.pop()
                running.append((start(waiting.popleft(), slot), slot))
            wait([worker for worker, _ in running])
            for worker, slot in list(running):
                worker.listen()
                yield from worker.new_results()
                if not worker.ended:
                    continue
                running.remove((worker, slot))
                free.append(slot)
                again = []
                for job in worker.unfinished:
                    if worker.crashed and left[job.training.name] > 0:
                        left[job.training.name] -= 1
                        bars.note(f"{job.training.name}: {worker.failure}; it is started once more")
                        again.append([job])
                    else:
                        yield job.training, RunError(worker.failure)
                waiting.extendleft(reversed(again))
    finally:
        for worker, _ in running:
            worker.stop()


class Worker(ABC):
    """Whoever does a group of jobs elsewhere, as the process sees it that has given them out."""

    def __init__(self, jobs: Sequence[Job], folder: Path, bars: Bars) -> None:
        self.unfinished = list(jobs)
        self.failure = ""
        self.crashed = False
        self.ended = False
        self.has_begun = False
        self._folder = folder
        self._bars = bars
        self._results: list[Training | Failed] = []
        self._stack = ExitStack()
        self._progress: dict[str, Progress] = {}

    @abstractmethod
    def listen(self) -> None:
        """Take in what the worker has said since; notice its end."""

    @abstractmethod
    def stop(self) -> None:
        """End the worker, whatever it does: what its trainings have kept stays."""

    def new_results(self) -> Iterator[Training | Failed]:
        """What has been finished since they were last asked for."""
        results, self._results = self._results, []
        yield from results

    def take_in(self, message: Message) -> None:
        """Note what `do_group` has sent."""
        kind, *content = message
        self.has_begun = True
        if kind == "begin":
            self._progress[content[0]] = self._stack.enter_context(self._bars.watch(*content))
        elif kind == "images":
            self._progress[content[0]].advance(content[1])
        elif kind == "epoch":
            self._progress[content[0]].epoch_done(content[1])
        elif kind == "note":
            self._bars.note(*content)
        elif kind == "result":
            (result,) = content
            name = (result if isinstance(result, Training) else result[0]).name
            self.unfinished = [job for job in self.unfinished if job.training.name != name]
            self._results.append(result)
        elif kind == "failed":
            self._failed(*content)

    def end(self) -> None:
        """Take the bars of the worker away: it says nothing any more."""
        self._stack.close()
        self.ended = True

    def died(self, how: str) -> None:
        """Note that the worker ended before its trainings did, unless it has said why."""
        if self.unfinished and not self.failure:
            self.failure, self.crashed = how, True

    def _failed(self, text: str, trace: str | None) -> None:
        self.failure, self.crashed = text, trace is not None
        if trace is not None and self.unfinished:
            path = self._folder / self.unfinished[0].training.name / CRASH_FILE
            atomic_write(path, trace)
            self.failure = f"{text} (all of it in {path})"


@dataclass(frozen=True)
class _Sender:
    """The reporter of a group where it is done."""

    send: Send

    def note(self, text: str) -> None:
        self.send(("note", text))

    @contextmanager
    def watch(self, name: str, epochs: int, images: int, done: int = 0) -> Iterator[_Watcher]:
        self.send(("begin", name, epochs, images, done))
        watcher = _Watcher(self.send, name)
        try:
            yield watcher
        finally:
            watcher.flush()


@dataclass
class _Watcher:
    """The watcher of one training where it is done."""

    send: Send
    name: str
    _images: int = 0
    _last: float = field(default_factory=time.monotonic)

    def advance(self, images: int) -> None:
        self._images += images
        if time.monotonic() - self._last >= SECONDS_BETWEEN_MESSAGES:
            self.flush()

    def epoch_done(self, line: dict[str, Any]) -> None:
        self.flush()
        self.send(("epoch", self.name, line))

    def flush(self) -> None:
        if self._images:
            self.send(("images", self.name, self._images))
        self._images, self._last = 0, time.monotonic()
