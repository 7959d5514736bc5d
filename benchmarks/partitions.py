"""How good the label groups are, and how long they take: `python -m benchmarks.partitions`.

Reads the co-occurrence counts at `COTERIE_DATA`, else `../shared/data`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from coterie.labels import CooccurrenceGraph, partition_labels

FOLDER = Path(os.environ.get("COTERIE_DATA") or Path(__file__).parents[2] / "shared" / "data")
FILES = {"COCO": "coco2014_train_counts", "NUS-WIDE": "nuswide81_train_counts"}
SEEDS = range(5)
PUBLISHED = {
    ("COCO", "co-occurrence"): {2: 0.5711, 3: 1.3904, 5: 3.0296, 8: 5.6819, 13: 10.4658},
    ("NUS-WIDE", "co-occurrence"): {5: 3.1451, 8: 5.9115, 13: 10.6274},
    ("COCO", "dis-occurrence"): {5: 0.230, 8: 0.140, 13: 0.080},
    ("NUS-WIDE", "dis-occurrence"): {5: 0.179, 8: 0.095, 13: 0.064},
}


def load_graph(name: str) -> CooccurrenceGraph:
    """The co-occurrence graph in `FILES` under `name`."""
    with np.load(FOLDER / "labels" / f"{FILES[name]}.npz") as file:
        return CooccurrenceGraph(file["counts"], file["class_counts"], tuple(file["class_names"].tolist()))


def random_graph(classes: int) -> CooccurrenceGraph:
    """A graph with a long tail: 20,000 images with labels of falling frequency."""
    rng = np.random.default_rng(0)
    targets = (rng.random((20_000, classes)) < 0.5 / np.arange(1, classes + 1)).astype(np.int8)
    return CooccurrenceGraph.from_targets(targets, [f"label {index}" for index in range(classes)])


def row(graph: CooccurrenceGraph, name: str, kind: str, method: str, k: int, published: float | None) -> None:
    """Print one line: the objective over the seeds, and the longest time of one partition."""
    values, seconds, sizes = [], [], (0, 0)
    for seed in SEEDS:
        start = time.perf_counter()
        partition = partition_labels(graph, k, kind, method, seed=seed)
        seconds.append(time.perf_counter() - start)
        values.append(partition.objective.value)
        sizes = (min(partition.sizes), max(partition.sizes))
    paper = "-" if published is None else f"{published:.4f}"
    print(
        f"{name:12} {kind:15} {method:15} {k:3} {paper:>9} {min(values):9.4f} {max(values):9.4f}"
        f" {sizes[0]:5}-{sizes[1]:<3} {max(seconds):7.2f}",
        flush=True,
    )


def main() -> None:
    if not FOLDER.is_dir():
        sys.exit(f"no measuring data at {FOLDER}; set COTERIE_DATA")
    print(
        f"{'graph':12} {'kind':15} {'method':15} {'K':>3} {'published':>9} {'lowest':>9} {'highest':>9}"
        f" {'sizes':>9} {'seconds':>7}"
    )
    for (name, kind), by_k in PUBLISHED.items():
        graph = load_graph(name)
        for method in ("normalized-cut" if kind == "co-occurrence" else "balanced", "paper"):
            for k, published in by_k.items():
                row(graph, name, kind, method, k, published)
    for classes in (200, 400):
        graph = random_graph(classes)
        for kind, method in (("co-occurrence", "normalized-cut"), ("dis-occurrence", "balanced")):
            for k in (5, 20):
                row(graph, f"{classes} labels", kind, method, k, None)


if __name__ == "__main__":
    main()
