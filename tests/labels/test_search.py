import numpy as np
import pytest

from coterie.labels import search as search_module
from coterie.labels.anticlustering import balanced_anticlusters, size_bounds
from coterie.labels.objectives import (
    Floats,
    GroupCost,
    Labels,
    normalized_cut,
    normalized_cut_cost,
    share_inside,
)
from coterie.labels.passes import DescentInPasses
from coterie.labels.search import descend
from coterie.labels.spectral import lowest_normalized_cut, spectral_embedding, within


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


def test_groups_come_within_their_sizes_by_the_classes_that_are_linked_most_to_the_smallest() -> None:
    affinity = np.zeros((6, 6))
    affinity[2, 5] = affinity[5, 2] = 3
    affinity[3, 5] = affinity[5, 3] = 4
    affinity[3, :2] = affinity[:2, 3] = 2  # linked to its own group as much
    start = np.array([0, 0, 0, 0, 0, 1])
    assert within(start, affinity, (2, 5)).tolist() == [0, 0, 1, 0, 0, 1]
    assert within(start, affinity, (1, 3)).tolist() == [0, 0, 1, 1, 0, 1]
    assert within(start, affinity, (1, 5)).tolist() == start.tolist() == [0, 0, 0, 0, 0, 1]


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


def planted_affinity(classes: int, themes: int, seed: int = 0) -> Floats:
    """Class i is of theme i % themes; classes of one theme are linked three times as much."""
    theme = np.arange(classes) % themes
    random = np.random.default_rng(seed).random((classes, classes)) ** 4
    half = np.triu(random * np.where(theme[:, None] == theme, 3, 1), 1)
    return np.asarray(half + half.T)


def cost_of(cost: GroupCost, affinity: Floats, labels: Labels) -> float:
    """The summed cost of the groups, from their definition."""
    groups = groups_of(labels)
    inside = np.array([affinity[np.ix_(group, group)].sum() for group in groups])
    total = np.array([affinity[group].sum() for group in groups])
    return float(cost(inside, total).sum())


@pytest.mark.parametrize("cost", [inside_cost, normalized_cut_cost])
@pytest.mark.parametrize("k", [2, 4])
def test_a_descent_in_passes_ends_where_no_move_and_no_swap_is_better(cost: GroupCost, k: int) -> None:
    affinity = random_affinity(14) / 100
    start = np.arange(14) % k
    found = DescentInPasses(affinity, start, cost, (2, 9))
    value = cost_of(cost, affinity, found.labels)
    assert found.value == pytest.approx(value)
    assert value < cost_of(cost, affinity, start)
    assert np.bincount(found.labels).min() >= 2
    assert np.bincount(found.labels).max() <= 9
    for i in range(14):
        for group in range(k):
            moved = found.labels.copy()
            moved[i] = group
            if np.bincount(moved).min() >= 2 and np.bincount(moved).max() <= 9:
                assert cost_of(cost, affinity, moved) >= value - 1e-8
        for j in range(i):
            swapped = found.labels.copy()
            swapped[[i, j]] = found.labels[[j, i]]
            assert cost_of(cost, affinity, swapped) >= value - 1e-8


def test_a_descent_in_passes_swaps_where_sizes_allow_no_move() -> None:
    pairs = np.array([[0, 3, 0, 1], [3, 0, 1, 0], [0, 1, 0, 3], [1, 0, 3, 0]], dtype=float)
    found = DescentInPasses(pairs, np.array([0, 0, 1, 1]), inside_cost, (2, 2))
    assert found.labels[0] == found.labels[2] != found.labels[1] == found.labels[3]
    assert found.value == 0


def test_a_descent_from_a_start_near_by_is_that_from_the_start_alone() -> None:
    affinity = planted_affinity(60, 4)
    first = DescentInPasses(affinity, np.arange(60) % 3, normalized_cut_cost, (1, 60))
    labels = first.labels.copy()
    start = labels.copy()
    start[[3, 17, 42]] = (start[[3, 17, 42]] + 1) % 3
    again, alone = first.again_from(start), DescentInPasses(affinity, start, normalized_cut_cost, (1, 60))
    assert again.labels.tolist() == alone.labels.tolist()
    assert again.value == pytest.approx(alone.value)
    np.testing.assert_allclose(again.links, alone.links)
    assert first.labels.tolist() == labels.tolist()


def test_the_search_for_many_classes_loses_nothing_against_the_steepest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    affinity, k, seeds = planted_affinity(120, 12), 4, range(3)

    def results() -> tuple[list[float], list[float]]:
        apart = [balanced_anticlusters(affinity, k, seed) for seed in seeds]
        together = [lowest_normalized_cut(affinity, k, seed) for seed in seeds]
        for labels in apart:
            assert set(np.bincount(labels)) <= set(range(size_bounds(120, k)[0], size_bounds(120, k)[1] + 1))
        return (
            [share_inside(affinity, groups_of(labels)) for labels in apart],
            [normalized_cut(affinity, groups_of(labels)) for labels in together],
        )

    shares, cuts = results()
    monkeypatch.setattr(search_module, "MOST_STEEPEST", 100)
    ours, our_cuts = results()
    assert np.mean(ours) <= 1.01 * np.mean(shares)
    assert max(our_cuts) <= 1.001 * min(cuts)


def test_the_search_for_many_classes_gives_one_result_for_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "MOST_STEEPEST", 50)
    affinity = planted_affinity(60, 5)
    for partition in (balanced_anticlusters, lowest_normalized_cut):
        assert partition(affinity, 3, 0).tolist() == partition(affinity, 3, 0).tolist()


@pytest.mark.parametrize("parts", [1, 3, 40])
def test_the_embedding_of_many_classes_spans_the_lowest_relaxed_cut(
    monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    k = 6
    affinity = planted_affinity(700, 9)
    part = np.arange(700) % parts
    affinity[part[:, None] != part] = 0

    def relaxed_cut() -> float:
        """K less the traces: the least that any K groups' cut can be. The basis is D-orthonormal."""
        x, degrees = spectral_embedding(affinity, k), affinity.sum(axis=1)
        np.testing.assert_allclose(x.T @ (degrees[:, None] * x), np.eye(k), atol=1e-9)
        return k - float(np.trace(x.T @ affinity @ x))

    exact = relaxed_cut()
    monkeypatch.setattr("coterie.labels.spectral.MOST_EXACT", 500)
    assert relaxed_cut() == pytest.approx(exact, abs=1e-4)
    assert exact == pytest.approx(0, abs=1e-9) if parts > k else exact > 0.1
