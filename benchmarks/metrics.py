"""Time, memory and agreement of the metrics, beside scikit-learn and torchmetrics.

    python -m benchmarks.metrics [--images N] [--classes C] [--many-images N] [--many-classes C]

First 2,000 classes: exit status 1 where the memory beside the inputs is more than `WORKING_BYTES`, or an AP
of every hundredth class differs from scikit-learn's. Then all values that `multilabel_metrics` gives, at the
size of COCO, beside the same values by torchmetrics' exact functions, with as many threads as torch takes and
with one. Status 1 where torchmetrics with its threads is not 50 times slower, all metrics together take more
than 0.5 s at the size of COCO, an AP differs from scikit-learn's by more than 1e-6, or another value from
torchmetrics' by more than 1e-3 percent. The targets are the real ones of COCO 2014 val where the data folder
(`COTERIE_DATA`) has them and no other size is asked for.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_precision,
    multilabel_recall,
)

from coterie.metrics import WORKING_BYTES, average_precision, multilabel_metrics

T = TypeVar("T")
Scores = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int8]

COCO_SIZE = (40_137, 80)
TOP_K = 3
LEAST_RATIO, MOST_SECONDS = 50, 0.5
MOST_DIFFERENCE, MOST_PERCENT = 1e-6, 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description="Time, memory and agreement of the metrics.")
    parser.add_argument("--images", type=int, default=COCO_SIZE[0], help="N (default %(default)s)")
    parser.add_argument("--classes", type=int, default=COCO_SIZE[1], help="C (default %(default)s)")
    parser.add_argument("--many-images", type=int, default=200_000, help="N of the first part")
    parser.add_argument("--many-classes", type=int, default=2_000, help="C of the first part; 0 is none")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    problems = []
    if arguments.many_classes:
        problems += with_many_classes((arguments.many_images, arguments.many_classes))
    problems += compared((arguments.images, arguments.classes))
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def compared(size: tuple[int, int]) -> list[str]:
    """Print times beside the libraries' and differences from them; what is not as it should be."""
    targets, source = make_targets(size)
    scores = make_scores(targets)
    print(f"\n{size[0]} x {size[1]}, {source}")
    ratios = []
    for threads in sorted({torch.get_num_threads(), 1}, reverse=True):
        torch.set_num_threads(threads)
        metrics, seconds = timed(lambda: multilabel_metrics(scores, targets, top_k=TOP_K), repeats=9)
        theirs, their_seconds = timed(lambda: torchmetrics(scores, targets), repeats=3)
        ap, ap_seconds = timed(lambda: average_precision(scores, targets).numpy(), repeats=9)
        _, their_ap_seconds = timed(lambda: torchmetrics_ap(scores, targets), repeats=3)
        for name, ours, others in (
            ("all metrics", seconds, their_seconds),
            ("AP alone", ap_seconds, their_ap_seconds),
        ):
            times = f"{1000 * ours:6.1f} ms, torchmetrics {1000 * others:7.1f} ms: {others / ours:6.1f} times"
            print(f"{threads} thread{'s' * (threads > 1)}, {name:11} {times}")
        ratios.append(their_seconds / seconds)
    expected, scikit_seconds = timed(lambda: scikit_learn(scores, targets))
    print(f"AP by scikit-learn {1000 * scikit_seconds:.1f} ms: {scikit_seconds / ap_seconds:.1f} times")
    difference = float(np.max(np.abs(ap - expected)))
    percent = max(abs(metrics[name] - value) for name, value in theirs.items())
    print(f"largest difference of an AP from scikit-learn: {difference:.1e}")
    print(f"largest difference of a value from torchmetrics: {percent:.1e} percent (it works in float32)")
    return [
        problem
        for problem, wrong in (
            (f"too slow: {ratios[0]:.0f} times torchmetrics, not {LEAST_RATIO}", ratios[0] < LEAST_RATIO),
            (f"too slow: more than {MOST_SECONDS} s", size == COCO_SIZE and seconds > MOST_SECONDS),
            (f"wrong: more than {MOST_DIFFERENCE} from scikit-learn", not difference <= MOST_DIFFERENCE),
            (f"wrong: more than {MOST_PERCENT} % from torchmetrics", not percent <= MOST_PERCENT),
        )
        if wrong
    ]


def with_many_classes(size: tuple[int, int]) -> list[str]:
    """Print time and memory of all metrics; what is not as it should be."""
    rng = np.random.default_rng(0)
    scores, targets = rng.standard_normal(size, dtype=np.float32), np.zeros(size, np.int8)
    rows, columns = np.repeat(np.arange(size[0]), 5), rng.zipf(1.3, 5 * size[0]) % size[1]
    targets[rows, columns] = 1
    scores[rows, columns] += 3
    for block in np.array_split(scores, 100):
        block[:] = 1 / (1 + np.exp(3 - block))
    print(f"\n{size[0]} x {size[1]}, {scores.nbytes / 1e9:.1f} GB of scores")
    _, seconds = timed(lambda: multilabel_metrics(scores, targets))
    tracemalloc.start()
    metrics = multilabel_metrics(scores, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    limit = WORKING_BYTES / 2**20
    print(f"all metrics {seconds:.1f} s; {peak / 2**20:.0f} MiB beside the inputs, at most {limit:.0f}")
    some = np.flatnonzero((targets == 1).any(axis=0))[::100]
    expected = 100 * scikit_learn(scores[:, some], targets[:, some])
    difference = np.max(np.abs(np.array([metrics["AP"][column] for column in some]) - expected))
    print(f"largest difference of an AP from scikit-learn: {difference:.1e} percent")
    problems = []
    if peak > WORKING_BYTES:
        problems.append(f"too much memory: more than {limit:.0f} MiB")
    if not difference <= 100 * MOST_DIFFERENCE:
        problems.append(f"wrong: more than {100 * MOST_DIFFERENCE} % from scikit-learn")
    return problems


def make_targets(size: tuple[int, int]) -> tuple[Targets, str]:
    """Targets [N, C], every class with a positive, and where they come from."""
    folder = os.environ.get("COTERIE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(folder) / "labels" / "coco2014_val_targets.npz"
    if size == COCO_SIZE and path.is_file():
        packed = np.load(path)["targets_packed"]
        return np.unpackbits(packed, axis=1)[:, : size[1]].astype(np.int8), "targets of COCO 2014 val"
    targets = (np.random.default_rng(0).random(size) < 0.04).astype(np.int8)
    targets[0] = 1
    return targets, "random targets"


def make_scores(targets: Targets) -> Scores:
    """Probabilities [N, C] of a classifier that is often right."""
    logits = np.random.default_rng(1).normal(size=targets.shape) + 3.0 * targets - 3.0
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def scikit_learn(scores: Scores, targets: Targets) -> npt.NDArray[np.float64]:
    pairs = zip(targets.T, scores.T, strict=True)
    return np.array([average_precision_score(labels, column) for labels, column in pairs])


def torchmetrics_ap(scores: Scores, targets: Targets) -> torch.Tensor:
    pair = torch.from_numpy(scores), torch.from_numpy(targets).long()
    ap: torch.Tensor = multilabel_average_precision(*pair, num_labels=targets.shape[1], average=None)
    return ap


def torchmetrics(scores: Scores, targets: Targets) -> dict[str, float]:
    """The values of `multilabel_metrics` in percent; F1 from P and R, which spares it calls."""
    known = torch.from_numpy(targets).long()
    all_scores = torch.from_numpy(scores)
    top = all_scores.topk(TOP_K, dim=1)
    top_scores = torch.zeros_like(all_scores).scatter_(1, top.indices, top.values)
    values = {"mAP": float(torchmetrics_ap(scores, targets).mean())}
    for form, given in (("", all_scores), (f"_top{TOP_K}", top_scores)):
        for letter, average in (("C", "macro"), ("O", "micro")):
            settings: dict[str, Any] = {"num_labels": targets.shape[1], "average": average}
            precision = float(multilabel_precision(given, known, **settings))
            recall = float(multilabel_recall(given, known, **settings))
            values[f"{letter}P{form}"], values[f"{letter}R{form}"] = precision, recall
            values[f"{letter}F1{form}"] = 2 * precision * recall / (precision + recall)
    return {name: 100 * value for name, value in values.items()}


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
