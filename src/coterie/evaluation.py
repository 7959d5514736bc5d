"""Models measured side by side on the splits of a dataset, and the table that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from coterie.checkpoint import Checkpoint
from coterie.config import Config, leaves, load_config, parse_words, validate_config
from coterie.data.loading import ResizedImages, plain_batches
from coterie.errors import ConfigError
from coterie.metrics import Array, Definition, multilabel_metrics
from coterie.trainer import predict_logits

# The sections and settings that a measurement depends on.
EVALUATION_SETTINGS = ("data", "threshold", "device", "precision")
# Of the data: another value draws other splits of the same images.
DRAWING_SETTINGS = (
    *("val_fraction", "test_fraction", "official_val", "unlabelled", "split_column"),
    *("class_names", "labels_column", "delimiter", "webdataset.labels"),  # draws are stratified by class
    *("coco.year", "coco.crowd", "voc.year", "voc.difficult"),
)
SHOWN = ("mAP", "CF1", "OF1")
EVALUATION_BATCH = 64

# {split: {model: {metric: percent}}}
Results = dict[str, dict[str, dict[str, Any]]]


def evaluate_models(
    models: Mapping[str, nn.Module],
    images: ResizedImages,
    splits: Sequence[str],
    fabric: Fabric,
    *,
    threshold: float | Sequence[float] = 0.5,
    scores_of: Callable[[Tensor], Array] | None = None,
    ap: Definition = "all-point",
    workers: int = 0,
) -> Results:
    """The metrics of every model (images -> logits [B, C]) on every split; each image counts once.

    `threshold`: one, or one for each class. `scores_of`: from logits to scores of the dataset's classes, by
    default the sigmoid. `ap`: the definition of average precision.
    """
    results: Results = {}
    names = images.dataset.class_names
    for split, name, logits, targets in model_logits(models, images, splits, fabric, workers=workers):
        scores = (scores_of or to_scores)(logits)
        measured = multilabel_metrics(scores, targets, threshold, class_names=names, ap=ap)
        results.setdefault(split, {})[name] = measured
    return results


def model_logits(
    models: Mapping[str, nn.Module],
    images: ResizedImages,
    splits: Sequence[str],
    fabric: Fabric,
    *,
    workers: int = 0,
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(split, name of the model, logits float32 [N, C], targets int8 [N, C]) of each model on each split."""
    for split in splits:
        batches = plain_batches(images, images.dataset.indices(split), EVALUATION_BATCH, workers)
        for name, model in models.items():
            logits, targets = predict_logits(model.to(fabric.device), batches, images.preprocessing, fabric)
            yield split, name, logits, targets


def to_scores(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Scores float64 [N, C] in 0..1: in float32, the sigmoid of every logit above 17 is 1, and ties."""
    return (logits.double() / temperature).sigmoid()


def evaluation_config(checkpoint: Checkpoint, words: Iterable[str]) -> tuple[Config, bool]:
    """The config to measure a checkpoint by, and whether the data are those it was trained on.

    `words` go over the settings of the training; ConfigError where one has no effect on a measurement, or
    would draw the splits of the training anew, with its training images among them. The images of another
    table start from its own folder, unless data.image_root names one.
    """
    given = parse_words(words := list(words))
    trained = validate_config(checkpoint.config)
    if "data" not in checkpoint.config and "source" not in given.get("data", {}):
        raise ConfigError(
            "this checkpoint was not trained here, so it has no data of its own; name some: data=labels.csv"
        )
    config = load_config(words, settings=checkpoint.config | {"threshold": checkpoint.threshold})
    useless = [key for key, _ in leaves(given) if key.partition(".")[0] not in EVALUATION_SETTINGS]
    if useless:
        raise ConfigError(
            f"setting '{useless[0]}' has no effect on an evaluation; those that have are data.*, threshold, "
            "device and precision"
        )
    same = (
        "data" in checkpoint.config
        and Path(config.data.source).resolve() == Path(trained.data.source).resolve()
    )
    before, after = (dict(leaves(one.data.model_dump(mode="json"))) for one in (trained, config))
    for key in DRAWING_SETTINGS:
        if same and after[key] != before[key]:
            was = "not set" if before[key] is None else before[key]
            raise ConfigError(
                f"data.{key} is {was} in this run: another one would draw splits anew and measure on "
                "training images; leave it out"
            )
    if not same:  # where images lie, and in which format, is of the other data
        own = {"image_root": None, "format": "auto"}
        changes = {key: value for key, value in own.items() if key not in given["data"]}
        config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    return config, same


def evaluation_splits(names: Sequence[str]) -> list[str]:
    """Of the splits there are, those that a run is measured on: "val" and all that start with "test"."""
    return [name for name in names if name == "val"] + sorted(
        name for name in names if name.startswith("test")
    )


def results_table(results: Results, title: str = "") -> Table:
    """A column for each model, a row for mAP, CF1 and OF1 of each split; last the student less the
    baseline.
    """
    models = list(next(iter(results.values())))
    compared = {"student", "baseline"} <= set(models)
    # without vertical lines and with little between, so that 80 columns hold the table of a run
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for model in models:
        table.add_column(
            Text(model.replace(" ", "\n")), justify="right", style="bold" if model == "student" else None
        )
    if compared:
        table.add_column("student -\nbaseline", justify="right")
    for split, by_model in results.items():
        table.add_section()
        for metric in SHOWN:
            cells = [_percent(by_model[model][metric]) for model in models]
            if compared:
                cells.append(_difference(by_model["student"][metric], by_model["baseline"][metric]))
            table.add_row(Text(f"{split} {metric}"), *cells)
    return table


def left_out_notes(results: Results) -> list[str]:
    """A line for each split with classes that have no positives there, which the means leave out."""
    notes = []
    for split, by_model in results.items():
        absent = next(iter(by_model.values()))["classes_without_positives"]
        if absent:
            notes.append(f"{split}: without positives, and so left out of mAP: {', '.join(absent)}")
    return notes


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _difference(new: float | None, old: float | None) -> str:
    return "-" if new is None or old is None else f"{new - old:+.2f}"
