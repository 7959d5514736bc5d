"""Time and size of a report about as many images and classes as COCO has, with made-up scores.

    python -m benchmarks.report [--images N] [--val-images N] [--classes C] [--out FOLDER]

Builds a run folder with the package's own writers: targets of rare and frequent classes, logits of five
models, untrained networks for the maps, and a picture of 640 x 480 for every image (ten files under many
names). Prints the seconds of `coterie report` as a program, and the bytes of the page. Exit status 1 where
that is more than 60 s or more than 10 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from coterie.checkpoint import Checkpoint, describe_architecture, save_checkpoint
from coterie.config import Config, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.diagnostics import (
    DIAGNOSTICS_FILE,
    LEANING_FILE,
    PARTITIONS,
    companion_rates,
    describe_pairs,
    leaning_summary,
    strongest_pairs,
)
from coterie.evaluation import to_scores
from coterie.files import atomic_write
from coterie.logits import LogitsWriter
from coterie.metrics import multilabel_metrics
from coterie.models.factory import make_factory
from coterie.pipeline import planned_trainings
from coterie.preparation import diagnose_partitions, make_partitions, training_graph
from coterie.rundata import keep_data
from coterie.runfolder import METRICS_FILE, Inputs, RunFolder, measurement_key
from coterie.stages import measured_models

MOST_SECONDS, MOST_BYTES = 60.0, 10_000_000
EPOCHS = 40
TRAIN_IMAGES = 2_000  # in the table only: a report looks at their counts
FINGERPRINT = "made up"
# How far the logits of a present label are above those of an absent one, by model.
SHARPNESS = {"baseline": 2.0, "CGP teachers": 2.1, "DGP teachers": 2.2, "all teachers": 2.5, "student": 2.3}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40_000, help="of test (default %(default)s)")
    parser.add_argument("--val-images", type=int, default=8_000, help="(default %(default)s)")
    parser.add_argument("--classes", type=int, default=80, help="(default %(default)s)")
    parser.add_argument("--out", type=Path, help="keep the run here; by default it is removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        sizes = {"train": TRAIN_IMAGES, "val": arguments.val_images, "test": arguments.images}
        start = time.monotonic()
        make_run(folder, sizes, arguments.classes)
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        print(f"run of {arguments.images:,} images and {arguments.classes:,} classes made in ", end="")
        print(f"{time.monotonic() - start:.1f} s")
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "coterie", "report", str(folder / "run")], check=True)
        seconds = time.monotonic() - start
        size = (folder / "run" / "report.html").stat().st_size
    print(f"report: {seconds:.1f} s (at most {MOST_SECONDS:.0f}), {size:,} bytes (at most {MOST_BYTES:,})")
    return int(seconds > MOST_SECONDS or size > MOST_BYTES)


def make_run(folder: Path, sizes: dict[str, int], classes: int) -> None:
    """A finished run in folder/run, of images in folder/photos."""
    dataset = make_dataset(folder / "photos", sizes, classes)
    config = load_config(
        [
            *(f"data={folder / 'photos' / 'labels.parquet'}", f"out={folder / 'run'}", "device=cpu"),
            *("model=squeezenet", "model.image_size=224", f"train.epochs={EPOCHS}", "k=5"),
        ]
    )
    run = RunFolder(folder / "run")
    partitions = make_partitions(config, dataset)
    run.path.mkdir(parents=True, exist_ok=True)
    run.save_config(config)
    for kind, partition in partitions.items():
        partition.save(run.path / PARTITIONS / f"{kind}.json")
    described = {"schema_version": 1, "branches": diagnose_partitions(config, dataset, partitions)}
    atomic_write(run.path / PARTITIONS / DIAGNOSTICS_FILE, json.dumps(described))
    keep_data(run.path, FINGERPRINT, dataset)
    planned = planned_trainings(dataset.class_names, partitions)
    write_trainings(run, config, [training.name for training in planned])
    run.write_manifest(
        Inputs(FINGERPRINT),
        [replace(one, state="done", weights_sha256=one.name, best_epoch=EPOCHS) for one in planned],
    )
    measure(run, config, dataset)


def make_dataset(folder: Path, sizes: dict[str, int], classes: int) -> MultiLabelDataset:
    """Images of `sizes`, each a name of one of ten pictures, classes from rare to frequent, and a table."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    splits = np.repeat(list(sizes), list(sizes.values()))
    frequency = np.geomspace(0.002, 0.4, classes)
    theme = rng.integers(8, size=len(splits))[:, None] == rng.integers(8, size=classes)
    targets = (rng.random((len(splits), classes)) < frequency * np.where(theme, 3, 0.7)).astype(np.int8)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(10):
        noise = rng.integers(0, 256, (15, 20, 3), np.uint8)
        Image.fromarray(noise).resize((640, 480)).save(folder / f"original-{number}.jpg", quality=90)
    ids = [f"{number:06d}.jpg" for number in range(len(splits))]
    for number, name in enumerate(ids):
        os.link(folder / f"original-{number % 10}.jpg", folder / name)
    names = tuple(f"class {number}" for number in range(classes))
    columns = {name: targets[:, column] for column, name in enumerate(names)}
    table = pyarrow.table({"image": ids, "split": splits.tolist(), **columns})
    pyarrow.parquet.write_table(table, folder / "labels.parquet")
    images = [folder / name for name in ids]
    return MultiLabelDataset(images, targets, names, splits, tuple(ids), name="made up")


def write_trainings(run: RunFolder, config: Config, names: list[str]) -> None:
    """A log for each training, and untrained networks for baseline and student."""
    factory = make_factory(config.model)
    classes = tuple(json.loads((run.path / "data.json").read_text())["class_names"])
    for name in names:
        lines = [
            json.dumps(
                {"epoch": epoch, "loss": 10 / epoch, "lr": 1e-3, "seconds": 1.0, "val_mAP": 1.0 * epoch}
            )
            for epoch in range(1, EPOCHS + 1)
        ]
        atomic_write(run.path / name / "log.jsonl", "\n".join(lines) + "\n")
        if name in ("baseline", "student"):
            checkpoint = Checkpoint(
                name=name,
                class_names=classes,
                architecture=describe_architecture(factory),
                preprocessing=factory.preprocessing,
                threshold=config.threshold,
                metrics={},
                config=config.to_values(),
            )
            save_checkpoint(run.path / name, factory.build(classes), checkpoint)


def measure(run: RunFolder, config: Config, dataset: MultiLabelDataset) -> None:
    """Made-up logits of all models on val and test, and their metrics and leaning."""
    names = dataset.class_names
    pairs = strongest_pairs(training_graph(dataset))
    weights = [training.weights_sha256 for training in run.trainings()]
    key = measurement_key(weights, None, FINGERPRINT, config.threshold)
    writer = LogitsWriter(run.path, key, dataset)
    metrics: dict[str, dict[str, object]] = {}
    leaning: dict[str, dict[str, object]] = {}
    for split in ("val", "test"):
        targets = torch.from_numpy(dataset.targets[dataset.indices(split)])
        for model in measured_models(config):
            logits = torch.from_numpy(make_logits(targets.numpy(), SHARPNESS[model]))
            writer.put(split, model, logits, targets)
            scores = to_scores(logits)
            metrics.setdefault(split, {})[model] = multilabel_metrics(scores, targets, class_names=names)
            rates = companion_rates(scores.numpy(), targets.numpy(), pairs)
            leaning.setdefault(split, {})[model] = leaning_summary(rates)
    writer.finish()
    content = {"schema_version": 1, "key": key, "class_names": names, "threshold": config.threshold}
    atomic_write(run.path / METRICS_FILE, json.dumps(content | {"splits": metrics}))
    asked = {"pairs": describe_pairs(pairs, names), "splits": leaning}
    atomic_write(run.path / LEANING_FILE, json.dumps(content | asked))


def make_logits(targets: npt.NDArray[np.int8], sharpness: float) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(round(100 * sharpness))
    noise = rng.standard_normal(targets.shape, np.float32)
    return noise + np.float32(sharpness) * targets - np.float32(1)


if __name__ == "__main__":
    sys.exit(main())
