"""The local search over label groups for many labels: moves in passes, swaps among candidates.

`search.descend` looks at every pair of classes before each step, which for thousands of classes takes minutes.
Here a pass makes every move that still pays when its turn comes, and what a step changes is read from sums that
are kept up to date: a step costs the length of one row of the affinity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
import numpy.typing as npt

from coterie.labels.search import SMALLEST_GAIN, Floats, GroupCost, Labels, kicked

SWAP_CANDIDATES = 300  # shared out among the K - 1 ways out of a group


def search_large(
    affinity: Floats,
    starts: Iterable[Labels],
    cost: GroupCost,
    sizes: tuple[int, int],
    kicks: int,
    rng: np.random.Generator,
) -> Labels:
    """What `search` does, for many classes."""
    best = None
    for start in starts:
        found = Grouping(affinity, start, cost, sizes)
        found.descend()
        if best is None or found.value() < best.value():
            best = found
    assert best is not None
    for _ in range(kicks):
        found = best.copy()
        labels = kicked(best.labels, rng)
        for i in np.flatnonzero(labels != best.labels).tolist():
            found.move(i, labels[i])
        found.descend()
        if found.value() < best.value() - SMALLEST_GAIN:
            best = found
    return best.labels


class Grouping:
    """Groups of C classes, with the sums that tell what a step changes.

    `labels` [C]; `links` [K, C]: weight from a group to a class; of each group [K] the weight `inside`, the
    `total` weight to all classes, and the `count` of classes.
    """

    def __init__(
        self, affinity: Floats, labels: Labels, cost: GroupCost, sizes: tuple[int, int]
    ) -> None:
        self.affinity, self.degrees, self.cost, self.sizes = affinity, affinity.sum(axis=1), cost, sizes
        self.labels = labels.copy()
        self.count = np.bincount(labels)
        self.links = np.eye(len(self.count))[:, labels] @ affinity
        self.inside = np.bincount(labels, self.links[labels, np.arange(len(labels))])
        self.total = np.bincount(labels, self.degrees)

    def copy(self) -> Self:
        """Groups of their own, on the same affinity."""
        copied = object.__new__(type(self))
        copied.__dict__ = self.__dict__ | {
            name: getattr(self, name).copy() for name in ("labels", "count", "links", "inside", "total")
        }
        return copied

    def value(self) -> float:
        return float(self.cost(self.inside, self.total).sum())

    def descend(self) -> None:
        """Moves and swaps until none of those looked at lowers the cost."""
        while self._moves() or self._swaps():
            pass

    def move(self, i: int, group: int) -> None:
        own = self.labels[i]
        for other, sign in ((own, -1), (group, 1)):
            self.inside[other] += sign * 2 * self.links[other, i]
            self.total[other] += sign * self.degrees[i]
            self.count[other] += sign
            self.links[other] += sign * self.affinity[i]
        self.labels[i] = group

    def move_changes(self, classes: npt.NDArray[np.int64]) -> Floats:
        """[K, M]: what it changes to move each of M classes to each group; infinite to its own."""
        own, links, degrees = self.labels[classes], self.links[:, classes], self.degrees[classes]
        now, each = self.cost(self.inside, self.total), np.arange(len(classes))
        change = self.cost(self.inside[:, None] + 2 * links, self.total[:, None] + degrees) - now[:, None]
        change += self.cost(self.inside[own] - 2 * links[own, each], self.total[own] - degrees) - now[own]
        change[own, each] = np.inf
        return change

    def swap_changes(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> Floats:
        """[M]: what it changes that i [M] and j [M], in two groups, take each other's place."""
        now, change = self.cost(self.inside, self.total), np.zeros(len(i))
        for leaves, enters in ((i, j), (j, i)):
            group = self.labels[leaves]
            gain = 2 * (self.links[group, enters] - self.links[group, leaves] - self.affinity[i, j])
            total = self.total[group] + (self.degrees[enters] - self.degrees[leaves])
            change += self.cost(self.inside[group] + gain, total) - now[group]
        return change

    def _moves(self) -> bool:
        """One pass: the moves that lower the cost, largest gain first, each if it still does."""
        low, high = self.sizes
        change = self.move_changes(np.arange(len(self.labels)))
        change[self.count >= high] = np.inf
        change[:, self.count[self.labels] <= low] = np.inf
        gains = change.min(axis=0)
        found = False
        for i in _improving(gains):
            if self.count[self.labels[i]] <= low:
                continue
            change = self.move_changes(np.array([i]))[:, 0]
            change[self.count >= high] = np.inf
            group = int(change.argmin())
            if change[group] < -SMALLEST_GAIN:
                self.move(i, group)
                found = True
        return found

    def _swaps(self) -> bool:
        """One pass over the classes of each group that are cheapest to move to each other group."""
        k = len(self.count)
        change, most = self.move_changes(np.arange(len(self.labels))), max(2, SWAP_CANDIDATES // k)
        members = [np.flatnonzero(self.labels == group) for group in range(k)]
        cheapest = [  # [K, most] of each group
            classes[np.argsort(change[:, classes], axis=1, kind="stable")[:, :most]] for classes in members
        ]
        pairs = [
            np.stack(np.meshgrid(cheapest[a][b], cheapest[b][a])).reshape(2, -1)
            for a in range(k)
            for b in range(a)
        ]
        i, j = np.concatenate(pairs, axis=1)
        found = False
        for pair in _improving(self.swap_changes(i, j)):
            one, other = i[pair : pair + 1], j[pair : pair + 1]
            a, b = int(self.labels[one[0]]), int(self.labels[other[0]])
            if a != b and self.swap_changes(one, other)[0] < -SMALLEST_GAIN:
                self.move(int(one[0]), b)
                self.move(int(other[0]), a)
                found = True
        return found


def _improving(changes: Floats) -> list[int]:
    """Indices of the changes that are gains, largest first."""
    found = np.flatnonzero(changes < -SMALLEST_GAIN)
    ordered: list[int] = found[np.argsort(changes[found], kind="stable")].tolist()
    return ordered
