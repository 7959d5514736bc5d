"""How a student comes to its teachers' logits: live, from the teachers in every step, or from the disk."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from coterie.config import Config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import Batch, Batches, EpochSampler, ResizedImages, Views, plain_batches
from coterie.data.transforms import make_augmentation
from coterie.errors import ConfigError, RunError
from coterie.models.frozen import FrozenModel, freeze
from coterie.preparation import branch_weights
from coterie.seeding import derive_seed
from coterie.teacher_cache import BranchLogits, Logits, TaughtBatches, TeacherCache, check_room
from coterie.teachers import Branch, Teachers
from coterie.trainer import Reporter, to_images

# The first of the training split, as they are: the faster forms of the teachers are tried on them.
TRIAL_IMAGES = 16
# The same for every student, so that what is stored does not depend on who asked for it first.
ANSWER_BATCH = 64
LOGITS_FOLDER = "teacher-logits"
# Other versions of these may give other pixels, or round otherwise.
VERSIONS = ("torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Teaching:
    """The teachers of a run's student; `load` gives those of a branch as they were trained."""

    config: Config
    images: ResizedImages
    fabric: Fabric
    load: Callable[[str], Branch]
    reporter: Reporter

    @property
    def views(self) -> Views:
        """The student's views: students of other seeds, and other settings of the loss, share them."""
        seed = self.config.seed if self.config.distill.view_seed is None else self.config.distill.view_seed
        return Views(self.images, make_augmentation(self.config.augment), derive_seed(seed, "student"))

    def teachers(self, kinds: Sequence[str]) -> Teachers:
        """The teachers of the branches `kinds`, frozen and in their fastest form, on the device."""
        images = self._to_images(
            next(plain_batches(self.images, self._training[:TRIAL_IMAGES], TRIAL_IMAGES).epoch(0))
        )
        frozen: list[FrozenModel] = []

        def faster(model: nn.Module) -> FrozenModel:
            frozen.append(
                freeze(
                    model, images, tolerance=self.config.distill.tolerance, precision=self.config.precision
                )
            )
            return frozen[-1]

        with _fitting(self.fabric.device):
            branches = [self.load(kind).made_faster(faster) for kind in kinds]
        forms = ", ".join(
            f"{count} in {form}" for form, count in Counter(model.form for model in frozen).items()
        )
        error = max(model.error for model in frozen)
        self.reporter.note(f"teachers: {forms}; logits within {error:.1e} of those in float32")
        teachers = Teachers(branches, compiled=self.config.distill.compile)
        return teachers.to(self.fabric.device).to(memory_format=self._memory_format)

    def batches(self, batch_size: int, seed: int, cache: TeacherCache | None) -> Batches:
        """The student's training batches, with the logits of its teachers where there is a cache."""
        sampler = EpochSampler(
            self._training, batch_size, shuffle=True, seed=seed, views=self.config.distill.views
        )
        workers = self.config.data.workers
        if cache is None:
            return Batches(self.views, sampler, workers)
        return TaughtBatches(self.views, sampler, workers, cache)

    def cache(
        self, run: Path, made_from: Mapping[str, Any], branches: Mapping[str, Sequence[Any]]
    ) -> TeacherCache:
        """The logits of branches {kind: (class names, hash of the weights) of each teacher}, as far as they
        are in the folder of the run or in `distill.cache_dir`.

        `made_from`: what data and teachers are, beyond what this knows itself.
        """
        folder = logits_folder(self.config, run)
        config, dataset = self.config, self.images.dataset
        inputs = {
            **made_from,
            "class_names": dataset.class_names,
            "preprocessing": asdict(self.images.preprocessing),
            "augment": config.augment.model_dump(mode="json"),
            "view_seed": self.views.seed,
            "tolerance": config.distill.tolerance,
            "compile": config.distill.compile,
            "precision": config.precision,
            "channels_last": config.channels_last,
            "device": self.fabric.device.type,
            "versions": {name: version(name) for name in VERSIONS},
        }
        shape = (len(self._training), dataset.num_classes)
        stored = {}
        for kind, teachers in branches.items():
            of_branch = {"branch": kind, "teachers": list(teachers)}
            stored[kind] = BranchLogits(folder, inputs | of_branch, shape, config.distill.cache_dtype)
        return TeacherCache(stored, self._answers)

    def fill(self, cache: TeacherCache, epochs: int) -> None:
        """Make the logits that are missing for a student of that many epochs."""
        views = range(min(epochs, self.config.distill.views or epochs))
        missing = cache.missing(views)
        start = time.monotonic()
        with self.reporter.watch("teachers' logits", len(missing), len(self._training)) as watcher:
            cache.fill(missing, watcher.advance)
        made = f"{len(missing)} made in {time.monotonic() - start:.0f} s" if missing else "all there before"
        self.reporter.note(f"teachers' logits: {len(views)} views, {made}")

    def _answers(self, kinds: Sequence[str]) -> Callable[[int], Iterator[Logits]]:
        """What gives the logits of the branches `kinds` for a view of all training images."""
        teachers = self.teachers(kinds)

        def answer(view: int) -> Iterator[Logits]:
            sampler = EpochSampler(self._training, ANSWER_BATCH)
            for batch in Batches(self.views, sampler, self.config.data.workers).epoch(view):
                with _fitting(self.fabric.device):
                    logits = teachers(self._to_images(batch))
                yield logits.cpu().numpy()

        return answer

    def _to_images(self, batch: Batch) -> Tensor:
        return to_images(batch.pixels, self.images.preprocessing, self.fabric, self._memory_format)

    @property
    def _training(self) -> Any:
        return self.images.dataset.indices("train")

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.config.channels_last else torch.contiguous_format


def check_teaching(config: Config, run: Path, dataset: MultiLabelDataset) -> None:
    """What can fail when the student comes to its turn, tried before any training.

    RunError where the disk has no room for the teachers' logits, ConfigError where they cannot be compiled.
    """
    distill, epochs = config.distill, config.student.epochs
    if distill.is_cached(epochs):
        folder = logits_folder(config, run)
        shape = (len(dataset.indices("train")), dataset.num_classes)
        view = BranchLogits(folder, {}, shape, distill.cache_dtype).nbytes * len(branch_weights(config))
        # which of those on the disk are the student's own, is known when its teachers are
        there = sum(path.stat().st_size for path in folder.glob("*/*.bin"))
        check_room(folder, min(epochs, distill.views or epochs) * view - there)
    if distill.compile:
        try:
            torch.compile(torch.relu)(torch.zeros(2))
        except Exception as error:  # of the compiler that is missing, or of anything under torch
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"distill.compile=true, but torch cannot compile here: {reason}") from None


def logits_folder(config: Config, run: Path) -> Path:
    """Where the teachers' logits are kept."""
    return config.distill.cache_dir or run / LOGITS_FOLDER


@contextlib.contextmanager
def _fitting(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise RunError(
            f"the teachers do not fit into the memory of {device}; set a smaller model.image_size, or k"
        ) from None
