"""The command line. Exit status: 0 done, 1 a problem that the message explains, 2 wrong usage, 130 Ctrl-C."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from coterie.errors import ConfigError, CoterieError, DataError, shortened


class Commands(TyperGroup):
    """The commands; every foreseen problem of one is a message and an exit status, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CoterieError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("stopped; a run goes on from its last finished epoch with the same command", status=130)
        except BrokenPipeError:  # what reads our output has enough, as in `coterie predict … | head`
            raise
        except OSError as error:
            name = error.filename2 or error.filename  # of a renaming, the name that was asked for
            _fail(f"{error.strerror or error}{f': {name}' if name else ''}")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Multi-label image classifiers trained by Parallel Self-Distillation.",
)

SettingWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings, such as data=labels.csv k=3 train.epochs=20."),
]

OwnModel = Annotated[
    str | None, typer.Option(metavar="MODULE:FUNCTION", help="What builds a model that is not coterie's.")
]


class ListsOfValues(TyperCommand):
    """A command whose options for several values take them in a row: `--seeds 0 1 2`.

    A list ends at the next option, and at the next setting, which has a "=".
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        option = None
        for position, word in enumerate(args):
            if word.startswith("--"):
                option = word if word in lists else None
            elif "=" in word:
                option = None
            elif option is not None and args[position - 1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


class OutputFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


@app.command(name="run")
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
) -> None:
    """Train the baseline, the teachers and the student, and print how they compare.

    Example: coterie run data=photos/labels.csv model.name=resnet50 model.pretrained=true k=3

    Given again, the same command goes on with a run that was stopped.
    """
    from coterie.config import load_config
    from coterie.pipeline import run

    run(load_config(words or ()), update=update, store=store, console=Console())


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
        console=Console(),
    )
    result.raise_failures()


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
    out: Annotated[Path | None, typer.Option(help="Folder to write the partitions to, as JSON.")] = None,
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
    from coterie.preparation import REPEATS, diagnose_partitions, make_partitions, prepare_data
    from coterie.progress import say

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
            say(console, f"written to {out / f'{kind}.json'}")


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
    results = measure(predictors, dataset, split, config, threshold=config.threshold)
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


recipes_app = typer.Typer(invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that come with coterie: `coterie run recipe=NAME`."""
    if context.invoked_subcommand is not None:
        return
    from coterie.recipe import recipe_comment, recipe_names

    names = recipe_names()
    for name in names:
        purpose = recipe_comment(name).partition("\n")[0].removeprefix("# ")
        typer.echo(f"{name:<{max(map(len, names))}}  {purpose}")


@recipes_app.command(name="copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of those that `coterie recipes` lists.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to write it; by default NAME.yaml here.")
    ] = None,
) -> None:
    """Write a recipe to a file of your own, with all that it sets, to edit and run with recipe=FILE.yaml.

    Example: coterie recipes copy demo my-demo.yaml
    """
    from coterie.config import recipe_text
    from coterie.files import atomic_write

    text = recipe_text(name)
    file = file or Path(f"{name}.yaml")
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"a recipe of your own is a file whose name ends in .yaml, got {file}")
    if file.exists():
        raise ConfigError(f"{file} is there already; name another file, or remove it")
    atomic_write(file, text)
    typer.echo(f"written to {file}; `coterie run recipe={file}` runs it")


@app.command(name="import-cpsd")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint (.ckpt) of the public release.")],
    out: Annotated[Path, typer.Option(help="The folder to write our checkpoint to.")],
    dataset: Annotated[
        str | None, typer.Option(help="Whose classes it has, in the release's order: coco or nuswide.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="The classes of another file, in its order, one on each line.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What it must be; by default what its keys show.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=16, help="Side in pixels; by default 448, or what the file tells.")
    ] = None,
    word_vectors: Annotated[
        Path | None,
        typer.Option(help="The word vectors that R101+TF was trained with, npz or text."),
    ] = None,
) -> None:
    """Turn a checkpoint of the public PSD release into one of coterie, with the same logits.

    Example: coterie import-cpsd release.ckpt --dataset coco --out checkpoints/r101
    """
    from coterie.published import import_cpsd, read_class_names, released_classes

    if dataset is not None and class_names is None:
        names = released_classes(dataset)
    elif class_names is not None and dataset is None:
        names = read_class_names(class_names)
    else:
        raise ConfigError(
            "name its classes by one of --dataset coco, --dataset nuswide or --class-names FILE"
        )
    imported = import_cpsd(file, out, names, model=model, image_size=image_size, word_vectors=word_vectors)
    typer.echo(f"{imported}\n`coterie predict {out} PHOTO` uses it")


@app.command()
def settings() -> None:
    """List every setting with its default and meaning."""
    from coterie.config import describe_settings

    table = Table("setting", "default", "meaning")
    for row in describe_settings():
        table.add_row(*map(Text, row))
    Console().print(table)


def main() -> None:
    """What the command `coterie` runs."""
    app()


def _fail(message: str, status: int = 1) -> NoReturn:
    Console(stderr=True).print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    sys.exit(status)


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
            line = {"image": image, "labels": labels} | ({"error": error} if error else {})
            print(json.dumps(line, ensure_ascii=False), file=file)


if __name__ == "__main__":
    main()
