"""The table of classes and its summary by frequency, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coterie.intervals import Differences
from coterie.labels import CooccurrenceGraph, partition_labels
from coterie.report.classes import class_rows, frequency_buckets


def row(train: int, baseline: float | None, student: float | None) -> dict[str, Any]:
    known = baseline is not None and student is not None
    return {
        "name": f"of {train}",
        "train": train,
        "ap": {"baseline": baseline, "student": student},
        "difference": student - baseline if known else None,  # type: ignore[operator]
    }


def test_a_row_has_what_is_known_of_its_class() -> None:
    targets = np.array([[1, 0, 0], [1, 1, -1], [0, 1, 0]], np.int8)
    graph = CooccurrenceGraph.from_targets(targets, ("x", "y", "z"))
    groups = partition_labels(graph, 3, "co-occurrence")
    results = {"baseline": {"AP": [50.0, 20.0, None]}, "student": {"AP": [60.0, 15.0, None]}}
    resamples = Differences({}, np.array([[9.0, -6.0, np.nan], [11.0, -4.0, np.nan]]))
    rows = class_rows(
        graph.class_names, np.array([7, 5, 1]), targets, results, {"co-occurrence": groups}, resamples
    )
    assert [one["name"] for one in rows] == ["x", "y", "z"]
    assert [one["train"] for one in rows] == [7, 5, 1]
    assert [one["positives"] for one in rows] == [2, 2, 0]
    assert [one["difference"] for one in rows] == [10.0, -5.0, None]
    for index, one in enumerate(rows):
        assert index in groups.groups[one["groups"]["co-occurrence"]]
    assert rows[0]["interval"] == pytest.approx((9.05, 10.95))
    assert rows[2]["interval"] is None


def test_buckets_are_of_about_the_same_number_of_classes_rarest_first() -> None:
    rows = [row(train, 10.0, 10.0 + train) for train in (80, 10, 70, 20, 60, 30)]
    rows += [row(40, 50.0, 45.0), row(50, 50.0, 50.0), row(1, None, None)]
    low, high = frequency_buckets(rows)
    assert (low["low"], low["high"], low["classes"], low["gained"], low["lost"]) == (10, 40, 4, 3, 1)
    assert (high["low"], high["high"], high["classes"], high["gained"], high["lost"]) == (50, 80, 4, 3, 0)
    assert low["difference"] == pytest.approx((10 + 20 + 30 - 5) / 4)
    assert low["ap"]["baseline"] == pytest.approx((10 + 10 + 10 + 50) / 4)
    assert frequency_buckets([row(1, None, None)]) == []
    assert len(frequency_buckets([row(1, 1.0, 2.0)])) == 1
