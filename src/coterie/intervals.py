"""How sure a difference between two models is: the bootstrap over images, and what seeds change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from coterie.data.dataset import PRESENT, UNKNOWN

Floats = npt.NDArray[np.floating]
RESAMPLES = 200
LEVEL = 95  # percent
# Scores above which resampling is left out: it would take minutes.
MOST_SCORES = 50_000_000


@dataclass(frozen=True)
class Differences:
    """Of each resample how far one model is ahead of another, in percent: `metrics` by name [B], `ap` [B, C],
    NaN where a class has no positives.
    """

    metrics: dict[str, Floats]
    ap: Floats


def bootstrap_differences(
    new: npt.NDArray[np.float32],
    old: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int8],
    cuts: tuple[float, float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Differences:
    """mAP, CF1, OF1 and the AP of each class of `new` less those of `old`, over resampled images.

    `new`, `old`: logits [N, C]; `targets` [N, C] in {1, 0, -1}; a label of each is predicted above
    the logit in `cuts`.
    N images are drawn with replacement, the same for both models: Efron, "Bootstrap methods", 1979.
    """
    weights = _drawn(len(targets), resamples, seed)
    ap = [np.stack(list(_resampled_ap(logits, targets, weights)), axis=1) for logits in (new, old)]
    f1 = [_resampled_f1(logits, targets, weights, cut) for logits, cut in zip((new, old), cuts, strict=True)]
    with np.errstate(invalid="ignore"):
        counted = ~np.isnan(ap[0])
        means = [
            np.where(counted, values, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1) for values in ap
        ]
    metrics = {"mAP": means[0] - means[1]} | {name: f1[0][name] - f1[1][name] for name in f1[0]}
    return Differences(
        {name: 100 * values for name, values in metrics.items()},
        100 * (ap[0] - ap[1]),
    )


def resampled_map(
    logits: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int8],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """The mAP [1 + B] in percent of the images, and of each time that they are resampled; the same images for
    all models of the same split.

    `logits` [N, C], `targets` [N, C] in {1, 0, -1}. A class without positives in a resample is not counted.
    """
    drawn = _drawn(len(targets), resamples, seed)
    weights = np.concatenate([np.ones_like(drawn[:, :1]), drawn], axis=1)
    ap = np.stack(list(_resampled_ap(logits, targets, weights)))
    counted = ~np.isnan(ap)
    return np.asarray(100 * np.where(counted, ap, 0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1))


def paired_interval(new: Sequence[Floats], old: Sequence[Floats]) -> tuple[float, float] | None:
    """The interval of how far `new` is ahead of `old` on the mean over seeds, each by `resampled_map`.

    What another split and other first weights would change: the variance over resampled images, and that of
    a mean of so many seeds. The second is known from few of them, so the quantile is that of Student's t, at
    degrees of freedom after Satterthwaite, "An approximate distribution of estimates of variance components",
    1946. With one seed it is that of the images alone.
    """
    differences = np.stack(new) - np.stack(old)
    measured, resampled = differences[:, 0], differences[:, 1:].mean(axis=0)
    known = _known(resampled)
    if known is None or np.isnan(measured).any():
        return None
    n = len(measured)
    of_seeds = float(measured.var(ddof=1)) / n if n > 1 else 0.0
    variance = float(known.var()) + of_seeds
    share = of_seeds / variance if variance > 0 else 0.0
    freedom = max(n - 1, 1) / max(share, 1e-4) ** 2  # where seeds change next to nothing, the normal quantile
    half = float(stdtrit(freedom, (100 + LEVEL) / 200)) * variance**0.5
    center = float(measured.mean())
    return center - half, center + half


def interval(values: Floats) -> tuple[float, float] | None:
    """The percentile interval of the resamples that have a value; None where hardly any has."""
    known = _known(values)
    if known is None:
        return None
    low, high = np.percentile(known, [(100 - LEVEL) / 2, (100 + LEVEL) / 2]).tolist()
    return low, high


def _known(values: Floats) -> Floats | None:
    """The resamples that have a value; None where hardly any has."""
    known = values[~np.isnan(values)]
    return None if 2 * len(known) < len(values) else known


def _drawn(n: int, resamples: int, seed: int) -> npt.NDArray[np.uint8]:
    """How often each of `n` images is drawn [n, B]: the resamples of an image are together in memory."""
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)]
    return np.stack(drawn, axis=1).astype(np.uint8)


def _resampled_ap(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int8], weights: npt.NDArray[np.uint8]
) -> Iterator[Floats]:
    """The AP [B] in 0..1 of each class, an image counting as often as `weights` [N, B] say."""
    for column in range(targets.shape[1]):
        known = np.flatnonzero(targets[:, column] != UNKNOWN)
        scores = logits[known, column]
        order = np.argsort(-scores, kind="stable")
        ranked, scores = known[order], scores[order]
        present = np.flatnonzero(targets[ranked, column] == PRESENT)
        if not len(present):
            yield np.full(weights.shape[1], np.nan)
            continue
        # Recall rises only at the positives: all that is needed are the sums of weights down to each of them,
        # and to the end of its ties.
        ends, position = np.unique(
            np.searchsorted(-scores, -scores[present], side="right"), return_inverse=True
        )
        starts = np.concatenate([[0], ends[:-1]])
        images = weights[ranked[: ends[-1]]]
        predicted = np.add.reduceat(images, starts, axis=0, dtype=np.uint32).cumsum(axis=0)
        own = weights[ranked[present]]
        right = np.add.reduceat(own, np.flatnonzero(np.diff(position, prepend=-1)), axis=0, dtype=np.uint32)
        precision = right.cumsum(axis=0) / np.maximum(predicted, 1)
        positives = right.sum(axis=0)
        with np.errstate(invalid="ignore"):
            yield np.where(positives > 0, (right * precision).sum(axis=0) / positives, np.nan)


def _resampled_f1(
    logits: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int8],
    weights: npt.NDArray[np.uint8],
    cut: float,
) -> dict[str, Floats]:
    """CF1 and OF1 [B] in 0..1, as `coterie.metrics` defines them."""
    present = targets == PRESENT
    predicted = (logits > cut) & (targets != UNKNOWN)
    drawn = weights.T.astype(np.float32)
    positives, predictions, right = (
        drawn @ mask.astype(np.float32) for mask in (present, predicted, predicted & present)
    )
    counted = positives > 0
    classes = np.maximum(counted.sum(axis=1), 1)
    cp = np.where(counted, right / np.maximum(predictions, 1), 0).sum(axis=1) / classes
    cr = np.where(counted, right / np.maximum(positives, 1), 0).sum(axis=1) / classes
    right, predictions, positives = (counts.sum(axis=1) for counts in (right, predictions, positives))
    op, recall = right / np.maximum(predictions, 1), right / np.maximum(positives, 1)
    return {"CF1": _harmonic(cp, cr), "OF1": _harmonic(op, recall)}


def _harmonic(precision: Floats, recall: Floats) -> Floats:
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)
