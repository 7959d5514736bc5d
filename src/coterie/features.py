"""What the frozen part of a model makes of the images, on the disk, for every training with that part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import nn

from coterie.array_store import Array, ArrayStore, check_room
from coterie.config import ROLES, Config, TrainConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import EpochSampler, ImageBatches, ResizedImages, Views
from coterie.data.splits import taught_images
from coterie.models.cut import Cut
from coterie.runfolder import Training
from coterie.trainer import memory_layout, to_images
from coterie.view_cache import ViewCache

FEATURES_FOLDER = "features"
WHAT = "the features of the frozen part"
REMEDY = "Choose another place with cache_dir=…, or fewer train.views"
DTYPE: Final = "float16"
# The same for every training, so that what is stored does not depend on who asked for it first.
FEATURE_BATCH = 64
# Other versions of these may give other pixels, or round otherwise.
VERSIONS = ("torch", "torchvision", "timm", "numpy", "pillow")


def describe_views(config: Config, views: Views, fabric: Fabric, fingerprint: str) -> dict[str, Any]:
    """All that decides which pixels the views have, and how a model computes."""
    plain = views.augmentation is None
    return {
        "data": fingerprint,
        "preprocessing": asdict(views.images.preprocessing),
        "augment": None if plain else config.augment.model_dump(mode="json", exclude={"view_seed"}),
        "view_seed": None if plain else views.seed,
        "precision": config.precision,
        "channels_last": config.channels_last,
        "device": fabric.device.type,
        "versions": {name: version(name) for name in VERSIONS},
    }


class FrozenViews(NamedTuple):
    """The features of views, of the frozen part with the hash `sha256`."""

    features: ViewCache
    sha256: str


@dataclass(frozen=True)
class Features:
    """The features of the frozen part `cut` of a run's models, for the images of one split."""

    config: Config
    run: Path
    images: ResizedImages
    fabric: Fabric
    fingerprint: str
    cut: Cut

    def cache(self, split: str, indices: npt.NDArray[np.int64], views: Views) -> ViewCache:
        """The features [n, ...], float16, of the images at `indices`, those of a split, in each of their
        `views`.
        """
        inputs = describe_views(self.config, views, self.fabric, self.fingerprint)
        inputs |= {"split": split, "frozen": self.cut.sha256()}
        folder = self.config.cache_folder(self.run, FEATURES_FOLDER)
        store = ArrayStore(folder, inputs, (len(indices), *self.shape), DTYPE)

        def make(_: tuple[str, ...]) -> Callable[[int], Iterator[Array]]:
            return lambda view: self._features(views, EpochSampler(indices, FEATURE_BATCH), view)

        return ViewCache({"features": store}, make, WHAT, REMEDY)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the features of one image."""
        side = self.images.preprocessing.image_size
        return tuple(self._lower(torch.zeros(1, 3, side, side, device=self.fabric.device)).shape[1:])

    def _features(self, views: Views, sampler: EpochSampler, view: int) -> Iterator[Array]:
        layout = memory_layout(self.config.channels_last)
        for batch in ImageBatches(views, sampler, self.config.data.workers).epoch(view):
            images = to_images(batch.pixels, self.images.preprocessing, self.fabric, layout)
            yield self._lower(images).cpu().numpy()[None]

    def _lower(self, images: torch.Tensor) -> torch.Tensor:
        with self.fabric.autocast():
            return self.cut.lower(images)


def check_features(
    config: Config,
    run: Path,
    dataset: MultiLabelDataset,
    model: nn.Module,
    side: int,
    trainings: Iterable[Training],
) -> None:
    """RunError where the disk has no room for the features that `trainings` learn from: those of `model`,
    whose images are `side` pixels wide.
    """
    views: set[tuple[str, bool, str, str, int]] = set()  # trainings with the same frozen part share them
    for role in {training.name if training.name in ROLES else "teacher" for training in trainings}:
        settings: TrainConfig = getattr(config, role)
        if settings.frozen is None:
            continue
        moved = settings.start == "baseline" and settings.frozen != config.baseline.frozen
        part = settings.frozen, moved
        views.add((*part, "", "val", 0))
        # live teachers look at the images
        if settings.views_come_again and (config.caches_logits or role != "student"):
            own = role if role == "student" else ""  # the student has views of its own
            views |= {(*part, own, "train", view) for view in settings.distinct_views}
    if not views:
        return
    folder = config.cache_folder(run, FEATURES_FOLDER)
    image = torch.zeros(1, 3, side, side)
    shapes = {name: Cut(model, name).lower(image).shape[1:] for name in {view[0] for view in views}}
    needed = sum(
        ArrayStore(
            folder,
            {},
            (len(taught_images(dataset) if role else dataset.indices(split)), *shapes[name]),
            DTYPE,
        ).nbytes
        for name, _, role, split, _ in views
    )
    # which of those on the disk are of these parts, is known when the baseline is
    there = sum(path.stat().st_size for path in folder.glob("*/*.bin"))
    check_room(folder, needed - there, WHAT, REMEDY)
