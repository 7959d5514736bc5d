"""The runs of an ablation, in turn or several at once: what each gives its rows, or why it failed."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from coterie.ablation.plan import PlannedRun, checked_inputs
from coterie.ablation.report import Failure, Outcome
from coterie.config import DataConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.reading import read_dataset
from coterie.errors import ConfigError, CoterieError, RunError
from coterie.evaluation import SHOWN
from coterie.models.factory import ModelBuilder
from coterie.pipeline import Run, run
from coterie.progress import say
from coterie.runfolder import Inputs, RunFolder
from coterie.sidebyside import NOT_BEGUN, end_with_parent, how_it_ended, send_or_end

ERRORS_FILE = "errors.log"


class Reader:
    """The data of a seed, those that were asked for last: data may be large. `dataset`: of every seed."""

    def __init__(self, settings: DataConfig, dataset: MultiLabelDataset | None = None) -> None:
        self.settings = settings
        self.dataset = dataset
        self._last: tuple[int, MultiLabelDataset] | None = None

    def __call__(self, seed: int) -> MultiLabelDataset:
        if self.dataset is not None:
            return self.dataset
        if self._last is None or self._last[0] != seed:
            self._last = seed, read_dataset(self.settings, seed)
        return self._last[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.settings, self.dataset)  # another process reads what it needs


class Attempt(NamedTuple):
    """What a run gave for its rows, and the rows that could not be had."""

    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Setting:
    """What all runs of an ablation share: its folder, the store of their trainings, where data and model come
    from.
    """

    out: Path
    store: Path
    read: Reader
    builder: ModelBuilder | None = None
    update: bool = False

    def attempt(self, planned: PlannedRun, checked: Inputs | None, console: Console) -> Attempt:
        """Do a run. Where that fails, each of its rows is tried by itself: a student that breaks must not
        cost the baseline of the same run.
        """
        try:
            return Attempt(tuple(_outcomes(planned, self._run(planned, checked, console))), ())
        except Exception as error:
            if len(planned.needs) == 1:
                return Attempt((), (self._failure(planned, error, console),))
        attempts = [self.attempt(planned.of(row), checked, console) for row in planned.needs]
        return Attempt(
            tuple(outcome for attempt in attempts for outcome in attempt.outcomes),
            tuple(failure for attempt in attempts for failure in attempt.failures),
        )

    def _run(self, planned: PlannedRun, checked: Inputs | None, console: Console) -> Run:
        return run(
            planned.config,
            dataset=self.read(planned.config.seed),
            builder=self.builder,
            update=self.update,
            only=planned.only,
            models=planned.models,
            store=self.store,
            checked=checked,
            console=console,
        )

    def _failure(self, planned: PlannedRun, error: Exception, console: Console) -> Failure:
        """What broke, said and kept; the traceback of what was not foreseen goes to a file."""
        message = str(error)
        if not isinstance(error, CoterieError):
            message = f"{type(error).__name__}: {message} (more in {self.out / ERRORS_FILE})"
            with (self.out / ERRORS_FILE).open("a", encoding="utf-8") as file:
                file.write(f"{planned.folder}\n{''.join(traceback.format_exception(error))}\n")
        say(console, f"{planned.title} failed: {message}")
        (row,) = planned.needs
        return Failure(row.name, planned.config.seed, message)


def attempts_in_turn(setting: Setting, runs: Sequence[PlannedRun], console: Console) -> Iterator[Attempt]:
    """Do the runs one after the other in this process."""
    for number, planned in enumerate(runs, 1):
        say(console, f"run {number} of {len(runs)}: {planned.folder}, for {planned.title}")
        yield setting.attempt(planned, checked_inputs(setting.out, planned.config.seed), console)


def attempts_at_once(
    setting: Setting, runs: Sequence[PlannedRun], at_once: int, console: Console
) -> Iterator[Attempt]:
    """Do up to `at_once` runs at the same time, each in a process of its own, in the order in which they end.

    A run waits for another that does a training which it needs too. The processes share torch's threads.
    """
    try:
        ForkingPickler.dumps(setting)
    except Exception as error:  # pickle raises nearly anything
        raise ConfigError(
            "several runs at once need data and a model builder that another process can have, such as a "
            f"function of a module: {error}; or do one run at a time"
        ) from None
    multiprocessing.set_forkserver_preload([__name__])  # so that a process need not load torch
    waiting, running = list(runs), list[_Process]()
    done = {training.identity for planned in runs for training in planned.trainings if training.done}
    threads = max(1, torch.get_num_threads() // at_once)
    try:
        while waiting or running:
            while len(running) < at_once and (planned := _next(waiting, running, done)):
                waiting.remove(planned)
                running.append(_Process(setting, planned, threads))
                number = len(runs) - len(waiting)
                say(console, f"run {number} of {len(runs)}: {planned.folder}, for {planned.title}")
            ready = wait([process.connection for process in running])
            for process in [process for process in running if process.connection in ready]:
                running.remove(process)
                attempt = process.attempt()
                done |= process.planned.identities
                for failure in attempt.failures:
                    say(console, f"{failure.row} at seed {failure.seed} failed: {failure.message}")
                yield attempt
    finally:
        for process in running:
            process.stop()


def _next(waiting: Sequence[PlannedRun], running: Sequence[_Process], done: set[str]) -> PlannedRun | None:
    """The first run that no other one keeps waiting."""
    taken = {identity for process in running for identity in process.planned.identities} - done
    return next((planned for planned in waiting if not planned.identities & taken), None)


class _Process:
    """A process that does one run, as its parent sees it."""

    def __init__(self, setting: Setting, planned: PlannedRun, threads: int) -> None:
        self.planned = planned
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_work, args=(setting, planned, threads, theirs), name=planned.title
        )
        try:
            self._process.start()
        except BrokenPipeError:
            raise RunError(NOT_BEGUN) from None
        theirs.close()

    def attempt(self) -> Attempt:
        """What the run gave, when it is over; of a process that died, that."""
        try:
            attempt: Attempt = self.connection.recv()
        except (EOFError, OSError):  # OSError: it was killed in the middle of its answer
            self._process.join()
            message = f"its process ended {how_it_ended(self._process.exitcode or 0)}"
            seed = self.planned.config.seed
            return Attempt((), tuple(Failure(row.name, seed, message) for row in self.planned.needs))
        finally:
            self._process.join()
            self.connection.close()
        return attempt

    def stop(self) -> None:
        """End the process, whatever it does: the last states of its trainings are kept."""
        self._process.terminate()
        self._process.join()
        self.connection.close()


def _work(setting: Setting, planned: PlannedRun, threads: int, connection: Connection) -> None:
    """Do a run in this process, and say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the Ctrl-C, and ends this process
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    checked = checked_inputs(setting.out, planned.config.seed)
    send_or_end(connection, setting.attempt(planned, checked, Console(quiet=True)))


def _outcomes(planned: PlannedRun, finished: Run) -> Iterator[Outcome]:
    """What a run gave for each of its rows."""
    trainings = {training.name: training for training in RunFolder(planned.folder).trainings()}
    for row, needed in planned.needs.items():
        seconds = {trainings[each.name].key: trainings[each.name].seconds for each in needed}
        metrics = {
            split: {name: models[row.model][name] for name in SHOWN}
            for split, models in finished.metrics.items()
        }
        leaning = {
            split: {what: models[row.model][what] for what in ("recall", "false_positives")}
            for split, models in finished.leaning.items()
        }
        yield Outcome(row.name, planned.config.seed, str(planned.folder), metrics, leaning, seconds)
