"""Commands that look at what a run has learned: diagnose, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coterie.cli.app import OwnModel, SettingWords, app
from coterie.errors import shortened


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


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint in it.")],
    words: SettingWords = None,
    split: Annotated[str, typer.Option(help="The split to measure on.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Write all metrics to this JSON file.")] = None,
    model: OwnModel = None,
) -> None:
    """Measure the models of a run, or one checkpoint, on a split of a dataset.

    Example: coterie evaluate runs/x data=photos/labels.csv

    Without data= the data are those of the run. Of another table without splits, every image is measured.
    Besides data.*, the settings threshold, device and precision have an effect.
    """
    from coterie.api import evaluate as measure
    from coterie.checkpoint import INFO_FILE
    from coterie.data.reading import read_split
    from coterie.evaluation import evaluation_config, left_out_notes, results_table
    from coterie.files import atomic_write
    from coterie.models.factory import import_builder
    from coterie.predictor import fetched, find_checkpoint, load_classifier
    from coterie.progress import say

    builder = import_builder(model) if model else None
    path = fetched(path)
    trainings = [path.name] if (path / INFO_FILE).exists() else ["baseline", "student"]
    predictors = {name: load_classifier(find_checkpoint(path, name), builder) for name in trainings}
    saved = next(iter(predictors.values()))
    config, own = evaluation_config(saved.checkpoint, words or ())
    dataset = read_split(config, split, drawn=own)
    given = config.threshold if any(word.startswith("threshold=") for word in words or ()) else None
    results = measure(predictors, dataset, split, config, threshold=given)
    console = Console()
    for note in dataset.notes:
        say(console, f"note: {note}")
    further = [name for name in dataset.class_names if name not in saved.class_names]
    if further:
        say(console, f"note: classes that the model does not know are left out: {shortened(further)}")
    console.print(results_table(results, f"{dataset.name}, threshold {config.threshold}"))
    for note in left_out_notes(results):
        say(console, note)
    if out is not None:
        atomic_write(out, json.dumps(results, indent=1, ensure_ascii=False))
