"""Commands that put a trained model to use: tune, predict."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

from coterie.cli.app import OwnModel, app
from coterie.errors import DataError


class OutputFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


@app.command()
def tune(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    objective: Annotated[
        str,
        typer.Option("--for", metavar="WHAT", help="f1, precision=P, or cost=FALSE_POSITIVE:MISSED_LABEL."),
    ] = "f1",
    only_global: Annotated[bool, typer.Option("--global", help="One threshold for all classes.")] = False,
    no_calibration: Annotated[
        bool, typer.Option("--no-calibration", help="Leave the scores as they are: temperature 1.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it, and change no checkpoint.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Take what was tuned out again.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write all numbers, by class, to this JSON file.")] = None,
) -> None:
    """Choose thresholds and a temperature on validation, and keep them in the checkpoints of a run.

    Example: coterie tune runs/x --for precision=0.9

    Baseline and student get those that do best on validation images that had no part in the choice. Predict
    and evaluate then use them; weights do not change, and `coterie run` trains nothing anew.
    """
    from coterie.files import atomic_write
    from coterie.progress import say
    from coterie.tune import describe_tuning, reset_run, show_tuning, tune_run
    from coterie.tuning import Objective

    console = Console()
    if reset:
        say(console, f"{' and '.join(reset_run(path))}: one threshold for all classes again, temperature 1")
        return
    tuned = tune_run(
        path,
        Objective.parse(objective),
        only_global=only_global,
        calibrate=not no_calibration,
        write=not dry_run,
    )
    for name, one in tuned.items():
        show_tuning(name, one, console)
    if out is not None:
        content = {name: describe_tuning(one) for name, one in tuned.items()}
        atomic_write(out, json.dumps(content, indent=1, ensure_ascii=False))
    if dry_run:
        say(console, "no checkpoint was changed (--dry-run)")
    else:
        say(console, f"kept in the checkpoints of {path}: predict and evaluate use them from now on")


@app.command()
def predict(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder (its student), or a checkpoint.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="PICTURE", help="Pictures, and folders of pictures.")
    ],
    format: Annotated[OutputFormat, typer.Option(help="How to print the labels.")] = OutputFormat.TABLE,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Score above which a label is given; else the checkpoint's."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="The best labels, whatever their scores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
    model: OwnModel = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
) -> None:
    """Give pictures their labels, best first, with scores.

    Example: coterie predict runs/x photo.jpg folder/ --format csv --top 5

    A picture that cannot be read gets a row with the reason, and the exit status is 1.
    """
    from coterie.models.factory import import_builder
    from coterie.predictor import Prediction, find_images, load_classifier

    predictor = load_classifier(path, import_builder(model) if model else None, device)
    pictures = find_images(images)
    failed: list[Prediction] = []

    def rows() -> Iterator[tuple[Prediction, dict[str, float]]]:
        for prediction in predictor.stream(pictures, threshold=threshold):
            if prediction.error is not None:
                failed.append(prediction)
            best = sorted(prediction.scores, key=lambda label: -prediction.scores[label])[:top]
            chosen = best if top is not None else prediction.labels
            yield prediction, {label: prediction.scores[label] for label in chosen}

    written = ((prediction.image, labels, prediction.error) for prediction, labels in rows())
    if out is None:
        _write_predictions(written, format, sys.stdout)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise DataError(f"--out {out} is a folder; name a file")
        unfinished = out.with_name(f".{out.name}.tmp")  # half a table would look like a whole one
        try:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                _write_predictions(written, format, file)
            unfinished.replace(out)
        finally:
            unfinished.unlink(missing_ok=True)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(pictures)} pictures cannot be read; the first: {failed[0].image} "
            f"({failed[0].error})"
        )


def _write_predictions(
    rows: Iterable[tuple[str, dict[str, float], str | None]], format: OutputFormat, file: TextIO
) -> None:
    """One row for each picture: image, labels with scores, error."""
    if format is OutputFormat.TABLE:
        for image, labels, error in rows:
            shown = ", ".join(f"{label} {score:.2f}" for label, score in labels.items()) or "-"
            print(f"{image}: {error or shown}", file=file)
    elif format is OutputFormat.CSV:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "score", "error"])
        for image, labels, error in rows:
            for label, score in labels.items():
                writer.writerow([image, label, f"{score:.6f}", ""])
            if error or not labels:
                writer.writerow([image, "", "", error or ""])
    else:
        for image, labels, error in rows:
            rounded = {label: round(score, 6) for label, score in labels.items()}
            line = {"image": image, "labels": rounded} | ({"error": error} if error else {})
            print(json.dumps(line, ensure_ascii=False), file=file)
