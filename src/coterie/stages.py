"""The trainings of a run and their measurement. Each is done once: from the same inputs it is read back."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from coterie.checkpoint import read_checkpoint, write_description
from coterie.config import BASELINE, STUDENT, Config, TrainConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages
from coterie.data.pixels import PIXELS_FOLDER, PixelStore
from coterie.data.splits import learned_images
from coterie.diagnostics import (
    LEANING_FILE,
    Leaning,
    companion_rates,
    describe_pairs,
    leaning_summary,
    strongest_pairs,
)
from coterie.engine import Engine
from coterie.errors import ConfigError, CoterieError, RunError, counted, shortened
from coterie.evaluation import Results, evaluation_splits, model_logits, to_scores
from coterie.files import atomic_write, content_hash
from coterie.logits import LogitsWriter, are_written
from coterie.metrics import multilabel_metrics
from coterie.mirror import Mirror
from coterie.models.factory import ModelFactory
from coterie.preparation import branch_kind, branch_weights, training_graph
from coterie.progress import Bars, say
from coterie.runfolder import METRICS_FILE, RunFolder, Training, measurement_key, read_keyed, reset
from coterie.states import remove_states
from coterie.store import Store
from coterie.teachers import Branch, Ensemble
from coterie.training import Failed, Job, Workshop

# kind of the branches -> the name of their teachers in tables
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
        engine: Engine,
        store: Store | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.dataset = dataset
        self.factory = factory
        self.fabric = fabric
        self.console = console
        self.fingerprint = fingerprint
        self.start = start
        self.engine = engine
        self.store = store
        self.mirror = mirror
        shared = config.data.workers > 0 or config.jobs > 1 or config.processes > 1
        stored = self._stored_pixels()
        self._pixels_are_stored = False
        self.images = ResizedImages(dataset, factory.preprocessing, config.data.cache_gb, shared, stored)
        self.workshop = Workshop(config, folder.path, dataset, factory, self.images, fingerprint, mirror)

    def _stored_pixels(self) -> PixelStore | None:
        """The resized images on the disk: where memory does not hold them, files do, and the disk may."""
        data, side, images = self.config.data, self.factory.preprocessing.image_size, len(self.dataset)
        in_memory = ResizedImages.fits(images, side, data.cache_gb)
        if in_memory or isinstance(self.dataset.images, np.ndarray):
            return None
        folder = self.config.cache_folder(self.folder.path, PIXELS_FOLDER)
        stored = PixelStore(folder, self.fingerprint, images, side)
        return stored if stored.nbytes <= data.disk_cache_gb * 1e9 else None

    def train(self, chosen: Collection[str]) -> set[str]:
        """Do the trainings whose names are `chosen`: baseline and teachers, then the student; teachers that
        start from the baseline come after it. The names of all that are done then.
        """
        if self.still_to_do(self.folder.trainings(), chosen):
            self._store_pixels()
        for stage in range(3):
            trainings = [training for training in self.folder.trainings() if self._stage(training) == stage]
            self._train(self._jobs(trainings, chosen))
        return {training.name for training in self.folder.trainings() if self._is_done(training)}

    def _store_pixels(self) -> None:
        """Put the resized images onto the disk where they belong there, once; those that are whole stay."""
        if self.images.stored is not None and not self._pixels_are_stored:
            with Bars(self.console) as bars, bars.watch("resized images", 1, len(self.dataset)) as bar:
                self.images.fill(bar.advance)
            self._pixels_are_stored = True

    def _stage(self, training: Training) -> int:
        """When its turn is: a training waits for those whose weights it needs."""
        if training.name == STUDENT:
            return 2
        return 1 if training_settings(self.config, training).start == "baseline" else 0

    def _jobs(self, trainings: Iterable[Training], chosen: Collection[str]) -> list[Job]:
        """What is still to do of `trainings`, when what the store has is taken from there."""
        jobs = []
        for training in trainings:
            key = self._key(training)
            if self._is_done(training):
                say(self.console, f"{training.name}: done before")
                remove_states(self.folder.path / training.name)  # of a run killed when it was just finished
                self._renew_threshold(training)
                self._share(training)
            elif training.name in chosen and not (self._bring(training, key) or self._take(training, key)):
                jobs.append(Job(self._emptied(training), training_settings(self.config, training), key))
        return jobs

    def _bring(self, training: Training, key: str) -> bool:
        """Bring the training from where another machine has finished it; whether it is there."""
        if self.mirror is None:
            return False
        found = self.mirror.take(training, key)
        if found is None:
            return False
        self.folder.record(found)
        self._renew_threshold(found)
        say(self.console, f"{found.name}: brought from {self.mirror.url}, val mAP {_percent(found.val_map)}")
        return True

    def _take(self, training: Training, key: str) -> bool:
        """Take the training out of the store instead of doing it; whether the store has it."""
        if self.store is None or self.store.find(key) is None:
            return False
        path = self.folder.path / self._emptied(training).name
        found = self.store.take(key, path)
        if found is None:
            return False
        taken, checkpoint = found
        # what another run has tuned was for the purposes of that run
        untuned = replace(checkpoint, thresholds=None, temperature=1.0)
        config = self.config.to_values()
        write_description(path, replace(untuned, threshold=self.config.threshold, config=config))
        self.folder.record(taken)
        remove_states(path)
        if self.mirror is not None:
            self.mirror.keep(taken)
        say(self.console, f"{taken.name}: taken from {self.store.path}, val mAP {_percent(taken.val_map)}")
        return True

    def _share(self, training: Training) -> None:
        """Put a finished training into the store, and to where other machines find it."""
        if self.store is not None:
            self.store.put(training, self.folder.path / training.name)
        if self.mirror is not None:
            self.mirror.keep(training)

    def _emptied(self, training: Training) -> Training:
        """The training as one that is not done; what it left under another key moves to the archive."""
        if training.state == "done":
            self.folder.set_aside(training)
        training = reset(training)
        self.folder.record(training)
        return training

    def _train(self, jobs: Sequence[Job]) -> None:
        """Do `jobs`; RunError at the end, when the others are finished, naming those that failed and why. An
        error that ends all of them names those that had failed before.
        """
        failures: list[Failed] = []
        with Bars(self.console) as bars, _told_too(failures):
            for result in self.engine.train(self.workshop, jobs, self.folder.trainings(), bars):
                if not isinstance(result, Training):
                    failures.append(result)
                    continue
                self.folder.record(result)
                remove_states(self.folder.path / result.name)
                self._share(result)
                self._tell(result)
        if len(jobs) == 1 and failures:
            raise failures[0][1]
        if failures:
            raise RunError(
                f"{len(failures)} of {len(jobs)} trainings failed; the others are finished and kept. Put "
                f"that right and start the run again:{_reasons(failures)}"
            )

    def _tell(self, done: Training) -> None:
        settings = training_settings(self.config, done)
        epochs = settings.epochs_done(done.best_epoch)
        trained = learned_images(self.dataset, is_student=done.name == STUDENT)
        images = len(trained) * epochs
        say(
            self.console,
            f"{done.name}: val mAP {_percent(done.val_map)} at epoch {done.best_epoch} of {epochs}, "
            f"{done.seconds:.0f} s, {images / done.seconds:.0f} images/s",
        )

    def still_to_do(self, trainings: Iterable[Training], chosen: Collection[str]) -> list[Training]:
        """Those of `chosen` that are not done from the same inputs."""
        return [training for training in trainings if training.name in chosen if not self._is_done(training)]

    def check_order(self, trainings: Iterable[Training], chosen: Collection[str]) -> None:
        """ConfigError where one that is `chosen` would come before another whose weights it needs."""
        there = {
            training.name for training in trainings if training.name in chosen or self._is_done(training)
        }
        missing = [training.name for training in trainings if training.branch and training.name not in there]
        if self.config.distill.baseline > 0 and BASELINE not in there:
            missing.append(BASELINE)
        if STUDENT in chosen and missing:
            raise ConfigError(f"the student learns from teachers that are not done: {shortened(missing)}")
        from_baseline = [
            training.name
            for training in trainings
            if training.name in chosen and training_settings(self.config, training).start == "baseline"
        ]
        if from_baseline and "baseline" not in there:
            raise ConfigError(f"{from_baseline[0]} starts from the baseline, and that is not done")

    def _is_done(self, training: Training) -> bool:
        return self.folder.is_done(training, self._key(training))

    def _renew_threshold(self, training: Training) -> None:
        """Put the threshold of the config into the checkpoint: no training depends on it."""
        path = self.folder.path / training.name
        checkpoint = read_checkpoint(path)
        if checkpoint.threshold != self.config.threshold:
            write_description(path, replace(checkpoint, threshold=self.config.threshold))

    def _key(self, training: Training) -> str:
        """A hash of all that the weights depend on."""
        others = [(other.name, other.weights_sha256) for other in self.folder.trainings()]
        return training_key(self.config, self.fingerprint, self.start, training, others)

    def measure(
        self, done: Collection[str], chosen: Collection[str] | None = None
    ) -> tuple[Results, Leaning]:
        """Measure the models whose trainings are `done` on validation and test, once: results of the same
        weights are read back. The teachers of a branch are one model, and so there when all of them are.
        `chosen`: the names of the models to measure, by default of all.
        """
        weights = [training.weights_sha256 for training in self.folder.trainings() if training.name in done]
        key = measurement_key(weights, chosen, self.fingerprint, self.config.threshold)
        path = self.folder.path
        kept = [read_keyed(path / file, key) for file in (METRICS_FILE, LEANING_FILE)]
        splits = evaluation_splits(self.dataset.split_names)
        if kept[0] and kept[1] and are_written(path, splits, key):
            return kept[0]["splits"], kept[1]["splits"]
        models = self._models(done, chosen)
        if not models:
            return {}, {}
        self._store_pixels()
        results: Results = {}
        leaning: Leaning = {}
        names, threshold = self.dataset.class_names, self.config.threshold
        pairs = strongest_pairs(training_graph(self.dataset))
        writer = LogitsWriter(path, key, self.dataset)
        workers = self.config.data.workers
        for split, model, logits, targets in model_logits(
            models, self.images, splits, self.fabric, workers=workers
        ):
            writer.put(split, model, logits, targets)
            scores = to_scores(logits)
            measured = multilabel_metrics(scores, targets, threshold, class_names=names)
            results.setdefault(split, {})[model] = measured
            rates = companion_rates(scores.numpy(), targets.numpy(), pairs, threshold)
            leaning.setdefault(split, {})[model] = leaning_summary(rates)
        writer.finish()
        content = {"schema_version": 1, "key": key, "class_names": names, "threshold": threshold}
        asked = {"pairs": describe_pairs(pairs, names)}
        for file, further in (
            (METRICS_FILE, {"splits": results}),
            (LEANING_FILE, asked | {"splits": leaning}),
        ):
            atomic_write(path / file, json.dumps(content | further, indent=1, ensure_ascii=False))
        return results, leaning

    def _models(self, done: Collection[str], chosen: Collection[str] | None) -> dict[str, nn.Module]:
        """What is measured, by its name in tables."""
        trainings = self.folder.trainings()

        @functools.cache
        def branch(kind: str) -> Branch:
            return self.workshop.branch(kind, trainings)

        models: dict[str, nn.Module] = {}
        for name, kinds in measured_models(self.config).items():
            parts = [training.name for training in trainings if training.branch in kinds] or [name]
            if (chosen is not None and name not in chosen) or not set(parts) <= set(done):
                continue
            if not kinds:
                (training,) = [training for training in trainings if training.name == name]
                models[name] = self.workshop.load(training)
            else:
                models[name] = branch(*kinds) if len(kinds) == 1 else Ensemble([*map(branch, kinds)])
        return models


def measured_models(config: Config) -> dict[str, tuple[str, ...]]:
    """The models that a run measures, by their names in tables, each with the branches whose teachers it
    joins: all of one kind, and all there are.
    """
    branches = tuple(branch_weights(config))
    teachers: dict[str, tuple[str, ...]] = {}
    for branch in branches:
        name = "teacher" if config.k == 1 else BRANCHES[branch_kind(branch)[0]]
        teachers[name] = (*teachers.get(name, ()), branch)
    together = {"all teachers": branches} if len(teachers) > 1 else {}
    return {"baseline": (), **teachers, **together, "student": ()}


def training_settings(config: Config, training: Training) -> TrainConfig:
    """The settings of one training, by its role."""
    return {"baseline": config.baseline, "student": config.student}.get(training.name, config.teacher)


def training_key(
    config: Config,
    fingerprint: str,
    start: Mapping[str, Any],
    training: Training,
    others: Sequence[tuple[str, str]],
) -> str:
    """A hash of all that the weights of a training depend on, and of nothing else: neither the folder of the
    run nor what else is trained in it. `others`: (name, hash of the weights) of the teachers of which a
    student learns, and of the baseline where a training starts from it.
    """
    settings = training_settings(config, training).inputs()
    if training.branch is None or config.k == 1:
        settings.pop("outside", None)  # of all labels there is nothing
    inputs: dict[str, Any] = {
        "data": fingerprint,
        # with the seed, the name decides about first weights, views and order
        "name": training.name,
        "class_names": training.class_names,
        "settings": settings,
        "augment": config.augment.inputs(),
        # files count by their content, which is in `start`
        "model": config.model.inputs() | {"weights": None, "word_vectors": None},
        "start": start,
        "seed": config.seed,
        "precision": config.precision,
        "channels_last": config.channels_last,
    }
    if order := config.data.webdataset.model_dump(include={"window", "block"}, exclude_defaults=True):
        inputs["order"] = order
    if training.name == STUDENT:
        inputs["distill"] = config.distill_inputs()
        inputs["teachers"] = [(name, weights) for name, weights in others if name.startswith("teachers/")]
    taught_by_it = training.name == STUDENT and config.distill.baseline > 0
    if taught_by_it or training_settings(config, training).start == BASELINE:
        inputs[BASELINE] = dict(others).get(BASELINE)
    return content_hash(inputs)


@contextlib.contextmanager
def _told_too(failures: Sequence[Failed]) -> Iterator[None]:
    """An error in the block tells of the `failures` before it, too."""
    try:
        yield
    except Exception as error:
        before = f"{counted(len(failures), 'training')} had failed before:{_reasons(failures)}"
        if failures and isinstance(error, CoterieError):
            raise RunError(f"{error}\n{before}") from error
        if failures:
            error.add_note(before)
        raise


def _reasons(failures: Iterable[Failed]) -> str:
    return "".join(f"\n  {failed.name}: {error}" for failed, error in failures)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
