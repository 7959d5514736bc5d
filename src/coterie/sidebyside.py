"""Groups of trainings on this machine, each in a process of its own, or in several that share its batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing  # teaches pickle to hand tensors over in shared memory

from coterie.dispatch import Message, Worker, dispatch, do_group
from coterie.errors import ConfigError, RunError
from coterie.models.factory import ModelFactory
from coterie.progress import Bars
from coterie.ranks import Meeting, ranks_in
from coterie.runfolder import Training
from coterie.training import Failed, Job, Workshop

NOT_BEGUN = (
    "a process for a training ended before it began. Where a script of yours starts the run, it must do "
    'so under `if __name__ == "__main__":`, as every process imports it; or use jobs=1 and processes=1'
)


def prepare_processes(factory: ModelFactory) -> None:
    """Begin to load what a training needs, so that the processes to come have it at once.

    Raises ConfigError where the builder of a user's own model cannot be sent to them.
    """
    try:
        ForkingPickler.dumps(factory)
    except Exception as error:  # pickle raises nearly anything
        raise ConfigError(
            "jobs or processes of 2 and more need a model builder that another process can import, such as "
            f"a function of a module: {error}; or use jobs=1 and processes=1"
        ) from None
    multiprocessing.set_forkserver_preload([__name__])
    forkserver.ensure_running()


def train_side_by_side(
    workshop: Workshop,
    groups: Sequence[Sequence[Job]],
    manifest: Sequence[Training],
    at_once: int,
    bars: Bars,
) -> Iterator[Training | Failed]:
    """Do `groups` of jobs, each in a process of its own, or in several (`processes`) that share every batch;
    up to `at_once` groups at a time: see `dispatch`.

    On the CPU the processes share torch's threads; on GPUs each takes a device in turn.
    """
    threads = max(1, torch.get_num_threads() // (at_once * workshop.config.processes))
    yield from dispatch(
        groups,
        at_once,
        workshop.config.retries,
        bars,
        lambda jobs, slot: _Processes(workshop, jobs, manifest, threads, slot, bars),
        lambda workers: wait([connection for worker in workers for connection in worker.connections]),
    )


class _Processes(Worker):
    """The processes that do a group of jobs: one, or several that share every batch."""

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
        size = workshop.config.processes
        self._meeting = Meeting(size) if size > 1 else None
        self._members: list[_Member] = []
        name = ", ".join(job.training.name for job in jobs)
        for rank in range(size):
            environment = {} if self._meeting is None else self._meeting.environment(rank, rank)
            try:
                self._members.append(
                    _Member.started(name, workshop, jobs, manifest, threads, slot, environment)
                )
            except BrokenPipeError:
                self.stop()
                raise RunError(NOT_BEGUN) from None

    @property
    def connections(self) -> list[Connection]:
        """Those on which a process may say something."""
        return [member.connection for member in self._members if not member.is_over]

    def listen(self) -> None:
        """Take in what the processes have said since; RunError where they ended without a word. One that
        fails ends the others.
        """
        self._hear()
        if any(member.has_failed for member in self._members) or not self.connections:
            self._conclude()

    def stop(self) -> None:
        """End the processes, whatever they do: their last states are kept."""
        self._end_members()
        self.end()

    def end(self) -> None:
        for member in self._members:
            member.connection.close()
        super().end()

    def _end_members(self) -> None:
        for member in self._members:
            member.stop()
        for member in self._members:
            member.process.join()

    def _hear(self) -> None:
        for member in self._members:
            for message in member.heard():
                self.has_begun = True
                self.take_in(message)

    def _conclude(self) -> None:
        """Say why the processes have ended. The connection to one that has is an error in the others, so one
        that says what is wrong is believed first, then that one died, then the first error.
        """
        self._end_members()
        self._hear()
        self.end()
        failures = sorted((member.failure for member in self._members if member.failure), key=lambda f: f[0])
        stated = [message for _, message in failures if message[-1] is None]
        deaths = [member.exitcode for member in self._members if member.has_died]
        if stated or (failures and not deaths):
            self.take_in(stated[0] if stated else failures[0][1])
            return
        if not deaths and not self.has_begun:
            raise RunError(NOT_BEGUN)
        which = "its process" if len(self._members) == 1 else f"one of its {len(self._members)} processes"
        self.died(f"{which} ended {how_it_ended(deaths[0] if deaths else self._members[0].exitcode)}")


class _Member:
    """One of the processes, as the process sees it that started it."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self.is_over = False
        self.stopped = False
        # when it said so, and what
        self.failure: tuple[float, Message] | None = None

    @classmethod
    def started(cls, name: str, *work: Any) -> _Member:
        context = multiprocessing.get_context("forkserver")
        connection, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(*work, theirs), name=name)
        process.start()
        theirs.close()
        return cls(process, connection)

    @property
    def exitcode(self) -> int:
        """0 as long as it runs."""
        return self.process.exitcode or 0

    @property
    def has_died(self) -> bool:
        """Whether a signal ended it, another than that of `stop`."""
        return self.exitcode < 0 and not (self.stopped and self.exitcode == -signal.SIGTERM)

    @property
    def has_failed(self) -> bool:
        return self.failure is not None or (self.is_over and self.exitcode != 0)

    def heard(self) -> Iterator[Message]:
        """What it has said since, but for its failure; notices its end."""
        try:
            while not self.is_over and self.connection.poll():
                moment, message = self.connection.recv()
                if message[0] == "failed":
                    self.failure = moment, message
                else:
                    yield message
        except (EOFError, OSError):  # OSError: it was killed in the middle of a message
            self.is_over = True
            self.process.join()

    def stop(self) -> None:
        if not self.is_over:
            self.stopped = True
            self.process.terminate()


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
    environment: dict[str, str],
    connection: Connection,
) -> None:
    """Do a group of jobs in this process, or its part of each, and say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the Ctrl-C, and ends this process
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    os.environ.update(environment)

    def send(message: Message) -> None:
        send_or_end(connection, (time.monotonic(), message))

    do_group(workshop, jobs, manifest, slot, send, ranks_in(environment))


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
