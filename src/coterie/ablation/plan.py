"""What an ablation trains: the runs that its rows need, and which trainings of them are shared or done."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coterie.ablation.rows import PLAIN_STEP, Row, row_config, student_forwards
from coterie.config import BASELINE, Config, ModelConfig, changed_settings
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import ConfigError, CoterieError, did_you_mean
from coterie.files import content_hash
from coterie.labels import Partition
from coterie.models.factory import ModelBuilder, make_factory
from coterie.pipeline import planned_trainings
from coterie.preflight import as_checked, describe_start, tried_model
from coterie.preparation import branch_weights, make_partition, prepare_data, training_graph
from coterie.progress import say
from coterie.runfolder import Inputs, RunFolder, Training
from coterie.stages import measured_models, training_key, training_settings
from coterie.store import Store

RUNS = "runs"
LONGEST_NAME = 60


@dataclass(frozen=True)
class PlannedTraining:
    """A training that a row needs. `identity`: the same for two that are one; `forwards`: its cost for each
    image.
    """

    name: str
    identity: str
    forwards: int
    done: bool


@dataclass(frozen=True)
class PlannedRun:
    """One run: its settings with seed and folder, the rows that look at it, and what they need of it."""

    config: Config
    needs: dict[Row, tuple[PlannedTraining, ...]]

    @property
    def folder(self) -> Path:
        return self.config.run_folder()

    @property
    def only(self) -> list[str]:
        """The names of the trainings to do."""
        return list(dict.fromkeys(training.name for training in self.trainings))

    @property
    def models(self) -> list[str]:
        """The names of the models to measure."""
        return list(dict.fromkeys(row.model for row in self.needs))

    @property
    def trainings(self) -> list[PlannedTraining]:
        """Those that its rows need; some need the same."""
        return [training for needed in self.needs.values() for training in needed]

    @property
    def identities(self) -> set[str]:
        """Of the trainings that it needs."""
        return {training.identity for training in self.trainings}

    @property
    def title(self) -> str:
        """Its rows and its seed."""
        return f"{', '.join(row.name for row in self.needs)} at seed {self.config.seed}"

    def of(self, row: Row) -> PlannedRun:
        """As much of the run as one of its rows needs."""
        return PlannedRun(self.config, {row: self.needs[row]})


@dataclass(frozen=True)
class Plan:
    """The runs of an ablation, by seed and then in the order of the rows."""

    config: Config
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]

    def trainings(self, rows: Iterable[Row] | None = None) -> dict[str, PlannedTraining]:
        """The different trainings that `rows` need, by default all of them."""
        chosen = set(self.rows if rows is None else rows)
        return {
            training.identity: training
            for planned in self.runs
            for row, needed in planned.needs.items()
            if row in chosen
            for training in needed
        }

    @property
    def left(self) -> list[PlannedTraining]:
        return [training for training in self.trainings().values() if not training.done]

    def baselines(self, trainings: Iterable[PlannedTraining]) -> float:
        """What `trainings` cost, in trainings of the baseline."""
        return sum(training.forwards for training in trainings) / (PLAIN_STEP * self.config.baseline.epochs)


def make_plan(
    config: Config,
    rows: Sequence[Row],
    seeds: Sequence[int],
    out: Path,
    store: Path,
    read: Callable[[int], MultiLabelDataset],
    builder: ModelBuilder | None = None,
) -> Plan:
    """The runs that `rows` need at each of `seeds`, without training anything; `read` gives the data of a
    seed.

    ConfigError names every row whose settings cannot be: all that can fail before a training does so here.
    """
    start = _starts(builder)
    runs: list[PlannedRun] = []
    for seed in seeds:
        seeded = config.model_copy(update={"seed": seed, "out": None})
        dataset = prepare_data(seeded, read(seed))
        if (before := checked_inputs(out, seed)) is not None:
            dataset = as_checked(dataset, before, config.data)
        planner = _Planner(dataset, Store(store), start)
        runs += planner.runs(seeded, rows, out / RUNS)
    return Plan(config, tuple(rows), tuple(seeds), tuple(runs))


def checked_inputs(out: Path, seed: int) -> Inputs | None:
    """What the runs of an ablation at one seed have found when they read every image: all have the same."""
    folders = sorted((out / RUNS).glob(f"*-s{seed}"))
    return next((found for path in folders if (found := RunFolder(path).inputs())), None)


class _Planner:
    """The runs at one seed, over one dataset."""

    def __init__(
        self,
        dataset: MultiLabelDataset,
        store: Store,
        start: Callable[[ModelConfig, tuple[str, ...]], dict[str, Any]],
    ) -> None:
        self.dataset = dataset
        self.fingerprint = dataset.fingerprint()
        self.store = store
        self.start = start
        self.graph = training_graph(dataset)
        self.partitions: dict[str, Partition] = {}

    def runs(self, config: Config, rows: Sequence[Row], folder: Path) -> list[PlannedRun]:
        """A run for all that have the same settings of `rows`, in their order."""
        runs: dict[str, PlannedRun] = {}
        problems = []
        for row in rows:
            try:
                settings = row_config(row, config)
                needed = self._needed(row, settings)
            except CoterieError as error:
                problems.append(f"row '{row.name}': {error}")
                continue
            name = run_name(config, settings)
            planned = runs.setdefault(
                name, PlannedRun(settings.model_copy(update={"out": folder / name}), {})
            )
            planned.needs[row] = needed
        if problems:
            raise ConfigError("\n".join(problems))
        return list(runs.values())

    def _needed(self, row: Row, config: Config) -> tuple[PlannedTraining, ...]:
        """The trainings of which the row's model is made, and those that it learns from."""
        models = measured_models(config)
        if row.model not in models:
            raise ConfigError(
                f"this run has no model '{row.model}', it has {', '.join(models)}; choose rows with --rows, "
                f"or change the settings{did_you_mean(row.model, models)}"
            )
        is_student = row.model == "student"
        kinds = tuple(branch_weights(config)) if is_student else models[row.model]
        with_baseline = (kinds and config.teacher.start == BASELINE) or (
            is_student and (config.student.start == BASELINE or config.distill.baseline > 0)
        )
        chain = _Chain(functools.partial(self._key, config), self.store)
        for training in self._trainings(config):
            of_branch = training.branch in kinds
            by_itself = not models[row.model] and training.name == row.model
            if of_branch or by_itself or (training.name == BASELINE and with_baseline):
                chain.add(training, _forwards(config, training))
        return tuple(chain.planned)

    def _trainings(self, config: Config) -> list[Training]:
        """The trainings of the run; the groups of a branch are made once for all rows."""
        partitions = {}
        for kind in branch_weights(config):
            key = content_hash([config.k, config.partition.model_dump(mode="json"), kind])
            if key not in self.partitions:
                self.partitions[key] = make_partition(config, self.graph, kind)
            partitions[kind] = self.partitions[key]
        return planned_trainings(self.dataset.class_names, partitions)

    def _key(self, config: Config, training: Training, others: Sequence[tuple[str, str]]) -> str:
        start = self.start(config.model, self.dataset.class_names)
        return training_key(config, self.fingerprint, start, training, others)


def run_name(config: Config, changed: Config) -> str:
    """A name for the run of `changed` that says what differs from `config`, and its seed."""
    changes = changed_settings(config, changed.model_copy(update={"seed": config.seed}))
    words = "+".join(f"{key}-{value}" for key, _, value in changes) or "as-set"
    name = re.sub(r"[^\w.+-]+", "-", words)[:LONGEST_NAME]
    if name != words:
        name += f"-{content_hash(words)[:8]}"
    return f"{name}-s{changed.seed}"


def plan_table(plan: Plan) -> Table:
    """A line for each row: its trainings over all seeds, how many other rows need too, are done, are left to
    do after the rows above, and what those cost.
    """
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("row", "", "trainings", "shared", "done", "left", "cost"):
        table.add_column(heading, justify="left" if heading in ("row", "") else "right")
    counted: set[str] = set()
    for row in plan.rows:
        needed = plan.trainings([row])
        others = plan.trainings(other for other in plan.rows if other != row)
        new = [t for identity, t in needed.items() if identity not in counted and not t.done]
        counted |= needed.keys()
        done = sum(training.done for training in needed.values())
        table.add_row(
            Text(row.name),
            Text(row.title),
            str(len(needed)),
            str(len(needed.keys() & others.keys())),
            str(done),
            str(len(new)),
            f"{plan.baselines(new):.1f}",
        )
    return table


def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan's table, and what is left in all."""
    count, left = len(plan.trainings()), plan.left
    console.print(plan_table(plan))
    say(
        console,
        f"seeds {', '.join(map(str, plan.seeds))}: {count} trainings in {len(plan.runs)} runs, "
        f"{count - len(left)} done, {len(left)} left at the cost of {plan.baselines(left):.1f} baselines",
    )


class _Chain:
    """Trainings of a run one after the other, as some need the weights of those before them.

    The key of such a one has those weights in it; before they are there, the keys of their trainings stand
    for them.
    """

    def __init__(self, key: Callable[[Training, Sequence[tuple[str, str]]], str], store: Store) -> None:
        self.planned: list[PlannedTraining] = []
        self._key = key
        self._store = store
        self._identities: list[tuple[str, str]] = []
        self._weights: list[tuple[str, str]] = []

    def add(self, training: Training, forwards: int) -> None:
        identity = self._key(training, self._identities)
        found = self._store.find(self._key(training, self._weights))
        self._identities.append((training.name, identity))
        if found is not None:
            self._weights.append((training.name, found.weights_sha256))
        self.planned.append(PlannedTraining(training.name, identity, forwards, done=found is not None))


def _forwards(config: Config, training: Training) -> int:
    """What a training costs for each image, in forwards of the student's network."""
    if training.name == "student":
        return student_forwards(config)
    return PLAIN_STEP * training_settings(config, training).epochs


def _starts(builder: ModelBuilder | None) -> Callable[[ModelConfig, tuple[str, ...]], dict[str, Any]]:
    """What trainings of a model start from; each model is built and tried once."""
    known: dict[str, dict[str, Any]] = {}

    def start(settings: ModelConfig, class_names: tuple[str, ...]) -> dict[str, Any]:
        key = content_hash([settings.model_dump(mode="json"), class_names])
        if key not in known:
            factory = make_factory(settings, builder)
            known[key] = describe_start(factory, tried_model(factory, class_names, Console(quiet=True)))
        return known[key]

    return start
