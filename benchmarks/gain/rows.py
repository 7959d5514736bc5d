"""The rows of the table: every control over the recommended recipe, at all seeds, on validation and test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt

from benchmarks.environment import environment
from benchmarks.gain.protocol import K
from benchmarks.gain.search import value_of
from coterie.ablation import Ablation, Row
from coterie.ablation.intervals import interval_between, resampled_maps, resamples_of
from coterie.ablation.report import Interval, summary
from coterie.config import ROLES, load_config
from coterie.files import atomic_write
from coterie.intervals import resampled_map
from coterie.logits import read_logits
from coterie.metrics import average_precision

CONTROLS = (
    *("baseline", "compute-student", "compute-run", "k1", "random", "random-equal"),
    *("cgp", "dgp", "dgp-paper", "psd", "squared-error", "cgp-teachers", "dgp-teachers", "all-teachers"),
)
# what is claimed is of them: they are measured whatever rows are chosen
ALWAYS = ("psd", "all-teachers")
SWEEPS = {"a": (0.25, 0.75), "w": (0.25, 0.95), "k": (2, 5), "root": (1, 4)}
ENSEMBLE = "ensemble"
AS_SEARCHED = "two-branches"  # PSD without what was added to it, where something was
# What the recommended recipe is compared with, beside the baseline: (row, the other row)
COMPARED = (
    *(("psd", "k1"), ("psd", "random"), ("psd", "random-equal"), ("psd", "compute-run")),
    *(("psd", "compute-student"), ("psd", "ensemble"), ("psd", "k1-repeated"), ("psd", "k1-six")),
    *(("psd", "paper"), ("psd", AS_SEARCHED), ("psd", "cgp"), ("psd", "dgp"), ("psd", "squared-error")),
    *(("psd", "squared-error-half"), ("paper", "baseline-asl"), ("ensemble", "baseline")),
    *(("k1-repeated", "k1"), ("k1-six", "k1-repeated"), ("random", "k1"), ("cgp", "k1"), ("dgp", "k1")),
)
Intervals = Callable[[str, str], Interval | None]  # of how far one row is ahead of another


def own_rows(
    searched: Sequence[str], kept: Sequence[str] = (), settings: Sequence[str] = ()
) -> tuple[Row, ...]:
    """Several teachers of all labels, PSD without what was added to it, squared error with more weight of the
    labels, and what stands of the paper with the protocol's model, images and epochs: its groups and losses,
    and a baseline by its loss. `kept`: settings that were added to those `searched` over `settings`.
    """
    rate = float(value_of("train.lr", searched))
    without = undone(kept, (*settings, *searched))
    by_loss = {role: (f"{role}.loss=asl", f"{role}.gamma_neg=4") for role in ROLES}
    paper = (
        *without,
        *("partition.co_method=paper", "partition.dis_method=paper", "distill.loss=squared-error"),
        *("distill.w=0.5", "distill.a=0.5", *by_loss["teacher"], *by_loss["student"]),
    )
    half = ("distill.loss=squared-error", "distill.w=0.5")
    return (
        Row("squared-error-half", "PSD by squared error, w = 0.5", half),
        Row("k1-repeated", "three teachers of all labels (K = 1)", ("k=1", "partition.repeats=3")),
        Row("k1-six", "six teachers of all labels (K = 1)", ("k=1", "partition.repeats=6")),
        Row(AS_SEARCHED, "both branches, as searched", without),
        Row("baseline-asl", "baseline by the paper's loss", by_loss["baseline"], model="baseline"),
        Row(
            "paper",
            "the paper's groups and losses, the student at our rate",
            (*paper, f"student.lr={rate:.3g}"),
        ),
        Row(
            "paper-rate",
            "the paper's groups and losses, the student at a tenth of the rate",
            (*paper, f"student.lr={rate / 10:.3g}"),
        ),
    )


def undone(added: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """The settings that take back what was `added` to `words`."""
    if not added:
        return ()
    before = load_config(words).model_dump(mode="json")
    keys = dict.fromkeys(word.partition("=")[0] for word in added)
    values = {key: reduce(getitem, key.split("."), before) for key in keys}
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())


@dataclass(frozen=True)
class Ensembles:
    """As many baselines together as a branch has teachers, of the seeds from each seed on: the mean of their
    logits. `map` by seed; `resampled` beside the rows of `resampled_maps`, for each seed the mean over all of
    them: they share members, so that how far they differ does not tell what other seeds would change.
    """

    map: dict[int, float]
    resampled: dict[tuple[str, int], npt.NDArray[np.floating]]


def baseline_ensembles(found: Ablation, split: str, size: int) -> Ensembles:
    """The ensembles on one split, for which there are as many seeds as members, or more."""
    runs = {outcome.seed: Path(outcome.run) for outcome in found.outcomes if outcome.row == "baseline"}
    ensembles = Ensembles({}, {})
    logits = {seed: read_logits(run, split) for seed, run in runs.items()}
    resampled = []
    for number, seed in enumerate(found.seeds):
        members = [found.seeds[(number + step) % len(found.seeds)] for step in range(size)]
        together = np.mean([logits[member].models["baseline"] for member in members], axis=0)
        targets = logits[seed].targets
        ensembles.map[seed] = 100 * float(np.nanmean(average_precision(together, targets)))
        resampled.append(resampled_map(together, targets, resamples=resamples_of(targets.size)))
    mean_of_all = np.mean(resampled, axis=0)
    ensembles.resampled.update({(ENSEMBLE, seed): mean_of_all for seed in found.seeds})
    return ensembles


def write_rows(
    out: Path,
    name: str,
    found: Ablation,
    settings: Sequence[str],
    size: int | None = K,
    intervals: Callable[[Ablation, str], Intervals] | None = None,
) -> None:
    """All that the page needs of the rows, in OUT/`name`.json, with the `settings` that they share and what
    they were measured on. `size`: how many teachers a branch has, and baselines an ensemble, None for no
    ensembles. `intervals` of a split: by default those of the bootstrap.
    """
    by_seed: dict[str, dict[str, dict[int, float]]] = {}
    compared = []
    for split in found.splits:
        maps = {} if intervals else resampled_maps(found, split)
        values = {row.name: found.values(row.name, split) for row in found.rows}
        if size is not None and len(found.seeds) >= size:
            ensembles = baseline_ensembles(found, split, size)
            maps |= ensembles.resampled
            values[ENSEMBLE] = ensembles.map
        by_seed[split] = values
        between = intervals(found, split) if intervals else partial(interval_between, maps, seeds=found.seeds)
        for row, other in COMPARED:
            if row in values and other in values:
                difference = mean(values[row][seed] - values[other][seed] for seed in values[row])
                compared.append(
                    {"split": split, "row": row, "other": other, "difference": difference}
                    | {"interval": between(row, other)}
                )
    content = {
        "settings": settings,
        "measured_on": environment(),
        "seeds": found.seeds,
        "size": size,
        "rows": summary(found),
        "by_seed": by_seed,
        "compared": compared,
        "kept": {split: kept(found, split) for split in found.splits},
    }
    atomic_write(out / f"{name}.json", json.dumps(content, indent=1))


def kept(found: Ablation, split: str) -> float | None:
    """How much of what all teachers gain over the baseline the student has, in percent; None where they gain
    nothing.
    """
    student, teachers = (found.difference(name, split).mean for name in ("psd", "all-teachers"))
    return None if student is None or teachers is None or teachers <= 0 else 100 * student / teachers
