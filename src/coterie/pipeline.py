"""The stages of a run: data, partitions, baseline, teachers, student, measurement. Each is done once."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from coterie.checkpoint import Checkpoint, describe_architecture, load_model, read_checkpoint, save_checkpoint
from coterie.config import Config, TrainConfig
from coterie.data.check import check_images
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages, plain_batches, training_batches
from coterie.data.reading import read_dataset
from coterie.data.splits import check_labels, ensure_splits, filter_classes
from coterie.data.transforms import make_augmentation
from coterie.errors import CheckpointError, ConfigError, RunError
from coterie.evaluation import (
    EVALUATION_BATCH,
    Results,
    evaluate_models,
    evaluation_splits,
    left_out_notes,
    results_table,
)
from coterie.files import atomic_write
from coterie.labels import CooccurrenceGraph, Partition, partition_labels
from coterie.models.factory import ModelBuilder, ModelFactory, make_factory
from coterie.predictor import Predictor
from coterie.progress import Progress, say
from coterie.runfolder import METRICS_FILE, RunFolder, Training, content_hash, reset
from coterie.seeding import derive_seed
from coterie.tasks import ClassificationTask, DistillationTask, Task, classification_loss, distillation_loss
from coterie.teachers import Branch, Ensemble
from coterie.trainer import STATE_FILE, Data, Trainer, make_fabric

# branch -> the name of its teachers in tables
BRANCHES = {"co-occurrence": "CGP teachers", "dis-occurrence": "DGP teachers"}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, config and metrics {split: {model: {metric: percent}}}."""

    folder: Path
    config: Config
    metrics: Results
    builder: ModelBuilder | None = field(default=None, repr=False)

    @cached_property
    def student(self) -> Predictor:
        return self.predictor("student")

    @cached_property
    def baseline(self) -> Predictor:
        return self.predictor("baseline")

    def predictor(self, name: str) -> Predictor:
        """The model of one training, such as "student", "baseline" or "teachers/co-occurrence-0"."""
        return Predictor(*load_model(self.folder / name, self.builder))


def prepare_data(config: Config, dataset: MultiLabelDataset | None = None) -> MultiLabelDataset:
    """The dataset as a run uses it: splits made where there are none, classes chosen, labels checked."""
    dataset = read_dataset(config.data, config.seed) if dataset is None else dataset
    dataset = ensure_splits(dataset, config.data.val_fraction, config.data.test_fraction, config.seed)
    dataset = filter_classes(dataset, config.data.min_positives)
    return replace(dataset, notes=(*dataset.notes, *check_labels(dataset)))


def make_partitions(config: Config, dataset: MultiLabelDataset) -> dict[str, Partition]:
    """A partition for each branch that the student's loss gives weight, from the training split alone."""
    train = dataset.targets[dataset.indices("train")]
    graph = CooccurrenceGraph.from_targets(train, dataset.class_names)
    methods = {"co-occurrence": config.partition.co_method, "dis-occurrence": config.partition.dis_method}
    return {
        kind: partition_labels(graph, config.k, kind, methods[kind], config.partition.root, config.seed)
        for kind in branch_weights(config)
    }


def branch_weights(config: Config) -> dict[str, float]:
    """The weight of each branch in the student's loss; a branch of weight 0 is not trained."""
    weights = {"co-occurrence": config.distill.a, "dis-occurrence": 1 - config.distill.a}
    return {kind: weight for kind, weight in weights.items() if weight > 0}


def run(
    config: Config,
    *,
    dataset: MultiLabelDataset | None = None,
    builder: ModelBuilder | None = None,
    update: bool = False,
    console: Console | None = None,
) -> Run:
    """Train baseline, teachers and student, measure them, and leave all of it in the run folder.

    What the folder already holds from the same settings and data is not done again. `update`: take up a
    folder of other settings, and train anew what depends on the change. Raises a CoterieError before any
    training where settings, data or weights do not fit, and in the middle where the disk is full; what was
    trained is kept then.
    """
    console = console or Console(quiet=True)
    folder = RunFolder(config.run_folder())
    fabric = make_fabric(config)
    factory = make_factory(config.model, builder)
    dataset = prepare_data(config, dataset)
    partitions = make_partitions(config, dataset)
    model = _tried_model(factory, dataset.class_names, console)
    with folder.locked():
        checked = _checked_images(config, dataset, console)
        if len(checked) < len(dataset):
            dataset, partitions = checked, make_partitions(config, checked)
        folder.check_config(config, dataset.fingerprint(), update)
        trainings = _planned(folder, dataset, partitions)
        _check_space(folder.path, model, trainings)
        stages = _Stages(config, folder, dataset, factory, builder, fabric, console, _start(factory, model))
        try:
            folder.remove_unfinished()
            folder.set_aside_others(trainings)
            folder.save_config(config)
            for kind, partition in partitions.items():
                partition.save(folder.path / "partitions" / f"{kind}.json")
            folder.write_manifest(dataset.fingerprint(), trainings)
            return stages.run()
        except OSError as error:
            raise RunError(
                f"the run in {folder.path} stopped: {error.strerror or error}. Put that right and start it "
                "again: it goes on from the last finished epoch"
            ) from error


class _Stages:
    """The trainings and the measurement of one run, over one dataset and one set of resized images."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        dataset: MultiLabelDataset,
        factory: ModelFactory,
        builder: ModelBuilder | None,
        fabric: Fabric,
        console: Console,
        start: dict[str, Any],
    ) -> None:
        self.config = config
        self.folder = folder
        self.dataset = dataset
        self.factory = factory
        self.builder = factory.builder or builder
        self.fabric = fabric
        self.console = console
        self.start = start
        data = config.data
        self.images = ResizedImages(dataset, factory.preprocessing, data.cache_gb, shared=data.workers > 0)
        self.augmentation = make_augmentation(config.augment)
        self.fingerprint = dataset.fingerprint()

    def run(self) -> Run:
        start = time.monotonic()
        self._announce()
        for training in self.folder.trainings():
            self._train(training)
        results = self._measure()
        self.console.print(results_table(results))
        for note in left_out_notes(results):
            say(self.console, note)
        minutes = (time.monotonic() - start) / 60
        say(
            self.console,
            f"{self.folder.path} holds the run ({minutes:.1f} minutes); `coterie predict "
            f"{self.folder.path} PHOTO` uses the student",
        )
        return Run(self.folder.path, self.config, results, self.builder)

    def _announce(self) -> None:
        counts = ", ".join(f"{len(self.dataset.indices(name))} {name}" for name in self.dataset.split_names)
        say(self.console, f"{self.dataset.name}: {self.dataset.num_classes} classes, {counts} images")
        for note in self.dataset.notes:
            say(self.console, f"note: {note}")

    def _train(self, training: Training) -> None:
        """Do one training, unless it was done from the same inputs."""
        settings = self._settings(training)
        key = self._key(training, settings)
        if self.folder.is_done(training, key):
            say(self.console, f"{training.name}: done before")
            self._renew_threshold(training)
            return
        if training.state == "done":
            self.folder.set_aside(training)
        training = reset(training)
        self.folder.record(training)
        path = self.folder.path / training.name
        seed = derive_seed(self.config.seed, training.name)
        task = self._task(training, settings, seed)
        trainer = Trainer(
            task,
            self._data(settings, seed),
            settings,
            self.fabric,
            path,
            key=key,
            seed=seed,
            channels_last=self.config.channels_last,
        )
        images = len(trainer.data.training) * trainer.data.training.sampler.batch_size
        start = time.monotonic()
        with Progress(self.console, training.name, settings.epochs, images, trainer.state.epoch) as progress:
            state = trainer.run(progress)
        task.model.load_state_dict(state.best_weights)
        checkpoint = save_checkpoint(
            path,
            task.model,
            Checkpoint(
                name=training.name,
                class_names=training.class_names,
                architecture=describe_architecture(self.factory),
                preprocessing=self.factory.preprocessing,
                threshold=self.config.threshold,
                metrics={"val_mAP": state.best_map, "best_epoch": state.best_epoch},
                config=self.config.model_dump(mode="json"),
            ),
        )
        done = replace(
            training,
            state="done",
            key=key,
            weights_sha256=checkpoint.weights_sha256,
            best_epoch=state.best_epoch,
            val_map=state.best_map,
            seconds=sum(line["seconds"] for line in state.history),
        )
        self.folder.record(done)
        (path / STATE_FILE).unlink(missing_ok=True)
        map_ = "-" if state.best_map is None else f"{state.best_map:.2f}"
        speed = sum(line["images_per_second"] for line in state.history) / len(state.history)
        say(
            self.console,
            f"{training.name}: val mAP {map_} at epoch {state.best_epoch} of {settings.epochs}, "
            f"{time.monotonic() - start:.0f} s, {speed:.0f} images/s",
        )

    def _renew_threshold(self, training: Training) -> None:
        """Put the threshold of the config into the checkpoint: no training depends on it."""
        path = self.folder.path / training.name
        if read_checkpoint(path).threshold != self.config.threshold:
            model, checkpoint = load_model(path, self.builder)
            save_checkpoint(path, model, replace(checkpoint, threshold=self.config.threshold))

    def _settings(self, training: Training) -> TrainConfig:
        return {"baseline": self.config.baseline, "student": self.config.student}.get(
            training.name, self.config.teacher
        )

    def _key(self, training: Training, settings: TrainConfig) -> str:
        """A hash of all that the weights depend on."""
        config = self.config
        inputs: dict[str, Any] = {
            "data": self.fingerprint,
            "name": training.name,
            "class_names": training.class_names,
            "settings": settings.model_dump(mode="json"),
            "augment": config.augment.model_dump(mode="json"),
            "model": config.model.model_dump(mode="json"),
            "start": self.start,
            "seed": config.seed,
            "precision": config.precision,
            "channels_last": config.channels_last,
        }
        if training.name == "student":
            inputs["distill"] = config.distill.model_dump(mode="json")
            inputs["teachers"] = [
                (other.name, other.weights_sha256) for other in self.folder.trainings() if other.branch
            ]
        return content_hash(inputs)

    def _data(self, settings: TrainConfig, seed: int) -> Data:
        workers = self.config.data.workers
        return Data(
            training_batches(self.images, "train", settings.batch_size, self.augmentation, seed, workers),
            plain_batches(self.images, self.dataset.indices("val"), EVALUATION_BATCH, workers),
            self.factory.preprocessing,
        )

    def _task(self, training: Training, settings: TrainConfig, seed: int) -> Task:
        model = self.factory.build(training.class_names, seed)
        loss = classification_loss(settings)
        if training.name != "student":
            columns = [self.dataset.class_names.index(name) for name in training.class_names]
            return ClassificationTask(model, columns, loss)
        weights = branch_weights(self.config)
        branches = {kind: (self._branch(kind), weight) for kind, weight in weights.items()}
        return DistillationTask(
            model, branches, loss, distillation_loss(self.config.distill), self.config.distill.w
        )

    def _branch(self, kind: str) -> Branch:
        """The teachers of a branch, by the manifest; CheckpointError where one answers for other classes."""
        teachers = []
        for training in self.folder.trainings():
            if training.branch != kind:
                continue
            model, checkpoint = load_model(self.folder.path / training.name, self.builder)
            if checkpoint.class_names != training.class_names:
                raise CheckpointError(f"{training.name} answers for other classes than the manifest says")
            teachers.append((model, checkpoint.class_names))
        return Branch(teachers, self.dataset.class_names)

    def _measure(self) -> Results:
        """Measure all models on validation and test, once: results of the same weights are read back."""
        trainings = self.folder.trainings()
        inputs = {
            "weights": [training.weights_sha256 for training in trainings],
            "data": self.fingerprint,
            "threshold": self.config.threshold,
            "precision": self.config.precision,
        }
        key, path = content_hash(inputs), self.folder.path / METRICS_FILE
        measured = _read_results(path, key)
        if measured is not None:
            return measured
        models: dict[str, nn.Module] = {
            "baseline": load_model(self.folder.path / "baseline", self.builder)[0]
        }
        branches = {kind: self._branch(kind) for kind in branch_weights(self.config)}
        models |= {BRANCHES[kind]: branch for kind, branch in branches.items()}
        if len(branches) > 1:
            models["all teachers"] = Ensemble(list(branches.values()))
        models["student"] = load_model(self.folder.path / "student", self.builder)[0]
        results = evaluate_models(
            models,
            self.images,
            evaluation_splits(self.dataset.split_names),
            self.fabric,
            threshold=self.config.threshold,
            workers=self.config.data.workers,
        )
        content = {
            "schema_version": 1,
            "key": key,
            "class_names": self.dataset.class_names,
            "threshold": self.config.threshold,
            "splits": results,
        }
        atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False))
        return results


def _read_results(path: Path, key: str) -> Results | None:
    """The results in a metrics file, None where they are of other inputs or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("key") != key:
        return None
    results: Results = content["splits"]
    return results


def _planned(
    folder: RunFolder, dataset: MultiLabelDataset, partitions: Mapping[str, Partition]
) -> list[Training]:
    """Baseline, the teachers of each branch, student; with what the manifest knows of those it has."""
    planned = [Training("baseline", dataset.class_names)]
    for kind, partition in partitions.items():
        for index, names in enumerate(partition.group_names):
            planned.append(Training(f"teachers/{kind}-{index}", names, kind, index))
    planned.append(Training("student", dataset.class_names))
    known = {training.name: training for training in folder.trainings()}
    return [
        replace(known[training.name], class_names=training.class_names)
        if training.name in known
        else training
        for training in planned
    ]


def _checked_images(config: Config, dataset: MultiLabelDataset, console: Console) -> MultiLabelDataset:
    """Every image decoded once, so that a broken one stops the run now and not hours later."""
    with console.status("reading every image once"):
        checked, _ = check_images(dataset, config.data.on_corrupt)
    if len(checked) < len(dataset):
        check_labels(checked)
    return checked


def _tried_model(factory: ModelFactory, class_names: Sequence[str], console: Console) -> nn.Module:
    """The model for all classes, run once: a wrong name, file or shape shows before the first training."""
    model = factory.build(class_names).eval()
    if factory.settings.weights is not None:
        say(console, str(factory.load_weights(model)))
    size = factory.preprocessing.image_size
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the model does not take images of {size} x {size} pixels: {reason}; set model.image_size"
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, len(class_names)):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(
            f"the model must return logits [B, {len(class_names)}] for images [B, 3, H, W]; "
            f"for B = 2 it gave {got}"
        )
    return model


def _start(factory: ModelFactory, model: nn.Module) -> dict[str, Any]:
    """What the settings only point to: the shapes of a user's own model, the content of a weights file."""
    weights = factory.settings.weights
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "weights": None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def _check_space(path: Path, model: nn.Module, trainings: Sequence[Training]) -> None:
    """RunError where the disk has no room for the weights of all trainings and the state of one."""
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    left = sum(training.state != "done" for training in trainings)
    # the state holds model, average, best and two moments, and is written beside the one before
    needed = size * (left + 10) if left else 0
    free = shutil.disk_usage(path).free
    if free < needed:
        raise RunError(
            f"the run needs about {needed / 1e9:.2f} GB in {path} and the disk has {free / 1e9:.2f} GB free; "
            "free some, or choose another place with out=…"
        )
