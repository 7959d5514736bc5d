"""Thresholds and temperature, against plain loops and cases worked out by hand."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from coterie.errors import ConfigError, DataError
from coterie.metrics import multilabel_metrics
from coterie.tuning import (
    CHOICES,
    GLOBAL,
    PER_CLASS,
    SHRUNK,
    TEMPERATURES,
    UNTUNED,
    Counts,
    Objective,
    brier_score,
    calibration_curve,
    fit_temperature,
    tune_thresholds,
)

OBJECTIVES = ("f1", "precision=0.8", "cost=1:5", "cost=3:1")


def made(
    n: int = 60, c: int = 4, seed: int = 0, unknown: float = 0.1, ties: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know something of the targets, rounded so that some are equal, and targets."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, c)) < np.linspace(0.1, 0.5, c)).astype(np.int8)
    logits = rng.normal(size=(n, c)) + 1.5 * targets - 1
    targets[rng.random((n, c)) < unknown] = -1
    return (logits.round(1) if ties else logits).astype(np.float32), targets


def candidates(values: np.ndarray) -> list[float]:
    """Every cut that divides the values differently, the strictest first."""
    distinct = sorted({float(value) for value in values}, reverse=True)
    between = [(above + below) / 2 for above, below in pairwise(distinct)]
    return [distinct[0], *between, distinct[-1] - 1]


def plain_counts(values: np.ndarray, targets: np.ndarray, cut: float) -> tuple[int, int, int]:
    pairs = [(float(value), int(target)) for value, target in zip(values, targets, strict=True)]
    tp = sum(1 for value, target in pairs if target == 1 and value > cut)
    fp = sum(1 for value, target in pairs if target == 0 and value > cut)
    return tp, fp, int((targets == 1).sum()) - tp


def plain_f1(tp: int, fp: int, fn: int) -> float:
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def plain_own(values: np.ndarray, targets: np.ndarray, objective: Objective) -> float:
    known = targets != -1
    values, targets = values[known], targets[known]
    best, best_quality = math.nan, -math.inf
    for cut in candidates(values):
        tp, fp, fn = plain_counts(values, targets, cut)
        if objective.kind == "precision":
            if math.isnan(best) or (tp + fp and tp / (tp + fp) >= objective.precision):
                best = cut
            continue
        cost = fp * objective.false_positive + fn * objective.missed
        quality = plain_f1(tp, fp, fn) if objective.kind == "f1" else -cost
        if quality > best_quality + 1e-12:
            best, best_quality = cut, quality
    return best


def plain_common(logits: np.ndarray, targets: np.ndarray, objective: Objective) -> float:
    if objective.kind != "f1":
        return plain_own(logits.reshape(-1), targets.reshape(-1), objective)
    best, best_quality = math.nan, -math.inf
    for cut in candidates(logits[targets != -1]):
        quality = sum(
            plain_f1(*plain_counts(logits[known, column], targets[known, column], cut))
            for column in range(logits.shape[1])
            for known in [targets[:, column] != -1]
        )
        if quality > best_quality + 1e-12:
            best, best_quality = cut, quality
    return best


def plain_cuts(
    logits: np.ndarray, targets: np.ndarray, objective: Objective, prior: float
) -> dict[str, list[float]]:
    common = plain_common(logits, targets, objective)
    own, shrunk = [], []
    for column in range(logits.shape[1]):
        n = int((targets[:, column] == 1).sum())
        own.append(plain_own(logits[:, column], targets[:, column], objective) if n else common)
        shrunk.append((n * own[-1] + prior * common) / (n + prior))
    return {GLOBAL: [common] * len(own), SHRUNK: shrunk, PER_CLASS: own}


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cuts_are_those_of_plain_loops(objective: str, ties: bool) -> None:
    wanted = Objective.parse(objective)
    for seed in range(3):
        logits, targets = made(seed=seed, ties=ties)
        targets[:, 1] = np.where(targets[:, 1] == 1, 0, targets[:, 1])  # a class without positives
        targets[:, 2] = np.where(np.arange(len(targets)) < 2, 1, -1)  # and one with nothing else
        tuning = tune_thresholds(logits, targets, wanted, prior=4.0)
        for name, cuts in plain_cuts(logits, targets, wanted, prior=4.0).items():
            np.testing.assert_allclose(tuning.choices[name].cuts, cuts, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cross_validation_judges_by_images_that_had_no_part_in_the_choice(objective: str) -> None:
    wanted = Objective.parse(objective)
    logits, targets = made(n=31)
    tuning = tune_thresholds(logits, targets, wanted, folds=3, seed=5)
    fold_of = np.random.default_rng(5).permutation(31) % 3
    expected = {name: np.zeros((3, 4), int) for name in CHOICES[1:]}
    for fold in range(3):
        others, held_out = fold_of != fold, fold_of == fold
        for name, cuts in plain_cuts(logits[others], targets[others], wanted, prior=10.0).items():
            for column, cut in enumerate(cuts):
                expected[name][:, column] += plain_counts(
                    logits[held_out, column], targets[held_out, column], cut
                )
    for name, counts in expected.items():
        found = tuning.choices[name].cross_validated
        assert found.images == 31
        assert (
            np.stack([found.true_positives, found.false_positives, found.missed]).tolist() == counts.tolist()
        )


def test_thresholds_hold_on_scores_with_the_temperature() -> None:
    logits, targets = made(n=200)
    tuning = tune_thresholds(logits, targets)
    assert tuning.temperature != pytest.approx(1, abs=0.01)
    scores = expit(logits.astype(np.float64) / tuning.temperature)
    for name, choice in tuning.choices.items():
        above = scores > tuning.thresholds(name)
        assert (above & (targets == 1)).sum(axis=0).tolist() == choice.in_sample.true_positives.tolist()
        assert (above & (targets == 0)).sum(axis=0).tolist() == choice.in_sample.false_positives.tolist()
    assert tuning.thresholds().tolist() == tuning.thresholds(tuning.recommended).tolist()
    raw = tune_thresholds(logits, targets, calibrate=False)
    assert raw.temperature == 1
    np.testing.assert_allclose(raw.thresholds(UNTUNED), 0.5)


def test_rates_are_those_of_the_metrics() -> None:
    logits, targets = made(n=200)
    tuning = tune_thresholds(logits, targets, threshold=0.3)
    for name, choice in tuning.choices.items():
        thresholds = expit(choice.cuts)
        measured = multilabel_metrics(expit(logits.astype(np.float64)), targets, thresholds)
        summary = choice.in_sample.summary(tuning.objective)
        assert summary["CF1"] == pytest.approx(measured["CF1"]), name
        assert summary["OF1"] == pytest.approx(measured["OF1"]), name
        assert 100 * choice.in_sample.mean(choice.in_sample.precision) == pytest.approx(measured["CP"])
        assert 100 * choice.in_sample.mean(choice.in_sample.recall) == pytest.approx(measured["CR"])
    np.testing.assert_allclose(tuning.choices[UNTUNED].cuts, logit(0.3))


def test_a_case_by_hand() -> None:
    logits = np.array([[3.0], [2.0], [1.0], [0.0], [-1.0]])
    targets = np.array([[1], [0], [1], [0], [0]], np.int8)

    def own(objective: str) -> float:
        return float(tune_thresholds(logits, targets, Objective.parse(objective)).choices[PER_CLASS].cuts[0])

    assert own("f1") == 0.5  # 2 of 3 right, none missed: 0.8; above 2.5 it is 2 / 3
    assert own("precision=0.6") == 0.5  # 2 of 3
    assert own("precision=0.7") == 2.5  # 1 of 1
    assert own("cost=1:5") == 0.5
    assert own("cost=5:1") == 2.5  # one missed is cheaper than one wrong


def test_a_precision_that_nothing_reaches_gives_the_strictest_cut_and_the_name() -> None:
    logits = np.array([[2.0, 1.0], [1.0, 3.0], [0.0, 2.0]])
    targets = np.array([[0, 0], [1, 1], [1, 1]], np.int8)
    tuning = tune_thresholds(logits, targets, Objective.parse("precision=0.9"), class_names=["ant", "bee"])
    assert tuning.unreached == ("ant",)
    assert tuning.choices[PER_CLASS].cuts.tolist() == [2 + 2**-22, 1.5]  # above 2 none of those seen
    assert tuning.choices[PER_CLASS].in_sample.false_positives.tolist() == [0, 0]


def test_the_strictest_threshold_labels_nothing_seen_however_a_score_is_rounded() -> None:
    highest = np.random.default_rng(0).normal(0, 6, 500).astype(np.float32).astype(np.float64)
    logits = np.stack([highest, highest - 1])
    targets = np.stack([np.zeros(500, np.int8), np.ones(500, np.int8)])
    tuning = tune_thresholds(logits, targets, Objective.parse("precision=1"))
    above = expit(highest / tuning.temperature)
    above = np.nextafter(np.nextafter(above, 1), 1)  # another library's sigmoid
    assert (above <= tuning.thresholds(PER_CLASS)).all()


def test_few_positives_move_a_threshold_little() -> None:
    logits, targets = made(n=400, c=2, unknown=0)
    targets[10:, 0] = 0
    tuning = tune_thresholds(logits, targets, prior=10.0)
    n = int((targets[:, 0] == 1).sum())
    common, own, shrunk = (tuning.choices[name].cuts[0] for name in (GLOBAL, PER_CLASS, SHRUNK))
    assert 0 < n < 5
    assert shrunk == pytest.approx(common + n / (n + 10) * (own - common))
    assert tuning.positives.tolist() == (targets == 1).sum(axis=0).tolist()


def test_thresholds_of_rare_classes_gain_in_sample_alone_and_are_not_recommended() -> None:
    """All classes are alike, so that one threshold is right for all of them."""
    rng = np.random.default_rng(0)
    targets = np.zeros((300, 30), np.int8)
    for column in targets.T:
        column[rng.choice(300, 6, replace=False)] = 1
    logits = rng.normal(size=targets.shape) + 2 * targets - 1
    tuning = tune_thresholds(logits, targets)
    in_sample, validated = (
        {
            name: getattr(choice, part).summary(tuning.objective)["mean F1"]
            for name, choice in tuning.choices.items()
        }
        for part in ("in_sample", "cross_validated")
    )
    assert in_sample[PER_CLASS] > in_sample[GLOBAL] + 5
    assert validated[PER_CLASS] < validated[GLOBAL]
    assert tuning.recommended != PER_CLASS
    assert validated[UNTUNED] == in_sample[UNTUNED]


def test_thresholds_that_classes_need_are_recommended() -> None:
    logits, targets = made(n=1500, unknown=0, ties=False)
    logits += np.array([-3, 0, 1, 3], np.float32)
    tuning = tune_thresholds(logits, targets)
    assert tuning.recommended in (SHRUNK, PER_CLASS)
    gain = [
        tuning.choices[name].cross_validated.summary(tuning.objective)["mean F1"]
        for name in (UNTUNED, GLOBAL, tuning.recommended)
    ]
    assert gain[0] < gain[1] < gain[2] - 5
    assert tune_thresholds(logits, targets, among=(GLOBAL,)).recommended == GLOBAL


def test_for_a_precision_the_recommended_falls_least_short_of_it_and_recalls_most() -> None:
    logits, targets = made(n=1500, unknown=0, ties=False)
    logits += np.array([-3, 0, 1, 3], np.float32)
    for precision in (0.5, 0.9):
        tuning = tune_thresholds(logits, targets, Objective.parse(f"precision={precision}"))
        counts = {name: choice.cross_validated for name, choice in tuning.choices.items()}
        short = {name: max(0, precision - of.overall_precision) for name, of in counts.items()}
        near = [name for name in counts if short[name] < min(short.values()) + 0.005]
        assert tuning.recommended == max(near, key=lambda name: counts[name].mean(counts[name].recall))
        assert short[tuning.recommended] < 0.02


def test_the_temperature_has_the_least_cross_entropy() -> None:
    logits, targets = made(n=300)
    known = targets != -1
    z, y = logits[known].astype(np.float64), targets[known]

    def cross_entropy(log_temperature: float) -> float:
        return float(np.mean(np.logaddexp(0, z / np.exp(log_temperature)) - y * z / np.exp(log_temperature)))

    best = minimize_scalar(cross_entropy, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    assert fit_temperature(logits, targets) == pytest.approx(np.exp(best.x), rel=1e-4)
    assert fit_temperature(logits, targets, start=7.0) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_the_temperature_of_scores_made_with_one_is_found() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=4, size=(20_000, 5))
    targets = (rng.random(logits.shape) < expit(logits / 2.5)).astype(np.int8)
    tuning = tune_thresholds(logits, targets)
    assert tuning.temperature == pytest.approx(2.5, rel=0.05)
    of = tuning.calibration
    assert of.error_before > 0.05
    assert max(of.error_after, of.error_cross_validated) < 0.01
    assert of.brier_after < of.brier_before
    assert of.brier_cross_validated >= of.brier_after
    assert of.brier_before == pytest.approx(np.mean((expit(logits) - targets) ** 2))


def test_a_temperature_stays_within_bounds() -> None:
    logits = np.array([[2.0], [-2.0]])
    right, wrong = np.array([[1], [0]], np.int8), np.array([[0], [1]], np.int8)
    assert fit_temperature(logits, right) == pytest.approx(TEMPERATURES[0], rel=1e-4)
    assert fit_temperature(logits, wrong) == pytest.approx(TEMPERATURES[1], rel=1e-4)


def test_a_calibration_curve_by_hand() -> None:
    scores = np.array([[0.05, 0.1], [0.3, 0.95], [1.0, 0.6]])
    targets = np.array([[0, 1], [0, 1], [1, -1]], np.int8)
    curve = calibration_curve(scores, targets, bins=4)
    assert curve.count.tolist() == [2, 1, 0, 2]
    np.testing.assert_allclose(curve.mean_score, [0.075, 0.3, np.nan, 0.975])
    np.testing.assert_allclose(curve.frequency, [0.5, 0, np.nan, 1])
    assert curve.error == pytest.approx((2 * 0.425 + 0.3 + 2 * 0.025) / 5)
    assert brier_score(scores, targets) == pytest.approx((0.0025 + 0.81 + 0.09 + 0.0025 + 0) / 5)


def test_counts_add_up() -> None:
    one = Counts(np.array([1]), np.array([2]), np.array([3]), 4)
    both = one + one
    assert (both.true_positives[0], both.false_positives[0], both.missed[0], both.images) == (2, 4, 6, 8)
    assert both.precision[0] == pytest.approx(1 / 3)
    assert both.recall[0] == 0.25
    assert both.f1[0] == pytest.approx(2 * 2 / (2 * 2 + 4 + 6))
    assert both.cost(Objective.parse("cost=1:5")) == (4 * 1 + 6 * 5) / 8
    assert both.overall_precision == 2 / 6
    assert both.asked(Objective.parse("precision=0.5")) == pytest.approx({"OP": 100 / 3, "CR": 25.0})


@pytest.mark.parametrize(
    "text",
    [
        "f2",
        "precision",
        "precision=0",
        "precision=1.1",
        "cost=1",
        "cost=0:1",
        "cost=1:inf",
        "cost=a:b",
        "precision=nan",
    ],
)
def test_an_objective_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"chosen for '{text}'; choose f1, precision=P"):
        Objective.parse(text)


@pytest.mark.parametrize("text", ["f1", "precision=0.9", "cost=1:5"])
def test_an_objective_is_told_as_it_was_given(text: str) -> None:
    assert str(Objective.parse(text)) == text


def test_what_cannot_be_tuned_is_refused() -> None:
    logits, targets = made()
    with pytest.raises(DataError, match=r"logits \[60, 4\] and targets \[60, 3\] must both be \[N, C\]"):
        tune_thresholds(logits, targets[:, :3])
    with pytest.raises(DataError, match="two images or more"):
        tune_thresholds(logits[:1], targets[:1])
    with pytest.raises(DataError, match="with a label on one of them"):
        tune_thresholds(logits, np.zeros_like(targets))
    with pytest.raises(DataError, match="finite"):
        tune_thresholds(np.full_like(logits, np.inf), targets)


def test_two_images_are_enough() -> None:
    tuning = tune_thresholds(np.array([[1.0], [-1.0]]), np.array([[1], [0]], np.int8))
    assert tuning.choices[PER_CLASS].in_sample.f1.tolist() == [1]
    assert np.isfinite(tuning.thresholds()).all()


def test_many_images_and_classes_take_seconds() -> None:
    logits, targets = made(n=40_000, c=80, unknown=0, ties=False)
    begun = time.process_time()
    tune_thresholds(logits, targets)
    assert time.process_time() - begun < 30  # about 3 on one core
