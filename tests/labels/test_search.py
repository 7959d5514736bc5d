import numpy as np
import pytest

from coterie.labels.objectives import Floats, Labels, normalized_cut, normalized_cut_cost
from coterie.labels.search import descend


def random_affinity(classes: int) -> Floats:
    half = np.triu(np.random.default_rng(0).random((classes, classes)), 1)
    return np.asarray(half + half.T)


def inside_cost(inside: Floats, _: Floats) -> Floats:
    return inside


def groups_of(labels: Labels) -> list[list[int]]:
    return [np.flatnonzero(labels == group).tolist() for group in range(labels.max() + 1)]


def test_a_swap_is_made_where_sizes_allow_no_move() -> None:
    pairs = np.array([[0, 3, 0, 1], [3, 0, 1, 0], [0, 1, 0, 3], [1, 0, 3, 0]], dtype=float)
    labels, value = descend(pairs, np.array([0, 0, 1, 1]), inside_cost, (2, 2))
    assert labels[0] == labels[2] != labels[1] == labels[3]
    assert value == 0


@pytest.mark.parametrize("k", [2, 4])
def test_a_descent_ends_where_no_move_and_no_swap_is_better(k: int) -> None:
    affinity = random_affinity(14)
    start = np.arange(14) % k
    labels, value = descend(affinity, start, normalized_cut_cost, (1, 14))
    assert value == pytest.approx(normalized_cut(affinity, groups_of(labels)))
    assert value < normalized_cut(affinity, groups_of(start))
    for i in range(14):
        for group in range(k):
            moved = labels.copy()
            moved[i] = group
            if len(set(moved)) == k:
                assert normalized_cut(affinity, groups_of(moved)) >= value - 1e-8
        for j in range(i):
            swapped = labels.copy()
            swapped[[i, j]] = labels[[j, i]]
            assert normalized_cut(affinity, groups_of(swapped)) >= value - 1e-8
