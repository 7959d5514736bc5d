"""Commands that look at what a run has learned: diagnose, evaluate, explain."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coterie.cli.app import Device, ListsOfNames, OwnModel, SettingWords, app
from coterie.errors import DataError, counted


@app.command()
def diagnose(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    split: Annotated[str | None, typer.Option(help="One split; by default all that were measured.")] = None,
    pairs: Annotated[int, typer.Option(min=0, help="Show so many of the strongest pairs too.")] = 0,
) -> None:
    """Show how a run's groups divide the labels, and how far its models lean on companions.

    Example: coterie diagnose runs/x --split test --pairs 5
    """
    from coterie.diagnose import show_run

    show_run(path, split, pairs, Console())


class ApDefinition(StrEnum):
    ALL_POINT = "all-point"
    ELEVEN_POINT = "11-point"


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint in it.")],
    words: SettingWords = None,
    split: Annotated[str, typer.Option(help="The split to measure on.")] = "test",
    class_map: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Which classes of the data stand for which of the model; 'same': those of one name.",
        ),
    ] = None,
    ap: Annotated[
        ApDefinition, typer.Option(help="How average precision is defined; 11-point is that of VOC 2007.")
    ] = ApDefinition.ALL_POINT,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Measure on images of the training, too.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write all metrics to this JSON file.")] = None,
    model: OwnModel = None,
) -> None:
    """Measure the models of a run, or one checkpoint, on a split of a dataset.

    Example: coterie evaluate runs/x data=photos/labels.csv

    Without data= the data are those of the run. Of another table without splits, every image is measured.
    Besides data.*, the settings threshold, device and precision have an effect.
    """
    from coterie.files import atomic_write
    from coterie.measurement import evaluate_path, show_evaluation
    from coterie.models.factory import import_builder

    evaluation = evaluate_path(
        path,
        words or (),
        split,
        class_map=class_map,
        ap=ap.value,
        allow_overlap=allow_overlap,
        builder=import_builder(model) if model else None,
    )
    show_evaluation(evaluation, Console())
    if out is not None:
        atomic_write(out, json.dumps(evaluation.describe(), indent=1, ensure_ascii=False))


@app.command(cls=ListsOfNames)
def explain(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint.")],
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE", help="Files, folders, patterns such as 'photos/**/*.jpg'."),
    ],
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="The classes to show; by default the best of each picture."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes, where none are named.")] = 3,
    against: Annotated[
        Path | None,
        typer.Option(metavar="BASELINE", help="A checkpoint, or a run for its baseline."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The sheet, or a folder that gets a sheet for each picture.")
    ] = Path("maps.png"),
    layer: Annotated[
        str | None, typer.Option(metavar="MODULE", help="Look at this module of the model, by Grad-CAM.")
    ] = None,
    model: OwnModel = None,
    device: Device = "auto",
) -> None:
    """Draw where a model looks: maps of classes over pictures, of a run baseline, teachers and student.

    Example: coterie explain runs/x photo.jpg folder/ --classes dog cat --out maps.png

    A picture that cannot be read is left out and named, and the exit status is 1.
    """
    from functools import partial

    from coterie.explain.columns import find_models
    from coterie.explain.sheet import write_sheets
    from coterie.fonts import missing_note
    from coterie.models.factory import import_builder
    from coterie.predictor import find_images, load_classifier
    from coterie.progress import say

    builder = import_builder(model) if model else None
    found = find_images(pictures)
    models = find_models(path, against, partial(load_classifier, model=builder, device=device), layer)
    console = Console()
    with console.status("drawing") as status:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            status.update(f"drawing: {done} of {len(found)} pictures")

        written, failures = write_sheets(models, found, out, classes, top, count)
    if written:
        say(console, f"written to {written[0] if len(written) == 1 else out}")
        shown = classes or models.main.predictor.class_names
        if note := missing_note([*shown, *(picture.name for picture in found)]):
            say(console, f"note: {note}")
    if failures:
        raise DataError(
            f"{len(failures):,} of {counted(len(found), 'picture')} cannot be read; the first: "
            f"{failures[0].path} ({failures[0].reason})"
        )
