"""The command line. Exit status: 0 done, 1 a problem that the message explains, 2 wrong usage, 130 Ctrl-C."""

from __future__ import annotations

import csv
import errno
import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from coterie.errors import CoterieError, RunError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Multi-label image classifiers trained by Parallel Self-Distillation.",
)

SettingWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as data=labels.csv k=3 train.epochs=20."),
]

OwnModel = Annotated[
    str | None, typer.Option(metavar="MODULE:FUNCTION", help="What builds a model that is not coterie's.")
]


class OutputFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


@app.command(name="run")
def run_command(
    words: SettingWords = None,
    update: Annotated[
        bool,
        typer.Option(help="Take up a folder of other settings and train anew what depends on the change."),
    ] = False,
) -> None:
    """Train the baseline, the teachers and the student, and print how they compare.

    Example: coterie run data=photos/labels.csv model.name=resnet50 model.pretrained=true k=3

    The same words again go on with a run that was stopped.
    """
    from coterie.config import load_config
    from coterie.pipeline import run

    run(load_config(words or ()), update=update, console=Console())


@app.command()
def partition(
    words: SettingWords = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the partitions to, as JSON.")] = None,
) -> None:
    """Show the label groups of both branches before paying for a training.

    Example: coterie partition data=photos/labels.csv data.min_positives=50 k=3
    """
    from coterie.config import load_config
    from coterie.labels import CooccurrenceGraph, share_inside
    from coterie.pipeline import make_partitions, prepare_data

    config = load_config(words or ())
    dataset = prepare_data(config)
    console = Console()
    for note in dataset.notes:
        console.print(f"note: {note}", soft_wrap=True)
    train = dataset.targets[dataset.indices("train")]
    affinity = CooccurrenceGraph.from_targets(train, dataset.class_names).affinity(config.partition.root)
    for kind, made in make_partitions(config, dataset).items():
        share = share_inside(affinity, made.groups)
        table = Table(
            title=f"{kind} ({made.method}): {made.objective.name} {made.objective.value:.4f}, "
            f"{share:.1%} of the co-occurrence inside groups",
            title_justify="left",
        )
        table.add_column("group", justify="right")
        table.add_column("labels", justify="right")
        table.add_column("names")
        for index, names in enumerate(made.group_names):
            table.add_row(str(index), str(len(names)), ", ".join(names))
        console.print(table)
        if out is not None:
            made.save(out / f"{kind}.json")
            console.print(f"written to {out / f'{kind}.json'}", soft_wrap=True)


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="A run folder, or one checkpoint in it.")],
    words: SettingWords = None,
    split: Annotated[str, typer.Option(help="The split to measure on.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Write all metrics to this JSON file.")] = None,
    model: OwnModel = None,
) -> None:
    """Measure the models of a run, or one checkpoint, on a split of a dataset.

    Example: coterie evaluate runs/x data=photos/labels.csv

    Without data= the data are those of the run.
    """
    from coterie.api import evaluate as measure
    from coterie.checkpoint import INFO_FILE
    from coterie.config import load_config
    from coterie.data.reading import read_split
    from coterie.evaluation import left_out_notes, results_table
    from coterie.files import atomic_write
    from coterie.models.factory import import_builder
    from coterie.predictor import load_classifier

    builder = import_builder(model) if model else None
    folders = [path] if (path / INFO_FILE).exists() else [path / "baseline", path / "student"]
    predictors = {folder.name: load_classifier(folder, builder) for folder in folders}
    saved = next(iter(predictors.values()))
    config = load_config(words or (), settings=saved.checkpoint.config)
    dataset = read_split(config, split)
    results = measure(predictors, dataset, split, config)
    console = Console()
    console.print(results_table(results, f"{dataset.name}, threshold {saved.checkpoint.threshold}"))
    for note in left_out_notes(results):
        console.print(note, soft_wrap=True)
    if out is not None:
        atomic_write(out, json.dumps(results, indent=1, ensure_ascii=False))


@app.command()
def predict(
    path: Annotated[Path, typer.Argument(help="A run folder (its student), or a checkpoint.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, and folders of pictures.")],
    format: Annotated[OutputFormat, typer.Option(help="How to print the labels.")] = OutputFormat.TABLE,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Score above which a label is given; else the checkpoint's."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="The best labels, whatever their scores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
    model: Annotated[
        str | None, typer.Option(help="module:function that builds a model of your own.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
) -> None:
    """Give pictures their labels, best first, with scores.

    Example: coterie predict runs/x photo.jpg folder/ --format csv --top 5

    A picture that cannot be read gets a row with the reason, and the exit status is 1.
    """
    from coterie.models.factory import import_builder
    from coterie.predictor import Prediction, find_images, load_classifier

    predictor = load_classifier(path, import_builder(model) if model else None, device)
    failed: list[Prediction] = []

    def rows() -> Iterator[tuple[Prediction, dict[str, float]]]:
        for prediction in predictor.stream(find_images(images), threshold=threshold):
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
        with out.open("w", encoding="utf-8", newline="") as file:
            _write_predictions(written, format, file)
    if failed:
        raise RunError(
            f"{len(failed)} pictures could not be read; the first: {failed[0].image} ({failed[0].error})"
        )


@app.command()
def recipes() -> None:
    """List the recipes that come with coterie: `coterie run recipe=NAME`."""
    from coterie.config import recipe_names

    for name in recipe_names():
        typer.echo(name)


@app.command()
def settings() -> None:
    """List every setting with its default and meaning."""
    from coterie.config import describe_settings

    table = Table("setting", "default", "meaning")
    for row in describe_settings():
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    """Run the command line; every foreseen problem is one message and exit status 1, without a traceback."""
    try:
        app()
    except CoterieError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from the last finished epoch", status=130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
            raise
        place = f" ({error.filename})" if error.filename else ""
        _fail(
            f"{error.strerror}{place}; what was finished before is kept. Put that right and give the same "
            "command again: a training goes on from its last finished epoch"
        )


def _fail(message: str, status: int = 1) -> None:
    Console(stderr=True).print(f"[red]error:[/red] {_escaped(message)}", soft_wrap=True)
    sys.exit(status)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _write_predictions(
    rows: Iterable[tuple[str, dict[str, float], str | None]], format: OutputFormat, file: object
) -> None:
    """One row for each picture: image, labels with scores, error."""
    if format is OutputFormat.TABLE:
        console = Console(file=file)  # type: ignore[arg-type]
        for image, labels, error in rows:
            shown = ", ".join(f"{label} {score:.2f}" for label, score in labels.items()) or "-"
            console.print(f"{image}: {error or shown}", soft_wrap=True, markup=False, highlight=False)
    elif format is OutputFormat.CSV:
        writer = csv.writer(file)  # type: ignore[arg-type]
        writer.writerow(["image", "label", "score", "error"])
        for image, labels, error in rows:
            for label, score in labels.items():
                writer.writerow([image, label, f"{score:.6f}", ""])
            if error or not labels:
                writer.writerow([image, "", "", error or ""])
    else:
        for image, labels, error in rows:
            line = {"image": image, "labels": labels} | ({"error": error} if error else {})
            print(json.dumps(line, ensure_ascii=False), file=file)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
