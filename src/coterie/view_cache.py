"""What frozen models make of every view, on the disk: computed once, for every training that needs it.

A view is the augmented form that all images have in one epoch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from coterie.array_store import Array, ArrayStore, NotStorable, check_room
from coterie.data.loading import Batch, Batches, EpochSampler
from coterie.errors import RunError

# names -> (number of a view -> blocks [names, b, ...] over all images, in their order)
Make = Callable[[tuple[str, ...]], Callable[[int], Iterator[Array]]]


@dataclass(frozen=True)
class ViewCache:
    """What models make of each view of the images, by name: the logits of the branches that a student learns
    from, or the features of a frozen part.

    `make` loads the models of the names it is given, and gives what makes their arrays. It is called for
    those that are missing and for nothing else: where all arrays are there, no model is loaded. `what` they
    are, and the `remedy` where they cannot be kept, is for messages.
    """

    stores: Mapping[str, ArrayStore]
    make: Make
    what: str
    remedy: str

    def missing(self, views: Iterable[int]) -> list[int]:
        """Those of the views whose arrays are not all there."""
        return [view for view in views if self._read(view) is None]

    def view(self, view: int) -> list[Array]:
        """The arrays [N, ...] of one view, one for each name; made where they are missing."""
        arrays = self._read(view)
        if arrays is None:
            self.fill([view])
            arrays = self._read(view)
        if arrays is None:
            raise RunError(
                f"{self.what} in {self._place} are damaged as soon as they are written; is the disk sound? "
                f"{self.remedy}"
            )
        return arrays

    def fill(self, views: Sequence[int], advance: Callable[[int], object] | None = None) -> None:
        """Make what is missing of the views; `advance` is told how many images are done.

        What another process is making is left to it, and waited for at the end. RunError where the folder
        cannot be written or has no room; the views before are kept.
        """
        make = functools.cache(self.make)  # the models are let go of at the end
        try:
            self._check_space(views)
            of_others = [view for view in views if not self._write(view, make, advance, wait=False)]
            for view in of_others:
                self._write(view, make, advance, wait=True)
        except NotStorable as error:
            raise RunError(f"{self.what} cannot be kept: {error}. {self.remedy}") from None
        except OSError as error:
            raise RunError(
                f"{self.what} cannot be written to {self._place}: {error.strerror or error}. The views "
                f"before are kept. {self.remedy}"
            ) from error

    def _write(self, view: int, make: Make, advance: Callable[[int], object] | None, wait: bool) -> bool:
        """Make one view unless it is there; False where another process is at it, and no `wait` is wanted."""
        with contextlib.ExitStack() as stack:
            # in one order everywhere, or two processes could wait for each other
            for store in sorted(self.stores.values(), key=lambda store: store.folder):
                try:
                    stack.enter_context(store.locked(view, wait))
                except BlockingIOError:
                    return False
            missing = tuple(name for name, store in self.stores.items() if store.read(view) is None)
            if missing:
                puts = [stack.enter_context(self.stores[name].writing(view)) for name in missing]
                for block in make(missing)(view):
                    for put, rows in zip(puts, block, strict=True):
                        put(rows)
                    if advance is not None:
                        advance(block.shape[1])
        return True

    def _read(self, view: int) -> list[Array] | None:
        found = [store.read(view) for store in self.stores.values()]
        whole = [array for array in found if array is not None]
        return whole if len(whole) == len(found) else None

    def _check_space(self, views: Sequence[int]) -> None:
        needed = sum(
            store.nbytes for store in self.stores.values() for view in views if not store.path(view).exists()
        )
        check_room(self._place, needed, self.what, self.remedy)

    @property
    def _place(self) -> Path:
        return next(iter(self.stores.values())).folder.parent


class TaughtBatches(Batches):
    """Training batches that bring the teachers' logits [R, B, C] of their views with them."""

    def __init__(self, batches: Batches, logits: ViewCache) -> None:
        super().__init__(batches.sampler)
        self.batches = batches
        self.logits = logits

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        stored = self.logits.view(self.sampler.view(epoch))
        for batch in self.batches.epoch(epoch, first):
            rows = self.sampler.rows(batch.indices)
            logits = np.stack([branch[rows] for branch in stored]).astype(np.float32)
            yield batch._replace(teacher_logits=torch.from_numpy(logits))


class FeatureBatches(Batches):
    """Batches of what the frozen part of a model makes of each view: no picture is opened."""

    def __init__(self, targets: Array, sampler: EpochSampler, features: ViewCache) -> None:
        super().__init__(sampler)
        self.targets = targets
        self.features = features

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        self.sampler.epoch, self.sampler.first = epoch, first
        (stored,) = self.features.view(self.sampler.view(epoch))
        for keys in self.sampler:
            indices = np.array([index for _, index in keys])
            rows = self.sampler.rows(torch.from_numpy(indices))
            yield Batch(
                torch.from_numpy(stored[rows]),
                torch.from_numpy(self.targets[indices]),
                torch.from_numpy(indices),
                are_features=True,
            )
