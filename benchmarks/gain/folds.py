"""The rows on every image once: each fifth of them is measured by what was trained on the others, so that
differences are known more exactly than the test images of one split can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.gain.protocol import Protocol, Rows, frequent
from benchmarks.gain.rows import write_rows
from benchmarks.gain.search import Words
from coterie.ablation import Ablation
from coterie.ablation.intervals import difference_intervals

NAME = "folds"
FOLDS = 5
VALIDATED = 400  # images, of those that a fold does not measure: as many as of the published split
ROWS = ("baseline", "compute-run", "k1", "random", "random-equal", "cgp", "dgp", "psd", "all-teachers")


def measure_folds(protocol: Protocol, recommended: Words) -> None:
    """The recommended recipe and its controls; the seed of a fold is its number."""
    found = []
    for number in range(FOLDS):
        name = f"fold-{number}"
        table = protocol.rewritten(name, partial(folded, number=number))
        found.append(replace(protocol, seeds=(number,)).measured(name, recommended, (), ROWS, table=table))
    write_rows(protocol.out, NAME, together(found), size=None)


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


def together(found: Sequence[Ablation]) -> Ablation:
    """The rows over all folds, each as a seed; intervals over folds and the images of each."""
    first = found[0]
    seeds = tuple(seed for each in found for seed in each.seeds)
    outcomes = tuple(outcome for each in found for outcome in each.outcomes)
    pooled = Ablation(first.rows, seeds, outcomes, ())
    return replace(pooled, intervals=difference_intervals(pooled))
