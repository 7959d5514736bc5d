"""Where to cut scores and how far to trust them: thresholds and a temperature from validation logits.

A class is labelled where its logit is above its cut. Cuts are chosen on logits: a temperature keeps their
order, so it changes the scores that are shown and no label. `Tuning.thresholds` gives the cuts as scores.
An unknown target (-1) counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN
from coterie.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]

UNTUNED, GLOBAL, SHRUNK, PER_CLASS = "untuned", "global", "shrunk", "per class"
CHOICES = (UNTUNED, GLOBAL, SHRUNK, PER_CLASS)  # the simpler first
PRIOR = 10.0  # positives that a class needs for its own threshold to weigh as much as the global one
FOLDS = 5
BINS = 15
TEMPERATURES = (0.05, 20.0)  # where no wrong score holds it, the best temperature is 0
OBJECTIVES = "f1, precision=P with P in 0..1, or cost=FP:FN, as in cost=1:5"


@dataclass(frozen=True)
class Objective:
    """What thresholds are chosen for. `precision` is to be reached; a `false_positive` and a `missed` label
    have these costs.
    """

    kind: Literal["f1", "precision", "cost"] = "f1"
    precision: float = 0.0
    false_positive: float = 1.0
    missed: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Objective:
        """From "f1", "precision=0.9" or "cost=1:5" (false positive : missed label); ConfigError otherwise."""
        kind, _, value = text.partition("=")
        try:
            if text == "f1":
                return cls()
            if kind == "precision" and 0 < (precision := float(value)) <= 1:
                return cls("precision", precision)
            if kind == "cost":
                false_positive, missed = map(float, value.split(":"))
                if min(false_positive, missed) > 0 and math.isfinite(false_positive + missed):
                    return cls("cost", false_positive=false_positive, missed=missed)
        except ValueError:
            pass
        raise ConfigError(f"thresholds cannot be chosen for '{text}'; choose {OBJECTIVES}")

    def __str__(self) -> str:
        if self.kind == "cost":
            return f"cost={self.false_positive:g}:{self.missed:g}"
        return f"precision={self.precision:g}" if self.kind == "precision" else "f1"


F1 = Objective()


@dataclass(frozen=True)
class Counts:
    """Right, wrong and missed labels int64 [C] of each class, among known targets of `images` images."""

    true_positives: npt.NDArray[np.int64]
    false_positives: npt.NDArray[np.int64]
    missed: npt.NDArray[np.int64]
    images: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def positives(self) -> npt.NDArray[np.int64]:
        return self.true_positives + self.missed

    @property
    def precision(self) -> Floats:
        """[C]; 0 for a class that is never predicted, as in `multilabel_metrics`."""
        share: Floats = self.true_positives / np.maximum(self.true_positives + self.false_positives, 1)
        return share

    @property
    def recall(self) -> Floats:
        """[C]; 0 for a class without positives."""
        share: Floats = self.true_positives / np.maximum(self.positives, 1)
        return share

    @property
    def f1(self) -> Floats:
        """[C]; 0 for a class without positives."""
        return f1_score(self.true_positives, self.false_positives, self.positives)

    def mean(self, values: Floats) -> float:
        """The mean of `values` [C] over the classes with positives; 0 where none has any."""
        counted = self.positives > 0
        return float(values[counted].mean()) if counted.any() else 0.0

    def cost(self, objective: Objective) -> float:
        """What the errors cost by image."""
        wrong, missed = self.false_positives.sum(), self.missed.sum()
        return float(wrong * objective.false_positive + missed * objective.missed) / self.images

    @property
    def overall_precision(self) -> float:
        """Of all labels together; 0 where there is none."""
        right, wrong = self.true_positives.sum(), self.false_positives.sum()
        return float(right / max(right + wrong, 1))

    def asked(self, objective: Objective) -> dict[str, float]:
        """What was asked for, by its name in tables: the mean F1 of the classes in percent, OP and CR, or the
        cost of the errors by image.
        """
        return {
            "f1": {"mean F1": 100 * self.mean(self.f1)},
            "precision": {"OP": 100 * self.overall_precision, "CR": 100 * self.mean(self.recall)},
            "cost": {"cost": self.cost(objective)},
        }[objective.kind]

    def summary(self, objective: Objective) -> dict[str, float]:
        """What was asked for, then CF1 and OF1 as in `multilabel_metrics`, in percent."""
        precision, recall = self.mean(self.precision), self.mean(self.recall)
        overall = f1_score(self.true_positives.sum(), self.false_positives.sum(), self.positives.sum())
        cf1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {**self.asked(objective), "CF1": 100 * cf1, "OF1": 100 * float(overall)}


@dataclass(frozen=True)
class Choice:
    """One way to choose thresholds: its cuts [C] on logits, from all images, and what they do.

    `cross_validated`: over images that had no part in the choice of the cuts they were judged by.
    """

    cuts: Floats
    in_sample: Counts
    cross_validated: Counts


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and Brier score over all classes, of scores as they were (`before`), with
    the temperature (`after`), and with that of the other folds (`cross_validated`).
    """

    error_before: float
    error_after: float
    error_cross_validated: float
    brier_before: float
    brier_after: float
    brier_cross_validated: float


@dataclass(frozen=True)
class Tuning:
    """Thresholds chosen in several ways, what each is worth, and the temperature of the scores.

    `unreached`: the classes for which no cut has the precision that was asked for. `positives` int64 [C].
    """

    class_names: tuple[str, ...]
    objective: Objective
    choices: Mapping[str, Choice]
    recommended: str
    temperature: float
    calibration: Calibration
    positives: npt.NDArray[np.int64]
    unreached: tuple[str, ...]

    def thresholds(self, name: str | None = None) -> Floats:
        """The thresholds [C] of a choice, by default of the recommended one, on calibrated scores."""
        cuts: Floats = expit(self.choices[name or self.recommended].cuts / self.temperature)
        return cuts

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """The classes with positives that the recommended choice gives to no image seen."""
        counts = self.choices[self.recommended].in_sample
        without = counts.true_positives + counts.false_positives == 0
        return tuple(self.class_names[column] for column in np.flatnonzero(without & (self.positives > 0)))

    @property
    def temperature_bound(self) -> Literal["lowest", "highest"] | None:
        """Which end of `TEMPERATURES` the temperature lies at, where it does: a better one is beyond."""
        lowest, highest = (math.isclose(self.temperature, end, rel_tol=1e-3) for end in TEMPERATURES)
        return "lowest" if lowest else "highest" if highest else None


@dataclass(frozen=True)
class CalibrationCurve:
    """Scores against what became of them, in bins of equal width: mean score [B], frequency of positives [B]
    (both NaN in an empty bin), and count int64 [B].
    """

    mean_score: Floats
    frequency: Floats
    count: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of score and frequency, bins weighted by count."""
        filled = self.count > 0
        distance = np.abs(self.mean_score - self.frequency)[filled]
        return float(np.average(distance, weights=self.count[filled])) if filled.any() else 0.0


def tune_thresholds(
    logits: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    objective: Objective = F1,
    *,
    class_names: Sequence[str] | None = None,
    threshold: float = 0.5,
    among: Sequence[str] = CHOICES,
    calibrate: bool = True,
    prior: float = PRIOR,
    folds: int = FOLDS,
    seed: int = 0,
) -> Tuning:
    """Choose thresholds for logits [N, C] by targets [N, C] (1, 0, -1), in several ways.

    "untuned": `threshold` for all; "global": the best one for all; "per class": the best for each; "shrunk":
    on the logit scale, w * own + (1 - w) * global with w = n / (n + `prior`) for n positives. A class without
    positives has the global one. The best for f1 has the greatest mean F1 of the classes; for a precision, it
    is the lowest that reaches it, or the strictest, which labels no image seen; for a cost the cheapest.
    `folds` of the images, drawn by `seed`, cross-validate each. Recommended is the best of `among` there, the
    simpler of equals; for a precision that which falls least short of it, in whole percent of all labels
    together, and of those the one of the greatest mean recall. DataError where there is nothing to choose
    from.
    """
    logits, targets = _checked(logits, targets)
    ranked = _rank(logits, targets)
    untuned = np.full(logits.shape[1], logit(threshold))
    chosen = {UNTUNED: untuned, **_choose(ranked, objective, prior)}
    fold_of = np.random.default_rng(seed).permutation(len(logits)) % min(folds, len(logits))
    validated: dict[str, Counts] = {}
    for fold in range(fold_of.max() + 1):
        held_out = fold_of == fold
        cuts = {UNTUNED: untuned, **_choose(ranked.of(~held_out), objective, prior)}
        for name in cuts:
            counts = _count(logits[held_out], targets[held_out], cuts[name])
            validated[name] = validated[name] + counts if name in validated else counts
    choices = {
        name: Choice(cuts, _count(logits, targets, cuts), validated[name]) for name, cuts in chosen.items()
    }
    temperature = fit_temperature(logits, targets) if calibrate else 1.0
    _, reached = _class_cuts(ranked, objective)
    positives = choices[UNTUNED].in_sample.positives
    names = tuple(map(str, range(logits.shape[1])) if class_names is None else class_names)
    return Tuning(
        names,
        objective,
        choices,
        _recommended({name: choices[name].cross_validated for name in among}, objective),
        temperature,
        _calibration(logits, targets, temperature, fold_of if calibrate else None),
        positives,
        tuple(names[column] for column in np.flatnonzero(~reached & (positives > 0))),
    )


def fit_temperature(logits: npt.NDArray[Any], targets: npt.NDArray[Any], start: float = 1.0) -> float:
    """The temperature T in `TEMPERATURES` for which sigmoid(logits / T) has the least binary cross-entropy.

    It is convex in 1 / T: Newton's steps from `start`, and half the interval where one would leave it.
    """
    known = targets != UNKNOWN
    values = logits[known].astype(np.float64)
    present = targets[known] == PRESENT
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    inverse = 1 / start
    for _ in range(100):
        scores = expit(inverse * values)
        slope = values @ (scores - present)
        curvature = (values * values) @ (scores * (1 - scores))
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - inverse) <= 1e-7 * inverse:
            break
        inverse = following
    return float(1 / inverse)


def calibration_curve(
    scores: npt.NDArray[Any], targets: npt.NDArray[Any], bins: int = BINS
) -> CalibrationCurve:
    """The curve of scores 0..1 and targets 1, 0, -1 of any one shape, in `bins` of equal width."""
    known = targets != UNKNOWN
    values = scores[known].astype(np.float64)
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        mean = np.bincount(place, values, bins) / count
        frequency = np.bincount(place, targets[known] == PRESENT, bins) / count
    return CalibrationCurve(mean, frequency, count)


def brier_score(scores: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    """The mean squared distance of scores and known targets."""
    known = targets != UNKNOWN
    return float(np.mean((scores[known] - (targets[known] == PRESENT)) ** 2))


def f1_score(
    true_positives: npt.NDArray[Any], false_positives: npt.NDArray[Any], positives: npt.NDArray[Any]
) -> Floats:
    """2 TP / (TP + FP + P); 0 where there is neither a label nor a positive."""
    score: Floats = 2 * true_positives / np.maximum(true_positives + false_positives + positives, 1)
    return score


@dataclass(frozen=True)
class _Ranked:
    """For each class its images by falling logit: logits, targets and positions, all [C, N].

    Unknown ones come last, with a logit of -inf.
    """

    logits: npt.NDArray[Any]
    targets: npt.NDArray[Any]
    positions: npt.NDArray[np.int64]

    def of(self, images: npt.NDArray[np.bool_]) -> _Ranked:
        """The images [N] that are True, still in rank: nothing is sorted again."""
        kept = images[self.positions]
        parts = (self.logits, self.targets, self.positions)
        return _Ranked(*(part[kept].reshape(len(part), -1) for part in parts))

    def counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """True and false positives [C, N] of the cuts below each logit."""
        return (
            np.cumsum(self.targets == PRESENT, axis=1, dtype=np.int64),
            np.cumsum(self.targets == ABSENT, axis=1, dtype=np.int64),
        )


def _rank(logits: npt.NDArray[Any], targets: npt.NDArray[Any]) -> _Ranked:
    values = np.where(targets.T == UNKNOWN, -np.inf, logits.T)
    positions = np.argsort(-values, axis=1, kind="stable")
    sorted_values, sorted_targets = (
        np.take_along_axis(part, positions, axis=1) for part in (values, targets.T)
    )
    return _Ranked(sorted_values, sorted_targets, positions)


def _choose(ranked: _Ranked, objective: Objective, prior: float) -> dict[str, Floats]:
    """The cuts [C] of each way that looks at targets."""
    common = _common_cut(ranked, objective)
    positives = (ranked.targets == PRESENT).sum(axis=1)
    own = np.where(positives > 0, _class_cuts(ranked, objective)[0], common)
    weight = positives / (positives + prior)
    return {
        GLOBAL: np.full(len(own), common),
        SHRUNK: weight * own + (1 - weight) * common,
        PER_CLASS: own,
    }


def _class_cuts(ranked: _Ranked, objective: Objective) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The best cut [C] of each class, and whether it reaches the precision asked for."""
    right, wrong = ranked.counts()
    positives = right[:, -1:]
    if objective.kind == "precision":
        reached = right >= objective.precision * (right + wrong)
        return _lowest_cuts(ranked.logits, reached)
    if objective.kind == "f1":
        quality, of_none = f1_score(right, wrong, positives), np.zeros(len(right))
    else:
        quality = np.subtract(-objective.false_positive * wrong, objective.missed * (positives - right))
        of_none = np.multiply(-objective.missed, positives[:, 0])
    return _best_cuts(ranked.logits, quality, of_none), np.ones(len(right), bool)


def _common_cut(ranked: _Ranked, objective: Objective) -> float:
    """The best cut for all classes: for their mean F1, their precision taken together, or their cost."""
    values = ranked.logits.reshape(1, -1)
    order = np.argsort(-values[0], kind="stable")  # each class is sorted already: they are merged
    pooled = _Ranked(values[:, order], ranked.targets.reshape(1, -1)[:, order], order[None])
    if objective.kind != "f1":
        return float(_class_cuts(pooled, objective)[0][0])
    # With each logit that the cut falls below, the F1 of one class changes.
    right, wrong = ranked.counts()
    changes = np.diff(f1_score(right, wrong, right[:, -1:]), axis=1, prepend=0.0)
    return float(_best_cuts(pooled.logits, np.cumsum(changes.reshape(-1)[order])[None], np.zeros(1))[0])


def _best_cuts(values: npt.NDArray[Any], quality: npt.NDArray[Any], of_none: npt.NDArray[Any]) -> Floats:
    """In each row of falling `values`, the cut of the greatest `quality`, the strictest of equals.

    `of_none` [rows]: the quality of a cut above all values.
    """
    quality = np.where(_ends(values), quality, -np.inf)
    best = quality.argmax(axis=1)
    none = of_none >= np.take_along_axis(quality, best[:, None], axis=1)[:, 0]
    return _between(values, np.where(none, -1, best))


def _lowest_cuts(
    values: npt.NDArray[Any], reached: npt.NDArray[np.bool_]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """In each row the lowest cut where `reached`, above all values where there is none; whether there is."""
    possible = _ends(values) & reached
    last = values.shape[1] - 1 - possible[:, ::-1].argmax(axis=1)
    there_is: npt.NDArray[np.bool_] = np.any(possible, axis=1)
    return _between(values, np.where(there_is, last, -1)), there_is


def _ends(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a cut can follow: at the last of equal known values."""
    return values > _following(values)


def _between(values: npt.NDArray[Any], last: npt.NDArray[np.int64]) -> Floats:
    """The cut behind the value at `last` of each row: half-way to the following one, 1 below the lowest. Of
    -1, it is by one step of float32 above the greatest value: as scores, two equal ones may differ in their
    last digit, by how they are computed.
    """
    rows = np.arange(len(values))
    above = values[rows, np.maximum(last, 0)].astype(np.float64)
    below = _following(values)[rows, np.maximum(last, 0)].astype(np.float64)
    half_way = np.where(np.isneginf(below), above - 1, (above + below) / 2)
    step = np.spacing(np.maximum(np.abs(above), 1).astype(np.float32))
    return np.where(last < 0, above + step, half_way)


def _following(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.pad(values[:, 1:], ((0, 0), (0, 1)), constant_values=-np.inf)


def _count(logits: npt.NDArray[Any], targets: npt.NDArray[Any], cuts: Floats) -> Counts:
    above, present = logits > cuts, targets == PRESENT
    return Counts(
        (above & present).sum(axis=0),
        (above & (targets == ABSENT)).sum(axis=0),
        (~above & present).sum(axis=0),
        len(logits),
    )


def _recommended(counts: Mapping[str, Counts], objective: Objective) -> str:
    """The name of the best counts, the first of equals."""

    def worth(name: str) -> tuple[float, float]:
        of = counts[name]
        if objective.kind == "f1":
            return 0, of.mean(of.f1)
        if objective.kind == "cost":
            return 0, -of.cost(objective)
        # Cuts that just reach it on some images just miss it on others: a percent does not decide.
        missing = max(0, objective.precision - of.overall_precision)
        return -round(missing, 2), of.mean(of.recall)

    return max(counts, key=worth)


def _calibration(
    logits: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    temperature: float,
    fold_of: npt.NDArray[np.int64] | None,
) -> Calibration:
    """Before, after and, where the temperature was fitted, cross-validated over the folds."""
    values = logits.astype(np.float64)
    before, after = expit(values), expit(values / temperature)
    validated = after
    if fold_of is not None:
        validated = np.empty_like(after)
        for fold in range(fold_of.max() + 1):
            held_out = fold_of == fold
            of_others = fit_temperature(logits[~held_out], targets[~held_out], temperature)
            validated[held_out] = expit(values[held_out] / of_others)
    all_three = (before, after, validated)
    return Calibration(
        *(calibration_curve(scores, targets).error for scores in all_three),
        *(brier_score(scores, targets) for scores in all_three),
    )


def _checked(
    logits: npt.NDArray[Any], targets: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both [N, C], finite, with a positive among at least two images; DataError otherwise."""
    logits, targets = np.asarray(logits), np.asarray(targets)
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise DataError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)} must both be [N, C]: "
            "one row for each image, one column for each class"
        )
    if not np.isfinite(logits).all():
        raise DataError("logits must be finite numbers")
    if len(logits) < 2 or not (targets == PRESENT).any():
        raise DataError("thresholds are chosen from two images or more, with a label on one of them at least")
    return logits, targets
