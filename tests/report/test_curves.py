"""Precision-recall curves: exact, and thinned without another shape."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from coterie.metrics import average_precision, multilabel_metrics
from coterie.report.curves import Curve, encoded_curve, operating_point, precision_recall, thinned


def scored(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.2).astype(np.int8)
    return np.round(rng.normal(size=n) + targets, 2).astype(np.float32), targets


def test_a_curve_by_hand() -> None:
    curve = precision_recall(np.array([0.9, 0.8, 0.7, 0.7, 0.1]), np.array([1, 0, 1, -1, 1], np.int8))
    assert curve is not None
    assert curve.recall.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert curve.precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4])


def test_its_points_are_on_the_curve_of_scikit_learn_and_its_area_is_the_average_precision() -> None:
    scores, targets = scored(2000)
    curve = precision_recall(scores, targets)
    assert curve is not None
    precision, recall, _ = precision_recall_curve(targets, scores)
    expected = {
        (round(float(r), 12), round(float(p), 12)) for r, p in zip(recall, precision, strict=True) if r > 0
    }
    points = list(zip(curve.recall.round(12).tolist(), curve.precision.round(12).tolist(), strict=True))
    assert set(points) <= expected
    area = (np.diff(curve.recall, prepend=0) * curve.precision).sum()
    assert area == pytest.approx(float(average_precision(scores[:, None], targets[:, None])[0]))


def test_there_is_no_curve_without_positives() -> None:
    assert precision_recall(np.array([0.5, 0.4]), np.array([0, -1], np.int8)) is None
    assert encoded_curve(np.array([0.5, 0.4]), np.array([0, -1], np.int8), 0.0, 8) is None


def test_thinned_it_keeps_the_ends_and_every_extreme_of_a_column() -> None:
    scores, targets = scored(20_000)
    curve = precision_recall(scores, targets)
    assert curve is not None
    few = thinned(curve, 50)
    assert len(few.recall) <= 200 < len(curve.recall)
    assert (np.diff(few.recall) > 0).all()
    for whole, part in ((curve, few), (few, curve)):
        assert whole.recall[-1] == part.recall[-1] == 1
        assert whole.recall[0] == part.recall[0]
    of_all, of_few = (np.minimum((one.recall * 50).astype(int), 49) for one in (curve, few))
    for column in range(50):
        all_values, values = curve.precision[of_all == column], few.precision[of_few == column]
        assert values.min() == all_values.min()
        assert values.max() == all_values.max()
        assert (values[0], values[-1]) == (all_values[0], all_values[-1])


def test_a_short_curve_stays_as_it_is() -> None:
    curve = Curve(np.array([0.25, 0.5, 1.0]), np.array([1.0, 0.4, 0.6]))
    few = thinned(curve, 128)
    assert few.recall.tolist() == curve.recall.tolist()
    assert few.precision.tolist() == curve.precision.tolist()


def test_the_operating_point_is_that_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(-1, 2, (50, 4)).astype(np.int8)
    logits = rng.normal(size=(50, 4)).astype(np.float32)
    metrics = multilabel_metrics(1 / (1 + np.exp(-logits)), targets)
    point = operating_point(logits, targets, 0.0)
    assert point == pytest.approx((metrics["OR"] / 100, metrics["OP"] / 100))
    assert operating_point(logits, targets, 99.0) is None
    encoded = encoded_curve(logits, targets, 0.0, 16)
    assert encoded is not None
    assert encoded["point"] == [round(100 * metrics[name]) for name in ("OR", "OP")]
