"""Columns of a dataset that is too large for an object for each image: arrays, in memory or mapped from a
file, and what is made of them when it is asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]
T_co = TypeVar("T_co", covariant=True)

BLOCK_ROWS = 2**16  # images whose values are made together
BLOCK_ENTRIES = 2**22  # of dense targets, or stored in sparse ones, that are looked at together


class Column(Sequence[T_co]):
    """A value for each image, made when it is asked for. `rows` [N] are the images there are, by their place
    in the arrays behind it; None for all in order.
    """

    def __init__(self, length: int, rows: Positions | None = None) -> None:
        self.length = length if rows is None else len(rows)
        self.rows = rows

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...

    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self.length))]
        position = index + self.length if index < 0 else index
        if not 0 <= position < self.length:
            raise IndexError(f"image {index} of {self.length:,}")
        return self.value(position if self.rows is None else int(self.rows[position]))

    @abstractmethod
    def value(self, row: int) -> T_co:
        """The value at a place of the arrays."""

    @abstractmethod
    def take(self, positions: Positions) -> Self:
        """The column of the images at `positions` alone."""

    def row_blocks(self) -> Iterator[Positions]:
        """The rows of all images in order, some at a time."""
        for start in range(0, self.length, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self.length)
            yield np.arange(start, stop) if self.rows is None else self.rows[start:stop]


@dataclass(frozen=True, eq=False)
class LabelLists:
    """Targets int8 [N, C] of which only what is present is stored; the rest is absent, nothing is unknown.

    `arrays` has "label_edges" int64 [M + 1] and "labels" int32: row i is labels[edges[i]:edges[i + 1]], each
    once. `rows`: the images, by their rows; None for all in order. `columns` int32: of each stored label its
    column, -1 where it has none; None where it is its own. `targets[position]` is int8 [C],
    `targets[positions]` int8 [n, C]: nothing else is dense.
    """

    arrays: Mapping[str, Array]
    classes: int
    rows: Positions | None = None
    columns: npt.NDArray[np.int32] | None = None

    ndim = 2
    dtype = np.dtype(np.int8)

    def __len__(self) -> int:
        return len(self.arrays["label_edges"]) - 1 if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.classes

    def __getitem__(self, positions: int | slice | Array) -> npt.NDArray[np.int8]:
        if isinstance(positions, int | np.integer):
            row: npt.NDArray[np.int8] = self[np.array([positions])][0]
            return row
        edges, labels = self.lists(self._rows(positions))
        dense = np.zeros((len(edges) - 1, self.classes), np.int8)
        dense[np.repeat(np.arange(len(edges) - 1), np.diff(edges)), labels] = 1
        return dense

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __iter__(self) -> Iterator[npt.NDArray[np.int8]]:
        return (self[position] for position in range(len(self)))

    def take(self, positions: Positions) -> LabelLists:
        """The targets of the images at `positions` alone."""
        rows = positions if self.rows is None else self.rows[positions]
        return LabelLists(self.arrays, self.classes, rows, self.columns)

    def with_columns(self, columns: Sequence[int]) -> LabelLists:
        """The targets with the columns at `columns` alone, in that order."""
        new = np.full(self.classes, -1, np.int32)
        new[list(columns)] = np.arange(len(columns))
        if self.columns is not None:
            new = np.where(self.columns < 0, -1, new[self.columns]).astype(np.int32)
        return LabelLists(self.arrays, len(columns), self.rows, new)

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """(edges int64 [n + 1], columns int32) of all images in order, some at a time."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield self.lists(self._rows(slice(start, min(start + BLOCK_ROWS, len(self)))))

    def lists(self, rows: slice | Positions) -> tuple[Array, Array]:
        """(edges int64 [n + 1], columns int32) of the lists at `rows` of the arrays: row i has the columns
        from edges[i] to edges[i + 1], in ascending order where no columns are chosen.
        """
        all_edges, labels = self.arrays["label_edges"], self.arrays["labels"]
        if isinstance(rows, slice):
            bounds = np.array(all_edges[rows.start : rows.stop + 1])
            edges, found = bounds - bounds[0], np.array(labels[bounds[0] : bounds[-1]])
        else:
            first, last = all_edges[rows], all_edges[rows + 1]
            edges = np.append(0, np.cumsum(last - first))
            found = labels[np.arange(edges[-1]) + np.repeat(first - edges[:-1], last - first)]
        if self.columns is not None:
            found = self.columns[found]
            kept = found >= 0
            edges, found = np.append(0, np.cumsum(kept))[edges], found[kept]
        return edges, found

    def _rows(self, positions: slice | Array) -> slice | Positions:
        if isinstance(positions, slice):
            start, stop, step = positions.indices(len(self))
            if step == 1 and self.rows is None:
                return slice(start, max(start, stop))
            positions = np.arange(start, stop, step)
        elif positions.dtype == np.bool_:
            positions = np.flatnonzero(positions)
        if len(positions) and not -len(self) <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"image {positions.max()} of {len(self):,}")
        positions = np.where(positions < 0, positions + len(self), positions)
        return positions if self.rows is None else self.rows[positions]
