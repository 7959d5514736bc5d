"""What a partition of the labels is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from coterie.errors import PartitionError, shortened

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]  # the group of each class
GroupCost = Callable[[Floats, Floats], Floats]  # (weight inside, weight to all) -> cost, elementwise

SMALLEST_GAIN = 1e-9  # above the rounding of running sums, so that a search cannot go round in circles


def normalized_cut(affinity: Floats, groups: Sequence[Sequence[int]]) -> float:
    """K-way N-cut of `affinity` [C, C]: the sum over groups of cut(group, rest) / assoc(group, all).

    0 is best, K worst. A group without any weight counts 1, as a group of one class does.
    From: Shi and Malik, "Normalized Cuts and Image Segmentation", 2000.
    """
    inside, total = _weights(affinity, groups)
    return float(normalized_cut_cost(inside, total).sum())


def share_inside(affinity: Floats, groups: Sequence[Sequence[int]]) -> float:
    """The share of the weight of `affinity` [C, C] inside groups: 0 to 1, and 0 where there is no weight."""
    inside, _ = _weights(affinity, groups)
    weight = affinity.sum()
    return float(inside.sum() / weight) if weight else 0.0


def normalized_cut_cost(inside: Floats, total: Floats) -> Floats:
    """Each group's part of the N-cut, from its weight inside and its weight to all classes."""
    kept = np.zeros(np.broadcast_shapes(inside.shape, total.shape))
    np.divide(inside, total, out=kept, where=total > 0)
    return 1 - kept


def check_groups(groups: Sequence[Sequence[int]], class_names: Sequence[str]) -> None:
    """PartitionError unless `groups` hold each of the classes once and none is empty."""
    c = len(class_names)
    owner: dict[int, int] = {}
    for number, group in enumerate(groups):
        if not len(group):
            raise PartitionError(f"group {number} is empty; give it a class or leave it out")
        for index in group:
            if not 0 <= index < c:
                raise PartitionError(f"group {number} holds class {index}, but classes go from 0 to {c - 1}")
            if index in owner:
                where = "twice" if owner[index] == number else f"and group {owner[index]} too"
                raise PartitionError(
                    f"group {number} holds '{class_names[index]}' {where}; a class is in one group only"
                )
            owner[index] = number
    missing = [name for index, name in enumerate(class_names) if index not in owner]
    if missing:
        raise PartitionError(f"no group holds {shortened(missing)}; every class must be in one group")


def _weights(affinity: Floats, groups: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
    """Each group's weight inside [K] and to all classes [K]."""
    check_groups(groups, [f"class {index}" for index in range(len(affinity))])
    inside = np.array([affinity[np.ix_(group, group)].sum() for group in groups])
    total = np.array([affinity[list(group)].sum() for group in groups])
    return inside, total
