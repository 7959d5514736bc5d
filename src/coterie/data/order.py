"""The order of an epoch, from a seed and the number of the epoch alone, a part at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from coterie.data.columns import Positions
from coterie.data.dataset import MultiLabelDataset, StoredImages
from coterie.seeding import derive_seed


class Order(ABC):
    """An order of `indices` [N] for each epoch."""

    def __init__(self, indices: Positions, seed: int = 0) -> None:
        self.indices = indices
        self.seed = seed

    @abstractmethod
    def parts(self, epoch: int, first: int = 0) -> Iterator[Positions]:
        """All of an epoch but the `first` ones, one part after the other."""


class AsTheyAre(Order):
    """The order of `indices`."""

    def parts(self, epoch: int, first: int = 0) -> Iterator[Positions]:  # noqa: ARG002
        yield self.indices[first:]


class Shuffled(Order):
    """Each order of all images is as likely as any other."""

    def parts(self, epoch: int, first: int = 0) -> Iterator[Positions]:
        random = np.random.default_rng(derive_seed(self.seed, "order", epoch))
        yield random.permutation(self.indices)[first:]


class ShuffledBlocks(Order):
    """Blocks, which are `block` images that lie side by side in an archive, in a random order; then the
    images of so many blocks as hold `window` images, in a random order. What is read is from few places at a
    time, and a batch has images from as many.

    `edges`: the places in `indices` at which another archive begins. Memory: 32 bytes a block, and a window.
    """

    def __init__(self, indices: Positions, seed: int, edges: Positions, window: int, block: int) -> None:
        super().__init__(indices, seed)
        self.window, self.block = window, block
        bounds = np.unique(np.concatenate([[0], edges, [len(indices)]]))
        blocks = -(-np.diff(bounds) // block)  # of each archive
        number = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        self.starts = np.repeat(bounds[:-1], blocks) + number * block
        self.stops = np.minimum(self.starts + block, np.repeat(bounds[1:], blocks))

    def parts(self, epoch: int, first: int = 0) -> Iterator[Positions]:
        order = np.random.default_rng(derive_seed(self.seed, "blocks", epoch)).permutation(len(self.starts))
        ends = np.cumsum(self.stops[order] - self.starts[order])  # images up to each block
        begin = done = 0
        while begin < len(order):
            end = max(begin + 1, int(np.searchsorted(ends, done + self.window, side="right")))
            size = int(ends[end - 1]) - done
            if first < done + size:
                blocks = zip(self.starts[order[begin:end]], self.stops[order[begin:end]], strict=True)
                images = np.concatenate([self.indices[start:stop] for start, stop in blocks])
                random = np.random.default_rng(derive_seed(self.seed, "window", epoch, done))
                yield random.permutation(images)[max(0, first - done) :]
            begin, done = end, done + size


def training_order(
    dataset: MultiLabelDataset, indices: Positions, seed: int, window: int, block: int
) -> Order:
    """How the images at `indices` come in a training: shuffled; of archives with more of them than a
    `window`, in blocks.
    """
    if not isinstance(dataset.images, StoredImages) or len(indices) <= window:
        return Shuffled(indices, seed)
    edges = np.searchsorted(indices, dataset.images.archive_edges())
    return ShuffledBlocks(indices, seed, edges, window, block)
