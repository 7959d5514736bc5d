"""Time and agreement of the metrics beside scikit-learn and torchmetrics, at the size of COCO.

`python -m benchmarks.metrics [--images N] [--classes C]`; exit status 1 where all metrics together take
more than 0.5 s at the size of COCO, or an AP differs from scikit-learn's by more than 1e-6. The targets are
the real ones of COCO 2014 val where the data folder (`COTERIE_DATA`) has them and no other size is asked for.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import multilabel_average_precision

from coterie.metrics import average_precision, multilabel_metrics

T = TypeVar("T")

COCO_SIZE = (40_137, 80)
MOST_SECONDS, MOST_DIFFERENCE = 0.5, 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and agreement of the metrics.")
    parser.add_argument("--images", type=int, default=COCO_SIZE[0], help="N (default %(default)s)")
    parser.add_argument("--classes", type=int, default=COCO_SIZE[1], help="C (default %(default)s)")
    arguments = parser.parse_args()
    size = (arguments.images, arguments.classes)
    targets, source = make_targets(size)
    scores = make_scores(targets)
    print(f"{size[0]} x {size[1]}, {source}, {torch.get_num_threads()} threads")

    ours, seconds = timed(lambda: average_precision(scores, targets).numpy(), repeats=3)
    _, all_seconds = timed(lambda: multilabel_metrics(scores, targets), repeats=3)
    expected, their_seconds = timed(lambda: scikit_learn(scores, targets))
    torched, torch_seconds = timed(lambda: torchmetrics(scores, targets))
    for name, taken in (
        ("coterie average_precision", seconds),
        ("coterie multilabel_metrics", all_seconds),
        ("scikit-learn, class by class", their_seconds),
        ("torchmetrics, thresholds=None", torch_seconds),
    ):
        print(f"{name:30s} {taken:8.3f} s {taken / seconds:7.1f} times the first")
    difference = float(np.max(np.abs(ours - expected)))
    print(f"largest difference from scikit-learn: {difference:.1e}")
    print(f"largest difference from torchmetrics: {np.max(np.abs(ours - torched)):.1e} (it works in float32)")

    too_slow = size == COCO_SIZE and all_seconds > MOST_SECONDS
    wrong = not difference <= MOST_DIFFERENCE
    if too_slow:
        print(f"too slow: more than {MOST_SECONDS} s", file=sys.stderr)
    if wrong:
        print(f"wrong: more than {MOST_DIFFERENCE} from scikit-learn", file=sys.stderr)
    return int(too_slow or wrong)


def make_targets(size: tuple[int, int]) -> tuple[npt.NDArray[np.int8], str]:
    """Targets [N, C], every class with a positive, and where they come from."""
    folder = os.environ.get("COTERIE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(folder) / "labels" / "coco2014_val_targets.npz"
    if size == COCO_SIZE and path.is_file():
        packed = np.load(path)["targets_packed"]
        return np.unpackbits(packed, axis=1)[:, : size[1]].astype(np.int8), "targets of COCO 2014 val"
    targets = (np.random.default_rng(0).random(size) < 0.04).astype(np.int8)
    targets[0] = 1
    return targets, "random targets"


def make_scores(targets: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Probabilities [N, C] of a classifier that is often right."""
    logits = np.random.default_rng(1).normal(size=targets.shape) + 3.0 * targets - 3.0
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def scikit_learn(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    pairs = zip(targets.T, scores.T, strict=True)
    return np.array([average_precision_score(labels, column) for labels, column in pairs])


def torchmetrics(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    result = multilabel_average_precision(
        torch.from_numpy(scores), torch.from_numpy(targets).long(), num_labels=targets.shape[1], average=None
    )
    return np.asarray(result)


def timed(function: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """The result of `function` and its best time in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return result, best


if __name__ == "__main__":
    sys.exit(main())
