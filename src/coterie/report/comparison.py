"""Several runs side by side: what came out, class by class, and the settings that differ.

Only runs that answer the same question are compared: the same classes, the same images in each split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from coterie.config import ROLES, leaves, plain
from coterie.errors import ConfigError, RunError, counted, shortened
from coterie.evaluation import SHOWN, left_out_notes
from coterie.intervals import LEVEL, MOST_SCORES, RESAMPLES, bootstrap_differences, interval
from coterie.report.classes import difference
from coterie.report.content import bar_limit
from coterie.report.page import render, write_page
from coterie.report.reading import FinishedRun, read_run

SECTIONS = {"results": "Results", "classes": "Classes", "settings": "Settings"}


def write_comparison(folders: Sequence[Path], out: Path) -> int:
    """Write the page that compares the first of the runs in `folders` with the others; its size in bytes.

    ConfigError for fewer than two runs; RunError where one is not finished, or they are not of the same
    classes and the same splits.
    """
    if len(folders) < 2:
        raise ConfigError("name two runs or more to compare; `coterie report RUN` shows a single one")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"a run is named twice among {shortened([str(folder) for folder in folders])}")
    return write_page(
        out, render("compare.html", comparison_content([read_run(folder) for folder in folders]))
    )


def comparison_content(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """All that compare.html shows; differences are to the first run. RunError where the runs do not fit."""
    _check_comparable(runs)
    first = runs[0]
    splits = [split for split in first.splits if all(split in run.splits for run in runs)]
    if not splits:
        folders = ", ".join(str(run.folder) for run in runs)
        raise RunError(f"the runs in {folders} have no measured split in common")
    models = list(dict.fromkeys(["baseline", "student", *(model for run in runs for model in run.models)]))
    names = short_names([run.folder for run in runs])
    shown = next((split for split in splits if split.startswith("test")), splits[0])
    rows = _class_rows(runs, shown)
    return {
        "kind": "comparison",
        "title": f"{' · '.join(names)} · Coterie comparison",
        "sections": list(SECTIONS.items()),
        "facts": [
            f"{first.data.name}: {counted(len(first.class_names), 'class', 'classes')}",
            f"split {first.data.split_hash[:12]}",
        ],
        "notes": left_out_notes({split: first.metrics[split] for split in splits}),
        "runs": names,
        "folders": [str(run.folder) for run in runs],
        "models": models,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "split": shown,
        "results": [_split_results(runs, split, models) for split in splits],
        "classes": rows,
        "bar_limit": bar_limit([{"difference": value} for row in rows for value in row["differences"]]),
        "settings": differing_settings(runs),
        "data": {"classes": first.class_names, "styles": {}},
    }


def short_names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many of their parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def differing_settings(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """The settings that differ between runs: "key" and "values"; a role's only where it is its own."""
    values = [dict(leaves(run.config.model_dump(mode="json"))) for run in runs]
    own = {key for run in runs for key, _ in leaves(run.config.to_values())}
    keys = dict.fromkeys(key for one in values for key in one)
    rows = []
    for key in keys:
        texts = [plain(one[key]) if key in one else "not set" for one in values]
        if len(set(texts)) > 1 and (key in own or key.split(".")[0] not in ROLES):
            rows.append({"key": key, "values": texts})
    return rows


def _check_comparable(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        differ = sorted(set(run.class_names) ^ set(first.class_names))
        if differ:
            raise RunError(
                f"{run.folder} is of other classes than {first.folder}: {shortened(differ)} on one side "
                "only; compare runs of the same classes (data.min_positives and data.class_names choose them)"
            )
        if run.data.split_hash != first.data.split_hash:
            raise RunError(
                f"{run.folder} has other images in its splits than {first.folder} (split "
                f"{run.data.split_hash[:12]} and {first.data.split_hash[:12]}), so their results cannot be "
                "compared; run both on the same data with the same splits: name them in the data, or take "
                "the same seed"
            )


def _split_results(runs: Sequence[FinishedRun], split: str, models: Sequence[str]) -> dict[str, Any]:
    """A row for each model and metric: "values" of the runs, "differences" to the first, and "intervals"."""
    resampled = [None, *(_resampled(runs[0], run, split) for run in runs[1:])]
    rows = []
    for model in models:
        for metric in SHOWN:
            values = [run.metrics[split].get(model, {}).get(metric) for run in runs]
            known = [value for value in values if value is not None]
            rows.append(
                {
                    "model": model,
                    "metric": metric,
                    "values": values,
                    "best": max(known, default=None) if len(known) > 1 else None,
                    "differences": [difference(value, values[0]) for value in values],
                    "intervals": [
                        interval(one[metric]) if one is not None and model == "student" and known else None
                        for one in resampled
                    ],
                }
            )
    gains = [
        difference(run.metrics[split]["student"]["mAP"], run.metrics[split]["baseline"]["mAP"])
        for run in runs
    ]
    return {"name": split, "rows": rows, "gains": gains}


def _resampled(first: FinishedRun, other: FinishedRun, split: str) -> dict[str, Any] | None:
    """How far the student of `other` is ahead of that of `first` in resamples, each at the threshold of its
    run; None where that would take long. RunError where the two have other labels.
    """
    old, new = first.logits(split), other.logits(split)
    position = {image_id: row for row, image_id in enumerate(new.image_ids)}
    rows = [position[image_id] for image_id in old.image_ids]  # the hash of the split says that all are there
    places = np.ix_(rows, [other.class_names.index(name) for name in first.class_names])
    if not np.array_equal(new.targets[places], old.targets):
        raise RunError(
            f"{other.folder} has other labels on split '{split}' than {first.folder}, so their results "
            "cannot be compared; run both on the same data, read in the same way"
        )
    if old.targets.size > MOST_SCORES:
        return None
    cuts = (float(logit(other.config.threshold)), float(logit(first.config.threshold)))
    return bootstrap_differences(
        new.models["student"][places], old.models["student"], old.targets, cuts
    ).metrics


def _class_rows(runs: Sequence[FinishedRun], split: str) -> list[dict[str, Any]]:
    """The student's AP of each class in every run, and the differences to the first run."""
    first = runs[0]
    rows = []
    for index, name in enumerate(first.class_names):
        values = [run.metrics[split]["student"]["AP"][run.class_names.index(name)] for run in runs]
        differences = [difference(value, values[0]) for value in values]
        last = differences[-1]
        rows.append(
            {
                "name": name,
                "train": int(first.data.graph.class_counts[index]),
                "values": values,
                "differences": differences[1:],
                "kinds": "" if not last else "gained" if last > 0 else "lost",
            }
        )
    return rows
