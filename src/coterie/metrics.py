"""The field's ruler: average precision and CP, CR, CF1, OP, OR, OF1, as the published tables have them.

An unknown target (-1) counts as nothing: neither as a right nor as a wrong label, nor among the k highest.
A label is predicted where its score is above the threshold; in the top-k form it must also be among the k
highest scores of its image, ties in class order. That rule, and a precision of 0 for a class that is never
predicted, are those of ML-GCN's published code (Chen et al., CVPR 2019), which later papers follow.
A class without a positive has no AP and no recall: mAP, CP and CR are means over the other classes.

Images and classes are taken in blocks, by as many threads as torch has, which changes no value. What a
measurement takes in memory beside its inputs stays under `WORKING_BYTES`, unless one class for each thread
needs more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN
from coterie.errors import ConfigError, DataError

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
Scores: TypeAlias = npt.NDArray[np.floating[Any]]
Definition = Literal["all-point", "11-point"]  # of average precision
Part = TypeVar("Part")
Result = TypeVar("Result")

WORKING_BYTES = 2**28  # 256 MiB
ROW_ENTRIES = 2**18  # scores of the images that a thread looks at together: few enough to stay in the cache
CLASSES = 16  # the most that a thread sorts together: their scores of one image fill a line of the cache
TILE_ROWS = 512  # images that are transposed together
ENTRY_BYTES = 32  # that a score and its target take at the most, copied and with masks
RANK_BYTES = 64  # that a score takes at the most while its class is ranked


def average_precision(scores: Array, targets: Array, definition: Definition = "all-point") -> torch.Tensor:
    """Average precision [C] of each class, float64 in 0..1; NaN where no known target is positive.

    `scores` [N, C]: finite floats, logits or probabilities. `targets` [N, C]: 1, 0, or -1 = unknown.
    "all-point": AP = sum_n (R_n - R_(n-1)) P_n over thresholds at the distinct scores, not interpolated: the
    definition of scikit-learn's `average_precision_score`, ties included. "11-point", as in PASCAL VOC up to
    2009 (Everingham et al., IJCV 2010): the mean over r = 0, 0.1, …, 1 of the greatest precision at any
    threshold with a recall of r or more. DataError where shapes or values do not fit.
    """
    scores, targets = _same_shape(scores, targets)
    _in_threads(lambda rows: [None for _ in _checked_rows(scores, targets, rows)], _parts(len(scores)))
    return torch.from_numpy(_average_precision(scores, targets, definition))


def multilabel_metrics(
    scores: Array,
    targets: Array,
    threshold: float | Sequence[float] | Array = 0.5,
    top_k: int = 3,
    class_names: Sequence[str] | None = None,
    ap: Definition = "all-point",
) -> dict[str, Any]:
    """mAP; per-class (C) and overall (O) precision, recall, F1; AP of each class: percent, ready for JSON.

    `scores` [N, C]: probabilities. `targets` [N, C]: 1, 0 or -1. `threshold`: one, or one for each class.
    `ap`: the definition of AP, as in `average_precision`.
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
    scores, targets = _same_shape(scores, targets, class_names)
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; it must be 1 or more")
    c = scores.shape[1]
    limit = _checked_threshold(threshold, c).astype(_as_floats(scores[:0]).dtype)  # equals compare as equals

    def count(rows: range) -> npt.NDArray[np.int64]:
        counts = np.zeros((5, c), np.int64)
        for values, labels in _checked_rows(scores, targets, rows, class_names, probabilities=True):
            present, known = labels == PRESENT, labels != UNKNOWN
            above = (values > limit) & known
            # A label under every threshold is under all that are predicted, and takes no place from them.
            highest = above & _highest(values, (values > limit.min()) & known, top_k)
            masks = (present, above, above & present, highest, highest & present)
            counts += np.stack([_column_counts(mask) for mask in masks])
        return counts

    positives, above, right, highest, right_highest = np.sum(_in_threads(count, _parts(len(scores))), axis=0)
    of_classes = 100 * _average_precision(scores, targets, ap)
    without = np.flatnonzero(np.isnan(of_classes)).tolist()
    return {
        "mAP": None if len(without) == c else float(np.nanmean(of_classes)),
        **_precision_recall_f1(positives, right, above),
        **_precision_recall_f1(positives, right_highest, highest, suffix=f"_top{top_k}"),
        "AP": [None if np.isnan(value) else value for value in of_classes.tolist()],
        "classes_without_positives": without if class_names is None else [class_names[c] for c in without],
    }


def _average_precision(scores: Array, targets: Array, definition: Definition) -> npt.NDArray[np.float64]:
    """AP [C] of checked `scores` and `targets` [N, C], a few classes at a time."""
    n, c = scores.shape
    threads = torch.get_num_threads()
    free = WORKING_BYTES // threads - n * RANK_BYTES
    step = max(1, min(CLASSES, -(-c // threads), free // (n * ENTRY_BYTES)))

    def of_classes(first: int) -> npt.NDArray[np.float64]:
        columns = _transposed(_as_floats(scores[:, first : first + step]))
        labels = _transposed(_as_numpy(targets[:, first : first + step]))
        pairs = zip(columns, labels, strict=True)
        return np.array([_average_precision_of(*pair, definition) for pair in pairs])

    return np.concatenate(_in_threads(of_classes, range(0, c, step)))


def _transposed(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`block` [N, classes] as an array [classes, N] of its own; by tiles that the cache holds."""
    columns = np.empty(block.shape[::-1], block.dtype)
    for start in range(0, len(block), TILE_ROWS):
        columns[:, start : start + TILE_ROWS] = block[start : start + TILE_ROWS].T
    return columns


def _average_precision_of(scores: Scores, targets: npt.NDArray[Any], definition: Definition) -> float:
    """AP of one class from its checked `scores` and `targets` [N]; takes over the memory of the scores."""
    positive = np.sort(scores[np.flatnonzero(targets == PRESENT)])
    if not len(positive):
        return np.nan
    unknown = targets == UNKNOWN
    if unknown.any():
        scores[unknown] = -np.inf  # sorted to the front, below every positive
    scores.sort()
    # Recall rises only at the positives, by 1 / P each: AP is the mean of the precision at their scores.
    true_positives = np.arange(len(positive), 0, -1)
    if (positive[1:] == positive[:-1]).any():  # equals count together, at the first of them
        true_positives = true_positives[np.searchsorted(positive, positive)]
    predicted = len(scores) - np.searchsorted(scores, positive)
    precision = true_positives / predicted
    if definition == "all-point":
        return float(np.mean(precision))
    # In whole numbers: 3 of 10 positives are a recall of 0.3, though 3 * 0.1 is more than 0.3.
    enough = (10 * true_positives >= step * len(positive) for step in range(11))
    return float(np.mean([precision[reached].max() for reached in enough]))


def _precision_recall_f1(
    positives: npt.NDArray[np.int64],
    true_positives: npt.NDArray[np.int64],
    predictions: npt.NDArray[np.int64],
    suffix: str = "",
) -> dict[str, float | None]:
    """CP, CR, CF1, OP, OR, OF1 in percent, each key with `suffix`, from the counts [C] of each class."""
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


def _column_counts(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """How often each column of `mask` [rows, C] is True: a product, three times as fast as a count.

    Exact, since the rows of a block are far fewer than the 2**24 that float32 can count.
    """
    return (np.ones(len(mask), np.float32) @ mask).astype(np.int64)


def _highest(scores: Scores, among: npt.NDArray[np.bool_], k: int) -> npt.NDArray[np.bool_]:
    """Of the labels of each image where `among` [N, C] is True the `k` with the highest scores."""
    crowded = np.flatnonzero(among @ np.ones(among.shape[1], np.float32) > k)  # the others keep all
    remaining = np.where(among[crowded], scores[crowded], -np.inf)
    chosen = np.zeros(remaining.shape, bool)
    for _ in range(k if len(crowded) else 0):
        best = remaining.argmax(axis=1, keepdims=True)  # the first of equals
        np.put_along_axis(chosen, best, True, axis=1)
        np.put_along_axis(remaining, best, -np.inf, axis=1)
    highest = among.copy()
    highest[crowded] = chosen
    return highest


def _same_shape(
    scores: Array, targets: Array, class_names: Sequence[str] | None = None
) -> tuple[Array, Array]:
    """`scores` and `targets`, tensors or arrays, of one shape [N, C]; DataError otherwise."""
    scores, targets = (
        values.detach() if isinstance(values, torch.Tensor) else np.asarray(values)
        for values in (scores, targets)
    )
    shape = list(scores.shape)
    if len(shape) != 2 or shape != list(targets.shape):
        raise DataError(
            f"scores {shape} and targets {list(targets.shape)} must both be [N, C]: "
            "one row for each image, one column for each class"
        )
    if 0 in shape:
        raise DataError(f"there is nothing to measure: scores and targets are {shape}")
    if class_names is not None and len(class_names) != shape[1]:
        raise DataError(f"{len(class_names)} class names do not fit scores of {shape[1]} classes")
    dtype = _as_numpy(scores[:0]).dtype
    if not np.issubdtype(dtype, np.floating):
        raise DataError(f"scores are {dtype}; give floats, not labels already decided")
    return scores, targets


def _checked_rows(
    scores: Array,
    targets: Array,
    rows: range,
    class_names: Sequence[str] | None = None,
    *,
    probabilities: bool = False,
) -> Iterator[tuple[Scores, npt.NDArray[Any]]]:
    """Scores (float32 or wider, order kept) and targets of `rows`, a few images at a time.

    Raises DataError where one has a value that may not be.
    """
    entries = min(ROW_ENTRIES, WORKING_BYTES // (torch.get_num_threads() * ENTRY_BYTES))
    step = max(1, entries // scores.shape[1])
    for start in range(rows.start, rows.stop, step):
        block = slice(start, min(start + step, rows.stop))
        values, labels = _as_floats(scores[block]), _as_numpy(targets[block])
        low, high = values.min(), values.max()  # both NaN where there is one
        if not (np.isfinite(low) and np.isfinite(high)):
            expected = "scores must be finite numbers"
            raise _refused("score", values, ~np.isfinite(values), start, expected, class_names)
        if probabilities and (low < 0 or high > 1):
            expected = "scores must be probabilities in 0..1: apply a sigmoid to logits first"
            raise _refused("score", values, (values < 0) | (values > 1), start, expected, class_names)
        wrong = (labels != PRESENT) & (labels != ABSENT) & (labels != UNKNOWN)
        if wrong.any():
            expected = "give 1 (present), 0 (absent) or -1 (unknown)"
            raise _refused("target", labels, wrong, start, expected, class_names)
        yield values, labels


def _parts(n: int) -> list[range]:
    """N images as one range for each thread."""
    edges = [n * part // torch.get_num_threads() for part in range(torch.get_num_threads() + 1)]
    return [range(*pair) for pair in pairwise(edges)]


def _in_threads(function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """`function` of each part, in order, on as many threads as torch has: NumPy works without the lock."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, parts))


def _checked_threshold(threshold: float | Sequence[float] | Array, c: int) -> npt.NDArray[Any]:
    """`threshold` as an array [] or [C]; ConfigError otherwise."""
    limit = _as_numpy(threshold)
    if limit.shape not in ((), (c,)):
        raise ConfigError(f"thresholds {list(limit.shape)} must be one number or [{c}], one for each class")
    if not ((limit >= 0) & (limit <= 1)).all():
        raise ConfigError(f"threshold is {threshold}; it must lie within 0..1")
    return limit


def _refused(
    kind: str,
    values: npt.NDArray[Any],
    wrong: npt.NDArray[np.bool_],
    start: int,
    expected: str,
    class_names: Sequence[str] | None,
) -> DataError:
    """The error about the first of `values` [rows, C], of images from `start` on, where `wrong` is True."""
    row, c = np.argwhere(wrong)[0].tolist()
    name = c if class_names is None else f"'{class_names[c]}'"
    return DataError(f"{kind} in row {start + row}, class {name} is {values[row, c]}; {expected}")


def _as_floats(values: Array) -> Scores:
    """`values` as an array of float32 or wider: half precision keeps its order and its ties."""
    array = _as_numpy(values)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _as_numpy(values: float | Sequence[float] | Array) -> npt.NDArray[Any]:
    """`values` as an array on the CPU; NumPy has no bfloat16, so narrow floats become float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    narrow = values.is_floating_point() and values.element_size() < 4
    array: npt.NDArray[Any] = (values.float() if narrow else values).numpy()
    return array
