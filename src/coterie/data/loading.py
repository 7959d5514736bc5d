"""From a dataset to batches of uint8 pixels. A view depends on (seed, number, image) and nothing else; its
number is that of the epoch, unless views come again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.transforms import v2

from coterie.data.dataset import MultiLabelDataset
from coterie.data.order import AsTheyAre, Order, Shuffled
from coterie.data.pixels import PixelStore
from coterie.data.transforms import Preprocessing, to_pixels
from coterie.errors import OUT_OF_MEMORY, CoterieError, RunError, is_out_of_memory
from coterie.ranks import ALONE, Ranks
from coterie.seeding import seeded

LESS_MEMORY = "set fewer data.workers, or data.cache_gb=0"

ViewKey = tuple[int, int]  # (number of the view, position of the image in the dataset)


class View(NamedTuple):
    """Pixels uint8 [3, H, W], targets int8 [C], position int64 [] in the dataset."""

    pixels: Tensor
    targets: Tensor
    position: Tensor


class Batch(NamedTuple):
    """Pixels uint8 [B, 3, H, W], targets int8 [B, C], positions int64 [B] in the dataset; logits of R
    branches of teachers float32 [R, B, C], where they are known. Where `are_features`, what a model's frozen
    part makes of the pixels stands in their place.
    """

    pixels: Tensor
    targets: Tensor
    indices: Tensor
    teacher_logits: Tensor | None = None
    are_features: bool = False


class ResizedImages:
    """The images of a dataset squashed to one size: from memory after their first use where they fit, from
    `stored` files where there are any, else decoded each time.
    """

    def __init__(
        self,
        dataset: MultiLabelDataset,
        preprocessing: Preprocessing,
        memory_gb: float = 0.0,
        shared: bool = False,
        stored: PixelStore | None = None,
    ) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.stored = stored
        side = preprocessing.image_size
        self._pixels: Tensor | None = None
        if self.fits(len(dataset), side, memory_gb):
            self._pixels = torch.empty((len(dataset), side, side, 3), dtype=torch.uint8)
            self._filled = torch.zeros(len(dataset), dtype=torch.bool)
            if shared:  # what one loading process decodes, all of them have
                self._pixels.share_memory_()  # type: ignore[no-untyped-call]
                self._filled.share_memory_()  # type: ignore[no-untyped-call]

    @staticmethod
    def fits(images: int, side: int, memory_gb: float) -> bool:
        """Whether so many squares of `side` pixels are kept in memory."""
        return images * side * side * 3 <= memory_gb * 1e9

    def __getitem__(self, index: int) -> Image.Image:
        if self._pixels is None:
            return self._decode(index) if self.stored is None else Image.fromarray(self.stored[index])
        if not self._filled[index]:
            self._pixels[index] = torch.from_numpy(np.array(self._decode(index)))
            self._filled[index] = True
        return Image.fromarray(self._pixels[index].numpy())

    def fill(self, advance: Callable[[int], object]) -> None:
        """Write the files of `stored` images that are missing; `advance` is told how many are done."""
        if self.stored is not None:
            self.stored.fill(lambda index: np.array(self._decode(index)), advance)

    def _decode(self, index: int) -> Image.Image:
        return self.preprocessing.resize(self.dataset.load_image(index))


class Views(Dataset[View]):
    """Augmented (or plain) views; an item's key is (number of the view, image)."""

    def __init__(
        self, images: ResizedImages, augmentation: v2.Transform | None = None, seed: int = 0
    ) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: ViewKey) -> View:
        number, index = key
        image = self.images[index]
        if self.augmentation is not None:
            with seeded(self.seed, "view", number, index):
                image = self.augmentation(image)
        targets = torch.from_numpy(self.images.dataset.targets[index])
        return View(to_pixels(image), targets, torch.tensor(index))

    def __getitems__(self, keys: list[ViewKey]) -> list[View] | CoterieError:
        """The views of one batch; an error, as of an unreadable image, is handed on, as what is raised in a
        loading process comes out of torch as another error.
        """
        try:
            return [self[key] for key in keys]
        except CoterieError as error:
            return error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return RunError(f"{OUT_OF_MEMORY} while images were prepared: {LESS_MEMORY}")


def _collated(views: list[View] | CoterieError) -> Batch | CoterieError:
    return views if isinstance(views, CoterieError) else Batch(*default_collate(views))


class EpochSampler(Sampler[list[ViewKey]]):
    """Batches of view keys, from the `first` of an epoch on. A training epoch has an order of its own and
    leaves a short last batch out.

    `order`: by default that of the indices, or shuffled by the seed. `views`: how many views of an image
    there are, that the epochs take in turn; None for one in each epoch. `ranks`: the processes that share
    each batch, of which this one has its part.
    """

    def __init__(
        self,
        indices: npt.NDArray[np.int64],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        order: Order | None = None,
        views: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.indices = indices
        self.batch_size = min(batch_size, len(indices))
        self.shuffle = shuffle
        if order is None:
            order = Shuffled(indices, seed) if shuffle else AsTheyAre(indices)
        self.order = order
        self.views = views
        self.ranks = ranks
        self.epoch = 0
        self.first = 0

    def view(self, epoch: int) -> int:
        """The number of the view that all images have in an epoch."""
        return epoch if self.views is None else epoch % self.views

    def rows(self, indices: Tensor) -> npt.NDArray[np.int64]:
        """Where the positions `indices` stand among all those of the sampler, which ascend."""
        return np.searchsorted(self.indices, indices.numpy())

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full if self.shuffle or rest == 0 else full + 1

    def batches(self, epoch: int, first: int = 0) -> Iterator[npt.NDArray[np.int64]]:
        """The positions in the dataset of each batch of an epoch, from the `first` on, of all processes
        together.
        """
        rest = self.indices[:0]
        left = len(self) - first
        for part in self.order.parts(epoch, first * self.batch_size):
            rest = np.concatenate([rest, part]) if len(rest) else part
            size = self.batch_size
            whole = min(left, len(rest) // size)
            yield from (rest[number * size : (number + 1) * size] for number in range(whole))
            rest, left = rest[whole * size :], left - whole
        if left:  # the short last one
            yield rest

    def parts(self, batch: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Which images of a batch each process has."""
        return np.array_split(batch, self.ranks.size)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        for batch in self.batches(self.epoch, self.first):
            own = self.parts(batch)[self.ranks.rank]
            if len(own):  # the last batch of a split that is measured may be smaller than the processes many
                yield [(self.view(self.epoch), index) for index in own.tolist()]

    def shares(self) -> list[npt.NDArray[np.int64]]:
        """Which images each process has in an epoch, in its order."""
        by_rank = zip(*(self.parts(batch) for batch in self.batches(self.epoch)), strict=True)
        return [np.concatenate(parts) for parts in by_rank]


class Batches(ABC):
    """What goes through the images of `indices` epoch by epoch, in batches."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        return self.sampler.indices

    def __len__(self) -> int:
        return len(self.sampler)

    @abstractmethod
    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the `first` on; UnreadableImage where a picture has broken since it
        was checked, RunError where what is stored of it has.
        """


class ImageBatches(Batches):
    """Batches of pixels, made in this process or in `workers` others."""

    def __init__(self, views: Views, sampler: EpochSampler, workers: int = 0) -> None:
        super().__init__(sampler)
        self._loader: DataLoader[View] = DataLoader(
            views,
            batch_sampler=sampler,
            collate_fn=_collated,
            num_workers=workers,
            persistent_workers=workers > 0,
            # The loader draws a seed for its workers when it makes them: from torch's generator, dropout
            # would depend on the number of workers and on whether a training was stopped.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        self.sampler.epoch, self.sampler.first = epoch, first
        for batch in self._loader:
            if isinstance(batch, CoterieError):
                raise batch
            yield batch


def lost_process(error: Exception) -> str | None:
    """What to say of an error that torch raises when a loading process is gone; None of any other."""
    if not str(error).startswith("DataLoader worker"):
        return None
    return f"a process that prepares images was killed, as it is when memory runs out: {LESS_MEMORY}"


def training_batches(
    images: ResizedImages,
    split: str,
    batch_size: int,
    augmentation: v2.Transform | None,
    seed: int,
    workers: int = 0,
) -> Batches:
    """Shuffled, augmented batches of a split."""
    sampler = EpochSampler(images.dataset.indices(split), batch_size, shuffle=True, seed=seed)
    return ImageBatches(Views(images, augmentation, seed), sampler, workers)


def plain_batches(
    images: ResizedImages,
    indices: npt.NDArray[np.int64],
    batch_size: int,
    workers: int = 0,
    ranks: Ranks = ALONE,
) -> Batches:
    """The images at `indices`, each once and in that order, without augmentation."""
    return ImageBatches(Views(images), EpochSampler(indices, batch_size, ranks=ranks), workers)
