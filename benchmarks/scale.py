"""A paper exercise: ten million images, 10,000 labels, 64 GPUs: `python -m benchmarks.scale [--measure]`.

Prints the tables of docs/scale.md from the constants below. Each of these is measured, with its command, or
cited, with its source; what is supposed can be given. `--measure` measures those of this file again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import timm
import torch

from benchmarks.pictures import write_photographs
from coterie.config import AugmentConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages, Views
from coterie.data.transforms import Preprocessing, make_augmentation
from coterie.preflight import BYTES_A_SCORE

GB, TB = 1e9, 1e12


@dataclass(frozen=True)
class Inputs:
    """What the exercise supposes; another value is given as `--gpus 8`."""

    images: int = 10_000_000
    labels: int = 10_000
    labels_an_image: float = 7.5
    val_images: int = 20_000
    gpus: int = 64
    gpus_a_node: int = 8
    cores_a_node: int = 128
    epochs: int = 10
    batch_a_gpu: int = 128
    k: int = 5
    picture_kb: float = 110.0
    side: int = 224
    storage_gb_s: float = 10.0
    node_network_gb_s: float = 25.0
    price_gpu_hour: float = 2.5


@dataclass(frozen=True)
class Constant:
    """A value, its unit, and where it is from."""

    value: float
    unit: str
    source: str


CONSTANTS = {
    "images a second of one GPU, ResNet-50, 224 px, mixed precision": Constant(
        2078,
        "images/s",
        "cited: NVIDIA DeepLearningExamples, ResNet50 v1.5 for PyTorch, 8 x A100 80GB: 16,621",
    ),
    "a view of a 640 x 480 JPEG: decode, resize, augment": Constant(
        3.4, "ms of a core", "measured: `python -m benchmarks.scale --measure`"
    ),
    "parameters of ResNet-50 with 10,000 labels": Constant(
        43_998_032, "", "measured: `python -m benchmarks.scale --measure`"
    ),
    "a distillation step, teachers live, K = 5": Constant(
        1.6,
        "plain steps",
        "measured on a CPU: `python -m benchmarks.distillation`: 13 forward passes / 2.71 / 3",
    ),
    "index: mapped, and as much again in files of the shards": Constant(
        103, "bytes an image", "measured: `python -m benchmarks.streams rows`"
    ),
}


def exercise(inputs: Inputs) -> Iterator[str]:
    """The lines of the tables."""
    i = inputs
    constants = [constant.value for constant in CONSTANTS.values()]
    speed, view_ms, parameters, live, index = constants
    nodes = i.gpus // i.gpus_a_node
    rate = speed * i.gpus
    pictures = rate * i.picture_kb * 1e3 / GB
    epoch = i.images / rate
    training = epoch * i.epochs / 3600
    trainings = 1 + 2 * i.k + live
    hours = training * trainings
    step = i.batch_a_gpu / speed
    gradient = 4 * parameters
    head = 4 * (2049 * i.labels)
    across = 2 * (nodes - 1) / nodes * gradient
    yield from table(
        "storage",
        ("what", "size", "how"),
        [
            (
                "JPEGs in shards",
                f"{i.images * i.picture_kb * 1e3 / TB:.1f} TB",
                f"{i.picture_kb:.0f} kB an image",
            ),
            (
                f"squares of {i.side} px, not compressed",
                f"{i.images * 3 * i.side**2 / TB:.1f} TB",
                f"3 x {i.side}² bytes an image; `data.disk_cache_gb`",
            ),
            (
                "index",
                f"{2 * i.images * index / GB:.1f} GB",
                f"2 x {index:.0f} bytes an image, half of it mapped",
            ),
            ("targets as an array", f"{i.images * i.labels / GB:,.0f} GB", "int8 [N, C]: never made"),
            (
                "targets as lists",
                f"{i.images * (8 + 4 * i.labels_an_image) / GB:.2f} GB",
                "in the index: 8 bytes an image and 4 a label",
            ),
            (
                "teachers' logits, both branches, one view",
                f"{2 * 2 * i.images * i.labels / GB:,.0f} GB",
                "float16; `distill.cache=on` with `student.views` views takes so many times that",
            ),
            (
                "states of one training, two kept and one written",
                f"{3 * 5 * gradient / GB:.1f} GB",
                "model, average, best, two moments",
            ),
        ],
    )
    yield from table(
        "traffic",
        ("what", "rate", "how"),
        [
            ("training", f"{rate:,.0f} images/s", f"{i.gpus} GPUs"),
            (
                "from storage",
                f"{pictures:.1f} GB/s",
                f"storage gives {i.storage_gb_s:.0f}",
            ),
            (
                "decoding",
                f"{rate * view_ms / 1e3 / nodes:.0f} cores a node",
                f"of {i.cores_a_node}; pictures larger than 640 x 480 take more",
            ),
            (
                "gradient, between nodes",
                f"{across / step / GB:.1f} GB/s a node",
                f"{gradient / 1e6:.0f} MB in each step of {step * 1e3:.0f} ms; "
                f"the network gives {i.node_network_gb_s:.0f}",
            ),
            ("of it the output layer", f"{100 * head / gradient:.0f} %", f"{i.labels:,} x 2,049 weights"),
            (
                "logits from the disk instead of live teachers",
                f"{rate * 4 * i.labels / GB:.1f} GB/s",
                "two branches in float16: more than a third of the pictures again",
            ),
        ],
    )
    cost, teachers, student = hours * i.gpus * i.price_gpu_hour, training * (1 + 2 * i.k), training * live
    yield from table(
        "hours and cost",
        ("what", "time", "GPU hours"),
        [
            ("an epoch", f"{epoch:.0f} s", f"{epoch * i.gpus / 3600:.1f}"),
            (f"a training of {i.epochs} epochs", f"{training * 60:.1f} minutes", f"{training * i.gpus:.0f}"),
            (
                f"baseline and {2 * i.k} teachers",
                f"{teachers:.1f} h",
                f"{teachers * i.gpus:.0f}",
            ),
            (
                f"student, {live} plain trainings",
                f"{student:.2f} h",
                f"{student * i.gpus:.0f}",
            ),
            ("all", f"{hours:.1f} h", f"{hours * i.gpus:.0f}, {cost:,.0f} at {i.price_gpu_hour} an hour"),
        ],
    )
    yield from table(
        "memory of a process",
        ("what", "size", "how"),
        [
            ("positions of the training images", f"{8 * i.images / 1e6:.0f} MB", "8 bytes an image"),
            (
                "the order of an epoch",
                f"{32 * i.images / 64 / 1e6:.0f} MB",
                "32 bytes a block of 64, and a window",
            ),
            ("targets of a batch", f"{i.batch_a_gpu * i.labels / 1e6:.1f} MB", "int8"),
            ("counts of the label graph", f"{8 * i.labels**2 / 1e6:.0f} MB", "int64 [C, C]"),
            (
                f"measuring {i.val_images:,} images",
                f"{i.val_images * i.labels * BYTES_A_SCORE / GB:.1f} GB",
                f"{BYTES_A_SCORE} bytes a score; more than the machine has is refused",
            ),
        ],
    )
    slower = max(1.0, pictures / i.storage_gb_s)
    yield f"With storage of {i.storage_gb_s:.0f} GB/s, hours and cost are {slower:.2f} times as much."


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"## {title.capitalize()}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head))
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def constants_table() -> Iterator[str]:
    rows = [(name, f"{one.value:,} {one.unit}".strip(), one.source) for name, one in CONSTANTS.items()]
    yield from table("constants", ("constant", "value", "from"), rows)


def measure() -> None:
    """Print what the constants of this file are here."""
    torch.set_num_threads(1)
    parameters = sum(one.numel() for one in timm.create_model("resnet50", num_classes=10_000).parameters())
    print(f"parameters of ResNet-50 with 10,000 labels: {parameters:,}")
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), 40)
        files = sorted(Path(folder).iterdir())
        names = tuple(file.name for file in files)
        splits = np.full(len(files), "train")
        data = MultiLabelDataset(files, np.ones((len(files), 1), np.int8), ("a",), splits, names)
        images = ResizedImages(data, Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        views = Views(images, make_augmentation(AugmentConfig()))
        seconds = []
        for _ in range(5):
            start = time.process_time()
            for index in range(len(files)):
                views[0, index]
            seconds.append((time.process_time() - start) / len(files))
    print(f"a view of a 640 x 480 JPEG: {1e3 * min(seconds):.2f} ms of a core")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure the constants instead")
    for field in fields(Inputs):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    if given.pop("measure"):
        measure()
        return 0
    for line in (*constants_table(), *exercise(Inputs(**given))):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
