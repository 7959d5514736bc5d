"""Targets [N, C], dense or sparse, as what is present in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.data.columns import BLOCK_ENTRIES, LabelLists
from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN
from coterie.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_array, sparray, spmatrix

    Targets: TypeAlias = npt.NDArray[Any] | LabelLists | sparray | spmatrix


def present_rows(targets: Targets) -> Iterator[csr_array]:
    """The images of `targets` [N, C] in order, some at a time: int32 CSR, 1 where a label is present.

    Dense, as lists of labels, or sparse in any of SciPy's formats, where an entry that is not stored is
    absent. Raises DataError for values other than 1, 0 and -1.
    """
    if isinstance(targets, LabelLists):
        for edges, columns in targets.blocks():
            yield _ones(columns, edges, targets.classes)
        return
    to_csr = getattr(targets, "tocsr", None)
    if to_csr is None:
        yield from _dense_rows(np.asarray(targets))
        return
    rows = to_csr()
    if not rows.has_canonical_format:  # an entry that is stored twice counts as the sum
        rows = rows.copy()
        rows.sum_duplicates()
    (n, c), edges = rows.shape, rows.indptr
    step = max(1, n * BLOCK_ENTRIES // max(1, rows.nnz))
    for start in range(0, n, step):
        ends = edges[start : start + step + 1]
        stored = slice(ends[0], ends[-1])
        present = _present(rows.data[stored])
        yield _ones(rows.indices[stored][present], np.append(0, np.cumsum(present))[ends - ends[0]], c)


def count_value(targets: npt.NDArray[np.int8] | LabelLists, value: int) -> npt.NDArray[np.int64]:
    """How many images have the target `value`, by class [C]."""
    if isinstance(targets, LabelLists):
        counts = np.zeros(targets.classes, np.int64)
        for _, columns in targets.blocks():
            counts += np.bincount(columns, minlength=targets.classes)
        return {PRESENT: counts, ABSENT: len(targets) - counts}.get(value, np.zeros_like(counts))
    dense: npt.NDArray[np.int64] = (targets == value).sum(axis=0, dtype=np.int64)
    return dense


def are_labelled(targets: npt.NDArray[np.int8] | LabelLists) -> npt.NDArray[np.bool_]:
    """Whether each image [N] has a label that is present."""
    if isinstance(targets, LabelLists):
        parts = [np.diff(edges) > 0 for edges, _ in targets.blocks()]
        return np.concatenate([*parts, np.zeros(0, np.bool_)])
    dense: npt.NDArray[np.bool_] = (targets == PRESENT).any(axis=1)
    return dense


def _dense_rows(targets: npt.NDArray[Any]) -> Iterator[csr_array]:
    n, c = targets.shape
    step = max(1, BLOCK_ENTRIES // max(1, c))
    for start in range(0, n, step):
        present = _present(targets[start : start + step])
        flat = np.flatnonzero(present)
        yield _ones(flat % c, np.searchsorted(flat, np.arange(len(present) + 1) * c), c)


def _ones(columns: npt.NDArray[Any], edges: npt.NDArray[Any], c: int) -> csr_array:
    """CSR [rows, C] with ones at `columns`; row i holds those from edges[i] to edges[i + 1]."""
    from scipy import sparse  # here, not above: the command line need not wait for it

    return sparse.csr_array((np.ones(len(columns), np.int32), columns, edges), (len(edges) - 1, c))


def _present(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True where `values` are 1; DataError where they are none of 1, 0 and -1."""
    present: npt.NDArray[np.bool_] = values == PRESENT
    if not (present | (values == ABSENT) | (values == UNKNOWN)).all():
        raise DataError("targets hold values other than 1 (present), 0 (absent), -1 (unknown)")
    return present
