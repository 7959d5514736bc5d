"""The models of a run, or a checkpoint, measured on any data: what is checked before, and said with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from coterie.api import evaluate
from coterie.checkpoint import INFO_FILE, Checkpoint
from coterie.class_mapping import SAME, ClassMapping, map_classes, read_mapping, same_classes
from coterie.config import Config, parse_words, validate_config
from coterie.data.dataset import UNLABELLED, MultiLabelDataset, StoredImages
from coterie.data.overlap import perhaps_same_bytes, same_bytes
from coterie.data.presence import missing_images, places_of
from coterie.data.reading import drops_unlabelled, format_of, read_dataset, read_split
from coterie.data.sparse import are_labelled
from coterie.data.splits import ensure_splits, taught_images
from coterie.errors import CoterieError, DataError, counted, shortened, with_remedy
from coterie.evaluation import Results, evaluation_config, left_out_notes, results_table
from coterie.metrics import Definition
from coterie.models.factory import ModelBuilder
from coterie.predictor import Predictor, fetched, find_checkpoint, load_classifier
from coterie.progress import say

MARKED = {"voc": ("difficult", "voc.difficult"), "coco": ("crowd", "coco.crowd")}
MEANINGS = {"positive": "present", "ignore": "unknown", "negative": "absent"}


@dataclass(frozen=True)
class Evaluation:
    """What was measured, of what, and by which conventions {name: what holds}."""

    results: Results
    dataset: MultiLabelDataset
    mapping: ClassMapping
    conventions: dict[str, str]

    def describe(self) -> dict[str, Any]:
        """For JSON: the metrics by split and model, the conventions, and the classes that were left out."""
        return {
            **self.results,
            "conventions": {
                **self.conventions,
                "classes of the data left out": list(self.mapping.unmapped_dataset),
                "classes of the model left out": list(self.mapping.unmapped_model),
            },
        }


def evaluate_path(
    path: Path,
    words: Sequence[str],
    split: str,
    *,
    class_map: str | None = None,
    ap: Definition = "all-point",
    allow_overlap: bool = False,
    builder: ModelBuilder | None = None,
) -> Evaluation:
    """Measure the checkpoint, or baseline and student of the run, at `path` on a split of the data that
    `words` name, by default those of the training.

    `class_map`: a file for `read_mapping`, or "same" for the classes of the same name; without it the data
    must have every class of the model. DataError where images of the split were trained on, unless
    `allow_overlap`.
    """
    path = fetched(path)
    names = [path.name] if (path / INFO_FILE).exists() else ["baseline", "student"]
    predictors = {name: load_classifier(find_checkpoint(path, name), builder) for name in names}
    checkpoint = next(iter(predictors.values())).checkpoint
    config, own = evaluation_config(checkpoint, words)
    if own:
        _check_own_data(config)
    if split == UNLABELLED:
        raise DataError(f"the labels of split '{split}' are not known: there is nothing to measure")
    dataset = read_split(config, split, drawn=own)
    if not allow_overlap and (note := _check_overlap(checkpoint, dataset, split, own)) is not None:
        dataset = replace(dataset, notes=(*dataset.notes, note))
    mapping = _mapping(class_map, dataset, checkpoint.class_names)
    threshold = config.threshold if "threshold" in parse_words(words) else None
    results = evaluate(
        predictors,
        dataset,
        split,
        config,
        threshold=threshold,
        classes={name: one.model for one in mapping.measured for name in one.dataset},
        ap=ap,
    )
    conventions = {
        "threshold": _thresholds(predictors, threshold),
        "average precision": AP_MEANINGS[ap],
        **_label_conventions(config, mapping.dataset_of(dataset)),
    }
    return Evaluation(results, dataset, mapping, conventions)


AP_MEANINGS = {
    "all-point": "all-point: every positive, not interpolated",
    "11-point": "11-point, interpolated, as in VOC 2007",
}


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print notes, what was left out, the table, and the conventions."""
    for note in evaluation.dataset.notes:
        say(console, f"note: {note}")
    mapping = evaluation.mapping
    for names, which in (
        (mapping.unmapped_dataset, "classes of the data that the model does not know"),
        (mapping.unmapped_model, "classes of the model that the data do not have"),
    ):
        if names:
            say(console, f"note: {which} are left out: {shortened(names)}")
    for one in mapping.measured:
        if len(one.dataset) > 1:
            say(console, f"note: '{one.name}' is present where any of {shortened(one.dataset)} is")
        if len(one.model) > 1:
            say(console, f"note: '{one.name}' has the greatest score of {shortened(one.model)}")
    threshold = evaluation.conventions["threshold"]
    console.print(results_table(evaluation.results, f"{evaluation.dataset.name}, threshold {threshold}"))
    for note in left_out_notes(evaluation.results):
        say(console, note)
    for name, what in evaluation.conventions.items():
        say(console, f"{name}: {what}")


def _mapping(class_map: str | None, dataset: MultiLabelDataset, model: Sequence[str]) -> ClassMapping:
    if class_map is None:
        try:
            dataset.with_classes(model)
        except DataError as error:
            remedy = "--class-map same measures those of the same name, --class-map FILE maps the others"
            raise DataError(with_remedy(error, remedy)) from None
    if class_map is None or class_map == SAME:
        return same_classes(dataset.class_names, model)
    return map_classes(read_mapping(Path(class_map)), dataset.class_names, model)


def _check_own_data(config: Config) -> None:
    """DataError where the data of the training are not there any more."""
    source, path = config.data.source, Path(config.data.source)
    elsewhere = source == "scenes" or config.data.format == "huggingface" or any(c in source for c in "*?{")
    if not elsewhere and not path.exists():
        raise DataError(
            f"the data that the model was trained on are not there any more: {path.absolute()}; "
            "name others: data=…"
        )


def _check_overlap(checkpoint: Checkpoint, dataset: MultiLabelDataset, split: str, own: bool) -> str | None:
    """DataError where images of the split were trained on; a note where that cannot be told.

    The splits of the training's own data were compared before it was trained.
    """
    if own:
        shared, note = list(dataset.image_ids) if split == "train" else [], None
    else:
        shared, note = _trained_on(checkpoint, dataset)
    if shared:
        raise DataError(
            f"{len(shared):,} of {counted(len(dataset), 'image')} of split '{split}' were trained on: "
            f"{shortened(shared)}; metrics on them say nothing about other images. --allow-overlap measures "
            "all the same"
        )
    return note


def _trained_on(checkpoint: Checkpoint, dataset: MultiLabelDataset) -> tuple[list[str], str | None]:
    """The ids of the images that are files of the training, or have the bytes of one; and a note where some
    of the training's are not there to compare.
    """
    if "data" not in checkpoint.config:
        return [], "the data of the training are not known, so images of it may be among the measured"
    settings = validate_config(checkpoint.config)
    if settings.data.source == "scenes":
        return [], None
    try:
        _check_own_data(settings)
        trained = read_dataset(settings.data, settings.seed)
        val_fraction, test_fraction = settings.data.val_fraction, settings.data.test_fraction
        trained = ensure_splits(trained, val_fraction, test_fraction, settings.seed)
        trained = trained.subset(taught_images(trained))
    except CoterieError as error:  # they are gone, or others by now
        return [], f"images of the training may be among the measured; its data cannot be read: {error}"
    shared = _same_files(dataset, trained) | _same_bytes(dataset, trained)
    lacking = len(missing_images(trained))
    what = counted(lacking, "image of the training is", "images of the training are")
    note = f"{what} not there, and may be among the measured" if lacking else None
    return [name for name in dataset.image_ids if name in shared], note


def _same_files(dataset: MultiLabelDataset, trained: MultiLabelDataset) -> set[str]:
    """The ids of the images whose files are those of `trained`."""
    files = () if isinstance(trained.images, StoredImages) else trained.images
    places = set(places_of([image for image in files if isinstance(image, Path)]))
    measured = {
        name: image
        for name, image in zip(dataset.image_ids, dataset.images, strict=True)
        if isinstance(image, Path)
    }
    own = places_of([*measured.values()])
    return {name for name, place in zip(measured, own, strict=True) if place in places}


def _same_bytes(dataset: MultiLabelDataset, trained: MultiLabelDataset) -> set[str]:
    """The ids of the images that have the bytes of one of `trained`."""
    if isinstance(trained.images, StoredImages):
        trained = trained.subset(perhaps_same_bytes(trained.images, dataset.images))
    images = [*dataset.images, *trained.images]
    side = np.arange(len(images)) < len(dataset)
    return {
        dataset.image_ids[position]
        for group in same_bytes(images, side)
        for position in group
        if side[position]
    }


def _thresholds(predictors: dict[str, Predictor], given: float | None) -> str:
    """The threshold of all, or in words where classes or models have their own."""
    if given is not None:
        return str(given)
    said = {name: _threshold_of(predictor) for name, predictor in predictors.items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{name}: {words}" for name, words in said.items())


def _threshold_of(predictor: Predictor) -> str:
    checkpoint, limits = predictor.checkpoint, set(predictor.thresholds)
    if checkpoint.thresholds is None:
        return str(checkpoint.threshold)
    tuned = f"{limits.pop():.4f}, tuned" if len(limits) == 1 else "by class, tuned"
    return f"{tuned} at temperature {checkpoint.temperature:.3f}"


def _label_conventions(config: Config, dataset: MultiLabelDataset) -> dict[str, str]:
    kind = format_of(config.data)
    without = int((~are_labelled(dataset.targets)).sum())
    is_dropped = drops_unlabelled(kind, config.data)
    measured = f"{without:,} of {counted(len(dataset), 'image')} measured have no label of a measured class"
    said = {"images without labels": f"{'dropped' if is_dropped else 'kept'}; {measured}"}
    if kind in MARKED:
        what, key = MARKED[kind]
        section = getattr(config.data, kind)
        said[f"{what} objects"] = (
            f"a class with these alone is {MEANINGS[getattr(section, what)]} (data.{key})"
        )
    return said
