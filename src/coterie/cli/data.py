"""Commands that look at data before a training: inspect, partition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coterie.cli.app import SettingWords, app


@app.command()
def inspect(
    words: SettingWords = None,
    pairs: Annotated[int, typer.Option(min=0, help="How many of the strongest companions to show.")] = 10,
    same_content: Annotated[
        bool, typer.Option("--same-content", help="Also find pictures with the same bytes: reads many files.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write all of it, with every missing image, to this JSON file.")
    ] = None,
) -> None:
    """Show what a dataset holds: images found and missing, labels, companions, the hash of its split.

    Example: coterie inspect data=coco

    No picture is decoded, and images may be missing.
    """
    from coterie.config import load_config
    from coterie.files import atomic_write
    from coterie.inspection import inspect_data, inspection_lines, inspection_tables
    from coterie.progress import say

    inspection = inspect_data(load_config(words or ()), pairs, same_content)
    console = Console()
    for table in inspection_tables(inspection):
        console.print(table)
    for line in inspection_lines(inspection):
        say(console, line)
    if out is not None:
        atomic_write(out, json.dumps(inspection.to_json(), indent=1, ensure_ascii=False))


@app.command()
def partition(
    words: SettingWords = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the partitions to, as JSON and as SVG.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the label graph with its groups to this .svg, .png or .pdf.")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Make the groups at so many seeds, to see how far they agree; else 3."),
    ] = None,
) -> None:
    """Show the label groups of both branches before paying for a training.

    Example: coterie partition data=photos/labels.csv data.min_positives=50 k=3
    """
    from coterie.config import load_config
    from coterie.diagnose import show_partition
    from coterie.drawing import check_picture, draw_partitions, write_picture
    from coterie.fonts import missing_note
    from coterie.preparation import (
        REPEATS,
        diagnose_partitions,
        make_partitions,
        prepare_data,
        training_graph,
    )
    from coterie.progress import say

    if picture is not None:
        check_picture(picture)
    config = load_config(words or ())
    dataset = prepare_data(config)
    console = Console()
    for note in dataset.notes:
        say(console, f"note: {note}")
    partitions = make_partitions(config, dataset)
    described = diagnose_partitions(config, dataset, partitions, repeats or REPEATS)
    for kind, made in partitions.items():
        show_partition(kind, described[kind], console)
        if out is not None:
            made.save(out / f"{kind}.json")
            write_picture(draw_partitions(training_graph(dataset), [made]), out / f"{kind}.svg")
            say(console, f"written to {out / f'{kind}.json'} and .svg")
    if picture is not None:
        write_picture(draw_partitions(training_graph(dataset), list(partitions.values())), picture)
        # in SVG, what shows it brings the fonts
        if picture.suffix.lower() != ".svg" and (missing := missing_note(dataset.class_names)):
            say(console, f"note: {missing}")
        say(console, f"written to {picture}")
