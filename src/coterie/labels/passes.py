"""The descent for many labels: moves in passes, swaps among candidates, sums that are kept up to date.

The steepest descent looks at every pair of classes before each step, which for thousands of them takes
minutes. Here a pass looks once at every move and makes those that still gain when their turn comes; a step
costs the length of a row of the affinity.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from coterie.labels.objectives import SMALLEST_GAIN, Floats, GroupCost, Labels

Indices = npt.NDArray[np.int64]

SWAP_CANDIDATES = 300  # classes of a group, shared out among the groups that they may go to


class DescentInPasses:
    """The local optimum below `start`: `labels` [C] and their `value`.

    No move of a class improves it, and no swap among those that are cheapest to move.
    `links` [K, C]: weight from a group to a class; of each group [K] the weight `inside`, the `total` weight
    to all classes, and the `count` of classes.
    """

    def __init__(self, affinity: Floats, start: Labels, cost: GroupCost, sizes: tuple[int, int]) -> None:
        self.affinity, self.cost, self.sizes = affinity, cost, sizes
        self.labels = start.copy()
        self.count = np.bincount(start)
        member = np.eye(len(self.count))[start]  # [C, K]
        self.links: Floats = member.T @ affinity
        self.degrees: Floats = self.links.sum(axis=0)
        self.inside: Floats = self.links[start, np.arange(len(start))] @ member
        self.total: Floats = self.degrees @ member
        self._descend()

    def again_from(self, start: Labels) -> Self:
        """The descent from a start that is near to these labels."""
        again = object.__new__(type(self))
        again.__dict__ = self.__dict__ | {
            name: getattr(self, name).copy() for name in ("labels", "count", "links", "inside", "total")
        }
        for i in np.flatnonzero(start != self.labels).tolist():
            again._move(i, int(start[i]))
        again._descend()
        return again

    def _descend(self) -> None:
        while self._moves() or self._swaps():
            pass
        self.value = float(self.cost(self.inside, self.total).sum())

    def _moves(self) -> bool:
        """One pass of moves, those that gain most first, each if it still gains; False where none does."""
        low, high = self.sizes
        change = self._move_changes(np.arange(len(self.labels)))
        change[self.count >= high] = np.inf
        change[:, self.count[self.labels] <= low] = np.inf
        moved = False
        for i in _gains(change.min(axis=0)):
            if self.count[self.labels[i]] <= low:
                continue
            change = self._move_changes(np.array([i]))[:, 0]
            change[self.count >= high] = np.inf
            group = int(change.argmin())
            if change[group] < -SMALLEST_GAIN:
                self._move(i, group)
                moved = True
        return moved

    def _swaps(self) -> bool:
        """One pass of swaps of the classes that are cheapest to move; False where none gains."""
        k = len(self.count)
        most = max(2, SWAP_CANDIDATES // k)
        change = self._move_changes(np.arange(len(self.labels)))
        cheapest = np.empty((k, k, most), np.int64)  # [from, to, most]; of fewer classes, some more than once
        for group in range(k):
            classes = np.flatnonzero(self.labels == group)
            some = min(most, len(classes))
            order = np.argpartition(change[:, classes], some - 1, axis=1)[:, :some]
            cheapest[group] = classes[order[:, np.arange(most) % some]]
        one, other = np.triu_indices(k, 1)
        left, right = cheapest[one, other, :, None], cheapest[other, one, None, :]
        change = self._swap_changes(left, right)  # [pairs of groups, most, most]
        swapped = False
        for index in _gains(change.ravel()):
            pair, row, column = np.unravel_index(index, change.shape)
            i, j = int(left[pair, row, 0]), int(right[pair, 0, column])
            a, b = int(self.labels[i]), int(self.labels[j])
            if a != b and self._swap_changes(i, j) < -SMALLEST_GAIN:
                self._move(i, b)
                self._move(j, a)
                swapped = True
        return swapped

    def _move(self, i: int, group: int) -> None:
        for other, sign in ((self.labels[i], -1), (group, 1)):
            self.inside[other] += sign * 2 * self.links[other, i]
            self.total[other] += sign * self.degrees[i]
            self.count[other] += sign
            self.links[other] += sign * self.affinity[i]
        self.labels[i] = group

    def _move_changes(self, classes: Indices) -> Floats:
        """[K, M]: what it changes to move each of M classes to each group; infinite to its own."""
        own, links, degrees = self.labels[classes], self.links[:, classes], self.degrees[classes]
        now, each = self.cost(self.inside, self.total), np.arange(len(classes))
        change = self.cost(self.inside[:, None] + 2 * links, self.total[:, None] + degrees) - now[:, None]
        change += self.cost(self.inside[own] - 2 * links[own, each], self.total[own] - degrees) - now[own]
        change[own, each] = np.inf
        return change

    def _swap_changes(self, i: Indices | int, j: Indices | int) -> Floats:
        """What it changes that `i` takes the place of `j`, of another group, and the other way round."""
        now = self.cost(self.inside, self.total)
        change = np.zeros(np.broadcast_shapes(np.shape(i), np.shape(j)))
        for leaves, enters in ((i, j), (j, i)):
            group = self.labels[leaves]
            gain = 2 * (self.links[group, enters] - self.links[group, leaves] - self.affinity[i, j])
            total = self.total[group] + (self.degrees[enters] - self.degrees[leaves])
            change = change + self.cost(self.inside[group] + gain, total) - now[group]
        return change


def _gains(changes: Floats) -> list[int]:
    """Indices of the changes that are gains, largest first."""
    found = np.flatnonzero(changes < -SMALLEST_GAIN)
    ordered: list[int] = found[np.argsort(changes[found], kind="stable")].tolist()
    return ordered
