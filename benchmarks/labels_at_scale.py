"""Label groups of many labels: time, memory and quality, from sparse targets to both partitions.

    python -m benchmarks.labels_at_scale [--images N] [--classes C] [--k K ...]

For each K a process of its own reads the targets, counts them and makes both partitions; its seconds and its
memory are those of the whole process, with the start of Python. Beside what the groups reach stand groups of
the same sizes at random, and for the N-cut the least that any groups can reach. Then, at 500 labels, the
search for many labels against the steepest one. Exit status 1 where a process takes more than 60 s or 4 GiB,
or the search for many labels is more than 1 % worse at 500 labels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from coterie.labels import CooccurrenceGraph, normalized_cut, partition_labels, search, share_inside
from coterie.labels.spectral import spectral_embedding

MOST_SECONDS, MOST_BYTES = 60, 4 * 2**30
MOST_RATIO = 1.01
OBJECTIVES = {"co-occurrence": normalized_cut, "dis-occurrence": share_inside}
SMALL = (100_000, 500)  # images, labels
SEEDS = range(3)

THEME_SIZE, SCENES = 25, 12
SHARES = (0.5, 0.25, 0.25)  # of an image's labels: of its theme, of its scene, of all labels
DRAWS = 20  # enough for ten that differ

Integers = npt.NDArray[np.int64]


def main() -> int:
    parser = argparse.ArgumentParser(description="Time, memory and quality of the groups of many labels.")
    parser.add_argument("--images", type=int, default=1_000_000, help="N (default %(default)s)")
    parser.add_argument("--classes", type=int, default=5_000, help="C (default %(default)s)")
    parser.add_argument("--k", type=int, nargs="+", default=[5, 20], help="groups (default %(default)s)")
    parser.add_argument("--targets", type=Path, help=argparse.SUPPRESS)  # what the measured process reads
    arguments = parser.parse_args()
    if arguments.targets:
        print(json.dumps(measured(arguments.targets, arguments.k[0])))
        return 0
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} CPUs, load {load:.1f}; {arguments.images:,} images, {arguments.classes:,} labels"
    )
    within = at_scale(arguments.images, arguments.classes, arguments.k)
    print(f"\nthe search for many labels against the steepest, {SMALL[0]:,} images, {SMALL[1]} labels")
    as_good = against_steepest(arguments.k)
    return 0 if within and as_good else 1


def at_scale(images: int, classes: int, ks: list[int]) -> bool:
    """Print time, memory and quality for each K; True where all are within the limits."""
    within = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "targets.npz"
        sparse.save_npz(path, make_targets(images, classes), compressed=False)
        for k in ks:
            command = [sys.executable, "-m", "benchmarks.labels_at_scale", "--targets", str(path)]
            command += ["--k", str(k)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds, peak = found["seconds"], found["bytes"]
            stages = ", ".join(f"{name} {taken:.1f}" for name, taken in found["stages"].items())
            print(f"\nK = {k}: {seconds:.1f} s ({stages}), {peak / 2**30:.2f} GiB")
            for kind, result in found["quality"].items():
                print(f"  {kind}: {result}")
            if seconds > MOST_SECONDS or peak > MOST_BYTES:
                within = False
                print(f"more than {MOST_SECONDS} s or {MOST_BYTES // 2**30} GiB", file=sys.stderr)
    return within


def measured(path: Path, k: int) -> dict[str, Any]:
    """Seconds and bytes of this process up to both partitions, and then what these reach."""
    stages = {"start": time.time() - started()}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = function()
        stages[name] = time.perf_counter() - begin
        return result

    targets = timed("read", lambda: sparse.load_npz(path))
    names = [f"label {index:05}" for index in range(targets.shape[1])]
    graph = timed("count", lambda: CooccurrenceGraph.from_targets(targets, names))
    made = {kind: timed(kind, partial(partition_labels, graph, k, kind)) for kind in OBJECTIVES}
    seconds = time.time() - started()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    affinity = graph.affinity()
    quality = {}
    for kind, partition in made.items():
        random = partition_labels(graph, k, "random", sizes=partition.sizes)
        value = f"{partition.objective.name} {partition.objective.value:.4f}"
        value += f", at random {OBJECTIVES[kind](affinity, random.groups):.4f}"
        if kind == "co-occurrence":
            linked = affinity[np.ix_(*2 * (np.flatnonzero(affinity.any(axis=1)),))]
            embedding = spectral_embedding(linked, k)
            value += f", none under {k - np.trace(embedding.T @ linked @ embedding):.4f}"
        quality[kind] = f"{value}; groups of {min(partition.sizes)} to {max(partition.sizes)}"
    return {"seconds": seconds, "bytes": peak, "stages": stages, "quality": quality}


def started() -> float:
    """When this process began, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def against_steepest(ks: list[int]) -> bool:
    """Print what both searches reach at a size that both can do; True where the ratios are small enough."""
    images, classes = SMALL
    names = [f"label {index:05}" for index in range(classes)]
    graph = CooccurrenceGraph.from_targets(make_targets(images, classes), names)
    ratios = []
    for k in ks:
        for kind in OBJECTIVES:
            values, seconds = {}, {}
            for name, most in (("steepest", classes), ("many labels", 0)):
                search.MOST_STEEPEST = most
                start = time.perf_counter()
                made = [partition_labels(graph, k, kind, seed=seed) for seed in SEEDS]
                seconds[name] = (time.perf_counter() - start) / len(SEEDS)
                values[name] = mean(partition.objective.value for partition in made)
            ratios.append(values["many labels"] / values["steepest"])
            reached = ", ".join(f"{name} {values[name]:.5f} in {seconds[name]:.1f} s" for name in values)
            print(f"K = {k:2} {kind:15} {reached}: ratio {ratios[-1]:.4f}")
    return max(ratios) <= MOST_RATIO


def make_targets(images: int, classes: int, seed: int = 0, part: int = 0) -> sparse.csr_array:
    """Targets [N, C] as photographs have them: 5 to 10 labels an image, label frequencies by Zipf's law.

    Labels belong to themes of about 25, themes to scenes. An image has a theme; half of its labels come from
    there, a quarter from the theme's scene, a quarter from anywhere. `part`: other images of the same themes.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, classes + 1)
    themes = max(SCENES, classes // THEME_SIZE)
    theme_of, scene_of = rng.integers(themes, size=classes), rng.integers(SCENES, size=themes)
    draw = [
        sampler(groups, frequency, rng) for groups in (theme_of, scene_of[theme_of], np.zeros_like(theme_of))
    ]
    popularity = np.bincount(theme_of, np.sqrt(frequency), themes)
    if part:
        rng = np.random.default_rng((seed, part))
    blocks = []
    for start in range(0, images, 100_000):
        n = min(100_000, images - start)
        theme = rng.choice(themes, n, p=popularity / popularity.sum())
        groups = (theme, scene_of[theme], np.zeros_like(theme))
        drawn = np.stack([of_level(group) for of_level, group in zip(draw, groups, strict=True)])
        level = rng.choice(3, (1, n, DRAWS), p=SHARES)
        labels = np.take_along_axis(drawn, level, axis=0)[0]  # [n, DRAWS]
        order = np.argsort(labels, axis=1, kind="stable")
        ordered = np.take_along_axis(labels, order, axis=1)
        first = np.ones_like(ordered, bool)  # of equals, the first drawn
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        kept = np.empty_like(first)
        np.put_along_axis(kept, order, first, axis=1)
        kept &= kept.cumsum(axis=1) <= rng.integers(5, 11, (n, 1))
        rows = kept.nonzero()[0]
        blocks.append(sparse.csr_array((np.ones(len(rows), np.int8), (rows, labels[kept])), (n, classes)))
    return sparse.vstack(blocks, format="csr")


def sampler(
    group_of: Integers, frequency: npt.NDArray[np.float64], rng: np.random.Generator
) -> Callable[[Integers], Integers]:
    """A function that draws labels [n, DRAWS] of the given groups [n], each as often as it is frequent."""
    order = np.argsort(group_of, kind="stable")
    mass = np.append(0, np.cumsum(frequency[order]))
    edges = mass[np.searchsorted(group_of[order], np.arange(group_of.max() + 2))]

    def draw(groups: Integers) -> Integers:
        low, high = edges[groups, None], edges[groups + 1, None]
        at = np.searchsorted(mass, low + rng.random((len(groups), DRAWS)) * (high - low), side="right") - 1
        return np.asarray(order[np.minimum(at, len(order) - 1)])

    return draw


if __name__ == "__main__":
    sys.exit(main())
