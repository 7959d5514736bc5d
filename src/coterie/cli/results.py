"""Commands that look at what a run has learned: diagnose, evaluate, explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coterie.cli.app import ListsOfNames, OwnModel, SettingWords, app
from coterie.errors import DataError, shortened


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
    from coterie.predictor import find_checkpoint, load_classifier
    from coterie.progress import say

    builder = import_builder(model) if model else None
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


@app.command(cls=ListsOfNames)
def explain(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="PICTURE", help="Pictures, and folders of pictures.")
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
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
) -> None:
    """Draw where a model looks: maps of classes over pictures, of a run baseline, teachers and student.

    Example: coterie explain runs/x photo.jpg folder/ --classes dog cat --out maps.png

    A picture that cannot be read is left out and named, and the exit status is 1.
    """
    from functools import partial

    from coterie.explain.columns import find_models
    from coterie.explain.sheet import write_sheets
    from coterie.models.factory import import_builder
    from coterie.predictor import find_images, load_classifier
    from coterie.progress import say

    builder = import_builder(model) if model else None
    pictures = find_images(images)
    models = find_models(path, against, partial(load_classifier, model=builder, device=device), layer)
    console = Console()
    with console.status("drawing") as status:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            status.update(f"drawing: {done} of {len(pictures)} pictures")

        written, failures = write_sheets(models, pictures, out, classes, top, count)
    if written:
        say(console, f"written to {written[0] if len(written) == 1 else out}")
    if failures:
        raise DataError(
            f"{len(failures)} of {len(pictures)} pictures cannot be read; the first: {failures[0].path} "
            f"({failures[0].reason})"
        )
