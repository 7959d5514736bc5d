import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from coterie.data import sparse as sparse_targets
from coterie.errors import DataError, PartitionError
from coterie.labels import CooccurrenceGraph
from tests.conftest import shared_data

NAMES = ("cat", "dog", "tree")
TARGETS = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]], dtype=np.int8)


def test_counts_are_images_with_both_labels_and_images_with_one() -> None:
    found = CooccurrenceGraph.from_targets(TARGETS, NAMES)
    assert found.counts.tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]
    assert found.class_counts.tolist() == [4, 2, 1]
    assert found.class_names == NAMES
    assert found.num_classes == 3


def test_affinity_is_the_mean_of_the_rooted_conditional_probabilities() -> None:
    found = CooccurrenceGraph.from_targets(TARGETS, NAMES)
    # P(cat|dog) = 1, P(dog|cat) = 1/2; P(cat|tree) = 1, P(tree|cat) = 1/4
    cat_dog, cat_tree = (1 + 0.5**0.5) / 2, (1 + 0.5) / 2
    expected = [[0, cat_dog, cat_tree], [cat_dog, 0, 0], [cat_tree, 0, 0]]
    np.testing.assert_allclose(found.affinity(), expected)
    np.testing.assert_allclose(found.affinity(root=1)[0], [0, 0.75, 0.625])


def test_unknown_targets_count_as_nothing() -> None:
    unknown = np.where(TARGETS == 0, -1, TARGETS).astype(np.int8)
    found = CooccurrenceGraph.from_targets(unknown, NAMES)
    assert found.counts.tolist() == CooccurrenceGraph.from_targets(TARGETS, NAMES).counts.tolist()
    nothing = CooccurrenceGraph.from_targets(np.full((5, 3), -1, np.int8), NAMES)
    assert nothing.class_counts.tolist() == [0, 0, 0]


def test_a_class_without_positives_has_no_affinity() -> None:
    found = CooccurrenceGraph.from_targets(TARGETS * np.array([1, 0, 1], np.int8), NAMES)
    assert found.affinity()[1].tolist() == [0, 0, 0]
    assert np.isfinite(found.affinity()).all()


def test_no_images_give_a_graph_of_zeros() -> None:
    assert not CooccurrenceGraph.from_targets(np.zeros((0, 3), np.int8), NAMES).affinity().any()


def test_blocks_sum_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = np.random.default_rng(0).integers(-1, 2, (1000, 7)).astype(np.int8)
    present = (targets == 1).astype(np.int64)
    monkeypatch.setattr(sparse_targets, "BLOCK_ENTRIES", 50)
    found = CooccurrenceGraph.from_targets(targets, list("abcdefg"))
    np.testing.assert_array_equal(found.counts + np.diag(found.class_counts), present.T @ present)


@pytest.mark.parametrize("form", ["csr_array", "csc_array", "coo_array", "lil_matrix", "csr_matrix"])
@pytest.mark.parametrize("block", [3, 2**22])
def test_sparse_targets_give_the_graph_of_dense_ones(
    monkeypatch: pytest.MonkeyPatch, form: str, block: int
) -> None:
    targets = np.random.default_rng(0).choice([-1, 0, 1], (200, 7), p=[0.1, 0.6, 0.3]).astype(np.int8)
    monkeypatch.setattr(sparse_targets, "BLOCK_ENTRIES", block)
    given = getattr(sparse, form)(targets)
    found = CooccurrenceGraph.from_targets(given, list("abcdefg"))
    present = (targets == 1).astype(np.int64)
    np.testing.assert_array_equal(found.counts + np.diag(found.class_counts), present.T @ present)
    np.testing.assert_array_equal(given.toarray(), targets)


def test_a_zero_that_is_stored_is_absent_and_an_entry_stored_twice_its_sum() -> None:
    places = (np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0]))
    zero = sparse.coo_array((np.array([1, 0, 1, 0]), places), (2, 2))
    assert CooccurrenceGraph.from_targets(zero, ("a", "b")).class_counts.tolist() == [2, 0]
    twice = sparse.csr_array((np.ones(2, np.int8), np.array([1, 1]), np.array([0, 2, 2])), (2, 2))
    with pytest.raises(DataError, match="values other than 1"):
        CooccurrenceGraph.from_targets(twice, ("a", "b"))
    assert twice.nnz == 2


def test_graphs_of_parts_add_up_to_the_graph_of_the_whole() -> None:
    targets = np.random.default_rng(0).integers(-1, 2, (100, 5)).astype(np.int8)
    names = list("abcde")
    parts = [CooccurrenceGraph.from_targets(part, names) for part in np.array_split(targets, 3)]
    whole, summed = CooccurrenceGraph.from_targets(targets, names), sum(parts[1:], parts[0])
    np.testing.assert_array_equal(summed.counts, whole.counts)
    np.testing.assert_array_equal(summed.class_counts, whole.class_counts)
    assert summed.class_names == whole.class_names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog", "car"), "'car', 'tree' on one side only"),
        (("dog", "cat", "tree"), "the order differs"),
    ],
)
def test_graphs_of_other_classes_do_not_add_up(names: tuple[str, ...], message: str) -> None:
    graph = CooccurrenceGraph.from_targets(TARGETS, NAMES)
    with pytest.raises(DataError, match=f"the same classes in the same order; {message}"):
        graph + CooccurrenceGraph.from_targets(TARGETS, names)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_counting_takes_no_more_memory_for_more_images(
    monkeypatch: pytest.MonkeyPatch, form: Callable[[np.ndarray], Any]
) -> None:
    monkeypatch.setattr(sparse_targets, "BLOCK_ENTRIES", 2**14)
    targets = (np.random.default_rng(0).random((20_000, 100)) < 0.1).astype(np.int8)
    names = [f"label {index}" for index in range(100)]
    peaks = []
    for images in (10, 5_000, 20_000):
        given = form(targets[:images])
        tracemalloc.start()
        CooccurrenceGraph.from_targets(given, names)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1]
    assert peaks[2] < targets.size / 2


def test_a_diagonal_that_repeats_the_class_counts_becomes_zero() -> None:
    found = CooccurrenceGraph(np.array([[3, 1], [1, 2]]), np.array([3, 2]), ("a", "b"))
    assert found.counts.tolist() == [[0, 1], [1, 0]]


def test_counts_of_floats_become_whole_numbers() -> None:
    found = CooccurrenceGraph(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([3.0, 2.0]), ("a", "b"))
    assert found.counts.dtype == found.class_counts.dtype == np.int64


@pytest.mark.parametrize(
    ("counts", "class_counts", "names", "message"),
    [
        ([[0, 1], [1, 0]], [3, 2], ("a", "a"), "stand twice: 'a'"),
        ([[0, 1], [1, 0]], [3, 2], ("a", "b", "c"), r"counts must be \[3, 3\] for 3 classes, got \[2, 2\]"),
        ([[0, 1], [1, 0]], [3], ("a", "b"), r"class_counts must be \[2\] for 2 classes, got \[1\]"),
        ([[0, 1], [2, 0]], [3, 2], ("a", "b"), "'a' with 'b' is 1, the other way round 2"),
        ([[0, -1], [-1, 0]], [3, 2], ("a", "b"), "0 or more"),
        ([[0, 0.5], [0.5, 0]], [3, 2], ("a", "b"), "whole numbers"),
        ([[0, float("nan")], [0, 0]], [3, 2], ("a", "b"), "whole numbers"),
        ([[False, True], [True, False]], [3, 2], ("a", "b"), "whole numbers, got bool"),
        ([[1, 1], [1, 2]], [3, 2], ("a", "b"), "repeat class_counts: 'a' has 1, and 3 images"),
        ([[0, 3], [3, 0]], [3, 2], ("a", "b"), "together on 3 images, but only 2 carry 'b'"),
        ([], [], (), "at least one class"),
    ],
)
def test_counts_that_cannot_be_are_refused(
    counts: list[list[float]], class_counts: list[int], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        CooccurrenceGraph(np.array(counts), np.array(class_counts), names)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([[0, 2]], np.int8), "values other than 1"),
        (np.array([[0, 1, 1]], np.int8), r"must be \[N, 2\] for 2 classes, got \[1, 3\]"),
        (np.array([0, 1], np.int8), r"must be \[N, 2\] for 2 classes, got \[2\]"),
        (sparse.csr_array([[0, 2]]), "values other than 1"),
        (sparse.csr_array([[0, 1, 1]]), r"must be \[N, 2\] for 2 classes, got \[1, 3\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CooccurrenceGraph.from_targets(targets, ("a", "b"))


@pytest.mark.parametrize("root", [0, -1, float("nan"), float("inf")])
def test_a_root_that_is_no_positive_number_is_refused(root: float) -> None:
    with pytest.raises(PartitionError, match="root must be a number above 0"):
        CooccurrenceGraph.from_targets(TARGETS, NAMES).affinity(root)


def test_counts_of_real_targets_agree_with_a_plain_product() -> None:
    with np.load(shared_data() / "labels" / "coco2014_val_targets.npz") as file:
        targets = np.unpackbits(file["targets_packed"], axis=1)[:, :80].astype(np.int8)
        names = file["class_names"].tolist()
    found = CooccurrenceGraph.from_targets(targets, names)
    person, car = names.index("person"), names.index("car")
    assert found.counts[person, car] == ((targets[:, person] == 1) & (targets[:, car] == 1)).sum()
    np.testing.assert_array_equal(found.class_counts, targets.sum(axis=0, dtype=np.int64))
