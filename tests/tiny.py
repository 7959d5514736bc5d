"""A model and a dataset as small as they come: what many tests train on, in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from coterie.config import ResumeConfig, TrainConfig, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages, plain_batches, training_batches
from coterie.data.transforms import Preprocessing
from coterie.lockstep import train
from coterie.losses import ClassificationLoss, binary_cross_entropy
from coterie.models.factory import ModelBuilder
from coterie.tasks import ClassificationTask, Task
from coterie.trainer import Data, Progressed, Trainer, make_fabric

CLASS_NAMES = ("red", "green", "blue", "stripes")
SIZES = {"train": 24, "val": 12, "test": 12, "test_shifted": 12}
SIDE = 16
# What a run of two epochs on the tiny dataset needs, for `fit`, and with the model for the command line.
RUN_SETTINGS: dict[str, Any] = {
    "k": 2,
    "device": "cpu",
    "augment": {"cutout": 0.25, "randaugment": False},
    "train": {"epochs": 2, "batch_size": 8, "lr": 0.01},
}
RUN_WORDS = (
    *("k=2", "device=cpu", "model=tests.tiny:Net", f"model.image_size={SIDE}"),
    *("augment.cutout=0.25", "augment.randaugment=false"),
    *("train.epochs=2", "train.batch_size=8", "train.lr=0.01"),
)


class Net(nn.Module):
    """A convolution with batch norm and dropout, and a linear head: images [B, 3, H, W] -> logits [B, C]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.convolution(images)).relu().mean(dim=(2, 3))
        logits: Tensor = self.head(self.drop(features))
        return logits


class Steady(Net):
    """A `Net` without dropout, and without the bias before the batch norm, whose gradient is nothing but
    rounding, which Adam makes steps of: what it learns is the same but for rounding where all else is.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.convolution = nn.Conv2d(3, 6, 3, stride=2, bias=False)
        self.drop = nn.Dropout(0.0)


def draw_image(rng: np.random.Generator, present: Sequence[bool]) -> np.ndarray:
    """A picture uint8 [SIDE, SIDE, 3] in the colours and with the stripes that are `present`."""
    image = rng.integers(0, 80, (SIDE, SIDE, 3))
    image[..., [channel for channel in range(3) if present[channel]]] += 140
    if present[3]:
        image[::4] //= 4
    return image.astype(np.uint8)


def make_dataset(seed: int = 0, unknown: float = 0.0) -> MultiLabelDataset:
    """The tiny dataset, in memory; `unknown` is the share of targets that are -1."""
    rng = np.random.default_rng(seed)
    splits = np.array([split for split, size in SIZES.items() for _ in range(size)])
    present = rng.random((len(splits), len(CLASS_NAMES))) < 0.5
    present[:: len(CLASS_NAMES)] = True
    targets = present.astype(np.int8)
    targets[rng.random(targets.shape) < unknown] = -1
    return MultiLabelDataset(
        images=np.stack([draw_image(rng, row) for row in present]),
        targets=targets,
        class_names=CLASS_NAMES,
        splits=splits,
        image_ids=tuple(f"{number:03d}.png" for number in range(len(splits))),
        name="tiny",
    )


def write_table(folder: Path, dataset: MultiLabelDataset | None = None) -> Path:
    """The dataset as PNG files and a table labels.csv in `folder`; the table."""
    dataset = dataset or make_dataset()
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,labels,split"]
    for index, image_id in enumerate(dataset.image_ids):
        dataset.load_image(index).save(folder / image_id)
        names = [dataset.class_names[column] for column in np.flatnonzero(dataset.targets[index] == 1)]
        lines.append(f"{image_id},{';'.join(names)},{dataset.splits[index]}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def change_line(table: Path, image_id: str, new: str) -> None:
    """Put `new` in the place of the table's line about `image_id`."""
    lines = table.read_text(encoding="utf-8").splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith(f"{image_id},")]
    lines[number] = new
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cpu_fabric(precision: str = "fp32") -> Fabric:
    return make_fabric(load_config(["device=cpu", f"precision={precision}"]))


def sized(builder: ModelBuilder) -> dict[str, Any]:
    """`builder` as `fit` takes it, for images of SIDE pixels."""
    return {"name": builder, "image_size": SIDE}


def tiny_net(seed: int = 0, num_classes: int = len(CLASS_NAMES)) -> Net:
    torch.manual_seed(seed)
    return Net(num_classes)


def make_data(dataset: MultiLabelDataset, batch_size: int = 8, seed: int = 0) -> Data:
    preprocessing = Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    images = ResizedImages(dataset, preprocessing)
    return Data(
        training_batches(images, "train", batch_size, None, seed),
        plain_batches(images, dataset.indices("val"), 64),
        preprocessing,
        dataset.image_ids,
    )


class RunnableTrainer(Trainer):
    """A trainer that trains by itself."""

    def run(self) -> Progressed:
        return train(self)


def make_trainer(
    folder: Path,
    *,
    dataset: MultiLabelDataset | None = None,
    task: Task | None = None,
    loss: ClassificationLoss = binary_cross_entropy,
    seed: int = 0,
    precision: str = "fp32",
    key: str = "key",
    resume: ResumeConfig | None = None,
    notes: list[str] | None = None,
    **settings: Any,
) -> RunnableTrainer:
    """A trainer of `task`, by default a `Net` for all classes, in `folder`; what it says goes to `notes`."""
    dataset = make_dataset() if dataset is None else dataset
    task = task or ClassificationTask(tiny_net(seed), list(range(dataset.num_classes)), loss)
    chosen = TrainConfig(**{"epochs": 2, "batch_size": 8, "lr": 0.01, "ema": 0.9} | settings)
    data = make_data(dataset, chosen.batch_size, seed)
    note = (notes if notes is not None else []).append
    return RunnableTrainer(
        task, data, chosen, cpu_fabric(precision), folder, key=key, seed=seed, resume=resume, note=note
    )


def equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
