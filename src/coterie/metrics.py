"""The field's ruler: average precision and CP, CR, CF1, OP, OR, OF1, as the published tables have them.

An unknown target (-1) counts as nothing: neither as a right nor as a wrong label, nor among the k highest.
A label is predicted where its score is above the threshold; in the top-k form it must also be among the k
highest scores of its image, ties in class order. That rule, and a precision of 0 for a class that is never
predicted, are those of ML-GCN's published code (Chen et al., CVPR 2019), which later papers follow.
A class without a positive has no AP and no recall: mAP, CP and CR are means over the other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN
from coterie.errors import ConfigError, DataError

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]


def average_precision(scores: Array, targets: Array) -> torch.Tensor:
    """Average precision [C] of each class, float64 in 0..1; NaN where no known target is positive.

    `scores` [N, C]: finite floats, logits or probabilities. `targets` [N, C]: 1, 0, or -1 = unknown.
    AP = sum_n (R_n - R_(n-1)) P_n over thresholds at the distinct scores, not interpolated: the definition of
    scikit-learn's `average_precision_score`, ties included. DataError where shapes or values do not fit.
    """
    return torch.from_numpy(_average_precision(*_checked(scores, targets)))


def multilabel_metrics(
    scores: Array,
    targets: Array,
    threshold: float | Sequence[float] | Array = 0.5,
    top_k: int = 3,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """mAP; per-class (C) and overall (O) precision, recall, F1; AP of each class: percent, ready for JSON.

    `scores` [N, C]: probabilities. `targets` [N, C]: 1, 0 or -1. `threshold`: one, or one for each class.
    CF1 is the harmonic mean of CP and CR; OP, OR, OF1 count the known labels of all classes together.
    `CP_top3` to `OF1_top3` are named after `top_k`; `threshold=0` makes them those of older papers, k labels
    an image. `classes_without_positives` holds names, or indices; their AP is None, and where no class has a
    positive so is every value. DataError where shapes or values do not fit, ConfigError for the settings.

    >>> scores = np.array([[0.9, 0.8, 0.1], [0.6, 0.7, 0.2], [0.3, 0.1, 0.4]])
    >>> targets = np.array([[1, 0, 0], [1, 1, 0], [0, -1, 0]])
    >>> metrics = multilabel_metrics(scores, targets, class_names=["cat", "dog", "emu"])
    >>> metrics["mAP"], metrics["CP"], metrics["CR"], metrics["OP"]
    (75.0, 75.0, 100.0, 75.0)
    >>> metrics["AP"], metrics["classes_without_positives"]
    ([100.0, 50.0, None], ['emu'])
    """
    values, labels = _checked(scores, targets, class_names)
    expected = "scores must be probabilities in 0..1: apply a sigmoid to logits first"
    _refuse((values < 0) | (values > 1), "score", values, expected, class_names)
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; it must be 1 or more")
    above = values > _checked_threshold(threshold, values)
    ap = 100 * _average_precision(values, labels)
    without = np.flatnonzero(np.isnan(ap)).tolist()
    return {
        "mAP": None if len(without) == len(ap) else float(np.nanmean(ap)),
        **_precision_recall_f1(above, labels),
        **_precision_recall_f1(above & _top_k(values, labels, top_k), labels, suffix=f"_top{top_k}"),
        "AP": [None if np.isnan(value) else value for value in ap.tolist()],
        "classes_without_positives": without if class_names is None else [class_names[c] for c in without],
    }


def _average_precision(
    scores: npt.NDArray[np.floating[Any]], targets: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """AP [C] of checked `scores` and `targets` [N, C], class by class: the memory of one column."""
    ap = np.full(scores.shape[1], np.nan)
    for c, (column, labels) in enumerate(zip(scores.T, targets.T, strict=True)):
        positive = np.sort(column[labels == PRESENT])
        if not len(positive):
            continue
        known = np.sort(column[labels != UNKNOWN])
        # Recall rises only at the positives, by 1 / P each: AP is the mean of the precision at their scores.
        true_positives = len(positive) - np.searchsorted(positive, positive)
        predicted = len(known) - np.searchsorted(known, positive)
        ap[c] = np.mean(true_positives / predicted)
    return ap


def _precision_recall_f1(
    predicted: npt.NDArray[np.bool_], targets: npt.NDArray[Any], suffix: str = ""
) -> dict[str, float | None]:
    """CP, CR, CF1, OP, OR, OF1 in percent, each key with `suffix`, of `predicted` and `targets` [N, C]."""
    positive = targets == PRESENT
    positives = np.count_nonzero(positive, axis=0)  # [C]
    true_positives = np.count_nonzero(predicted & positive, axis=0)  # [C]
    predictions = np.count_nonzero(predicted & (targets != UNKNOWN), axis=0)  # [C]
    names = [name + suffix for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")]
    counted = positives > 0
    if not counted.any():
        return dict.fromkeys(names)
    # At least 1, so that a class that is never predicted has precision 0.
    cp = float(np.mean((true_positives / np.maximum(predictions, 1))[counted]))
    cr = float(np.mean(true_positives[counted] / positives[counted]))
    op = float(true_positives.sum() / max(predictions.sum(), 1))
    or_ = float(true_positives.sum() / positives.sum())
    values = (cp, cr, _harmonic_mean(cp, cr), op, or_, _harmonic_mean(op, or_))
    return {name: 100 * value for name, value in zip(names, values, strict=True)}


def _harmonic_mean(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _top_k(scores: npt.NDArray[np.floating[Any]], targets: npt.NDArray[Any], k: int) -> npt.NDArray[np.bool_]:
    """True [N, C] at the `k` highest known scores of each image (all of them where fewer are known)."""
    known: npt.NDArray[np.bool_] = targets != UNKNOWN
    remaining = np.where(known, scores, -np.inf)
    chosen = np.zeros_like(known)
    for _ in range(min(k, scores.shape[1])):
        # argmax takes the first of equals; after the last known label it takes class 0: chosen, or unknown.
        best = remaining.argmax(axis=1, keepdims=True)
        np.put_along_axis(chosen, best, True, axis=1)
        np.put_along_axis(remaining, best, -np.inf, axis=1)
    return chosen & known


def _checked(
    scores: Array, targets: Array, class_names: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[Any]]:
    """`scores` (float32 or wider, order kept) and `targets` as arrays [N, C]; DataError otherwise."""
    values, labels = _as_numpy(scores), _as_numpy(targets)
    if values.ndim != 2 or values.shape != labels.shape:
        raise DataError(
            f"scores {list(values.shape)} and targets {list(labels.shape)} must both be [N, C]: "
            "one row for each image, one column for each class"
        )
    if not values.size:
        raise DataError(f"there is nothing to measure: scores and targets are {list(values.shape)}")
    if class_names is not None and len(class_names) != values.shape[1]:
        raise DataError(f"{len(class_names)} class names do not fit scores of {values.shape[1]} classes")
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"scores are {values.dtype}; give floats, not labels already decided")
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    _refuse(~np.isfinite(values), "score", values, "scores must be finite numbers", class_names)
    wrong = (labels != PRESENT) & (labels != ABSENT) & (labels != UNKNOWN)
    _refuse(wrong, "target", labels, "give 1 (present), 0 (absent) or -1 (unknown)", class_names)
    return values, labels


def _checked_threshold(
    threshold: float | Sequence[float] | Array, scores: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.floating[Any]]:
    """`threshold` as an array [] or [C] in the dtype of `scores` [N, C], so that equals compare as equals."""
    limit = _as_numpy(threshold).astype(scores.dtype)
    if limit.shape not in ((), scores.shape[1:]):
        raise ConfigError(
            f"thresholds {list(limit.shape)} must be one number or [{scores.shape[1]}], one for each class"
        )
    if not ((limit >= 0) & (limit <= 1)).all():
        raise ConfigError(f"threshold is {threshold}; it must lie within 0..1")
    return limit


def _refuse(
    wrong: npt.NDArray[np.bool_],
    kind: str,
    values: npt.NDArray[Any],
    expected: str,
    class_names: Sequence[str] | None,
) -> None:
    """DataError about the first of `values` [N, C] where `wrong` [N, C] is True, if there is one."""
    if wrong.any():
        row, c = np.argwhere(wrong)[0].tolist()
        name = c if class_names is None else f"'{class_names[c]}'"
        raise DataError(f"{kind} in row {row}, class {name} is {values[row, c]}; {expected}")


def _as_numpy(values: float | Sequence[float] | Array) -> npt.NDArray[Any]:
    """`values` as an array on the CPU; NumPy has no bfloat16, so narrow floats become float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    narrow = values.is_floating_point() and values.element_size() < 4
    array: npt.NDArray[Any] = (values.float() if narrow else values).numpy()
    return array
