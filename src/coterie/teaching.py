"""How a student comes to its teachers' logits: live, from the teachers in every step, or from the disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from coterie.array_store import Array, ArrayStore, check_room
from coterie.config import Config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import (
    Batch,
    EpochSampler,
    ImageBatches,
    ResizedImages,
    Views,
    plain_batches,
)
from coterie.data.splits import taught_images
from coterie.errors import ConfigError, where_memory_may_run_out
from coterie.features import FrozenViews, describe_views
from coterie.losses import weigh_by_precision
from coterie.metrics import average_precision
from coterie.models.cut import Cut
from coterie.models.frozen import FrozenModel, freeze
from coterie.preparation import teacher_weights
from coterie.teachers import Branch, Teachers
from coterie.trainer import Reporter, memory_layout, to_images
from coterie.view_cache import ViewCache

# The first of the training split, as they are: the faster forms of the teachers are tried on them.
TRIAL_IMAGES = 16
# The same for every student, so that what is stored does not depend on who asked for it first.
ANSWER_BATCH = 64
LOGITS_FOLDER = "teacher-logits"
WHAT = "the teachers' logits"
REMEDY = "Choose another place with cache_dir=…, fewer student.views, or distill.cache=off"


@dataclass(frozen=True)
class Teaching:
    """The teachers of a run's student; `load` gives those of a branch as they were trained.

    `known`: what the student's frozen part makes of its views, where that is kept. Teachers with the same
    frozen part answer from it.
    """

    config: Config
    views: Views
    fabric: Fabric
    load: Callable[[str], Branch]
    reporter: Reporter
    known: FrozenViews | None = None

    @property
    def images(self) -> ResizedImages:
        return self.views.images

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
            branches = [self.load(kind) for kind in kinds]
            frozen_part = self._frozen_part(branches)
            if frozen_part is not None:
                frozen_part.lower_part.to(self.fabric.device).eval()
                with self.fabric.autocast():
                    images = frozen_part.lower(images)
            branches = [branch.made_faster(faster) for branch in branches]
        forms = ", ".join(
            f"{count} in {form}" for form, count in Counter(model.form for model in frozen).items()
        )
        error = max(model.error for model in frozen)
        self.reporter.note(f"teachers: {forms}; logits within {error:.1e} of those in float32")
        teachers = Teachers(branches, self.config.distill.compile, frozen_part, autocast=self.fabric.autocast)
        return teachers.to(self.fabric.device).to(memory_format=memory_layout(self.config.channels_last))

    def weights(self, teachers: Teachers | None = None) -> Tensor:
        """The weight of each branch in the student's loss: [R], or [R, C] where the validation AP of its
        teachers for each label counts. `teachers`: those of all branches, where they are loaded already.
        """
        of_branches = teacher_weights(self.config)
        weights, power = torch.tensor(list(of_branches.values())), self.config.distill.ap_power
        if power == 0 or len(of_branches) == 1:
            return weights
        precision = self._precision(teachers or self.teachers(list(of_branches)))
        return weigh_by_precision(weights, precision, power)

    def _precision(self, teachers: Teachers) -> Tensor:
        """The average precision [R, C] of each branch for each label on validation, in the form in which it
        teaches; NaN where a label has no positive there.
        """
        validation = self.images.dataset.indices("val")
        logits, targets = [], []
        for batch in plain_batches(self.images, validation, ANSWER_BATCH, self.config.data.workers).epoch(0):
            with _fitting(self.fabric.device):
                logits.append(teachers(self._to_images(batch)).cpu())
            targets.append(batch.targets)
        known = torch.cat(targets)
        return torch.stack([average_precision(branch, known) for branch in torch.cat(logits, dim=1)])

    def _frozen_part(self, branches: Sequence[Branch]) -> Cut | None:
        """The part that was frozen in all teachers; the branches answer from its features then."""
        if (name := self.config.teacher.frozen) is None:
            return None
        cuts = [[Cut(model, name) for model in branch.models] for branch in branches]
        if len({cut.sha256() for of_branch in cuts for cut in of_branch}) > 1:
            return None
        for branch, of_branch in zip(branches, cuts, strict=True):
            branch.models = nn.ModuleList(cut.upper_part for cut in of_branch)
        return cuts[0][0]

    def cache(
        self,
        run: Path,
        fingerprint: str,
        architecture: Mapping[str, Any],
        branches: Mapping[str, Sequence[Any]],
    ) -> ViewCache:
        """The logits of branches {kind: (class names, hash of the weights) of each teacher}, as far as they
        are in the folder of the run or in `cache_dir`.
        """
        folder = self.config.cache_folder(run, LOGITS_FOLDER)
        config, dataset = self.config, self.images.dataset
        inputs = {
            **describe_views(config, self.views, self.fabric, fingerprint),
            "architecture": dict(architecture),
            "class_names": dataset.class_names,
            "frozen": config.teacher.frozen,
            "known": None if self.known is None else self.known.sha256,
            "tolerance": config.distill.tolerance,
            "compile": config.distill.compile,
        }
        shape = (len(self._training), dataset.num_classes)
        stores = {}
        for kind, teachers in branches.items():
            of_branch = {"branch": kind, "teachers": list(teachers)}
            stores[kind] = ArrayStore(folder, inputs | of_branch, shape, config.distill.cache_dtype)
        return ViewCache(stores, self._answers, WHAT, REMEDY)

    def fill(self, cache: ViewCache) -> None:
        """Make the logits that are missing for the student's epochs."""
        views = self.config.student.distinct_views
        missing = cache.missing(views)
        start = time.monotonic()
        with self.reporter.watch("teachers' logits", len(missing), len(self._training)) as watcher:
            cache.fill(missing, watcher.advance)
        made = f"{len(missing)} made in {time.monotonic() - start:.0f} s" if missing else "all there before"
        self.reporter.note(f"teachers' logits: {len(views)} views, {made}")

    def _answers(self, kinds: Sequence[str]) -> Callable[[int], Iterator[Array]]:
        """What gives the logits of the branches `kinds` for a view of all training images."""
        teachers = self.teachers(kinds)

        def answer(view: int) -> Iterator[Array]:
            for images, are_features in self._view(view, teachers):
                with _fitting(self.fabric.device):
                    logits = teachers(images, are_features)
                yield logits.cpu().numpy()

        return answer

    def _view(self, view: int, teachers: Teachers) -> Iterator[tuple[Tensor, bool]]:
        """A view of all training images on the device, in batches: what the teachers answer from, and whether
        that is features.
        """
        if self.known is not None and self.known.sha256 == teachers.frozen_sha256:
            (features,) = self.known.features.view(view)
            for first in range(0, len(features), ANSWER_BATCH):
                part = features[first : first + ANSWER_BATCH].astype(np.float32)  # also a copy that is ours
                yield torch.from_numpy(part).to(self.fabric.device), True
            return
        sampler = EpochSampler(self._training, ANSWER_BATCH)
        for batch in ImageBatches(self.views, sampler, self.config.data.workers).epoch(view):
            yield self._to_images(batch), False

    def _to_images(self, batch: Batch) -> Tensor:
        layout = memory_layout(self.config.channels_last)
        return to_images(batch.pixels, self.images.preprocessing, self.fabric, layout)

    @property
    def _training(self) -> npt.NDArray[np.int64]:
        return taught_images(self.images.dataset)


def check_teaching(config: Config, run: Path, dataset: MultiLabelDataset) -> None:
    """What can fail when the student comes to its turn, tried before any training.

    RunError where the disk has no room for the teachers' logits, ConfigError where they cannot be compiled.
    """
    if config.caches_logits:
        folder = config.cache_folder(run, LOGITS_FOLDER)
        shape = (len(taught_images(dataset)), dataset.num_classes)
        view = ArrayStore(folder, {}, shape, config.distill.cache_dtype).nbytes * len(teacher_weights(config))
        # which of those on the disk are the student's own, is known when its teachers are
        there = sum(path.stat().st_size for path in folder.glob("*/*.bin"))
        check_room(folder, len(config.student.distinct_views) * view - there, WHAT, REMEDY)
    if config.distill.compile:
        try:
            torch.compile(torch.relu)(torch.zeros(2))
        except Exception as error:  # of the compiler that is missing, or of anything under torch
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"distill.compile=true, but torch cannot compile here: {reason}") from None


def _fitting(device: torch.device) -> AbstractContextManager[None]:
    return where_memory_may_run_out(
        f"the teachers do not fit into the memory of {device}; set a smaller model.image_size, or k"
    )
