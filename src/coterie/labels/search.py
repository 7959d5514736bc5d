"""Local search over label groups: moves and swaps of classes, from several starts, with kicks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np

from coterie.labels.objectives import SMALLEST_GAIN, Floats, GroupCost, Labels
from coterie.labels.passes import DescentInPasses

MOST_STEEPEST = 500  # classes; of more, to look at all pairs before each step takes too long


def search(
    affinity: Floats,
    starts: Iterable[Labels],
    cost: GroupCost,
    sizes: tuple[int, int],
    kicks: int,
    rng: np.random.Generator,
) -> Labels:
    """Labels [C] in 0..K-1 of the lowest summed group cost found.

    Descends from each of `starts` (every group within `sizes`, smallest and largest), then `kicks` times from
    the best with the groups of a few classes shuffled.
    """
    kind = SteepestDescent if len(affinity) <= MOST_STEEPEST else DescentInPasses
    best = min((kind(affinity, start, cost, sizes) for start in starts), key=lambda found: found.value)
    for _ in range(kicks):
        found = best.again_from(kicked(best.labels, rng))
        if found.value < best.value - SMALLEST_GAIN:
            best = found
    return best.labels


def kicked(labels: Labels, rng: np.random.Generator) -> Labels:
    """`labels` [C] with the groups of a few classes shuffled: of two, up to one in eight."""
    shuffled, c = labels.copy(), len(labels)
    some = rng.choice(c, rng.integers(2, max(2, c // 8) + 1), replace=False)
    shuffled[some] = shuffled[rng.permutation(some)]
    return shuffled


class SteepestDescent:
    """The local optimum below `start`: `labels` [C] and their `value`. Every step is the best there is."""

    def __init__(self, affinity: Floats, start: Labels, cost: GroupCost, sizes: tuple[int, int]) -> None:
        self.affinity, self.cost, self.sizes = affinity, cost, sizes
        self.labels, self.value = descend(affinity, start, cost, sizes)

    def again_from(self, start: Labels) -> Self:
        return type(self)(self.affinity, start, self.cost, self.sizes)


def descend(affinity: Floats, start: Labels, cost: GroupCost, sizes: tuple[int, int]) -> tuple[Labels, float]:
    """The local optimum below `start` and its cost: no move of one class and no swap of two improves it."""
    labels, k = start.copy(), int(start.max()) + 1
    each = np.arange(len(labels))
    degrees = affinity.sum(axis=1)
    links = affinity @ np.eye(k)[labels]  # [C, K]: weight from a class to a group
    while True:
        own = links[each, labels]
        member = np.eye(k)[labels]  # [C, K]
        inside, total, count = own @ member, degrees @ member, member.sum(axis=0)
        now = cost(inside, total)

        # [C, K]: what it changes to move class i to group q
        leave = cost(inside[labels] - 2 * own, total[labels] - degrees) - now[labels]
        change = leave[:, None] + cost(inside + 2 * links, total + degrees[:, None]) - now
        change[each, labels] = np.inf
        change[count[labels] <= sizes[0]] = np.inf
        change[:, count >= sizes[1]] = np.inf
        i, group = divmod(int(change.argmin()), k)
        if change[i, group] < -SMALLEST_GAIN:
            links[:, labels[i]] -= affinity[i]
            links[:, group] += affinity[i]
            labels[i] = group
            continue

        # [C, C]: what it changes in the group of i that j takes its place; then in both groups of a swap
        gain = 2 * (links[:, labels].T - own[:, None] - affinity)
        half = cost(inside[labels][:, None] + gain, (total[labels] - degrees)[:, None] + degrees)
        half -= now[labels][:, None]
        change = half + half.T
        change[labels[:, None] == labels] = np.inf
        i, j = divmod(int(change.argmin()), len(labels))
        if change[i, j] < -SMALLEST_GAIN:
            difference = affinity[j] - affinity[i]
            links[:, labels[i]] += difference
            links[:, labels[j]] -= difference
            labels[[i, j]] = labels[[j, i]]
            continue
        return labels, float(now.sum())
