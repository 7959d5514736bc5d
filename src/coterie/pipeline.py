"""A run from end to end: data, partitions, baseline, teachers, student, measurement."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from rich.console import Console

from coterie.checkpoint import load_model
from coterie.config import Config, settled
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import lost_process
from coterie.diagnostics import DIAGNOSTICS_FILE, PARTITIONS, SCHEMA_VERSION, Leaning
from coterie.engine import make_engine
from coterie.errors import OUT_OF_MEMORY, ConfigError, RunError, did_you_mean, is_out_of_memory
from coterie.evaluation import Results, left_out_notes, results_table
from coterie.features import check_features
from coterie.files import atomic_write, content_hash
from coterie.labels import Partition
from coterie.launched import as_one_of, dismiss, follow
from coterie.mirror import make_mirror, run_key
from coterie.models.factory import ModelBuilder, make_factory
from coterie.predictor import Predictor
from coterie.preflight import (
    check_frozen,
    check_measured,
    check_output_layer,
    check_space,
    checked_images,
    describe_start,
    tried_model,
)
from coterie.preparation import diagnose_partitions, make_partitions, prepare_data
from coterie.progress import say
from coterie.ranks import ranks_in
from coterie.rundata import keep_data
from coterie.runfolder import Inputs, RunFolder, Training, read_keyed
from coterie.stages import Stages
from coterie.store import Store
from coterie.teaching import check_teaching
from coterie.trainer import make_fabric

__all__ = ["Run", "make_partitions", "prepare_data", "run"]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, config and metrics {split: {model: {metric: percent}}}; `leaning` of the
    same models {split: {model: leaning_summary}}.
    """

    folder: Path
    config: Config
    metrics: Results
    builder: ModelBuilder | None = field(default=None, repr=False)
    leaning: Leaning = field(default_factory=dict, repr=False)

    @cached_property
    def student(self) -> Predictor:
        return self.predictor("student")

    @cached_property
    def baseline(self) -> Predictor:
        return self.predictor("baseline")

    def predictor(self, name: str) -> Predictor:
        """The model of one training, such as "student", "baseline" or "teachers/co-occurrence-0"."""
        return Predictor(*load_model(self.folder / name, self.builder))


def run(
    config: Config,
    *,
    dataset: MultiLabelDataset | None = None,
    builder: ModelBuilder | None = None,
    update: bool = False,
    only: Sequence[str] | None = None,
    models: Collection[str] | None = None,
    store: Path | None = None,
    checked: Inputs | None = None,
    console: Console | None = None,
) -> Run:
    """Train baseline, teachers and student, measure them, and leave all of it in the run folder.

    What the folder already holds from the same settings and data is not done again. `update`: take up a
    folder of other settings, and train anew what depends on the change. `only`: do the trainings of these
    names, such as ("baseline",), and measure the models there are; without it a later call does the rest.
    `models`: measure those of these names, such as ("baseline", "CGP teachers"). `store`: a folder of
    finished trainings; what it has is taken from there, and what is trained is put there. `checked`: what
    another run found when it read every image of these data.
    Where torchrun or the like has started several processes, each calls this, and has the run in the end.
    Raises a CoterieError before any training where settings, data or weights do not fit, and in the middle
    where the disk is full; what was trained is kept then.
    """
    ranks = ranks_in(os.environ)
    console = console or Console(quiet=True)
    config = settled(config)
    lead = partial(_run, config, console, dataset, builder, update, only, models, store, checked)
    if not ranks.are_several:
        return lead()
    with as_one_of(ranks, config):
        if ranks.is_first:
            made = lead()
            dismiss((made.metrics, made.leaning))
            return made
        metrics, leaning = follow(config, ranks, builder)
        return Run(config.run_folder(), config, metrics, builder, leaning)


def _run(
    config: Config,
    console: Console,
    dataset: MultiLabelDataset | None,
    builder: ModelBuilder | None,
    update: bool,
    only: Sequence[str] | None,
    models: Collection[str] | None,
    store: Path | None,
    checked: Inputs | None,
) -> Run:
    folder = RunFolder(config.run_folder())
    fabric = make_fabric(config)
    factory = make_factory(config.model, builder)
    engine = make_engine(config)
    engine.prepare(factory)
    mirror = make_mirror(config, folder.path)
    dataset = prepare_data(config, dataset)
    check_measured(dataset)
    partitions = make_partitions(config, dataset)
    model = tried_model(factory, dataset.class_names, console)
    check_frozen(config, factory, model)
    check_output_layer(config, model, dataset.num_classes)
    start = describe_start(factory, model)
    with folder.locked(), engine:
        if mirror is not None:
            mirror.fetch_run()
        before = folder.inputs() or checked
        readable, inputs = checked_images(dataset, config.data, before, console)
        inputs = replace(inputs, start_sha256=start["weights"], words_sha256=start["word_vectors"])
        if len(readable) < len(dataset):
            partitions = make_partitions(config, readable)
        dataset = readable
        folder.check_config(config, inputs, update)
        key = run_key(config, inputs)
        if mirror is not None and not update:
            mirror.check_run(key)
        trainings = _known(folder, planned_trainings(dataset.class_names, partitions))
        chosen = _chosen(trainings, only)
        shared = None
        if store is not None:
            shared = Store(store)
            shared.prepare()
        stages = Stages(
            *(config, folder, dataset, factory, fabric, console, inputs.fingerprint, start, engine),
            store=shared,
            mirror=mirror,
        )
        stages.check_order(trainings, chosen)
        to_do = stages.still_to_do(trainings, chosen)
        check_space(folder.path, model, to_do, config.jobs * config.together)
        check_features(config, folder.path, dataset, model, factory.preprocessing.image_size, to_do)
        if any(training.name == "student" for training in to_do):
            check_teaching(config, folder.path, dataset)
        try:
            folder.remove_unfinished()
            folder.set_aside_others(trainings)
            folder.save_config(config)
            for kind, partition in partitions.items():
                partition.save(folder.path / PARTITIONS / f"{kind}.json")
            folder.write_manifest(inputs, trainings)
            if mirror is not None:
                mirror.keep_run(key)
            _announce(dataset, console)
            begun = time.monotonic()
            done = stages.train(chosen)
            results, leaning = stages.measure(done, models)
            keep_data(folder.path, content_hash([asdict(inputs), dataset.class_names]), dataset)
            _keep_diagnostics(folder, config, dataset, partitions, inputs)
            if mirror is not None:
                mirror.keep_run(key)
        except OSError as error:
            raise _stopped(folder, error.strerror or str(error)) from error
        except (MemoryError, RuntimeError) as error:
            what = OUT_OF_MEMORY if is_out_of_memory(error) else lost_process(error)
            if what is None:
                raise
            raise _stopped(folder, what) from error
    _report(folder.path, results, done, time.monotonic() - begun, console)
    return Run(folder.path, config, results, factory.builder, leaning)


def _stopped(folder: RunFolder, what: str) -> RunError:
    return RunError(
        f"the run in {folder.path} stopped: {what}. Put that right and start it again: it goes on from the "
        "last state that it kept"
    )


def planned_trainings(class_names: tuple[str, ...], partitions: Mapping[str, Partition]) -> list[Training]:
    """Baseline, the teachers of each branch, student, none of them done."""
    planned = [Training("baseline", class_names)]
    for kind, partition in partitions.items():
        for index, names in enumerate(partition.group_names):
            planned.append(Training(f"teachers/{kind}-{index}", names, kind, index))
    return [*planned, Training("student", class_names)]


def _known(folder: RunFolder, planned: Sequence[Training]) -> list[Training]:
    """The planned trainings with what the manifest knows of those it has."""
    known = {training.name: training for training in folder.trainings()}
    return [
        replace(known[training.name], class_names=training.class_names)
        if training.name in known
        else training
        for training in planned
    ]


def _keep_diagnostics(
    folder: RunFolder,
    config: Config,
    dataset: MultiLabelDataset,
    partitions: Mapping[str, Partition],
    inputs: Inputs,
) -> None:
    """Write what the groups do, once: other seeds take as long as the groups themselves."""
    path = folder.path / PARTITIONS / DIAGNOSTICS_FILE
    groups = {kind: made.group_names for kind, made in partitions.items()}
    settings = config.partition.inputs()
    key = content_hash([asdict(inputs), groups, settings, config.k, config.seed])
    if read_keyed(path, key) is None:
        content = {
            "schema_version": SCHEMA_VERSION,
            "key": key,
            "branches": diagnose_partitions(config, dataset, partitions),
        }
        atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False))


def _chosen(trainings: Sequence[Training], only: Sequence[str] | None) -> set[str]:
    """The names of the trainings to do; ConfigError where there is none of a name in `only`."""
    names = [training.name for training in trainings]
    if only is None:
        return set(names)
    for name in only:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ConfigError(f"there is no training '{name}'; the trainings are {', '.join(names)}{hint}")
    return set(only)


def _announce(dataset: MultiLabelDataset, console: Console) -> None:
    counts = ", ".join(f"{len(dataset.indices(name))} {name}" for name in dataset.split_names)
    split = dataset.split_hash()[:12]
    say(console, f"{dataset.name}: {dataset.num_classes} classes, {counts} images; split {split}")
    for note in dataset.notes:
        say(console, f"note: {note}")


def _report(path: Path, results: Results, done: Collection[str], seconds: float, console: Console) -> None:
    if results:
        console.print(results_table(results))
    for note in left_out_notes(results):
        say(console, note)
    use = f"; `coterie predict {path} PHOTO` uses the student" if "student" in done else ""
    say(console, f"{path} holds the run ({seconds / 60:.1f} minutes){use}")
