"""The trainings of a run and their measurement. Each is done once: from the same inputs it is read back."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from coterie.checkpoint import Checkpoint, describe_architecture, load_model, read_checkpoint, save_checkpoint
from coterie.config import Config, TrainConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import Batches, ResizedImages, plain_batches, training_batches
from coterie.data.transforms import make_augmentation
from coterie.errors import CheckpointError, ConfigError, shortened
from coterie.evaluation import EVALUATION_BATCH, Results, evaluate_models, evaluation_splits
from coterie.files import atomic_write
from coterie.losses import ClassificationLoss
from coterie.models.factory import ModelFactory
from coterie.preparation import branch_weights
from coterie.progress import Progress, say
from coterie.runfolder import METRICS_FILE, RunFolder, Training, content_hash, reset
from coterie.seeding import derive_seed
from coterie.tasks import ClassificationTask, DistillationTask, Task, classification_loss, distillation_loss
from coterie.teachers import Branch, Ensemble
from coterie.teaching import Teaching
from coterie.trainer import STATE_FILE, Data, Trainer

# branch -> the name of its teachers in tables
BRANCHES = {"co-occurrence": "CGP teachers", "dis-occurrence": "DGP teachers"}


class Stages:
    """The trainings and the measurement of one run, over one dataset and one set of resized images."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        dataset: MultiLabelDataset,
        factory: ModelFactory,
        fabric: Fabric,
        console: Console,
        fingerprint: str,
        start: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.folder = folder
        self.dataset = dataset
        self.factory = factory
        self.builder = factory.builder
        self.fabric = fabric
        self.console = console
        self.fingerprint = fingerprint
        self.start = start
        data = config.data
        self.images = ResizedImages(dataset, factory.preprocessing, data.cache_gb, shared=data.workers > 0)
        self.augmentation = make_augmentation(config.augment)

    def train(self, chosen: Collection[str]) -> set[str]:
        """Do the trainings whose names are `chosen`, in the order of the manifest; all that are done then."""
        return {training.name for training in self.folder.trainings() if self._done(training, chosen)}

    def still_to_do(self, trainings: Iterable[Training], chosen: Collection[str]) -> list[Training]:
        """Those of `chosen` that are not done from the same inputs."""
        return [
            training
            for training in trainings
            if training.name in chosen
            if not self.folder.is_done(training, self._key(training, self._settings(training)))
        ]

    def check_teachers(self, trainings: Iterable[Training], chosen: Collection[str]) -> None:
        """ConfigError where the student is `chosen` and would come before one of its teachers."""
        if "student" not in chosen:
            return
        missing = [
            training.name
            for training in trainings
            if training.branch and training.name not in chosen
            if not self.folder.is_done(training, self._key(training, self.config.teacher))
        ]
        if missing:
            raise ConfigError(f"the student learns from teachers that are not done: {shortened(missing)}")

    def _done(self, training: Training, chosen: Collection[str]) -> bool:
        """Do one training if it is `chosen`, unless it was done from the same inputs; whether it is done."""
        settings = self._settings(training)
        key = self._key(training, settings)
        if self.folder.is_done(training, key):
            say(self.console, f"{training.name}: done before")
            self._renew_threshold(training)
            return True
        if training.name not in chosen:
            return False
        self._train(training, settings, key)
        return True

    def _train(self, training: Training, settings: TrainConfig, key: str) -> None:
        if training.state == "done":
            self.folder.set_aside(training)
        training = reset(training)
        self.folder.record(training)
        path = self.folder.path / training.name
        seed = self._seed(training)
        task, batches = self._task(training, settings, seed)
        trainer = Trainer(
            task,
            self._data(batches),
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
                config=self.config.to_values(),
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
            # a weights file counts by its content, which is in `start`
            "model": config.model.model_dump(mode="json") | {"weights": None},
            "start": self.start,
            "seed": config.seed,
            "precision": config.precision,
            "channels_last": config.channels_last,
        }
        if training.name == "student":
            inputs["distill"] = config.distill.inputs(settings.epochs)
            inputs["teachers"] = [
                (other.name, other.weights_sha256) for other in self.folder.trainings() if other.branch
            ]
        return content_hash(inputs)

    def _seed(self, training: Training) -> int:
        of_student = self.config.distill.seed if training.name == "student" else None
        return derive_seed(self.config.seed if of_student is None else of_student, training.name)

    def _data(self, batches: Batches) -> Data:
        validation = plain_batches(
            self.images, self.dataset.indices("val"), EVALUATION_BATCH, self.config.data.workers
        )
        return Data(batches, validation, self.factory.preprocessing)

    def _task(self, training: Training, settings: TrainConfig, seed: int) -> tuple[Task, Batches]:
        """What a training optimises, and on which batches."""
        model = self.factory.build(training.class_names, seed)
        loss = classification_loss(settings)
        if training.name == "student":
            return self._distillation(model, loss, settings, seed)
        columns = [self.dataset.class_names.index(name) for name in training.class_names]
        batches = training_batches(
            self.images, "train", settings.batch_size, self.augmentation, seed, self.config.data.workers
        )
        return ClassificationTask(model, columns, loss), batches

    def _distillation(
        self, model: nn.Module, loss: ClassificationLoss, settings: TrainConfig, seed: int
    ) -> tuple[Task, Batches]:
        """The student's task with its teachers; or without them, and batches that bring their logits."""
        distill, weights = self.config.distill, branch_weights(self.config)
        teaching = Teaching(self.config, self.images, self.fabric, self._branch, self.console)
        cache, teachers = None, None
        if distill.is_cached(settings.epochs):
            made_from = {"data": self.fingerprint, "architecture": describe_architecture(self.factory)}
            hashes = {
                kind: [(other.class_names, other.weights_sha256) for other in self._of_branch(kind)]
                for kind in weights
            }
            cache = teaching.cache(self.folder.path, made_from, hashes)
            teaching.fill(cache, settings.epochs)
        else:
            teachers = teaching.teachers(list(weights))
        task = DistillationTask(
            model,
            teachers,
            list(weights.values()),
            loss,
            distillation_loss(distill),
            distill.w,
            self.dataset.num_classes,
        )
        return task, teaching.batches(settings.batch_size, seed, cache)

    def _branch(self, kind: str) -> Branch:
        """The teachers of a branch, by the manifest; CheckpointError where one answers for other classes."""
        teachers = []
        for training in self._of_branch(kind):
            model, checkpoint = load_model(self.folder.path / training.name, self.builder)
            if checkpoint.class_names != training.class_names:
                raise CheckpointError(f"{training.name} answers for other classes than the manifest says")
            teachers.append((model, checkpoint.class_names))
        return Branch(teachers, self.dataset.class_names)

    def _of_branch(self, kind: str) -> list[Training]:
        return [training for training in self.folder.trainings() if training.branch == kind]

    def measure(self, done: Collection[str]) -> Results:
        """Measure the models whose trainings are `done` on validation and test, once: results of the same
        weights are read back. The teachers of a branch are one model, and so there when all of them are.
        """
        inputs = {
            "weights": [
                training.weights_sha256 for training in self.folder.trainings() if training.name in done
            ],
            "data": self.fingerprint,
            "threshold": self.config.threshold,
        }
        key, path = content_hash(inputs), self.folder.path / METRICS_FILE
        measured = _read_results(path, key)
        if measured is not None:
            return measured
        models = self._models(done)
        if not models:
            return {}
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

    def _models(self, done: Collection[str]) -> dict[str, nn.Module]:
        """What is measured, by its name in tables."""
        models: dict[str, nn.Module] = {}
        if "baseline" in done:
            models["baseline"] = load_model(self.folder.path / "baseline", self.builder)[0]
        kinds = branch_weights(self.config)
        branches = {
            kind: self._branch(kind)
            for kind in kinds
            if all(training.name in done for training in self._of_branch(kind))
        }
        models |= {BRANCHES[kind]: branch for kind, branch in branches.items()}
        if len(branches) == len(kinds) > 1:
            models["all teachers"] = Ensemble(list(branches.values()))
        if "student" in done:
            models["student"] = load_model(self.folder.path / "student", self.builder)[0]
        return models


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
