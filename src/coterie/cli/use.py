"""Commands that put a trained model to use: tune, predict."""

from __future__ import annotations

import json
import sys
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from coterie.cli.app import Device, ListsOfNames, OwnModel, RunOrCheckpoint, app
from coterie.errors import ConfigError, DataError, counted
from coterie.formats import Format


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
    if reset and (dry_run or out is not None):
        raise ConfigError(
            "--reset shows no numbers and does change checkpoints; leave --dry-run and --out out"
        )
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


@app.command(cls=ListsOfNames)
def predict(
    path: RunOrCheckpoint,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE",
            help="Files, folders, patterns such as 'photos/**/*.jpg'; - reads paths from stdin.",
        ),
    ],
    format: Annotated[
        Format | None, typer.Option(help="By default what the name of --out says, else a table.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Score above which a label is given; else the checkpoint's."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="The best labels, whatever their scores unless --threshold is given."),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Give these labels alone.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file. Given again, the command goes on where it was.")
    ] = None,
    model: OwnModel = None,
    device: Device = "auto",
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Download http(s)://… too.")] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Download from this machine and private networks too.")
    ] = False,
) -> None:
    """Give pictures their labels, best first, with scores.

    Example: coterie predict runs/x photo.jpg folder/ --format csv --top 5

    A picture that cannot be read gets a row with the reason, and the exit status is 1.
    """
    from coterie.download import Limits
    from coterie.models.factory import import_builder
    from coterie.predictions import Selection, Tally, predict_rows, predict_to_file, write_rows
    from coterie.predictor import load_classifier
    from coterie.progress import Counter
    from coterie.sources import find_pictures

    format = format or Format.of(out)
    if format is Format.PARQUET and out is None:
        raise ConfigError("Parquet is written to a file; name it with --out")
    predictor = load_classifier(path, import_builder(model) if model else None, device)
    selection = Selection(threshold, top, None if classes is None else tuple(classes))
    selection.check(predictor.class_names)
    web = Limits(private=allow_private) if allow_urls or allow_private else None
    found = find_pictures(pictures, listed=cast(BufferedIOBase, sys.stdin.buffer), web=web)
    tally = Tally()
    # on one terminal with the rows, the count would stand between them
    with Counter("pictures", Console(stderr=True, quiet=out is None and sys.stdout.isatty())) as counter:
        if out is not None:
            tally = predict_to_file(predictor, found, selection, out, format, counter.advance)
        else:
            rows = predict_rows(predictor, found, selection, tally)
            write_rows(counter.each(rows), format, sys.stdout)
    if not tally.pictures:
        raise DataError("there is no picture: standard input names none")
    if tally.first is not None:
        raise DataError(
            f"{tally.failed:,} of {counted(tally.pictures, 'picture')} cannot be read; the first: "
            f"{tally.first.image} ({tally.first.error})"
        )
