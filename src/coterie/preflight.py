"""What can fail in a run, tried before its first training: the model, the images, the space on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from coterie.config import LOOK_AT_OUTPUT_LAYER, ROLES, Config, DataConfig
from coterie.data.check import check_images, without_images
from coterie.data.dataset import MultiLabelDataset
from coterie.data.overlap import check_twins, settle_twins
from coterie.data.splits import check_labels
from coterie.errors import ConfigError, DataError, RunError
from coterie.evaluation import evaluation_splits
from coterie.files import file_sha256
from coterie.models.cut import Cut
from coterie.models.factory import ModelFactory
from coterie.models.output_layer import OutputLayer
from coterie.progress import say
from coterie.runfolder import Inputs, Training

# Logits and their parts before they are put together, scores in float64, what is predicted, targets.
BYTES_A_SCORE = 4 + 4 + 8 + 1 + 1


def tried_model(factory: ModelFactory, class_names: Sequence[str], console: Console) -> nn.Module:
    """The model for all classes, run once: a wrong name, file or shape shows before the first training."""
    model = factory.build(class_names).eval()
    if factory.builder is None and not factory.settings.pretrained and factory.settings.weights is None:
        remedy = "model.pretrained=true downloads trained ones, model.weights=FILE reads them"
        say(console, f"note: training starts from random weights; {remedy}")
    if factory.settings.weights is not None:
        say(console, str(factory.load_weights(model)))
    if (words := factory.read_word_vectors(class_names)) is not None:
        say(console, str(words))
    size = factory.preprocessing.image_size
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the model does not take images of {size} x {size} pixels: {reason}; set model.image_size"
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, len(class_names)):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(
            f"the model must return logits [B, {len(class_names)}] for images [B, 3, H, W]; "
            f"for B = 2 it gave {got}"
        )
    return model


def check_frozen(config: Config, factory: ModelFactory, model: nn.Module) -> None:
    """ConfigError where a part that is to be frozen is not in the `model`, or would be of random weights."""
    for role in ROLES:
        settings = getattr(config, role)
        if settings.frozen is None:
            continue
        if settings.shrink is not None:
            raise ConfigError(f"{role}.frozen and {role}.shrink do not go together; choose one")
        cut = Cut(model, settings.frozen, learns=True)
        if not any(True for _ in cut.upper_part.parameters()):
            raise ConfigError(f"{role}.frozen={settings.frozen}: nothing behind it is left to learn")
        trained = factory.settings.pretrained or factory.settings.weights is not None
        if settings.start == "model" and factory.builder is None and not trained:
            raise ConfigError(
                f"{role}.frozen={settings.frozen} would freeze random weights; give trained ones by "
                f"model.pretrained=true or model.weights=FILE, or {role}.start=baseline"
            )


def check_output_layer(config: Config, model: nn.Module, num_classes: int) -> None:
    """ConfigError where a setting of the distillation looks at an output layer that the `model` has not."""
    for name in LOOK_AT_OUTPUT_LAYER:
        if getattr(config.distill, name):
            OutputLayer(model, num_classes, f"distill.{name}")


def describe_start(factory: ModelFactory, model: nn.Module) -> dict[str, Any]:
    """What the settings only point to: the shapes of a user's own model, what it wants images to be, the
    content of the files of weights and of word vectors.
    """
    files = {name: getattr(factory.settings, name) for name in ("weights", "word_vectors")}
    return {
        "preprocessing": asdict(factory.preprocessing),
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        **{name: None if path is None else file_sha256(path) for name, path in files.items()},
    }


def checked_images(
    dataset: MultiLabelDataset, config: DataConfig, before: Inputs | None, console: Console
) -> tuple[MultiLabelDataset, Inputs]:
    """The dataset without the images that cannot be read, and what it was checked as.

    Every image is decoded once, or as many as `data.check_images` says, so that a broken one stops the run
    now and not hours later, and the measured ones are compared with those of the training. `before` is what
    passed last time: where it is the same, nothing is read, and the same images are left out.
    """
    if before is not None and _passes(before, config):
        known = as_checked(dataset, before, config)
        if _fingerprint_of_files(known) == before.fingerprint:
            return known, before
    with console.status("reading every image once" if config.check_images is None else "reading images"):
        readable, reports = check_images(dataset, config.on_corrupt, most=config.check_images)
        overlapping = check_twins(readable, config.on_overlap)
    checked = settle_twins(readable, overlapping, config.on_overlap)
    if len(checked) < len(dataset):
        check_labels(checked)
    unreadable = tuple(image_id for image_id, _ in reports)
    return checked, Inputs(checked.fingerprint(), unreadable=unreadable, overlapping=overlapping)


def as_checked(dataset: MultiLabelDataset, before: Inputs, config: DataConfig) -> MultiLabelDataset:
    """The dataset as the check left it that found `before`."""
    readable = without_images(dataset, before.unreadable)
    there = set(readable.image_ids)
    overlapping = [image_id for image_id in before.overlapping if image_id in there]
    return settle_twins(readable, overlapping, config.on_overlap)


def check_measured(dataset: MultiLabelDataset) -> None:
    """DataError where the memory of this machine cannot hold what one model says of a measured split."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for split in evaluation_splits(dataset.split_names):
        images, classes = len(dataset.indices(split)), dataset.num_classes
        needed = images * classes * BYTES_A_SCORE
        if needed > memory:
            most = memory // (2 * classes * BYTES_A_SCORE)
            remedy = "its shards, or its share: data.val_fraction and data.test_fraction"
            raise DataError(
                f"split '{split}' has {images:,} images of {classes:,} classes: to measure a model on them "
                f"takes {needed / 1e9:,.0f} GB of memory, and here are {memory / 1e9:,.0f}. Some {most:,} "
                f"images fit; make it smaller by {remedy}"
            )


def check_space(path: Path, model: nn.Module, trainings: Sequence[Training], at_once: int = 1) -> None:
    """RunError where the disk has no room for the weights of the `trainings` to do and the state of those
    that are under way `at_once`.
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    # the state holds model, average, best and two moments, and is written beside the two before
    needed = size * (len(trainings) + 15 * min(at_once, len(trainings)))
    free = shutil.disk_usage(path).free
    if free < needed:
        raise RunError(
            f"the run needs about {needed / 1e9:.2f} GB in {path} and the disk has {free / 1e9:.2f} GB free; "
            "free some, or choose another place with out=…"
        )


def _passes(before: Inputs, config: DataConfig) -> bool:
    """Whether what was found before stops no run of these settings."""
    return not (
        (before.unreadable and config.on_corrupt == "error")
        or (before.overlapping and config.on_overlap == "error")
    )


def _fingerprint_of_files(dataset: MultiLabelDataset) -> str | None:
    """None where a file is not there, and for arrays: they need no check."""
    if isinstance(dataset.images, np.ndarray):
        return None
    try:
        return dataset.fingerprint()
    except OSError:
        return None
