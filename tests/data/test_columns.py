"""Targets as lists of labels are those of the array, whatever is asked of them."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.data.columns import LabelLists
from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN
from coterie.data.sparse import are_labelled, count_value
from coterie.labels import CooccurrenceGraph


@pytest.fixture(params=[7, 70_000], ids=["few", "more than a block"])
def dense(request: pytest.FixtureRequest) -> np.ndarray:
    return (np.random.default_rng(0).random((request.param, 5)) < 0.3).astype(np.int8)


def lists_of(dense: np.ndarray) -> LabelLists:
    rows, columns = np.nonzero(dense)
    edges = np.searchsorted(rows, np.arange(len(dense) + 1))
    return LabelLists({"label_edges": edges, "labels": columns.astype(np.int32)}, dense.shape[1])


def test_any_rows_are_those_of_the_array(dense: np.ndarray) -> None:
    lists = lists_of(dense)
    assert lists.shape == dense.shape
    some = np.array([3, 0, 0, -1])
    assert np.array_equal(lists[some], dense[some])
    assert np.array_equal(lists[2], dense[2])
    assert np.array_equal(lists[-2], dense[-2])
    assert np.array_equal(lists[1:5], dense[1:5])
    assert np.array_equal(lists[dense[:, 0] == 1], dense[dense[:, 0] == 1])
    assert lists[:].dtype == np.int8
    assert np.array_equal(np.asarray(lists), dense)
    assert lists[:0].shape == (0, 5)
    with pytest.raises(IndexError):
        lists[len(dense)]


def test_rows_and_columns_are_chosen_again_and_again(dense: np.ndarray) -> None:
    lists = lists_of(dense).take(np.array([5, 1, 3])).with_columns([4, 0, 2]).take(np.array([2, 0]))
    lists = lists.with_columns([2, 1])
    assert np.array_equal(lists[:], dense[[3, 5]][:, [2, 0]])
    assert np.array_equal(lists[1:], dense[[5]][:, [2, 0]])


def test_counts_are_those_of_the_array(dense: np.ndarray) -> None:
    for lists, same in ((lists_of(dense), dense), (lists_of(dense).with_columns([3, 1]), dense[:, [3, 1]])):
        for value in (PRESENT, ABSENT, UNKNOWN):
            assert count_value(lists, value).tolist() == (same == value).sum(axis=0).tolist()
            assert count_value(same, value).tolist() == (same == value).sum(axis=0).tolist()
        assert np.array_equal(are_labelled(lists), same.any(axis=1))
        names = [str(number) for number in range(same.shape[1])]
        graph = CooccurrenceGraph.from_targets(lists, names)
        assert np.array_equal(graph.counts, CooccurrenceGraph.from_targets(same, names).counts)


def test_graphs_of_parts_add_up_to_that_of_the_whole(dense: np.ndarray) -> None:
    lists, names = lists_of(dense), "abcde"
    parts = np.array_split(np.arange(len(dense)), 4)
    graphs = [CooccurrenceGraph.from_targets(lists.take(part), list(names)) for part in parts]
    together = graphs[0] + graphs[1] + graphs[2] + graphs[3]
    plain = dense.astype(np.int64).T @ dense
    assert np.array_equal(together.class_counts, plain.diagonal())
    assert np.array_equal(together.counts, plain - np.diag(plain.diagonal()))
