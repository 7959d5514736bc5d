"""Several trainings at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing  # teaches pickle to hand tensors over in shared memory

from coterie.errors import ConfigError, CoterieError, RunError
from coterie.models.factory import ModelFactory
from coterie.progress import Bars, Progress
from coterie.runfolder import Training
from coterie.trainer import make_fabric
from coterie.training import Job, Workshop

ATTEMPTS = 2
CRASH_FILE = "crash.txt"
NOT_BEGUN = (
    "a process for a training ended before it began. Where a script of yours starts the run, it must do "
    'so under `if __name__ == "__main__":`, as every process imports the script; or use jobs=1'
)


def prepare_processes(factory: ModelFactory) -> None:
    """Begin to load what a training needs, so that the processes to come have it at once.

    Raises ConfigError where the builder of a user's own model cannot be sent to them.
    """
    try:
        ForkingPickler.dumps(factory)
    except Exception as error:  # pickle raises nearly anything
        raise ConfigError(
            f"jobs=2 and more need a model builder that another process can import, such as a function of a "
            f"module: {error}; or use jobs=1"
        ) from None
    multiprocessing.set_forkserver_preload([__name__])
    forkserver.ensure_running()


def train_side_by_side(
    workshop: Workshop, jobs: Sequence[Job], processes: int, bars: Bars
) -> Iterator[Training]:
    """Do `jobs`, up to `processes` at once, in their order; the manifest's entry of each as it is finished.

    On the CPU the processes share torch's threads; on GPUs each takes a device in turn. A process that dies
    is started once more, and goes on from its last finished epoch. Raises RunError at the end, when the
    others are finished, naming each training that failed and why.
    """
    waiting, slots = deque(jobs), list(reversed(range(processes)))
    attempts = dict.fromkeys((job.training.name for job in jobs), 0)
    failures: list[str] = []
    threads = max(1, torch.get_num_threads() // processes)
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and slots:
                job = waiting.popleft()
                attempts[job.training.name] += 1
                running.append(_Worker(workshop, job, threads, slots.pop(), bars))
            wait([worker.connection for worker in running])
            for worker in list(running):
                worker.listen()
                if not worker.ended:
                    continue
                running.remove(worker)
                slots.append(worker.slot)
                name = worker.job.training.name
                if worker.result is not None:
                    yield worker.result
                elif worker.crashed and attempts[name] < ATTEMPTS:
                    bars.note(f"{name}: {worker.failure}; it is started once more")
                    waiting.appendleft(worker.job)
                else:
                    failures.append(f"{name}: {worker.failure}")
    finally:
        for worker in running:
            worker.stop()
    if failures:
        raise RunError(
            f"{len(failures)} of {len(jobs)} trainings failed; the others are finished and kept. Put that "
            "right and start the run again:\n  " + "\n  ".join(failures)
        )


class _Worker:
    """A process that does one job, as its parent sees it."""

    def __init__(self, workshop: Workshop, job: Job, threads: int, slot: int, bars: Bars) -> None:
        self.job = job
        self.slot = slot
        self.result: Training | None = None
        self.failure = ""
        self.crashed = False
        self.ended = False
        self._bars = bars
        self._folder = workshop.folder
        self._stack = ExitStack()
        self._progress: Progress | None = None
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_work, args=(workshop, job, threads, slot, theirs), name=job.training.name
        )
        try:
            self._process.start()
        except BrokenPipeError:
            raise RunError(NOT_BEGUN) from None
        theirs.close()

    def listen(self) -> None:
        """Take in what the process has said since; notice its end. RunError where it never said a word."""
        try:
            while self.connection.poll():
                self._take_in(self.connection.recv())
        except (EOFError, ConnectionResetError):
            self._end()
            if self.result is None and not self.failure:
                self._died()

    def stop(self) -> None:
        """End the process, whatever it does: its last finished epoch is kept."""
        self._process.terminate()
        self._end()

    def _take_in(self, message: tuple[Any, ...]) -> None:
        kind, *content = message
        if kind == "begin":
            self._progress = self._stack.enter_context(self._bars.watch(*content))
        elif kind == "images" and self._progress is not None:
            self._progress.advance(*content)
        elif kind == "epoch" and self._progress is not None:
            self._progress.epoch_done(*content)
        elif kind == "note":
            self._bars.note(*content)
        elif kind == "done":
            (self.result,) = content
        elif kind == "failed":
            self.failure, self.crashed = content

    def _end(self) -> None:
        self._process.join()
        self.connection.close()
        self._stack.close()
        self.ended = True

    def _died(self) -> None:
        exitcode = self._process.exitcode or 0
        if exitcode >= 0 and self._progress is None:
            raise RunError(NOT_BEGUN)
        self.failure = f"its process ended {_how(exitcode)}"
        self.crashed = True


def _how(exitcode: int) -> str:
    """The exit of a process in words."""
    if exitcode >= 0:
        return f"with status {exitcode}"
    name = signal.Signals(-exitcode).name
    memory = ", as it does when memory runs out" if name == "SIGKILL" else ""
    return f"by {name}{memory}"


@dataclass
class _Sender:
    """The reporter and the watcher of a training in its own process: says it all to the parent."""

    connection: Connection

    def note(self, text: str) -> None:
        self.connection.send(("note", text))

    @contextmanager
    def watch(self, name: str, epochs: int, images: int, done: int = 0) -> Iterator[_Sender]:
        self.connection.send(("begin", name, epochs, images, done))
        yield self

    def advance(self, images: int) -> None:
        self.connection.send(("images", images))

    def epoch_done(self, line: dict[str, Any]) -> None:
        self.connection.send(("epoch", line))


def _work(workshop: Workshop, job: Job, threads: int, slot: int, connection: Connection) -> None:
    """Do one job in this process, and say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the Ctrl-C, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    sender = _Sender(connection)
    try:
        fabric = make_fabric(workshop.config, slot)
        connection.send(("done", workshop.train(job, fabric, sender)))
    except CoterieError as error:
        connection.send(("failed", str(error), False))
    except OSError as error:
        connection.send(("failed", error.strerror or str(error), False))
    except Exception as error:
        path = workshop.folder / job.training.name / CRASH_FILE
        path.write_text(traceback.format_exc(), encoding="utf-8")
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send(("failed", f"{text} (all of it in {path})", True))


def _end_with_parent() -> None:
    """A process whose parent was killed would write into a folder that nobody holds any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
