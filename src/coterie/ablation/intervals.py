"""How sure the differences of an ablation are: from the logits that its runs keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coterie.ablation.report import Ablation, Interval
from coterie.ablation.rows import BASELINE
from coterie.intervals import MOST_SCORES, RESAMPLES, Floats, paired_interval, resampled_map
from coterie.logits import read_logits

# Scores above which fewer resamples must do: a thousand would take minutes for each model.
MANY_SCORES = 500_000


def difference_intervals(ablation: Ablation) -> dict[str, dict[str, Interval]]:
    """The intervals of the differences to the baseline, by split and row; none of very large splits."""
    found: dict[str, dict[str, Interval]] = {}
    for split in ablation.splits:
        maps = resampled_maps(ablation, split)
        for row in ablation.rows[1:]:
            if interval := interval_between(maps, row.name, BASELINE.name, ablation.seeds):
                found.setdefault(split, {})[row.name] = interval
    return found


def resampled_maps(ablation: Ablation, split: str) -> dict[tuple[str, int], Floats]:
    """The mAP [1 + B] of each row at each seed, by `resampled_map`: the same images for all."""
    models = {row.name: row.model for row in ablation.rows}
    maps: dict[tuple[str, int], Floats] = {}
    known: dict[tuple[str, str], Floats] = {}  # rows may look at the same model of the same run
    for outcome in ablation.outcomes:
        if outcome.metrics.get(split, {}).get("mAP") is None:
            continue
        model = models[outcome.row]
        if (outcome.run, model) not in known:
            logits = read_logits(Path(outcome.run), split)
            if logits.targets.size > MOST_SCORES:
                return {}
            if model not in logits.models:  # a row of the run failed, and each was then measured by itself
                continue
            resamples = resamples_of(logits.targets.size)
            known[outcome.run, model] = resampled_map(
                logits.models[model], logits.targets, resamples=resamples
            )
        maps[outcome.row, outcome.seed] = known[outcome.run, model]
    return maps


def resamples_of(scores: int) -> int:
    """How often the images are drawn, where a model has so many scores."""
    return RESAMPLES if scores > MANY_SCORES else 5 * RESAMPLES


def interval_between(
    maps: dict[tuple[str, int], Floats], row: str, other: str, seeds: Sequence[int]
) -> Interval | None:
    """How far `row` is ahead of `other` on average over the seeds that have both; None where none has."""
    both = [seed for seed in seeds if (row, seed) in maps and (other, seed) in maps]
    found = both and paired_interval([maps[row, seed] for seed in both], [maps[other, seed] for seed in both])
    return Interval(*found) if found else None
