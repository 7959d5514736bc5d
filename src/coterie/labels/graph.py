"""The co-occurrence graph: how often two labels are on the same image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coterie.data.sparse import present_rows
from coterie.errors import DataError, PartitionError, repeated, shortened

if TYPE_CHECKING:
    from coterie.data.sparse import Targets


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
            np.fill_diagonal(counts, 0)
        _check_pairs(counts, class_counts, names)
        for field, value in (("counts", counts), ("class_counts", class_counts), ("class_names", names)):
            object.__setattr__(self, field, value)

    @classmethod
    def from_targets(cls, targets: Targets, class_names: Sequence[str]) -> CooccurrenceGraph:
        """The graph of `targets` [N, C] in {1, 0, -1}: only 1 counts. Takes N in blocks: memory stays small.

        Dense, as LabelLists, or sparse in any of SciPy's formats: what is not stored is absent, a stored -1
        is unknown.
        Graphs of parts of a dataset add up: `graph + graph`. DataError where the shape or a value does not
        fit.
        """
        c, shape = len(class_names), getattr(targets, "shape", None) or np.shape(targets)
        if len(shape) != 2 or shape[1] != c:
            raise DataError(f"targets must be [N, {c}] for {c} classes, got {list(shape)}")
        counts = np.zeros((c, c), np.int64)
        for rows in present_rows(targets):
            pairs = (rows.T @ rows).tocoo()
            counts[pairs.row, pairs.col] += pairs.data
        return cls(counts, counts.diagonal(), tuple(class_names))

    def __add__(self, other: CooccurrenceGraph) -> CooccurrenceGraph:
        """The graph of the images of both; DataError unless the classes are the same in the same order."""
        if self.class_names != other.class_names:
            differ = sorted(set(self.class_names) ^ set(other.class_names))
            raise DataError(
                "graphs add up only where they have the same classes in the same order; "
                + (f"{shortened(differ)} on one side only" if differ else "the order differs")
            )
        return CooccurrenceGraph(
            self.counts + other.counts, self.class_counts + other.class_counts, self.class_names
        )

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
        rooted = self.counts / np.maximum(self.class_counts, 1)
        rooted **= 1 / root
        affinity = rooted + rooted.T
        affinity /= 2
        return affinity


def _whole_numbers(what: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """`values` as int64 of `shape`; DataError unless they are counts."""
    array = np.asarray(values)
    if array.shape != shape:
        raise DataError(f"{what} must be {list(shape)} for {shape[0]} classes, got {list(array.shape)}")
    if array.dtype.kind not in "iuf":
        raise DataError(f"{what} must be whole numbers, got {array.dtype}")
    fractions = array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.floor(array))).all()
    if fractions or array.min() < 0:
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
