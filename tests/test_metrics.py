"""Average precision and the field's metrics, beside scikit-learn, torchmetrics and a slow version by hand."""

from __future__ import annotations

import doctest
import json
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

import coterie.metrics
from coterie.errors import ConfigError, DataError
from coterie.metrics import average_precision, multilabel_metrics
from tests.conftest import shared_data

Scores = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int8]

NAMES = ("CP", "CR", "CF1", "OP", "OR", "OF1")


def draw(
    n: int, c: int, decimals: int | None = None, unknown: float = 0.0, seed: int = 0
) -> tuple[Scores, Targets]:
    """Probabilities and targets [N, C]; `decimals` rounds the scores into ties, `unknown` is a share."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, c)) < 0.3).astype(np.int8)
    scores = np.clip(rng.normal(0.35 + 0.3 * targets, 0.25), 0, 1).astype(np.float32)
    targets[rng.random((n, c)) < unknown] = -1
    return scores if decimals is None else np.round(scores, decimals), targets


def scikit_learn_ap(scores: Scores, targets: Targets) -> npt.NDArray[np.float64]:
    """AP [C] by scikit-learn, on the known targets of each class; NaN where it has no positive."""
    ap = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        known = targets[:, c] >= 0
        if (targets[:, c] == 1).any():
            ap[c] = average_precision_score(targets[known, c], scores[known, c])
    return ap


def slow_metrics(
    scores: Scores, targets: Targets, threshold: float | npt.NDArray[np.float64], top_k: int | None
) -> dict[str, float]:
    """CP to OF1 in percent, label by label."""
    n, c = scores.shape
    limits = np.broadcast_to(np.asarray(threshold, scores.dtype), c)
    correct, predicted, positive = np.zeros(c), np.zeros(c), np.zeros(c)
    for i in range(n):
        known = [j for j in range(c) if targets[i, j] != -1]
        ranked = sorted(known, key=lambda j: (-scores[i, j], j))
        for j in known:
            is_predicted = scores[i, j] > limits[j] and j in ranked[:top_k]
            positive[j] += targets[i, j] == 1
            predicted[j] += is_predicted
            correct[j] += is_predicted and targets[i, j] == 1
    counted = [j for j in range(c) if positive[j]]
    cp = np.mean([correct[j] / predicted[j] if predicted[j] else 0.0 for j in counted])
    cr = np.mean([correct[j] / positive[j] for j in counted])
    op, or_ = correct.sum() / predicted.sum(), correct.sum() / positive.sum()
    values = (cp, cr, 2 * cp * cr / (cp + cr), op, or_, 2 * op * or_ / (op + or_))
    return {name: 100 * float(value) for name, value in zip(NAMES, values, strict=True)}


def of_top3(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metrics[f"{name}_top3"] for name in NAMES}


# average_precision


def test_ap_is_the_mean_over_positives_of_the_precision_at_their_score() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    targets = np.array([[1], [0], [1], [0]])
    assert average_precision(scores, targets).tolist() == pytest.approx([(1 / 1 + 2 / 3) / 2])


def test_tied_scores_are_one_threshold_whatever_their_order() -> None:
    scores = np.array([[0.9], [0.5], [0.5], [0.1]])
    for targets in ([[0], [1], [0], [1]], [[0], [0], [1], [1]]):
        assert average_precision(scores, np.array(targets)).tolist() == pytest.approx([(1 / 3 + 2 / 4) / 2])


def test_ap_of_one_score_for_all_is_the_share_of_positives() -> None:
    ap = average_precision(np.full((10, 1), 0.5), np.array([[1]] * 3 + [[0]] * 7))
    assert ap.tolist() == pytest.approx([0.3])


def test_ap_is_float64_and_one_value_a_class() -> None:
    ap = average_precision(*draw(50, 7))
    assert ap.dtype == torch.float64
    assert ap.shape == (7,)


@pytest.mark.parametrize(("n", "c"), [(1, 1), (1, 5), (2, 3), (100, 1), (37, 20), (1000, 8)])
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_ap_is_scikit_learns_over_shapes_ties_and_unknown_targets(
    n: int, c: int, decimals: int | None, unknown: float
) -> None:
    scores, targets = draw(n, c, decimals, unknown)
    ap = average_precision(scores, targets)
    np.testing.assert_allclose(ap, scikit_learn_ap(scores, targets), rtol=0, atol=1e-12)


def test_ap_of_logits_and_of_their_sigmoid_in_double_precision_is_the_same() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (200, 6))
    targets = draw(200, 6)[1]
    ap = average_precision(1 / (1 + np.exp(-logits)), targets)
    np.testing.assert_array_equal(average_precision(logits, targets), ap)


def test_a_score_under_an_unknown_target_changes_nothing() -> None:
    scores, targets = draw(200, 6, unknown=0.3)
    other = np.where(targets == -1, np.float32(1), scores)
    np.testing.assert_array_equal(average_precision(scores, targets), average_precision(other, targets))
    assert multilabel_metrics(scores, targets) == multilabel_metrics(other, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_narrow_floats_keep_their_order_and_their_ties(dtype: torch.dtype) -> None:
    scores, targets = draw(500, 6)
    narrow = torch.from_numpy(scores).to(dtype)
    expected = scikit_learn_ap(narrow.double().numpy(), targets)
    np.testing.assert_allclose(
        average_precision(narrow, torch.from_numpy(targets)), expected, rtol=0, atol=1e-12
    )


def test_doubles_that_are_equal_as_floats_are_no_ties() -> None:
    scores = np.array([[0.5], [0.5 + 1e-12], [0.5 + 2e-12]])
    assert average_precision(scores, np.array([[0], [0], [1]])).tolist() == [1.0]


def test_half_precision_arrays_are_taken() -> None:
    scores, targets = draw(100, 4)
    ap = average_precision(scores.astype(np.float16), targets)
    np.testing.assert_array_equal(ap, average_precision(torch.from_numpy(scores).half(), targets))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_, np.uint8])
def test_targets_of_any_dtype_count_alike(dtype: type[np.generic]) -> None:
    scores, targets = draw(100, 4)
    ap = average_precision(scores, targets.astype(dtype))
    np.testing.assert_array_equal(ap, average_precision(scores, targets))


def test_inputs_are_left_as_they_were() -> None:
    scores, targets = draw(50, 5, unknown=0.2)
    before = scores.copy(), targets.copy()
    multilabel_metrics(torch.from_numpy(scores), torch.from_numpy(targets))
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(targets, before[1])


def slow_eleven_point(scores: Scores, targets: Targets) -> float:
    """AP of one class as VOC 2007 has it: thresholds one by one, in fractions."""
    known = targets != -1
    scores, targets = scores[known], targets[known]
    positives = int((targets == 1).sum())
    points = []
    for threshold in np.unique(scores):
        above = scores >= threshold
        right = int((above & (targets == 1)).sum())
        points.append((Fraction(right, positives), Fraction(right, int(above.sum()))))
    best = [
        max((precision for recall, precision in points if recall >= Fraction(step, 10)), default=Fraction(0))
        for step in range(11)
    ]
    return float(sum(best) / 11)


def test_eleven_point_ap_by_hand() -> None:
    # precision 1 up to recall 1/3, then 2/3 at recall 2/3, then 3/5 at recall 1
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    targets = np.array([[1], [0], [1], [0], [1]])
    assert average_precision(scores, targets, "11-point")[0] == pytest.approx(
        (4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11
    )
    assert average_precision(scores, targets)[0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_a_recall_of_three_in_ten_is_one_of_the_eleven() -> None:
    # 3 * 0.1 > 3 / 10 in doubles
    scores = np.arange(20, 0, -1.0)[:, None]
    targets = np.array([1] * 3 + [0] * 10 + [1] * 7)[:, None]
    assert average_precision(scores, targets, "11-point")[0] == pytest.approx((4 * 1 + 7 * 0.5) / 11)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [1, 6])
def test_eleven_point_ap_is_that_of_the_slow_version(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(-1, 2, (50, 5)).astype(np.int8)
    targets[0] = 1
    scores = (rng.random((50, 5)) + 0.3 * (targets == 1)).round(decimals)
    expected = [slow_eleven_point(scores[:, column], targets[:, column]) for column in range(5)]
    np.testing.assert_allclose(average_precision(scores, targets, "11-point"), expected, rtol=1e-12)
    metrics = multilabel_metrics(scores / 2, targets, ap="11-point")
    np.testing.assert_allclose(metrics["AP"], [100 * value for value in expected])
    assert metrics["mAP"] == pytest.approx(100 * np.mean(expected))


def test_eleven_point_ap_of_no_positive_is_none() -> None:
    ap = average_precision(np.array([[0.5, 0.5]]), np.array([[0, 1]]), "11-point")
    assert ap.isnan().tolist() == [True, False]


def test_a_class_without_a_known_positive_has_no_ap() -> None:
    scores, targets = draw(50, 4)
    targets[:, 1] = 0
    targets[:, 2] = -1
    targets[:, 3] = np.where(targets[:, 3] == 1, -1, 0)
    assert torch.isnan(average_precision(scores, targets)).tolist() == [False, True, True, True]


@pytest.mark.parametrize("decimals", [None, 1])
def test_ap_is_torchmetrics(decimals: int | None) -> None:
    scores, targets = draw(300, 6, decimals, unknown=0.2)
    theirs = multilabel_average_precision(
        torch.from_numpy(scores),
        torch.from_numpy(targets).long(),
        num_labels=6,
        average=None,
        ignore_index=-1,
    )
    np.testing.assert_allclose(average_precision(scores, targets), theirs, rtol=0, atol=1e-6)


def test_ap_on_the_targets_of_coco_is_scikit_learns() -> None:
    packed = np.load(shared_data() / "labels" / "coco2014_val_targets.npz")["targets_packed"]
    targets = np.unpackbits(packed, axis=1)[:, :80].astype(np.int8)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=targets.shape) + 3.0 * targets - 3.0
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert targets.shape == (40137, 80)
    np.testing.assert_allclose(
        average_precision(scores, targets), scikit_learn_ap(scores, targets), rtol=0, atol=1e-6
    )


# multilabel_metrics


def test_metrics_of_a_small_table_are_those_computed_by_hand() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.2, 0.9, 0.1, 0.3], [0.6, 0.1, 0.4, 0.3]])
    targets = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]])
    metrics = multilabel_metrics(scores, targets)
    # Predicted 2, 2, 1, 1; right 1, 2, 0, 1; positive 1, 2, 1, 1.
    assert metrics["CP"] == pytest.approx(100 * (1 / 2 + 1 + 0 + 1) / 4)
    assert metrics["CR"] == pytest.approx(100 * (1 + 1 + 0 + 1) / 4)
    assert metrics["CF1"] == pytest.approx(100 * 2 * 0.625 * 0.75 / (0.625 + 0.75))
    assert metrics["OP"] == pytest.approx(100 * 4 / 6)
    assert metrics["OR"] == pytest.approx(100 * 4 / 5)
    assert metrics["OF1"] == pytest.approx(100 * 8 / 11)
    assert metrics["AP"] == pytest.approx([100, 100, 50, 100])
    assert metrics["mAP"] == pytest.approx(87.5)
    # The fourth label of the first image is not among its three highest.
    assert metrics["CP_top3"] == pytest.approx(100 * (1 / 2 + 1 + 0 + 0) / 4)
    assert metrics["CR_top3"] == pytest.approx(100 * (1 + 1 + 0 + 0) / 4)
    assert metrics["OP_top3"] == pytest.approx(100 * 3 / 5)
    assert metrics["OR_top3"] == pytest.approx(100 * 3 / 5)


@pytest.mark.parametrize("unknown", [0.0, 0.5])
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize(("n", "c"), [(60, 9), (200, 4), (40, 2)])
@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.0, (0.2, 0.7)])
def test_metrics_are_those_of_the_slow_version(
    n: int, c: int, decimals: int | None, unknown: float, threshold: Any
) -> None:
    scores, targets = draw(n, c, decimals, unknown)
    if isinstance(threshold, tuple):  # one for each class
        threshold = np.linspace(threshold[0], threshold[1], c)
    metrics = multilabel_metrics(scores, targets, threshold)
    assert {name: metrics[name] for name in NAMES} == pytest.approx(
        slow_metrics(scores, targets, threshold, None)
    )
    assert of_top3(metrics) == pytest.approx(slow_metrics(scores, targets, threshold, 3))


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_precision_and_recall_are_torchmetrics_and_so_is_overall_f1(unknown: float) -> None:
    scores, targets = draw(300, 6, unknown=unknown)
    metrics = multilabel_metrics(scores, targets)
    pair = torch.from_numpy(scores), torch.from_numpy(targets).long()
    for name, function in (
        ("P", multilabel_precision),
        ("R", multilabel_recall),
        ("F1", multilabel_f1_score),
    ):
        overall = function(*pair, num_labels=6, average="micro", ignore_index=-1)
        assert metrics[f"O{name}"] == pytest.approx(100 * float(overall), abs=1e-4)
    for name, function in (("P", multilabel_precision), ("R", multilabel_recall)):
        of_classes = function(*pair, num_labels=6, average="macro", ignore_index=-1)
        assert metrics[f"C{name}"] == pytest.approx(100 * float(of_classes), abs=1e-4)


def test_cf1_is_the_harmonic_mean_of_cp_and_cr_and_not_the_mean_of_f1s() -> None:
    scores, targets = draw(300, 6)
    metrics = multilabel_metrics(scores, targets)
    cp, cr = metrics["CP"], metrics["CR"]
    pair = torch.from_numpy(scores), torch.from_numpy(targets).long()
    mean_of_f1s = 100 * float(multilabel_f1_score(*pair, num_labels=6, average="macro"))
    assert metrics["CF1"] == pytest.approx(2 * cp * cr / (cp + cr))
    assert abs(metrics["CF1"] - mean_of_f1s) > 0.01


def test_a_score_equal_to_the_threshold_predicts_nothing() -> None:
    metrics = multilabel_metrics(np.array([[0.5], [0.75]]), np.array([[1], [1]]))
    assert metrics["OR"] == 50
    at_a_tenth = np.array([[0.1], [0.75]], dtype=np.float32)
    assert multilabel_metrics(at_a_tenth, np.array([[1], [1]]), threshold=0.1)["OR"] == 50
    assert multilabel_metrics(at_a_tenth, np.array([[1], [1]]), threshold=[0.1])["OR"] == 50


def test_each_class_may_have_its_own_threshold() -> None:
    scores, targets = np.array([[0.4, 0.4], [0.2, 0.2]]), np.array([[1, 1], [1, 1]])
    assert multilabel_metrics(scores, targets, threshold=[0.3, 0.1])["OR"] == 75
    assert multilabel_metrics(scores, targets, threshold=torch.tensor([0.1, 0.5]))["OR"] == 50


def test_a_class_that_is_never_predicted_has_precision_0_in_cp() -> None:
    scores, targets = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[1, 1], [1, 0]])
    metrics = multilabel_metrics(scores, targets)
    assert metrics["CP"] == 50
    assert metrics["OP"] == 100


def test_no_prediction_at_all_is_0_everywhere_but_in_map() -> None:
    metrics = multilabel_metrics(np.array([[0.1, 0.2]]), np.array([[1, 1]]))
    assert [metrics[name] for name in NAMES] == [0] * 6
    assert metrics["mAP"] == 100


def test_top_3_takes_the_three_highest_that_are_above_the_threshold() -> None:
    scores, targets = np.array([[0.9, 0.8, 0.4, 0.3]]), np.array([[1, 0, 1, 1]])
    assert multilabel_metrics(scores, targets)["OP_top3"] == 50
    metrics = multilabel_metrics(scores, targets, threshold=0)
    assert metrics["OP_top3"] == pytest.approx(100 * 2 / 3)
    assert metrics["OR_top3"] == pytest.approx(100 * 2 / 3)


def test_ties_at_the_third_place_go_to_the_first_class() -> None:
    scores, targets = np.full((2, 5), 0.75), np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    metrics = multilabel_metrics(scores, targets)
    assert metrics["OP_top3"] == pytest.approx(100 * 4 / 6)


def test_the_three_highest_are_sought_among_the_known_labels() -> None:
    scores, targets = np.array([[0.9, 0.8, 0.7, 0.6]]), np.array([[-1, 1, 0, 1]])
    metrics = multilabel_metrics(scores, targets)
    assert metrics["OP_top3"] == pytest.approx(100 * 2 / 3)
    assert metrics["OR_top3"] == 100


def test_images_with_fewer_than_three_known_labels_have_all_of_them() -> None:
    scores, targets = (
        np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]]),
        np.array([[-1, -1, 1, 0], [-1] * 4]),
    )
    metrics = multilabel_metrics(scores, targets)
    assert metrics["OP_top3"] == 50
    assert metrics["OR_top3"] == 100


def test_with_no_more_classes_than_k_top_k_changes_nothing() -> None:
    metrics = multilabel_metrics(*draw(100, 3))
    assert of_top3(metrics) == {name: metrics[name] for name in NAMES}


def test_keys_are_named_after_top_k() -> None:
    keys = list(multilabel_metrics(*draw(20, 6), top_k=5))
    top = [f"{name}_top5" for name in NAMES]
    assert keys == ["mAP", *NAMES, *top, "AP", "classes_without_positives"]


def test_classes_without_positives_are_reported_and_left_out_of_the_means() -> None:
    scores, targets = draw(100, 5)
    targets[:, 1] = 0
    targets[:, 4] = -1
    metrics = multilabel_metrics(scores, targets, class_names=["ant", "bee", "cat", "dog", "emu"])
    others = multilabel_metrics(scores[:, [0, 2, 3]], targets[:, [0, 2, 3]])
    assert metrics["classes_without_positives"] == ["bee", "emu"]
    assert multilabel_metrics(scores, targets)["classes_without_positives"] == [1, 4]
    assert [metrics["AP"][c] for c in (1, 4)] == [None, None]
    assert [metrics[name] for name in ("mAP", "CP", "CR", "CF1", "OR")] == pytest.approx(
        [others[name] for name in ("mAP", "CP", "CR", "CF1", "OR")]
    )
    assert metrics["OP"] < others["OP"]  # what was wrongly predicted of "bee" still counts overall


def test_without_any_positive_every_value_is_none() -> None:
    metrics = multilabel_metrics(np.array([[0.9, 0.1]]), np.array([[0, -1]]))
    assert metrics["mAP"] is None
    assert metrics["AP"] == [None, None]
    assert [metrics[name] for name in NAMES] == [None] * 6
    assert list(of_top3(metrics).values()) == [None] * 6


def test_metrics_come_back_from_json_as_they_were() -> None:
    scores, targets = draw(50, 4)
    targets[:, 2] = 0
    metrics = multilabel_metrics(torch.from_numpy(scores).half(), targets, class_names=["a", "b", "c", "d"])
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_tensors_with_gradients_are_taken() -> None:
    scores, targets = draw(20, 3)
    tracked = torch.from_numpy(scores).requires_grad_()
    assert multilabel_metrics(tracked, torch.from_numpy(targets)) == multilabel_metrics(scores, targets)


def test_the_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(coterie.metrics)
    assert result.attempted > 0
    assert result.failed == 0


# blocks, threads and memory


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_small_blocks_and_several_threads_change_no_value(
    monkeypatch: pytest.MonkeyPatch, threads: int, unknown: float
) -> None:
    scores, targets = draw(101, 37, 2, unknown)
    metrics = multilabel_metrics(scores, targets, threshold=0.3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(coterie.metrics, "ROW_ENTRIES", 4 * 37)
    for_five_classes = coterie.metrics.RANK_BYTES + 5 * coterie.metrics.ENTRY_BYTES
    monkeypatch.setattr(coterie.metrics, "WORKING_BYTES", threads * 101 * for_five_classes)
    assert multilabel_metrics(scores, targets, threshold=0.3) == metrics
    assert multilabel_metrics(torch.from_numpy(scores), torch.from_numpy(targets), 0.3) == metrics
    assert average_precision(scores, targets).tolist() == pytest.approx(np.array(metrics["AP"]) / 100)


def test_fewer_images_than_threads_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = multilabel_metrics(*draw(2, 5))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert multilabel_metrics(*draw(2, 5)) == metrics


@pytest.mark.parametrize("present", [0.01, 1.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_beside_the_inputs_is_bounded_whatever_their_size(
    monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating[Any]], present: float
) -> None:
    rng = np.random.default_rng(0)
    scores, targets = (
        rng.random((4000, 300)).astype(dtype),
        (rng.random((4000, 300)) < present).astype(np.int8),
    )
    bound = 2**20
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(coterie.metrics, "WORKING_BYTES", bound)
    multilabel_metrics(scores[:10], targets[:10])
    tracemalloc.start()
    multilabel_metrics(scores, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bound < targets.nbytes


# messages


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match=r"scores \[4, 3\] and targets \[4, 2\] must both be \[N, C\]"):
        average_precision(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"scores \[4\] and targets \[4\] must both be \[N, C\]"):
        average_precision(np.zeros(4), np.zeros(4))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_measure_is_an_error(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="there is nothing to measure"):
        average_precision(np.zeros(shape), np.zeros(shape))


def test_scores_that_are_no_floats_are_refused() -> None:
    with pytest.raises(DataError, match="scores are int64; give floats"):
        average_precision(np.zeros((2, 2), dtype=np.int64), np.zeros((2, 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_named_with_its_row_and_class(value: float) -> None:
    scores, targets = draw(5, 3)
    scores[3, 1] = value
    with pytest.raises(DataError, match=f"score in row 3, class 1 is {value}; scores must be finite"):
        average_precision(scores, targets)
    with pytest.raises(DataError, match=f"score in row 3, class 'dog' is {value}; scores must be finite"):
        multilabel_metrics(scores, targets, class_names=["cat", "dog", "emu"])


def test_a_wrong_value_is_named_with_its_row_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coterie.metrics, "ROW_ENTRIES", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    scores, targets = draw(50, 3)
    scores[47, 2], targets[20, 1] = np.nan, 3
    with pytest.raises(DataError, match="target in row 20, class 1 is 3"):
        multilabel_metrics(scores, targets)
    targets[20, 1] = 0
    with pytest.raises(DataError, match="score in row 47, class 2 is nan"):
        multilabel_metrics(scores, targets)


@pytest.mark.parametrize("value", [2, -2, 0.5, np.nan])
def test_a_target_other_than_1_0_or_unknown_is_named(value: float) -> None:
    scores, targets = draw(5, 3)
    wrong = targets.astype(np.float64)
    wrong[2, 0] = value
    with pytest.raises(DataError, match=rf"target in row 2, class 0 is {float(value)}; give 1 \(present\)"):
        average_precision(scores, torch.from_numpy(wrong))


def test_an_unknown_target_stored_without_a_sign_is_refused() -> None:
    with pytest.raises(DataError, match="target in row 0, class 0 is 255"):
        average_precision(np.array([[0.5]]), np.array([[-1]]).astype(np.uint8))


@pytest.mark.parametrize("value", [3.25, -0.5])
def test_logits_in_place_of_probabilities_are_told_to_take_a_sigmoid(value: float) -> None:
    scores, targets = draw(5, 3)
    scores[1, 2] = value
    with pytest.raises(DataError, match=rf"row 1, class 2 is {value}; .* in 0\.\.1: apply a sigmoid"):
        multilabel_metrics(scores, targets)


def test_class_names_must_fit_the_classes() -> None:
    with pytest.raises(DataError, match="2 class names do not fit scores of 3 classes"):
        multilabel_metrics(*draw(5, 3), class_names=["cat", "dog"])


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_k is 0; it must be 1 or more"):
        multilabel_metrics(*draw(5, 3), top_k=0)
    with pytest.raises(ConfigError, match=r"threshold is 50; it must lie within 0\.\.1"):
        multilabel_metrics(*draw(5, 3), threshold=50)
    with pytest.raises(ConfigError, match=r"thresholds \[2\] must be one number or \[3\]"):
        multilabel_metrics(*draw(5, 3), threshold=[0.5, 0.5])
