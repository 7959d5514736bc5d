"""The rows of the table: every control over the recommended recipe, at all seeds, on validation and test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.gain.protocol import Protocol
from benchmarks.gain.search import value_of
from coterie.ablation import Ablation, Row
from coterie.ablation.intervals import interval_between, resampled_maps
from coterie.ablation.report import summary
from coterie.files import atomic_write
from coterie.intervals import resampled_map
from coterie.logits import read_logits
from coterie.metrics import average_precision

CONTROLS = (
    *("baseline", "compute-student", "compute-run", "k1", "random", "random-equal"),
    *("cgp", "dgp", "dgp-paper", "psd", "squared-error", "cgp-teachers", "dgp-teachers", "all-teachers"),
)
VALUES = {"a": (0.25, 0.75), "w": (0.25, 0.95), "k": (2, 5), "root": (1, 4)}
# What the recommended recipe is compared with, beside the baseline: (row, the other row)
COMPARED = (
    *(("psd", "k1"), ("psd", "random"), ("psd", "random-equal"), ("psd", "compute-run")),
    *(("psd", "compute-student"), ("psd", "ensemble"), ("psd", "paper"), ("psd", "cgp"), ("psd", "dgp")),
)
SPLITS = ("val", "test")
ENSEMBLE = "ensemble"


def own_rows(searched: Sequence[str]) -> tuple[Row, ...]:
    """The paper's recipe, as printed and at our rate, and PSD without what was added to it."""
    rate = float(value_of("train.lr", searched))
    paper = (
        *("partition.co_method=paper", "partition.dis_method=paper", "distill.loss=squared-error"),
        *("distill.w=0.5", "distill.a=0.5", "distill.baseline=0"),
        *(f"{role}.{word}" for role in ("teacher", "student") for word in ("loss=asl", "gamma_neg=4")),
    )
    return (
        Row("two-branches", "both branches, as searched", (*without_train(searched), "distill.baseline=0")),
        Row("paper", "the paper's recipe, its student at our rate", (*paper, f"student.lr={rate:.3g}")),
        Row(
            "paper-rate",
            "the paper's recipe, its student at a tenth of the rate",
            (*paper, f"student.lr={rate / 10:.3g}"),
        ),
    )


def without_train(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if not word.startswith("train."))


def measure_rows(protocol: Protocol, recommended: Sequence[str], searched: Sequence[str]) -> Ablation:
    """Every row, at every seed."""
    return protocol.measured("rows", recommended, own_rows(searched), CONTROLS, VALUES)


@dataclass(frozen=True)
class Ensembles:
    """As many baselines together as a branch has teachers, of the seeds from each seed on: the mean of their
    logits. `map`: by split and seed; `resampled`: on resampled images.
    """

    map: dict[str, dict[int, float]]
    resampled: dict[str, dict[tuple[str, int], np.ndarray]]


def baseline_ensembles(found: Ablation, size: int) -> Ensembles:
    runs = {outcome.seed: Path(outcome.run) for outcome in found.outcomes if outcome.row == "baseline"}
    seeds = list(found.seeds)
    maps: dict[str, dict[int, float]] = {}
    resampled: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for split in SPLITS:
        logits = {seed: read_logits(run, split) for seed, run in runs.items()}
        for number, seed in enumerate(seeds):
            members = [seeds[(number + step) % len(seeds)] for step in range(size)]
            together = np.mean([logits[member].models["baseline"] for member in members], axis=0)
            targets = logits[seed].targets
            maps.setdefault(split, {})[seed] = float(100 * np.nanmean(average_precision(together, targets)))
            resampled.setdefault(split, {})[ENSEMBLE, seed] = resampled_map(together, targets, resamples=1000)
    return Ensembles(maps, resampled)


def write_rows(protocol: Protocol, found: Ablation, k: int) -> None:
    """All that the page needs of the rows, in OUT/rows.json."""
    ensembles = baseline_ensembles(found, k)
    records = summary(found)
    compared = []
    for split in SPLITS:
        maps = resampled_maps(found, split) | ensembles.resampled[split]
        values = {row.name: found.values(row.name, split) for row in found.rows}
        values[ENSEMBLE] = ensembles.map[split]
        for name, other in (*COMPARED, (ENSEMBLE, "baseline")):
            compared.append(
                {
                    "split": split,
                    "row": name,
                    "other": other,
                    "difference": _difference(values[name], values[other]),
                    "interval": interval_between(maps, name, other, found.seeds),
                }
            )
    content = {
        "seeds": found.seeds,
        "rows": records,
        "by_seed": {
            split: {row.name: found.values(row.name, split) for row in found.rows} for split in SPLITS
        },
        "ensemble": {"size": k, **ensembles.map},
        "compared": compared,
        "kept": {split: kept(found, split) for split in SPLITS},
    }
    atomic_write(protocol.out / "rows.json", json.dumps(content, indent=1))


def kept(found: Ablation, split: str) -> float | None:
    """How much of what all teachers gain over the baseline the student has, in percent."""
    student, teachers = (found.difference(name, split).mean for name in ("psd", "all-teachers"))
    return None if student is None or not teachers else 100 * student / teachers


def _difference(own: Mapping[int, float], other: Mapping[int, float]) -> float:
    return mean(own[seed] - other[seed] for seed in own)
