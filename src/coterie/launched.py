"""A run whose processes somebody else has started: torchrun, or SLURM with the same variables. All of them
are given the command of the run; the first one has the run, the others do their part of its trainings.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from torch import distributed

from coterie.config import Config, validate_config
from coterie.data.loading import ResizedImages
from coterie.errors import ConfigError, RunError
from coterie.models.factory import ModelBuilder, ModelFactory, make_factory
from coterie.progress import Bars
from coterie.ranks import Ranks, joined
from coterie.runfolder import Training
from coterie.trainer import uses_cuda
from coterie.training import Failed, Job, Workshop, grouped

FAILURE = "coterie/failure"


class LaunchedEngine:
    """Trainings one after the other, each in all of the processes that somebody else has started."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self._known: Workshop | None = None

    def prepare(self, factory: ModelFactory) -> None:  # noqa: ARG002  # each process has its own
        if self.config.processes not in (1, self.ranks.size):
            raise ConfigError(
                f"processes={self.config.processes}, but {self.ranks.size} have been started; leave it out"
            )
        validate_config(self.config.to_values() | {"processes": self.ranks.size})
        if self.config.jobs > 1:
            raise ConfigError(
                f"jobs={self.config.jobs}, but all processes that have been started do one training "
                "together; leave it out, or start the run without torchrun"
            )

    def train(
        self, workshop: Workshop, jobs: Sequence[Job], manifest: Sequence[Training], bars: Bars
    ) -> Iterator[Training | Failed]:
        if self._known is not workshop:
            self._known = workshop
            _tell("workshop", _packed(workshop))
        for group in grouped(jobs, self.config.together):
            _tell("group", group, manifest)
            yield from workshop.train(group, bars, manifest, ranks=self.ranks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def follow(config: Config, ranks: Ranks, builder: ModelBuilder | None) -> Any:
    """Do this process's part of the trainings that the first one tells of, until it dismisses this one: with
    what it says then.
    """
    workshop: Workshop | None = None
    while True:
        kind, *content = _tell()
        if kind == "dismissed":
            return content[0]
        if kind == "workshop":
            workshop = _unpacked(content[0], make_factory(config.model, builder))
            continue
        assert workshop is not None
        jobs, manifest = content
        for _ in workshop.train(jobs, Bars(Console(quiet=True)), manifest, ranks=ranks):
            pass


def dismiss(content: Any) -> None:
    """Let the others go, with what they are to have."""
    _tell("dismissed", content)


@contextmanager
def as_one_of(ranks: Ranks, config: Config) -> Iterator[None]:
    """Be one of the processes in the block. An error in any of them ends all, and goes on in the one that
    had it first; the others leave without a word.
    """
    with joined(ranks, uses_cuda(config)) as store:
        try:
            yield
        except BaseException as error:
            # what is under way would wait for the others when Python ends
            atexit.register(_leave)
            if not _is_first_to_fail(ranks, store):
                sys.exit(1)
            if isinstance(error, RuntimeError) and (what := _lost_rank(error, ranks)) is not None:
                raise RunError(what) from error
            raise


def _is_first_to_fail(ranks: Ranks, store: Any) -> bool:
    own = str(ranks.rank)
    try:
        return bool(store.compare_set(FAILURE, "", own) == own.encode())
    except RuntimeError:  # the one that had the store is gone, and has said why
        return False


def _lost_rank(error: RuntimeError, ranks: Ranks) -> str | None:
    """What to say of an error that torch raises when another process is gone; None of any other."""
    if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
        return None
    return (
        f"one of the {ranks.size} processes of the run ended, as it is when memory runs out. Put that right "
        "and start all of them again: the run goes on from the last state that it kept"
    )


def _tell(*message: Any) -> tuple[Any, ...]:
    """Send a message from the first process to all others; each calls this, the others with nothing."""
    box = [message]
    distributed.broadcast_object_list(box)
    return box[0]


def _packed(workshop: Workshop) -> Workshop:
    """The workshop on its way to the other processes. These decode the images for themselves, and have the
    model's builder from their command.
    """
    stored = workshop.images.stored
    empty = ResizedImages(workshop.dataset, workshop.factory.preprocessing, stored=stored)
    without_builder = replace(workshop.factory, builder=None)
    return replace(workshop, images=empty, factory=without_builder, folder=workshop.folder.absolute())


def _unpacked(sent: Workshop, factory: ModelFactory) -> Workshop:
    data, stored = sent.config.data, sent.images.stored
    memory = 0.0 if stored else data.cache_gb
    images = ResizedImages(sent.dataset, factory.preprocessing, memory, data.workers > 0, stored)
    images.fill(lambda _: None)  # they are there, unless this is another machine with a disk of its own
    return replace(sent, factory=factory, images=images)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
