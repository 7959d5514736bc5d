"""The trainings of a run and their measurement. Each is done once: from the same inputs it is read back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from coterie.checkpoint import load_model, read_checkpoint, save_checkpoint
from coterie.config import Config, TrainConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages
from coterie.errors import ConfigError, shortened
from coterie.evaluation import Results, evaluate_models, evaluation_splits
from coterie.files import atomic_write
from coterie.models.factory import ModelFactory
from coterie.preparation import branch_weights
from coterie.progress import Bars, say
from coterie.runfolder import METRICS_FILE, RunFolder, Training, content_hash, reset
from coterie.sidebyside import train_side_by_side
from coterie.teachers import Ensemble
from coterie.trainer import STATE_FILE
from coterie.training import Job, Workshop

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
        shared = config.data.workers > 0 or config.jobs > 1
        self.images = ResizedImages(dataset, factory.preprocessing, config.data.cache_gb, shared)
        self.workshop = Workshop(config, folder.path, dataset, factory, self.images)

    def train(self, chosen: Collection[str]) -> set[str]:
        """Do the trainings whose names are `chosen`: baseline and teachers, up to `jobs` at once, then the
        student. The names of all that are done then.
        """
        independent = [training for training in self.folder.trainings() if training.name != "student"]
        self._train(self._jobs(independent, chosen))
        student = [training for training in self.folder.trainings() if training.name == "student"]
        self._train(self._jobs(student, chosen))
        return {training.name for training in self.folder.trainings() if self._is_done(training)}

    def _jobs(self, trainings: Iterable[Training], chosen: Collection[str]) -> list[Job]:
        """What is still to do of `trainings`."""
        jobs = []
        for training in trainings:
            if self._is_done(training):
                say(self.console, f"{training.name}: done before")
                self._renew_threshold(training)
            elif training.name in chosen:
                settings = self._settings(training)
                jobs.append(Job(self._emptied(training), settings, self._key(training, settings)))
        return jobs

    def _emptied(self, training: Training) -> Training:
        """The training as one that is not done; what it left under another key moves to the archive."""
        if training.state == "done":
            self.folder.set_aside(training)
        training = reset(training)
        self.folder.record(training)
        return training

    def _train(self, jobs: Sequence[Job]) -> None:
        with Bars(self.console) as bars:
            for done in self._finished(jobs, bars):
                self.folder.record(done)
                (self.folder.path / done.name / STATE_FILE).unlink(missing_ok=True)
                self._tell(done)

    def _finished(self, jobs: Sequence[Job], bars: Bars) -> Iterator[Training]:
        processes = min(self.config.jobs, len(jobs))
        if processes > 1:
            yield from train_side_by_side(self.workshop, jobs, processes, bars)
            return
        for job in jobs:
            yield self.workshop.train(job, self.fabric, bars.watch, self.folder.trainings())

    def _tell(self, done: Training) -> None:
        epochs = self._settings(done).epochs
        images = len(self.dataset.indices("train")) * epochs
        map_ = "-" if done.val_map is None else f"{done.val_map:.2f}"
        say(
            self.console,
            f"{done.name}: val mAP {map_} at epoch {done.best_epoch} of {epochs}, "
            f"{done.seconds:.0f} s, {images / done.seconds:.0f} images/s",
        )

    def still_to_do(self, trainings: Iterable[Training], chosen: Collection[str]) -> list[Training]:
        """Those of `chosen` that are not done from the same inputs."""
        return [training for training in trainings if training.name in chosen if not self._is_done(training)]

    def check_teachers(self, trainings: Iterable[Training], chosen: Collection[str]) -> None:
        """ConfigError where the student is `chosen` and would come before one of its teachers."""
        if "student" not in chosen:
            return
        missing = [
            training.name
            for training in trainings
            if training.branch and training.name not in chosen and not self._is_done(training)
        ]
        if missing:
            raise ConfigError(f"the student learns from teachers that are not done: {shortened(missing)}")

    def _is_done(self, training: Training) -> bool:
        return self.folder.is_done(training, self._key(training, self._settings(training)))

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
            # files count by their content, which is in `start`
            "model": config.model.model_dump(mode="json") | {"weights": None, "word_vectors": None},
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
        kinds, trainings = branch_weights(self.config), self.folder.trainings()
        branches = {
            kind: self.workshop.branch(kind, trainings)
            for kind in kinds
            if all(training.name in done for training in trainings if training.branch == kind)
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
