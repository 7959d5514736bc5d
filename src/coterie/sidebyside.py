"""Several groups of trainings at once on this machine, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing  # teaches pickle to hand tensors over in shared memory

from coterie.dispatch import Message, Worker, dispatch, do_group
from coterie.errors import ConfigError, RunError
from coterie.models.factory import ModelFactory
from coterie.progress import Bars
from coterie.runfolder import Training
from coterie.training import Failed, Job, Workshop

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
    """Do `groups` of jobs, each in a process of its own, up to `processes` at once: see `dispatch`.

    On the CPU the processes share torch's threads; on GPUs each takes a device in turn.
    """
    threads = max(1, torch.get_num_threads() // processes)
    yield from dispatch(
        groups,
        processes,
        workshop.config.retries,
        bars,
        lambda jobs, slot: _Process(workshop, jobs, manifest, threads, slot, bars),
        lambda workers: wait([worker.connection for worker in workers]),
    )


class _Process(Worker):
    """A process that does a group of jobs."""

    def __init__(
        self,
        workshop: Workshop,
        jobs: Sequence[Job],
        manifest: Sequence[Training],
        threads: int,
        slot: int,
        bars: Bars,
    ) -> None:
        super().__init__(jobs, workshop.folder, bars)
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
        """Take in what the process has said since; RunError where it ended without a word."""
        try:
            while self.connection.poll():
                self.take_in(self.connection.recv())
        except (EOFError, OSError):  # OSError: it was killed in the middle of a message
            self.end()
            exitcode = self._process.exitcode or 0
            if exitcode >= 0 and not self.has_begun:
                raise RunError(NOT_BEGUN) from None
            self.died(f"its process ended {how_it_ended(exitcode)}")

    def stop(self) -> None:
        """End the process, whatever it does: its last states are kept."""
        self._process.terminate()
        self.end()

    def end(self) -> None:
        self._process.join()
        self.connection.close()
        super().end()


def how_it_ended(exitcode: int) -> str:
    """The exit of a process in words."""
    if exitcode >= 0:
        return f"with status {exitcode}"
    name = signal.Signals(-exitcode).name
    memory = ", as it does when memory runs out" if name == "SIGKILL" else ""
    return f"by {name}{memory}"


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
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    do_group(workshop, jobs, manifest, slot, partial(send_or_end, connection))


def send_or_end(connection: Connection, message: Message) -> None:
    """Send a message to the parent; where that was killed, end this process without a word."""
    try:
        connection.send(message)
    except BrokenPipeError:
        os._exit(1)


def end_with_parent() -> None:
    """A process whose parent was killed would write into a folder that nobody holds any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
