import json
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.errors import PartitionError
from coterie.labels import (
    CooccurrenceGraph,
    Partition,
    normalized_cut,
    partition_labels,
    search,
    share_inside,
)
from coterie.labels.anticlustering import size_bounds
from coterie.labels.partition import METHODS, Objective
from coterie.labels.spectral import near_equal_sizes

EVERY_METHOD = [(kind, method) for kind, methods in METHODS.items() for method in methods]


def graph_of(targets: np.ndarray) -> CooccurrenceGraph:
    return CooccurrenceGraph.from_targets(targets, [f"class {i:02}" for i in range(targets.shape[1])])


def random_graph(classes: int, seed: int = 0) -> CooccurrenceGraph:
    rng = np.random.default_rng(seed)
    return graph_of((rng.random((300, classes)) < rng.uniform(0.05, 0.5, classes)).astype(np.int8))


def planted_graph(blocks: int = 4, size: int = 5) -> CooccurrenceGraph:
    """Images carry three labels of one block; one image in ten carries one of another block too.

    Block b holds the classes b, b + blocks, b + 2 * blocks and so on.
    """
    rng = np.random.default_rng(0)
    targets = np.zeros((2000, size, blocks), np.int8)
    for n in range(len(targets)):
        targets[n, rng.choice(size, 3, replace=False), n % blocks] = 1
        if n % 10 == 0:
            targets[n, rng.integers(size), rng.integers(blocks)] = 1
    return graph_of(targets.reshape(len(targets), -1))


def names_of(partition: Partition) -> set[frozenset[str]]:
    return {frozenset(names) for names in partition.group_names}


def every_partition(c: int, k: int) -> list[list[list[int]]]:
    """All ways to put C classes into K groups that are not empty."""
    return [
        [[i for i in range(c) if labels[i] == group] for group in range(k)]
        for labels in product(range(k), repeat=c)
        if labels[0] == 0 and len(set(labels)) == k
    ]


@pytest.mark.parametrize("method", METHODS["co-occurrence"])
@pytest.mark.parametrize("seed", [0, 1])
def test_cooccurrence_groups_are_the_planted_blocks(method: str, seed: int) -> None:
    found = partition_labels(planted_graph(), 4, "co-occurrence", method, seed=seed)
    assert found.groups == tuple(tuple(range(block, 20, 4)) for block in range(4))


@pytest.mark.parametrize("seed", [0, 1])
def test_disoccurrence_groups_take_as_few_as_can_be_of_a_planted_block(seed: int) -> None:
    found = partition_labels(planted_graph(), 5, "dis-occurrence", seed=seed)
    for group in found.groups:
        assert sorted(index % 4 for index in group) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("c", "k"), [(8, 2), (7, 3)])
def test_the_cut_is_the_lowest_of_all(c: int, k: int, seed: int) -> None:
    graph = random_graph(c, seed)
    lowest = min(normalized_cut(graph.affinity(), groups) for groups in every_partition(c, k))
    found = partition_labels(graph, k, "co-occurrence", seed=seed)
    assert found.objective.value == pytest.approx(lowest)
    assert found.objective.value == normalized_cut(graph.affinity(), found.groups)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("c", "k"), [(8, 2), (7, 3)])
def test_the_share_inside_is_the_lowest_of_all_of_bounded_size(c: int, k: int, seed: int) -> None:
    graph = random_graph(c, seed)
    low, high = size_bounds(c, k)
    lowest = min(
        share_inside(graph.affinity(), groups)
        for groups in every_partition(c, k)
        if all(low <= len(group) <= high for group in groups)
    )
    found = partition_labels(graph, k, "dis-occurrence", seed=seed)
    assert found.objective.value == pytest.approx(lowest)
    assert found.objective.value == share_inside(graph.affinity(), found.groups)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("c", "k"), [(8, 2), (7, 3), (9, 3)])
def test_the_balanced_cut_is_the_lowest_of_all_of_near_equal_sizes(c: int, k: int, seed: int) -> None:
    graph = random_graph(c, seed)
    low, high = near_equal_sizes(c, k)
    allowed = [
        normalized_cut(graph.affinity(), groups)
        for groups in every_partition(c, k)
        if all(low <= len(group) <= high for group in groups)
    ]
    found = partition_labels(graph, k, "co-occurrence", "balanced-cut", seed=seed)
    assert found.objective.value == pytest.approx(min(allowed))


def test_a_balanced_cut_divides_a_block_that_a_cut_leaves_whole() -> None:
    targets = np.zeros((60, 15), np.int8)
    targets[:40, :11] = np.random.default_rng(0).random((40, 11)) < 0.5
    targets[40:50, 11:13] = targets[50:, 13:] = 1
    assert sorted(partition_labels(graph_of(targets), 3).sizes) == [2, 2, 11]
    assert near_equal_sizes(15, 3) == (3, 7)
    found = partition_labels(graph_of(targets), 3, "co-occurrence", "balanced-cut")
    assert all(3 <= size <= 7 for size in found.sizes)
    together = [set(group) for group in found.groups]
    assert all(any(pair <= group for group in together) for pair in ({11, 12}, {13, 14}))


def test_a_balanced_cut_stays_balanced_with_classes_that_appear_alone() -> None:
    targets = np.zeros((40, 24), np.int8)
    targets[:30, :13] = np.random.default_rng(0).random((30, 13)) < 0.5
    targets[30:, 13:15] = 1
    found = partition_labels(graph_of(targets), 3, "co-occurrence", "balanced-cut")
    low, high = near_equal_sizes(24, 3)
    assert all(low <= size <= high for size in found.sizes)


@pytest.mark.parametrize(
    ("c", "k", "low", "high"), [(80, 5, 12, 20), (63, 3, 15, 27), (3, 2, 1, 2), (7, 7, 1, 2)]
)
def test_near_equal_sizes_are_a_quarter_less_and_more_than_the_mean(
    c: int, k: int, low: int, high: int
) -> None:
    assert near_equal_sizes(c, k) == (low, high)


@pytest.mark.parametrize(
    ("c", "k", "low", "high"), [(80, 5, 6, 26), (81, 13, 3, 10), (3, 2, 1, 2), (7, 7, 1, 1)]
)
def test_size_bounds_are_a_third_and_five_thirds_of_the_mean(c: int, k: int, low: int, high: int) -> None:
    assert size_bounds(c, k) == (low, high)


@pytest.mark.parametrize(("kind", "method"), EVERY_METHOD)
@pytest.mark.parametrize(
    ("targets", "k"),
    [
        (np.ones((4, 2), np.int8), 2),  # always together: 1 - S has no weight
        (np.ones((4, 3), np.int8), 2),
        (np.eye(6, dtype=np.int8), 3),  # never together: S has no weight
        (np.zeros((4, 6), np.int8), 3),  # no positives at all
        (np.zeros((4, 6), np.int8), 6),
        (np.array([[1, 1, 0, 0, 0, 0]], np.int8), 4),  # fewer linked classes than groups
        (np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]], np.int8), 2),  # two components, one class alone
        (np.repeat(np.eye(3, dtype=np.int8), 3, axis=1), 4),  # fewer distinct rows than groups
        ((np.random.default_rng(0).random((50, 6)) < 0.4).astype(np.int8), 6),  # a class a group
        ((np.random.default_rng(0).random((50, 6)) < 0.4).astype(np.int8), 5),
    ],
)
@pytest.mark.parametrize("most_steepest", [0, 500])
def test_any_graph_gives_a_partition_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, kind: str, method: str, targets: np.ndarray, k: int, most_steepest: int
) -> None:
    monkeypatch.setattr(search, "MOST_STEEPEST", most_steepest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = partition_labels(graph_of(targets), k, kind, method)
    assert found.k == k
    assert sorted(index for group in found.groups for index in group) == list(range(targets.shape[1]))
    assert np.isfinite(found.objective.value)


def test_classes_that_appear_alone_are_spread_over_the_smallest_groups() -> None:
    targets = np.zeros((2, 9), np.int8)
    targets[0, :4] = targets[1, 4:6] = 1
    found = partition_labels(graph_of(targets), 2, "co-occurrence")
    assert found.groups == ((0, 1, 2, 3, 8), (4, 5, 6, 7))
    assert found.objective.value == pytest.approx(0)


def ring(*counts: int) -> CooccurrenceGraph:
    """Four classes in a ring, each on so many images with the next."""
    pairs = np.repeat(np.arange(4), counts)
    targets = np.zeros((len(pairs), 4), np.int8)
    targets[np.arange(len(pairs)), pairs] = targets[np.arange(len(pairs)), (pairs + 1) % 4] = 1
    return graph_of(targets)


@pytest.mark.parametrize("method", METHODS["co-occurrence"])
def test_further_cooccurrence_groups_are_of_links_that_those_before_have_cut(method: str) -> None:
    graph = ring(9, 4, 9, 4)
    first = partition_labels(graph, 2, "co-occurrence", method)
    assert first.groups == ((0, 1), (2, 3))
    turned = first.reordered(graph.class_names[::-1])
    second = partition_labels(graph, 2, "co-occurrence", method, before=[turned])
    assert second.groups == ((0, 3), (1, 2))
    assert second.objective.value == normalized_cut(graph.affinity(), second.groups)


@pytest.mark.parametrize("method", METHODS["dis-occurrence"])
def test_further_disoccurrence_groups_keep_other_pairs_together(method: str) -> None:
    graph = ring(5, 0, 5, 0) + ring(1, 2, 1, 2)
    first = partition_labels(graph, 2, "dis-occurrence", method)
    assert first.groups == ((0, 2), (1, 3))
    second = partition_labels(graph, 2, "dis-occurrence", method, before=[first])
    assert second.groups == ((0, 3), (1, 2))


@pytest.mark.parametrize(("c", "k", "seed"), [(8, 2, 5), (8, 2, 7), (9, 3, 2)])
def test_further_disoccurrence_groups_lower_the_sum_of_two_shares(c: int, k: int, seed: int) -> None:
    """Few labels on an image: neither share alone, nor the sum without weights, leads to these groups."""
    graph = graph_of((np.random.default_rng(seed).random((60, c)) < 0.08).astype(np.int8))
    before = [partition_labels(graph, k, kind, seed=seed) for kind in ("dis-occurrence", "random")]
    pairs = np.zeros((c, c))
    for group in [group for partition in before for group in partition.groups]:
        pairs[np.ix_(group, group)] += 1
    np.fill_diagonal(pairs, 0)

    def shares(groups: Sequence[Sequence[int]]) -> float:
        return share_inside(graph.affinity(), groups) + share_inside(pairs, groups)

    low, high = size_bounds(c, k)
    allowed = [
        groups for groups in every_partition(c, k) if all(low <= len(group) <= high for group in groups)
    ]
    found = partition_labels(graph, k, "dis-occurrence", seed=seed, before=before)
    assert shares(found.groups) == pytest.approx(min(map(shares, allowed)))
    assert share_inside(graph.affinity(), found.groups) > min(
        share_inside(graph.affinity(), groups) for groups in allowed
    )


@pytest.mark.parametrize("kind", METHODS)
def test_one_group_holds_all_classes(kind: str) -> None:
    found = partition_labels(random_graph(6), 1, kind)
    assert found.groups == (tuple(range(6)),)
    assert found.sizes == (6,)


@pytest.mark.parametrize(("kind", "method"), EVERY_METHOD)
def test_a_seed_gives_the_same_groups_whatever_the_order_of_the_classes(kind: str, method: str) -> None:
    graph = random_graph(15)
    order = np.random.default_rng(1).permutation(15)
    shuffled = CooccurrenceGraph(
        graph.counts[np.ix_(order, order)],
        graph.class_counts[order],
        tuple(graph.class_names[i] for i in order),
    )
    first = partition_labels(graph, 3, kind, method, seed=4)
    assert first == partition_labels(graph, 3, kind, method, seed=4)
    assert names_of(first) == names_of(partition_labels(shuffled, 3, kind, method, seed=4))


def test_random_groups_differ_by_seed_and_are_as_equal_as_can_be() -> None:
    first, second = (partition_labels(random_graph(11), 3, "random", seed=seed) for seed in (0, 1))
    assert first.groups != second.groups
    assert sorted(first.sizes) == [3, 4, 4]


def test_random_groups_have_the_sizes_asked_for() -> None:
    found = partition_labels(random_graph(10), 3, "random", sizes=(6, 1, 3))
    assert sorted(found.sizes) == [1, 3, 6]


def test_groups_and_their_classes_are_in_order() -> None:
    found = partition_labels(random_graph(12), 4, "random", seed=3)
    assert all(list(group) == sorted(group) for group in found.groups)
    assert list(found.groups) == sorted(found.groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 7}, "k = 7 groups cannot be made of 6 classes; choose k between 1 and 6"),
        ({"k": 0}, "k = 0 groups cannot be made of 6 classes"),
        (
            {"kind": "cooccurrence"},
            "'cooccurrence' is no kind.*'dis-occurrence'.*did you mean 'co-occurrence'",
        ),
        ({"method": "balanced"}, "'balanced' is no method for a co-occurrence partition.*'normalized-cut'"),
        ({"root": 0}, "root must be a number above 0, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"sizes": [3, 3]}, "sizes belong to kind 'random', not to 'co-occurrence'"),
        ({"kind": "random", "sizes": [3, 4]}, r"sizes \[3, 4\] do not fit: give 2 sizes.* sum to 6"),
        ({"kind": "random", "sizes": [6, 0]}, "each 1 or more"),
        ({"kind": "random", "sizes": [2, 2, 2]}, "give 2 sizes"),
    ],
)
def test_what_is_not_possible_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        partition_labels(random_graph(6), **{"k": 2, **settings})


def small_partition() -> Partition:
    return Partition(
        groups=((3, 1), (2, 0)),
        class_names=("cat", "dog", "tree", "café"),
        kind="co-occurrence",
        method="paper",
        root=2.0,
        seed=7,
        objective=Objective("normalized cut", 1 / 3),
    )


def test_a_partition_orders_its_groups_and_names_them() -> None:
    partition = small_partition()
    assert partition.groups == ((0, 2), (1, 3))
    assert partition.group_names == (("cat", "tree"), ("dog", "café"))
    assert (partition.k, partition.sizes) == (2, (2, 2))


def test_the_same_groups_in_another_order_of_the_classes() -> None:
    partition = small_partition().reordered(("café", "tree", "dog", "cat"))
    assert partition.groups == ((0, 2), (1, 3))
    assert names_of(partition) == names_of(small_partition())
    with pytest.raises(PartitionError, match="of other classes; 'car', 'cat' on one side only"):
        partition.reordered(("café", "tree", "dog", "car"))


def test_a_saved_partition_is_loaded_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "partition.json"
    small_partition().save(path)
    assert Partition.load(path) == Partition.load(str(path)) == small_partition()
    assert [file.name for file in path.parent.iterdir()] == ["partition.json"]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["groups"] == [["cat", "tree"], ["dog", "café"]]
    assert content["schema_version"] == 1


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "partition.json"
    small_partition().save(path)
    before = path.read_bytes()

    def disk_full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        partition_labels(random_graph(5), 2, "random").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [["cat"], ["dog", "café"]]}, "no group holds 'tree'"),
        ({"groups": [["cat", "tree", "dog"], ["dog", "café"]]}, "group 1 holds 'dog' and group 0 too"),
        ({"groups": [["cat", "tree", "cat"], ["dog", "café"]]}, "group 0 holds 'cat' twice"),
        ({"groups": [["cat", "tree", "dog", "café"], []]}, "group 1 is empty"),
        (
            {"groups": [["cat", "tre"], ["dog", "café"]]},
            "'tre', which is not one of the 4 classes; did you mean 'tree'",
        ),
        ({"groups": [["cat", "tree", "dog", "café"]]}, "k is 2, but there are 1 groups"),
        ({"groups": ["cat", "tree"]}, "group 0 must be a list of class names, got 'cat'"),
        ({"groups": "cat"}, "'groups' has a wrong value: 'cat'"),
        ({"class_names": ["cat", "cat", "dog", "tree", "café"]}, "class names stand twice: 'cat'"),
        ({"class_names": [1, 2]}, "class_names must be a list of class names"),
        ({"schema_version": 2}, "its schema version is 2, this version of coterie reads 1"),
        ({"schema_version": None}, "its schema version is None"),
        ({"kind": "co-occurence"}, "'co-occurence' is no kind of partition.*did you mean 'co-occurrence'"),
        ({"method": "balanced"}, "'balanced' is no method for a co-occurrence partition"),
        ({"objective": {"name": "share inside"}}, "'objective' must have a name and a value"),
        ({"seed": "seven"}, "'seed' has a wrong value: 'seven'"),
    ],
)
def test_a_file_that_is_no_partition_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "partition.json"
    small_partition().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(PartitionError, match=f"partition .*partition.json: .*{message}"):
        Partition.load(path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "partition.json"
    small_partition().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["groups"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(PartitionError, match=r"partition\.json: 'groups' is missing"):
        Partition.load(path)


@pytest.mark.parametrize("content", [b"", b"groups: 1", b"\xff\xfe", b"cut"])
def test_a_file_that_is_not_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "partition.json"
    small_partition().save(path)
    path.write_bytes(path.read_bytes()[:100] if content == b"cut" else content)
    with pytest.raises(PartitionError, match=r"partition\.json is not JSON, or was cut off"):
        Partition.load(path)


def test_a_file_that_is_absent_a_folder_or_a_list_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=r"partition\.json is not there"):
        Partition.load(tmp_path / "partition.json")
    with pytest.raises(PartitionError, match="cannot be read"):
        Partition.load(tmp_path)
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    with pytest.raises(PartitionError, match=r"list\.json: the file must hold one JSON object"):
        Partition.load(tmp_path / "list.json")
