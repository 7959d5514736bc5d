"""Where the trainings of a run are done: what the pipeline asks of an engine, and the one of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from coterie.config import Config
from coterie.errors import ConfigError
from coterie.launched import LaunchedEngine
from coterie.models.factory import ModelFactory
from coterie.progress import Bars
from coterie.ranks import ranks_in
from coterie.runfolder import Training
from coterie.sidebyside import prepare_processes, train_side_by_side
from coterie.trainer import check_devices
from coterie.training import Failed, Job, Workshop, grouped


class Engine(Protocol):
    """Does the trainings of a run, between `__enter__` and `__exit__`, which take and give back its means."""

    def prepare(self, factory: ModelFactory) -> None:
        """Look whether models of `factory` can be trained here; ConfigError where not, before any work."""

    def train(
        self, workshop: Workshop, jobs: Sequence[Job], manifest: Sequence[Training], bars: Bars
    ) -> Iterator[Training | Failed]:
        """Do `jobs`, none of which waits for another: the manifest's new entry of each training as it is
        finished, with its files in the run folder, or why it failed when the others go on.

        `manifest`: all trainings of the run, for those that start from others or learn from them. A training
        that has been here before goes on from what it has kept. `bars` show how far each has come.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_engine(config: Config) -> Engine:
    """The engine that `config.engine` names, or that of the processes that have been started already."""
    ranks = ranks_in(os.environ)
    if config.engine == "ray":
        if ranks.are_several:
            raise ConfigError("engine=ray starts its processes itself; start the run without torchrun")
        from coterie.ray_engine import RayEngine

        return RayEngine(config)
    return LaunchedEngine(config, ranks) if ranks.are_several else LocalEngine(config)


class LocalEngine:
    """Trainings on the devices of this machine: in this process one after the other, or with `jobs` or
    `processes` of 2 and more in processes of their own.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, factory: ModelFactory) -> None:
        check_devices(self.config)
        if self.config.jobs > 1 or self.config.processes > 1:
            prepare_processes(factory)

    def train(
        self, workshop: Workshop, jobs: Sequence[Job], manifest: Sequence[Training], bars: Bars
    ) -> Iterator[Training | Failed]:
        groups = grouped(jobs, self.config.together, self.config.jobs)
        at_once = max(1, min(self.config.jobs, len(groups)))
        if at_once > 1 or self.config.processes > 1:
            yield from train_side_by_side(workshop, groups, manifest, at_once, bars)
            return
        for group in groups:
            yield from workshop.train(group, bars, manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
