"""The co-occurrence graph: how often two labels are on the same image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN
from coterie.errors import DataError, PartitionError, repeated, shortened

BLOCK_ENTRIES = 2**22  # targets turned into float32 at a time: 16 MiB, and sums that float32 holds exactly


@dataclass(frozen=True, eq=False)
class CooccurrenceGraph:
    """Label co-occurrence of a training split.

    `counts` int64 [C, C]: images that carry both labels; `class_counts` int64 [C]: images that carry one.
    The diagonal of `counts` is 0; one that repeats `class_counts` (as Y.T @ Y gives it) is set to 0, and any
    other is refused. Raises DataError where shapes, values or names do not fit together.
    """

    counts: npt.NDArray[np.int64]
    class_counts: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.class_names)
        c = len(names)
        if not c:
            raise DataError("a co-occurrence graph needs at least one class")
        if len(set(names)) != c:
            twice = shortened(repeated(names))
            raise DataError(f"class names of the co-occurrence graph stand twice: {twice}")
        counts = _whole_numbers("counts", self.counts, (c, c))
        class_counts = _whole_numbers("class_counts", self.class_counts, (c,))
        diagonal = counts.diagonal()
        if diagonal.any():
            if not np.array_equal(diagonal, class_counts):
                i = _first(diagonal != class_counts)
                raise DataError(
                    "the diagonal of counts must be 0, or repeat class_counts: "
                    f"'{names[i]}' has {diagonal[i]}, and {class_counts[i]} images"
                )
            counts = counts - np.diag(diagonal)
        _check_pairs(counts, class_counts, names)
        for field, value in (("counts", counts), ("class_counts", class_counts), ("class_names", names)):
            object.__setattr__(self, field, value)

    @classmethod
    def from_targets(cls, targets: npt.NDArray[np.int8], class_names: Sequence[str]) -> CooccurrenceGraph:
        """The graph of `targets` [N, C] in {1, 0, -1}: only 1 counts. Takes N in blocks: memory stays small.

        Raises DataError where the shape or a value does not fit.
        """
        c = len(class_names)
        targets = np.asarray(targets)
        if targets.ndim != 2 or targets.shape[1] != c:
            raise DataError(f"targets must be [N, {c}] for {c} classes, got {list(targets.shape)}")
        counts = np.zeros((c, c), np.int64)
        rows = max(1, BLOCK_ENTRIES // max(1, c))
        for start in range(0, len(targets), rows):
            block = targets[start : start + rows]
            present = block == PRESENT
            if not (present | (block == ABSENT) | (block == UNKNOWN)).all():
                raise DataError("targets hold values other than 1 (present), 0 (absent), -1 (unknown)")
            ones = present.astype(np.float32)
            counts += (ones.T @ ones).astype(np.int64)
        class_counts = counts.diagonal().copy()
        np.fill_diagonal(counts, 0)
        return cls(counts, class_counts, tuple(class_names))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def affinity(self, root: float = 2.0) -> npt.NDArray[np.float64]:
        """S [C, C], symmetric, diagonal 0: `(R + R.T) / 2` with `R = P ** (1/root)`.

        `P[i,j] = A[i,j] / n[j]` is the probability of i given j, 0 where no image carries j.
        PartitionError unless `root` is above 0.
        From: Xu et al., "Boosting Multi-Label Image Classification with Complementary Parallel
        Self-Distillation", IJCAI 2022.
        """
        if not (isfinite(root) and root > 0):
            raise PartitionError(f"root must be a number above 0, got {root}; the paper uses 2")
        conditional = self.counts / np.maximum(self.class_counts, 1)
        rooted = conditional ** (1 / root)
        return np.asarray((rooted + rooted.T) / 2, dtype=np.float64)


def _whole_numbers(what: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """`values` as int64 of `shape`; DataError unless they are counts."""
    array = np.asarray(values)
    if array.shape != shape:
        raise DataError(f"{what} must be {list(shape)} for {shape[0]} classes, got {list(array.shape)}")
    if array.dtype.kind not in "iuf":
        raise DataError(f"{what} must be whole numbers, got {array.dtype}")
    if not np.isfinite(array).all() or (array < 0).any() or (array != np.floor(array)).any():
        raise DataError(f"{what} must be whole numbers of images, 0 or more")
    return array.astype(np.int64)


def _check_pairs(
    counts: npt.NDArray[np.int64], class_counts: npt.NDArray[np.int64], names: tuple[str, ...]
) -> None:
    """DataError names the first pair of classes whose counts cannot be."""
    unequal = counts != counts.T
    if unequal.any():
        i, j = divmod(_first(unequal), len(names))
        raise DataError(
            f"counts must be symmetric: '{names[i]}' with '{names[j]}' is {counts[i, j]}, "
            f"the other way round {counts[j, i]}"
        )
    impossible = counts > class_counts
    if impossible.any():
        i, j = divmod(_first(impossible), len(names))
        raise DataError(
            f"'{names[i]}' and '{names[j]}' are together on {counts[i, j]} images, "
            f"but only {class_counts[j]} carry '{names[j]}'"
        )


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])
