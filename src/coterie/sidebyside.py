"""Several groups of trainings at once, each in a process of its own."""

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
from coterie.training import Failed, Job, Workshop

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
    workshop: Workshop,
    groups: Sequence[Sequence[Job]],
    manifest: Sequence[Training],
    processes: int,
    bars: Bars,
) -> Iterator[Training | Failed]:
    """Do `groups` of jobs, each in a process of its own, up to `processes` at once, in their order; the
    manifest's entry of each training as it is finished, or with why it failed.

    On the CPU the processes share torch's threads; on GPUs each takes a device in turn. A process that dies
    is started once more, each of its trainings by itself, and goes on from its last state.
    """
    waiting, slots = deque(map(list, groups)), list(reversed(range(processes)))
    attempts = dict.fromkeys((job.training.name for group in groups for job in group), 0)
    threads = max(1, torch.get_num_threads() // processes)
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and slots:
                jobs = waiting.popleft()
                for job in jobs:
                    attempts[job.training.name] += 1
                running.append(_Worker(workshop, jobs, manifest, threads, slots.pop(), bars))
            wait([worker.connection for worker in running])
            for worker in list(running):
                worker.listen()
                yield from worker.new_results()
                if not worker.ended:
                    continue
                running.remove(worker)
                slots.append(worker.slot)
                again = []
                for job in worker.unfinished:
                    if worker.crashed and attempts[job.training.name] < ATTEMPTS:
                        bars.note(f"{job.training.name}: {worker.failure}; it is started once more")
                        again.append([job])
                    else:
                        yield job.training, RunError(worker.failure)
                waiting.extendleft(reversed(again))
    finally:
        for worker in running:
            worker.stop()


class _Worker:
    """A process that does a group of jobs, as its parent sees it."""

    def __init__(
        self,
        workshop: Workshop,
        jobs: Sequence[Job],
        manifest: Sequence[Training],
        threads: int,
        slot: int,
        bars: Bars,
    ) -> None:
        self.unfinished = list(jobs)
        self.slot = slot
        self.failure = ""
        self.crashed = False
        self.ended = False
        self._results: list[Training | Failed] = []
        self._has_begun = False
        self._bars = bars
        self._stack = ExitStack()
        self._progress: dict[str, Progress] = {}
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_work,
            args=(workshop, jobs, manifest, threads, slot, theirs),
            name=", ".join(job.training.name for job in jobs),
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
        except (EOFError, OSError):  # OSError: it was killed in the middle of a message
            self._end()
            if self.unfinished and not self.failure:
                self._died()

    def new_results(self) -> Iterator[Training | Failed]:
        """What has been finished since they were last asked for."""
        results, self._results = self._results, []
        yield from results

    def stop(self) -> None:
        """End the process, whatever it does: its last states are kept."""
        self._process.terminate()
        self._end()

    def _take_in(self, message: tuple[Any, ...]) -> None:
        kind, *content = message
        self._has_begun = True
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
            self.failure, self.crashed = content

    def _end(self) -> None:
        self._process.join()
        self.connection.close()
        self._stack.close()
        self.ended = True

    def _died(self) -> None:
        exitcode = self._process.exitcode or 0
        if exitcode >= 0 and not self._has_begun:
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
    """The reporter of a group in its own process: says it all to the parent."""

    connection: Connection

    def note(self, text: str) -> None:
        self.connection.send(("note", text))

    @contextmanager
    def watch(self, name: str, epochs: int, images: int, done: int = 0) -> Iterator[_Watcher]:
        self.connection.send(("begin", name, epochs, images, done))
        yield _Watcher(self.connection, name)


@dataclass
class _Watcher:
    """The watcher of one training in a process."""

    connection: Connection
    name: str

    def advance(self, images: int) -> None:
        self.connection.send(("images", self.name, images))

    def epoch_done(self, line: dict[str, Any]) -> None:
        self.connection.send(("epoch", self.name, line))


def _work(
    workshop: Workshop,
    jobs: Sequence[Job],
    manifest: Sequence[Training],
    threads: int,
    slot: int,
    connection: Connection,
) -> None:
    """Do a group of jobs in this process, and say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the Ctrl-C, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    sender = _Sender(connection)
    try:
        for result in workshop.train(jobs, sender, manifest, slot):
            connection.send(("result", result))
    except CoterieError as error:
        connection.send(("failed", str(error), False))
    except OSError as error:
        connection.send(("failed", error.strerror or str(error), False))
    except Exception as error:
        path = workshop.folder / jobs[0].training.name / CRASH_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send(("failed", f"{text} (all of it in {path})", True))


def _end_with_parent() -> None:
    """A process whose parent was killed would write into a folder that nobody holds any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
