"""Diagnostics: the rates of leaning and what partitions do, against plain loops and by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from coterie.diagnostics import (
    CompanionRates,
    Pair,
    Rate,
    companion_rates,
    describe_pairs,
    describe_partition,
    leaning_summary,
    seed_agreement,
    strongest_pairs,
)
from coterie.errors import PartitionError
from coterie.labels import CooccurrenceGraph, Partition, partition_labels
from coterie.labels.partition import Objective

NAMES = ("cup", "table", "bear", "person")


def partition_of(*groups: tuple[int, ...], names: tuple[str, ...] = NAMES) -> Partition:
    return Partition(groups, names, "co-occurrence", "paper", 2.0, 0, Objective("normalized cut", 0.0))


def random_targets(rng: np.random.Generator, images: int, classes: int, unknown: float = 0.0) -> np.ndarray:
    targets = (rng.random((images, classes)) < 0.4).astype(np.int8)
    targets[rng.random(targets.shape) < unknown] = -1
    return targets


# Strongest pairs


def test_the_strongest_pairs_are_those_of_the_highest_affinity_each_both_ways_round() -> None:
    # cup and table: 16 of 20 and of 16 images; bear and person are on 9 together; cup is with all of table
    counts = np.array([[0, 16, 0, 12], [16, 0, 0, 12], [0, 0, 0, 9], [12, 12, 9, 0]])
    graph = CooccurrenceGraph(counts, np.array([20, 16, 9, 100]), NAMES)
    assert strongest_pairs(graph, most=2) == (
        Pair(0, 1, 16 / 20, 16),
        Pair(1, 0, 16 / 16, 16),
        Pair(1, 3, 12 / 16, 12),
        Pair(3, 1, 12 / 100, 12),
    )
    # 9 images are too few for ten, though P(person | bear) is 1
    assert all({pair.label, pair.companion} != {2, 3} for pair in strongest_pairs(graph))
    assert {(pair.label, pair.companion) for pair in strongest_pairs(graph, images=9)} >= {(2, 3), (3, 2)}


def test_labels_that_are_never_together_are_no_pair() -> None:
    graph = CooccurrenceGraph.from_targets(np.eye(4, dtype=np.int8), NAMES)
    assert strongest_pairs(graph, images=0) == ()


def test_the_strongest_pairs_agree_with_a_plain_search() -> None:
    targets = random_targets(np.random.default_rng(0), 80, 7)
    graph = CooccurrenceGraph.from_targets(targets, [f"c{number}" for number in range(7)])
    expected = {}
    for i, j in combinations(range(7), 2):
        both = sum(row[i] == 1 and row[j] == 1 for row in targets)
        if both >= 10:
            n_i, n_j = sum(targets[:, i] == 1), sum(targets[:, j] == 1)
            expected[i, j] = ((both / n_i) ** 0.5 + (both / n_j) ** 0.5) / 2
    best = sorted(expected, key=lambda pair: -expected[pair])[:5]
    found = strongest_pairs(graph, most=5)
    assert [(pair.label, pair.companion) for pair in found[::2]] == best
    assert [(pair.companion, pair.label) for pair in found[1::2]] == best


def test_pairs_are_described_by_class_name() -> None:
    assert describe_pairs([Pair(1, 3, 0.25, 12)], NAMES) == [
        {"label": "table", "companion": "person", "probability": 0.25, "images": 12}
    ]


# Leaning


def test_the_rates_of_a_pair_by_hand() -> None:
    targets = np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 1], [0, 1], [0, 0], [0, 0]], np.int8)
    scores = np.array([0.9, 0.6, 0.2, 0.7, 0.8, 0.1, 0.3, 0.5])
    (rates,) = companion_rates(np.stack([scores, scores], 1), targets, [Pair(0, 1, 0.5, 10)])
    assert rates == CompanionRates(
        recall_with=Rate(100.0, 2),
        recall_without=Rate(0.0, 1),
        false_positives_with=Rate(100 * 2 / 3, 3),
        # a score that equals the threshold is no prediction
        false_positives_without=Rate(0.0, 2),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_the_rates_agree_with_a_plain_loop_and_leave_unknown_targets_out(threshold: float) -> None:
    rng = np.random.default_rng(3)
    targets = random_targets(rng, 200, 5, unknown=0.3)
    scores = rng.random((200, 5)).astype(np.float32)
    pairs = [Pair(j, i, 0.5, 10) for j in range(5) for i in range(5) if i != j]
    for pair, rates in zip(pairs, companion_rates(scores, targets, pairs, threshold), strict=True):
        found: dict[tuple[int, int], list[bool]] = {}
        for score, target in zip(scores, targets, strict=True):
            condition = (int(target[pair.label]), int(target[pair.companion]))
            found.setdefault(condition, []).append(bool(score[pair.label] > threshold))
        for rate, condition in zip(rates, [(1, 1), (1, 0), (0, 1), (0, 0)], strict=True):
            assert rate.of == len(found[condition])
            assert rate.percent == pytest.approx(100 * np.mean(found[condition]))


def test_a_rate_of_no_image_is_none() -> None:
    targets = np.array([[1, 1], [0, -1]], np.int8)
    (rates,) = companion_rates(np.full((2, 2), 0.9), targets, [Pair(0, 1, 1.0, 10)])
    assert rates.recall_with == (100.0, 1)
    assert rates[1:] == ((None, 0), (None, 0), (None, 0))


def test_a_float32_score_that_equals_the_threshold_is_no_prediction() -> None:
    scores = np.full((1, 2), 0.1, np.float32)
    (rates,) = companion_rates(scores, np.ones((1, 2), np.int8), [Pair(0, 1, 1.0, 10)], threshold=0.1)
    assert rates.recall_with == (0.0, 1)


def test_means_are_over_the_pairs_that_have_both_rates() -> None:
    some, none = Rate(50.0, 2), Rate(None, 0)
    rates = [
        CompanionRates(Rate(90.0, 10), Rate(40.0, 5), Rate(30.0, 3), none),
        CompanionRates(Rate(70.0, 10), Rate(80.0, 5), none, some),
        CompanionRates(Rate(10.0, 10), none, none, none),
    ]
    summary = leaning_summary(rates)
    assert summary["recall"] == {"with": 80.0, "without": 60.0, "difference": 20.0, "pairs": 2}
    assert summary["false_positives"] == {"with": None, "without": None, "difference": None, "pairs": 0}
    assert summary["each"][0] == {
        "recall_with": {"percent": 90.0, "of": 10},
        "recall_without": {"percent": 40.0, "of": 5},
        "false_positives_with": {"percent": 30.0, "of": 3},
        "false_positives_without": {"percent": None, "of": 0},
    }


def test_a_model_that_reads_the_companion_leans_and_one_that_knows_the_label_does_not() -> None:
    rng = np.random.default_rng(0)
    targets = random_targets(rng, 400, 2)
    pairs = [Pair(0, 1, 0.5, 10)]
    knows = leaning_summary(companion_rates(targets.astype(float), targets, pairs))
    reads = leaning_summary(companion_rates(targets[:, ::-1].astype(float), targets, pairs))
    assert (knows["recall"]["difference"], knows["false_positives"]["difference"]) == (0.0, 0.0)
    assert (reads["recall"]["difference"], reads["false_positives"]["difference"]) == (100.0, 100.0)


# Partitions


def test_a_partition_is_described_by_hand() -> None:
    # affinity at root 1: cup-table 1, bear-person 0.5, cup-person 0.25, all else 0
    counts = np.array([[0, 8, 0, 2], [8, 0, 0, 0], [0, 0, 0, 4], [2, 0, 4, 0]])
    graph = CooccurrenceGraph(counts, np.array([8, 8, 8, 8]), NAMES)
    groups = partition_of((0, 1), (2, 3))
    described = describe_partition(graph, Partition(**vars(groups) | {"root": 1.0}))
    assert described["normalized_cut"] == pytest.approx(0.25 / 2.25 + 0.25 / 1.25)
    assert described["share_inside"] == pytest.approx(3 / 3.5)
    assert [group["names"] for group in described["groups"]] == [("cup", "table"), ("bear", "person")]
    assert [group["size"] for group in described["groups"]] == [2, 2]
    assert [group["share_inside"] for group in described["groups"]] == pytest.approx([2 / 2.25, 1 / 1.25])


def test_a_description_agrees_with_plain_loops() -> None:
    targets = random_targets(np.random.default_rng(1), 60, 9)
    graph = CooccurrenceGraph.from_targets(targets, [f"c{number}" for number in range(9)])
    partition = partition_labels(graph, 3)
    affinity = graph.affinity(2.0)
    described = describe_partition(graph, partition)
    inside, cut = 0.0, 0.0
    for group, values in zip(partition.groups, described["groups"], strict=True):
        own = sum(affinity[i, j] for i in group for j in range(9))
        kept = sum(affinity[i, j] for i in group for j in group)
        assert values["share_inside"] == pytest.approx(kept / own)
        inside += kept
        cut += (own - kept) / own
    assert described["share_inside"] == pytest.approx(inside / affinity.sum())
    assert described["normalized_cut"] == pytest.approx(cut)


def test_a_group_without_affinity_has_no_share() -> None:
    counts = np.zeros((4, 4), np.int64)
    counts[0, 1] = counts[1, 0] = 3
    graph = CooccurrenceGraph(counts, np.array([3, 3, 3, 3]), NAMES)
    groups = describe_partition(graph, partition_of((0, 1), (2, 3)))["groups"]
    assert [group["share_inside"] for group in groups] == [1.0, None]


def plain_adjusted_rand(one: list[int], other: list[int]) -> float:
    """The adjusted Rand index by counting all pairs of classes (Hubert and Arabie, 1985)."""
    pairs = list(combinations(range(len(one)), 2))
    together = [(one[i] == one[j], other[i] == other[j]) for i, j in pairs]
    both = sum(a and b for a, b in together)
    first, second = (sum(column) for column in zip(*together, strict=True))
    expected = first * second / len(pairs)
    return float((both - expected) / ((first + second) / 2 - expected))


def test_agreement_is_the_adjusted_rand_index_over_all_two_partitions() -> None:
    names = tuple(f"c{number}" for number in range(6))
    groups = [((0, 1, 2), (3, 4, 5)), ((0, 1), (2, 3, 4, 5)), ((0, 3), (1, 4), (2, 5))]
    partitions = [partition_of(*each, names=names) for each in groups]
    labels = [[next(g for g, group in enumerate(each) if c in group) for c in range(6)] for each in groups]
    expected = [plain_adjusted_rand(one, other) for one, other in combinations(labels, 2)]
    assert seed_agreement(partitions) == pytest.approx({"mean": np.mean(expected), "lowest": min(expected)})
    assert expected[0] > 0 > expected[1]


def test_the_same_groups_agree_whatever_the_order_of_the_classes() -> None:
    one = partition_of((0, 1), (2, 3))
    assert seed_agreement([one, one.reordered(NAMES[::-1])]) == {"mean": 1.0, "lowest": 1.0}


def test_agreement_needs_two_partitions_of_the_same_classes() -> None:
    one = partition_of((0, 1), (2, 3))
    with pytest.raises(PartitionError, match="two partitions at least, got 1"):
        seed_agreement([one])
    with pytest.raises(PartitionError, match="other classes"):
        seed_agreement([one, partition_of((0, 1), (2, 3), names=("a", "b", "c", "d"))])
