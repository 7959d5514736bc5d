"""What limits a training on this machine: loading, augmentation or compute; and the fastest form."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from statistics import median

import torch
from rich.table import Table

from coterie.config import Config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages, Views
from coterie.data.transforms import make_augmentation
from coterie.models.factory import ModelFactory
from coterie.tasks import ClassificationTask, classification_loss
from coterie.trainer import PRECISIONS, make_fabric, make_optimizer, memory_layout, optimize, to_images

# Images whose views are timed, and steps that a form takes before it is timed.
SAMPLE = 64
WARM_UP = 3


@dataclass(frozen=True)
class Form:
    """How a network computes."""

    precision: str
    channels_last: bool

    @property
    def words(self) -> str:
        """The settings that choose it."""
        return f"precision={self.precision} channels_last={str(self.channels_last).lower()}"


@dataclass(frozen=True)
class Speeds:
    """Images per second: decoded and resized, and augmented, by one process; trained on in each form."""

    loading: float
    augmentation: float
    compute: dict[Form, float]

    @property
    def best(self) -> Form:
        """The form that computes fastest."""
        return max(self.compute, key=lambda form: self.compute[form])


@dataclass(frozen=True)
class Limit:
    """What a training with `workers` loading processes waits for, at `images_per_second`."""

    name: str
    images_per_second: float
    workers: int


def measure_speeds(
    config: Config, dataset: MultiLabelDataset, factory: ModelFactory, seconds: float = 2.0
) -> Speeds:
    """Time each part of a training by itself, for about `seconds` each."""
    indices = dataset.indices("train")[:SAMPLE].tolist()
    files = ResizedImages(dataset, factory.preprocessing)
    kept = ResizedImages(dataset.subset(dataset.indices("train")[:SAMPLE]), factory.preprocessing, math.inf)
    for position in range(len(indices)):
        kept[position]  # decodes it
    views = Views(kept, make_augmentation(config.augment), config.seed)
    order, epochs = cycle(indices), count()
    return Speeds(
        loading=_rate(lambda: files[next(order)], seconds),
        augmentation=_rate(lambda: views[next(epochs), next(order) % len(indices)], seconds),
        compute={form: _training_rate(config, dataset, factory, form, seconds) for form in _forms(config)},
    )


def find_limit(speeds: Speeds, workers: int, cached: bool) -> Limit:
    """What limits a training in the fastest form: with loading processes the slower of data and compute, else
    their sum, of which the largest part is named. `cached`: resized images are kept after the first epoch.
    """
    parts = {
        "loading": 0.0 if cached else 1 / speeds.loading,
        "augmentation": 1 / speeds.augmentation,
        "compute": 1 / speeds.compute[speeds.best],
    }
    data, compute = parts["loading"] + parts["augmentation"], parts["compute"]
    if workers == 0:
        return Limit(max(parts, key=lambda name: parts[name]), 1 / (data + compute), 0)
    slower_data = max(("loading", "augmentation"), key=lambda name: parts[name])
    name = "compute" if compute >= data / workers else slower_data
    return Limit(name, 1 / max(compute, data / workers), workers)


def best_workers(speeds: Speeds, cached: bool, cores: int) -> int:
    """The loading processes with which a training is fastest, as few as give that; 0 for none."""
    choices = range(max(1, cores))
    rates = [find_limit(speeds, workers, cached).images_per_second for workers in choices]
    return next(workers for workers in choices if rates[workers] >= 0.99 * max(rates))


def is_cached(config: Config, dataset: MultiLabelDataset, factory: ModelFactory) -> bool:
    """Whether a run keeps the resized images in memory."""
    side = factory.preprocessing.image_size
    return ResizedImages.fits(len(dataset), side, config.data.cache_gb)


def speeds_table(speeds: Speeds) -> Table:
    """A row for each part, with the fastest form marked."""
    table = Table("", "images/s")
    table.add_row("loading (decode, resize), one process", f"{speeds.loading:.0f}")
    table.add_row("augmentation, one process", f"{speeds.augmentation:.0f}")
    for form, rate in speeds.compute.items():
        mark = "  fastest" if form == speeds.best else ""
        table.add_row(f"training step, {form.words}", f"{rate:.0f}{mark}")
    return table


def advice(config: Config, speeds: Speeds, cached: bool, images: int) -> Iterator[str]:
    """What limits the training as it is set, how long it takes, and the settings that make it faster."""
    now = find_limit(speeds, config.data.workers, cached)
    epochs = config.baseline.epochs
    seconds = epochs * images / now.images_per_second
    time = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    yield (
        f"in that form, {now.name} limits the training, at {now.images_per_second:.0f} images/s with "
        f"data.workers={now.workers}: {epochs} epochs of {images} images take {time}"
    )
    cores = os.cpu_count() or 1
    # on the CPU the processes would take the cores from the network
    workers = best_workers(speeds, cached, cores) if _on_gpu(config) else config.data.workers
    words = [speeds.best.words]
    if workers != config.data.workers:
        words.append(f"data.workers={workers}")
    yield f"fastest here: {' '.join(words)}"


def _forms(config: Config) -> list[Form]:
    precisions = [name for name in PRECISIONS if name != "fp16" or _on_gpu(config)]
    return [Form(precision, last) for precision in precisions for last in (False, True)]


def _on_gpu(config: Config) -> bool:
    return make_fabric(config.model_copy(update={"precision": "fp32"})).device.type != "cpu"


def _training_rate(
    config: Config, dataset: MultiLabelDataset, factory: ModelFactory, form: Form, seconds: float
) -> float:
    """Images per second of the baseline's step on pixels that are there already."""
    settings = config.baseline
    fabric = make_fabric(config.model_copy(update={"precision": form.precision}))
    layout = memory_layout(form.channels_last)
    columns = list(range(dataset.num_classes))
    task = ClassificationTask(
        factory.build(dataset.class_names, config.seed), columns, classification_loss(settings)
    )
    task.to(memory_format=layout)
    wrapped, optimizer = fabric.setup(
        task, make_optimizer(task.model, settings, fused=form.precision != "fp16")
    )
    side = factory.preprocessing.image_size
    pixels = torch.randint(256, (settings.batch_size, 3, side, side), dtype=torch.uint8)
    targets = torch.randint(2, (settings.batch_size, dataset.num_classes), dtype=torch.int8)

    def step() -> None:
        images = to_images(pixels, factory.preprocessing, fabric, layout)
        optimize(wrapped, optimizer, fabric, (images, targets.to(fabric.device)), settings)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)

    task.train()
    return settings.batch_size * _rate(step, seconds)


def _rate(once: Callable[[], object], seconds: float) -> float:
    """Calls per second, by the median of as many as fit into `seconds`, after a few to warm up."""
    for _ in range(WARM_UP):
        once()
    durations: list[float] = []
    end = time.monotonic() + seconds
    while not durations or time.monotonic() < end:
        start = time.perf_counter()
        once()
        durations.append(time.perf_counter() - start)
    return 1 / max(median(durations), 1e-9)
