"""Precision-recall curves, thinned to what a screen can show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import PRESENT, UNKNOWN


class Curve(NamedTuple):
    """Recall and precision in 0..1 [points], recall rising."""

    recall: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]


def precision_recall(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.int8]) -> Curve | None:
    """The curve of one class, or of all scores together: a point at each distinct score of a positive.

    `scores`, `targets`: the same shape, targets in {1, 0, -1}, of which -1 counts as nothing. The area of its
    steps is the average precision. None where there is no positive.
    """
    scores, targets = scores.ravel(), targets.ravel()
    scores, targets = scores[targets != UNKNOWN], targets[targets != UNKNOWN]
    present = targets == PRESENT
    positive, others = np.sort(scores[present]), np.sort(scores[~present])
    if not len(positive):
        return None
    cut = np.unique(positive)[::-1]
    right = len(positive) - np.searchsorted(positive, cut)
    wrong = len(others) - np.searchsorted(others, cut)
    return Curve(right / len(positive), right / (right + wrong))


def thinned(curve: Curve, columns: int) -> Curve:
    """The first, the lowest, the highest and the last point of each of `columns` equal parts of the recall.

    Drawn as wide as that many pixels it looks as with all points. From: Jugel et al., "M4: a
    visualization-oriented time series data aggregation", VLDB 2014.
    """
    column = np.minimum((curve.recall * columns).astype(int), columns - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.append(starts[1:], len(column))
    kept = np.zeros(len(column), bool)
    kept[starts] = kept[ends - 1] = True
    # by column, then precision: the first of each is its lowest, the last its highest
    order = np.lexsort((curve.precision, column))
    kept[order[starts]] = kept[order[ends - 1]] = True
    return Curve(curve.recall[kept], curve.precision[kept])


def operating_point(
    logits: npt.NDArray[np.floating], targets: npt.NDArray[np.int8], cut: float
) -> tuple[float, float] | None:
    """Recall and precision in 0..1 of what is predicted above `cut`; None where nothing is."""
    predicted, present = (logits > cut) & (targets != UNKNOWN), targets == PRESENT
    if not predicted.any() or not present.any():
        return None
    right = np.count_nonzero(predicted & present)
    return right / np.count_nonzero(present), right / np.count_nonzero(predicted)


def encoded_curve(
    logits: npt.NDArray[np.floating], targets: npt.NDArray[np.int8], cut: float, columns: int
) -> dict[str, list[int]] | None:
    """The thinned curve for a page, in whole ten-thousandths, with the "point" of `cut` where there is one.

    None where there is no positive.
    """
    curve = precision_recall(logits, targets)
    if curve is None:
        return None
    few = thinned(curve, columns)
    encoded = {"recall": _whole(few.recall), "precision": _whole(few.precision)}
    point = operating_point(logits, targets, cut)
    return encoded if point is None else encoded | {"point": _whole(np.array(point))}


def _whole(values: npt.NDArray[np.float64]) -> list[int]:
    return [round(10_000 * value) for value in values.tolist()]
