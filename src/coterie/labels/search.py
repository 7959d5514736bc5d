"""Local search over label groups: moves and swaps of classes, from several starts, with kicks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
GroupCost = Callable[[Floats, Floats], Floats]  # (weight inside, weight to all) -> cost, elementwise

SMALLEST_GAIN = 1e-9  # above the rounding of the running sums, so that a search cannot go round in circles


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
    best, lowest = min(
        (descend(affinity, start, cost, sizes) for start in starts), key=lambda found: found[1]
    )
    for _ in range(kicks):
        labels, value = descend(affinity, kicked(best, rng), cost, sizes)
        if value < lowest - SMALLEST_GAIN:
            best, lowest = labels, value
    return best


def kicked(labels: Labels, rng: np.random.Generator) -> Labels:
    """`labels` [C] with the groups of a few classes shuffled: 2 of them to one in eight."""
    shuffled, c = labels.copy(), len(labels)
    some = rng.choice(c, rng.integers(2, max(2, c // 8) + 1), replace=False)
    shuffled[some] = shuffled[rng.permutation(some)]
    return shuffled


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
