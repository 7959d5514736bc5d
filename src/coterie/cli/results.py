"""Commands that look at what a run has learned: diagnose, evaluate."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coterie.cli.app import OwnModel, SettingWords, app


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
    classes: Annotated[
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
        classes=classes,
        ap=ap.value,
        allow_overlap=allow_overlap,
        builder=import_builder(model) if model else None,
    )
    show_evaluation(evaluation, Console())
    if out is not None:
        atomic_write(out, json.dumps(evaluation.describe(), indent=1, ensure_ascii=False))
