"""Commands that train: run, ablate, bench."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coterie.cli.app import ListsOfValues, SettingWords, app
from coterie.errors import ConfigError


@app.command(name="run", cls=ListsOfValues)
def run_command(
    words: SettingWords = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Take up a folder of other settings and train anew what depends on the change."
        ),
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder of finished trainings that several runs share: taken from there, put there."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...",
            help="Do these trainings alone, such as baseline or teachers/co-occurrence-0: a later call does "
            "the rest.",
        ),
    ] = None,
) -> None:
    """Train the baseline, the teachers and the student, and print how they compare.

    Example: coterie run data=photos/labels.csv model.name=resnet50 model.pretrained=true k=3

    Given again, the same command goes on with a run that was stopped.
    """
    from coterie.config import load_config

    try:
        config = load_config(words or ())
    except ConfigError:
        if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
            sys.exit(1)  # of several processes that were started with these words, the first says it
        raise
    from coterie.pipeline import run

    run(config, update=update, only=only, store=store, console=Console())


@app.command(cls=ListsOfValues)
def ablate(
    words: SettingWords = None,
    rows: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="The rows of the table; by default all.")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(metavar="N...", min=0, help="The seeds; by default three, from the setting seed on."),
    ] = None,
    a: Annotated[list[float] | None, typer.Option("--a", metavar="X...", help="Values of distill.a.")] = None,
    w: Annotated[list[float] | None, typer.Option("--w", metavar="X...", help="Values of distill.w.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", metavar="N...", help="Values of k.")] = None,
    root: Annotated[
        list[float] | None, typer.Option("--root", metavar="X...", help="Values of partition.root.")
    ] = None,
    rows_file: Annotated[
        Path | None, typer.Option(help="YAML file with rows of your own, as in docs/ablation.md.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the ablation; by default that of the run and '-ablation'.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of finished trainings to share; by default in the ablation's.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what is to be trained, and stop.")] = False,
    update: Annotated[
        bool,
        typer.Option("--update", help="Take up a folder of other settings; train what the change touches."),
    ] = False,
    at_once: Annotated[
        int, typer.Option(min=1, help="Runs at the same time, each in a process of its own.")
    ] = 1,
) -> None:
    """Compare what the parts of the method contribute, over several seeds.

    Example: coterie ablate recipe=demo --rows baseline cgp dgp psd --seeds 0 1 2

    A training that several rows need is done once. Given again, the same command goes on where it stopped.
    """
    from coterie.ablation import ablate, read_rows
    from coterie.config import load_config

    given = {"a": a, "w": w, "k": k, "root": root}
    result = ablate(
        load_config(words or ()),
        rows or None,
        seeds or None,
        values={name: values for name, values in given.items() if values},
        own=read_rows(rows_file) if rows_file else (),
        out=out,
        store=store,
        plan_only=plan,
        update=update,
        at_once=at_once,
        console=Console(),
    )
    result.raise_failures()


@app.command()
def bench(
    words: SettingWords = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long to time each part.")] = 2.0,
) -> None:
    """Show what limits a training on this machine, and the settings that are fastest.

    Example: coterie bench data=photos/labels.csv model.name=resnet50
    """
    from coterie.bench import advice, is_cached, measure_speeds, speeds_table
    from coterie.config import load_config
    from coterie.models.factory import make_factory
    from coterie.preparation import prepare_data
    from coterie.progress import say

    config = load_config(words or ())
    factory = make_factory(config.model)
    dataset = prepare_data(config)
    console = Console()
    with console.status("timing each part by itself"):
        speeds = measure_speeds(config, dataset, factory, seconds)
    console.print(speeds_table(speeds))
    images = len(dataset.indices("train"))
    for line in advice(config, speeds, is_cached(config, dataset, factory), images):
        say(console, line)
