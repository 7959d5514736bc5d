"""The rows on every image once: each fifth of them is measured by what was trained on the others, so that
differences are known more exactly than the test images of one split can tell.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from scipy import stats

from benchmarks.gain.protocol import Protocol, Rows, frequent
from benchmarks.gain.rows import ALWAYS, own_rows, write_rows
from benchmarks.gain.search import Words
from coterie.ablation import Ablation
from coterie.ablation.report import Interval
from coterie.ablation.rows import BASELINE

NAME = "folds"
FOLDS = 5
VALIDATED = 400  # images, of those that a fold does not measure: as many as of the published split
OWN = ("k1-repeated", "k1-six")
ROWS = ("baseline", "compute-run", "k1", "random", "random-equal", "cgp", "dgp", "psd", "all-teachers")


def measure_folds(protocol: Protocol, recommended: Words, rows: Sequence[str], seeds: int = 1) -> None:
    """The recommended recipe and its controls, of which `rows` chooses; each fold has so many `seeds`."""
    own = [row for row in own_rows(recommended) if row.name in OWN and row.name in rows]
    names = [name for name in ROWS if name in {*rows, *ALWAYS}]
    found, shares = [], []
    for number in range(FOLDS):
        name = f"fold-{number}"
        table = protocol.rewritten(name, partial(folded, number=number))
        of_fold = replace(protocol, seeds=seeds_of(number, seeds))
        found.append(of_fold.measured(name, recommended, own, names, table=table))
        shares.append(measured_share(table))
    share = mean(shares)
    intervals = partial(over_folds, share=share)
    settings = (*protocol.settings, *recommended)
    write_rows(protocol.out, NAME, together(found, share), settings, size=None, intervals=intervals)


def seeds_of(fold: int, seeds: int) -> tuple[int, ...]:
    """The first `seeds` seeds of a fold; no other fold has them."""
    return tuple(fold + FOLDS * number for number in range(seeds))


def folded(rows: Rows, number: int, folds: int = FOLDS, validated: int = VALIDATED) -> Rows:
    """The rows of a table with the frequent classes alone, in an order drawn at random: those of the fold
    with this number to test, and others to validate and to train.
    """
    rows = frequent(rows)
    parts = np.array_split(np.random.default_rng(0).permutation(len(rows)), folds)
    test, *others = parts[number:] + parts[:number]
    val, train = np.split(np.concatenate(others), [validated])
    return [
        rows[position] | {"split": split}
        for split, positions in (("test", test), ("val", val), ("train", train))
        for position in positions.tolist()
    ]


def measured_share(table: Path) -> float:
    """How many images a fold measures for each that it learns from."""
    with table.open(newline="") as file:
        images = Counter(row["split"] for row in csv.DictReader(file))
    return images["test"] / images["train"]


def together(found: Sequence[Ablation], share: float) -> Ablation:
    """The rows over all folds and their seeds, with the intervals of their differences to the baseline."""
    first = found[0]
    seeds = tuple(seed for each in found for seed in each.seeds)
    outcomes = tuple(outcome for each in found for outcome in each.outcomes)
    pooled = Ablation(first.rows, seeds, outcomes, ())
    intervals = {
        split: {row.name: over_folds(pooled, split, share)(row.name, BASELINE.name) for row in first.rows[1:]}
        for split in pooled.splits
    }
    return replace(pooled, intervals=intervals)


def over_folds(pooled: Ablation, split: str, share: float) -> Callable[[str, str], Interval]:
    """The 95 % t intervals of differences over folds, n - 1 degrees of freedom; of a fold, the mean over its
    seeds. Each fold has images and seeds of its own, so that what both change is in how far the folds differ.
    That they share images to learn from is not: for that the variance of the mean is not 1 / n of theirs, but
    1 / n + `share`, images measured by images learned from (Nadeau and Bengio, "Inference for the
    generalization error", 2003, eq. 9).
    """

    def between(row: str, other: str) -> Interval:
        values, others = pooled.values(row, split), pooled.values(other, split)
        of_folds: dict[int, list[float]] = {}
        for seed in values:
            of_folds.setdefault(seed % FOLDS, []).append(values[seed] - others[seed])
        differences = [mean(each) for each in of_folds.values()]
        half = stats.t.ppf(0.975, len(differences) - 1) * stdev(differences)
        half *= sqrt(1 / len(differences) + share)
        return Interval(mean(differences) - half, mean(differences) + half)

    return between
