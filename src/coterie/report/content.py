"""What stands in the report of a run, section by section, as plain values."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from scipy.special import logit

from coterie.config import as_words, plain
from coterie.drawing import graph_svg
from coterie.errors import counted
from coterie.evaluation import SHOWN, left_out_notes
from coterie.intervals import (
    LEVEL,
    MOST_SCORES,
    RESAMPLES,
    Differences,
    bootstrap_differences,
    interval,
)
from coterie.logits import SplitLogits
from coterie.models.factory import ModelBuilder
from coterie.report.classes import class_rows, difference, frequency_buckets
from coterie.report.curves import encoded_curve
from coterie.report.page import render, write_page
from coterie.report.pictures import Gallery, chosen_images, describe_image
from coterie.report.provenance import (
    LEARNING,
    learning_curves,
    settings_rows,
    training_rows,
    version_rows,
)
from coterie.report.reading import FinishedRun, read_run
from coterie.report.styles import STYLES, branch_title
from coterie.report.thresholds import calibration, threshold_content
from coterie.tune import SPLIT

REPORT_FILE = "report.html"
PICTURES = 6  # of each kind
SECTIONS = {
    "results": "Results",
    "classes": "Classes",
    "groups": "Groups",
    "curves": "Curves",
    "thresholds": "Thresholds",
    "training": "Training",
    "pictures": "Pictures",
    "leaning": "Leaning",
    "settings": "Settings",
    "reproduce": "Reproduce",
}
# Curves of single classes are of these models only: of all of them they would be most of the page.
CLASS_CURVES = ("baseline", "all teachers", "teacher", "student")
COLUMNS = 128  # of a curve, see `thinned`
POINT_BYTES = 11
CURVE_BYTES = 3_000_000  # that all curves of classes may take
KINDS = {
    "corrected": "Where the student corrects the baseline most",
    "worse": "Where the student is furthest behind the baseline",
    "hardest": "Where the student is furthest from right",
}


class Written(NamedTuple):
    """A report: its file, its size in bytes, and what is missing in it."""

    path: Path
    size: int
    notes: list[str]


def write_report(
    folder: Path,
    out: Path | None = None,
    split: str | None = None,
    *,
    pictures: int = PICTURES,
    builder: ModelBuilder | None = None,
) -> Written:
    """Write the report of the run in `folder`.

    `out`: by default report.html in the run folder. `split`: the one whose classes, curves and pictures are
    shown, by default the first test split. `pictures`: how many of each kind. `builder`: of a model of your
    own, for the class activation maps.
    RunError where the run is not finished or damaged, ConfigError where it was not measured on `split`.
    """
    run = read_run(folder)
    content = report_content(run, run.chosen_split(split), pictures, builder)
    out = out or folder / REPORT_FILE
    return Written(out, write_page(out, render("report.html", content)), content["picture_notes"])


def report_content(
    run: FinishedRun, split: str, most_pictures: int = PICTURES, builder: ModelBuilder | None = None
) -> dict[str, Any]:
    """All that report.html shows; "data" is what its scripts read."""
    logits = {name: run.logits(name) for name in run.splits}
    differences = {name: resampled(run.config.threshold, logits[name]) for name in run.splits}
    shown = logits[split]
    rows = class_rows(
        run.class_names,
        run.data.graph.class_counts,
        shown.targets,
        run.metrics[split],
        run.partitions,
        differences[split],
    )
    for row in rows:
        row["kinds"] = _kinds(row["difference"], row["interval"])
    buckets = frequency_buckets(rows)
    results = [split_results(run, name, logits[name], differences[name]) for name in run.splits]
    pictures, notes = _pictures(run, shown, most_pictures, builder)
    calibrated = calibration(run, shown)
    return {
        "kind": "report",
        "title": f"{run.folder.resolve().name} · Coterie report",
        "heading_text": run.folder.resolve().name,
        "facts": _facts(run),
        "sections": list(SECTIONS.items()),
        "cards": _cards(results[run.splits.index(split)], rows),
        "notes": left_out_notes(run.metrics),
        "models": run.models,
        "teachers": [model for model in run.models if model not in ("baseline", "student")],
        "split": split,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "threshold": plain(run.config.threshold),
        "results": results,
        "classes": rows,
        "bar_limit": bar_limit(rows),
        "buckets": buckets,
        "bucket_limit": max((abs(bucket["difference"]) for bucket in buckets), default=0.0),
        "branches": [_branch(run, kind) for kind in run.partitions],
        "calibrated": calibrated,
        "thresholds": threshold_content(run, logits[SPLIT]) if SPLIT in logits else None,
        "learning": list(LEARNING.items()),
        "trainings": training_rows(run),
        "pictures": pictures,
        "picture_notes": notes,
        "mapped": any(card["maps"] for kind in pictures for card in kind["cards"]),
        "leaning": _leaning(run),
        "pairs": _pairs(run, split),
        "settings": settings_rows(run.config),
        "commands": [
            shlex.join(["coterie", "run", *as_words(run.config)]),
            shlex.join(["coterie", "report", str(run.folder), "--split", split]),
        ],
        "versions": version_rows(run),
        "data_notes": run.data.notes,
        "data": {
            "classes": run.class_names,
            "styles": STYLES,
            "pr": _curves(run, shown),
            "calibration": calibrated,
            "history": learning_curves(run),
        },
    }


def resampled(threshold: float, logits: SplitLogits) -> Differences | None:
    """How far the student is ahead of the baseline in resamples of a split; None where it would take long."""
    if logits.targets.size > MOST_SCORES:
        return None
    cut = float(logit(threshold))
    return bootstrap_differences(
        logits.models["student"], logits.models["baseline"], logits.targets, (cut, cut)
    )


def split_results(
    run: FinishedRun, split: str, logits: SplitLogits, differences: Differences | None
) -> dict[str, Any]:
    """The rows of a split in the table of results, and of "all" its metrics, with "values" by model."""

    def row(metric: str) -> dict[str, Any]:
        values = {model: run.metrics[split][model][metric] for model in run.models}
        known = [value for value in values.values() if value is not None]
        resamples = None if differences is None else differences.metrics.get(metric)
        return {
            "metric": metric,
            "values": values,
            "best": max(known, default=None),
            "difference": difference(values["student"], values["baseline"]),
            "interval": None if resamples is None or not known else interval(resamples),
        }

    measured = run.metrics[split]["student"]
    return {
        "name": split,
        "images": len(logits.image_ids),
        "rows": [row(metric) for metric in SHOWN],
        "all": [row(metric) for metric in measured if metric not in ("AP", "classes_without_positives")],
    }


def bar_limit(rows: Iterable[Mapping[str, Any]]) -> float:
    """The widest that a bar of a difference and its interval have to be, in percent."""
    ends = [
        (row["difference"], *(row.get("interval") or ())) for row in rows if row["difference"] is not None
    ]
    return max((abs(value) for values in ends for value in values), default=0.0)


def _facts(run: FinishedRun) -> list[str]:
    images = ", ".join(f"{number:,} {split}" for split, number in run.data.images.items())
    config = run.config
    return [
        f"{run.data.name}: {counted(len(run.class_names), 'class', 'classes')}, {images} images",
        config.model.name + (f" with {config.model.head}" if config.model.head != "linear" else ""),
        f"K = {config.k}",
        f"seed {config.seed}",
    ]


def _cards(results: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = results["rows"][0]
    gained = sum(row["difference"] is not None and row["difference"] > 0 for row in rows)
    lost = sum(row["difference"] is not None and row["difference"] < 0 for row in rows)
    low_high = first["interval"]
    split = results["name"]
    between = f"{low_high[0]:+.2f} to {low_high[1]:+.2f} over images" if low_high else "no interval"
    return [
        {
            "name": f"student, {split} mAP",
            "value": first["values"]["student"],
            "signed": False,
            "more": f"F1 by class {_percent(results['rows'][1]['values']['student'])}",
        },
        {
            "name": f"baseline, {split} mAP",
            "value": first["values"]["baseline"],
            "signed": False,
            "more": f"F1 by class {_percent(results['rows'][1]['values']['baseline'])}",
        },
        {
            "name": "student − baseline",
            "value": first["difference"],
            "signed": True,
            "digits": 2,
            "more": between.replace("-", "−"),
        },
        {
            "name": "classes gained less lost",
            "value": float(gained - lost),
            "signed": True,
            "digits": 0,
            "more": f"{gained} gained, {lost} lost",
        },
    ]


def _kinds(difference: float | None, low_high: tuple[float, float] | None) -> str:
    """What a class can be filtered by."""
    if not difference:
        return ""
    sure = " sure" if low_high and (low_high[0] > 0 or low_high[1] < 0) else ""
    return ("gained" if difference > 0 else "lost") + sure


def _branch(run: FinishedRun, kind: str) -> dict[str, Any]:
    partition, described = run.partitions[kind], run.diagnostics[kind]
    caption = [
        counted(partition.k, "group"),
        f"{described['share_inside']:.1%} of the co-occurrence inside groups",
        f"normalised cut {described['normalized_cut']:.4f}",
    ]
    if agreement := described["agreement"]:
        caption.append(f"agreement between seeds (adjusted Rand index) {agreement['mean']:.2f}")
    method = "random groups" if partition.kind == "random" else partition.method
    return {
        "name": kind,
        "short": branch_title(kind),
        "title": f"{kind.capitalize()} ({method})",
        "caption": ", ".join(caption),
        "svg": Markup(graph_svg(run.data.graph, partition, kind)),
        "groups": [
            {"names": group["names"], "share": group["share_inside"]} for group in described["groups"]
        ],
    }


def _curves(run: FinishedRun, logits: SplitLogits) -> dict[str, Any]:
    """Precision over recall of "all" scores and of the "classes"."""
    models = [model for model in run.models if model in CLASS_CURVES]
    room = CURVE_BYTES / (len(run.class_names) * len(models) * POINT_BYTES * 4)
    columns = int(min(COLUMNS, max(room, 4)))
    cut = float(logit(run.config.threshold))
    everything = {
        model: encoded_curve(logits.models[model], logits.targets, cut, 2 * COLUMNS) for model in run.models
    }
    classes = [
        {
            model: encoded_curve(logits.models[model][:, column], logits.targets[:, column], cut, columns)
            for model in models
        }
        for column in range(len(run.class_names))
    ]
    return {"all": everything, "classes": classes}


def _pictures(
    run: FinishedRun, logits: SplitLogits, most: int, builder: ModelBuilder | None
) -> tuple[list[dict[str, Any]], list[str]]:
    if not most:
        return [], []
    gallery = Gallery(run, builder)
    cut = run.config.threshold
    kinds = []
    for kind, positions in chosen_images(logits, most).items():
        cards = [
            gallery.add(describe_image(logits, position, kind, cut), logits.targets[position])
            for position in positions
        ]
        kinds.append({"title": KINDS[kind], "cards": cards})
    return kinds, gallery.notes


def _leaning(run: FinishedRun) -> list[dict[str, Any]]:
    if not run.leaning["pairs"]:
        return []
    return [
        {"split": split, "rows": [{"model": model, **summary} for model, summary in by_model.items()]}
        for split, by_model in run.leaning["splits"].items()
    ]


def _pairs(run: FinishedRun, split: str) -> list[dict[str, Any]]:
    models = run.leaning["splits"].get(split, {})
    rows = []
    for number, pair in enumerate(run.leaning["pairs"]):
        gaps = []
        for what in ("recall", "false_positives"):
            for model in ("baseline", "student"):
                rates = models[model]["each"][number]
                gaps.append(difference(rates[f"{what}_with"]["percent"], rates[f"{what}_without"]["percent"]))
        rows.append(
            {
                "label": pair["label"],
                "companion": pair["companion"],
                "probability": 100 * pair["probability"],
                "gaps": gaps,
            }
        )
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
