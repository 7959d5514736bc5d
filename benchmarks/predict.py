"""What prediction costs beside the model: its throughput against a bare loop over the same decoded batches.

python -m benchmarks.predict [--images N] [--photos FOLDER] [--model NAME] [--size PIXELS] [--device NAME]

On generated photographs (JPEG, 640 x 480) and, where `--photos` or COTERIE_DATA has them, on those of
Corel5k. The bare loop has its batches in memory as float32 already, and gives scores. Exits with 1 where
prediction has less than 0.9 of its throughput. Other work on the machine
shows in it, and hardly in the ratio by processor time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.pictures import CLASS_NAMES, write_photographs
from coterie.checkpoint import Checkpoint
from coterie.config import ModelConfig
from coterie.models.factory import ModelFactory
from coterie.predictions import Selection, Tally, predict_rows
from coterie.predictor import DECODING_THREADS, Predictor
from coterie.sources import find_pictures

LEAST = 0.9
BATCH = 32
ROUNDS = 5


@dataclass
class Speeds:
    """Images in a second: of the clock, and of the time of all processors."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def timed(images: int) -> Iterator[Speeds]:
    """The speeds are there when the block is done."""
    speeds = Speeds()
    wall, cpu = time.perf_counter(), time.process_time()
    yield speeds
    speeds.wall = images / (time.perf_counter() - wall)
    speeds.cpu = images / (time.process_time() - cpu)


def make_predictor(name: str, size: int, device: str) -> Predictor:
    """A classifier with random weights: they do not change what it costs."""
    factory = ModelFactory(ModelConfig(name=name, image_size=size))
    names = CLASS_NAMES
    checkpoint = Checkpoint("student", names, {}, factory.preprocessing, 0.5, {}, {})
    return Predictor(factory.build(names, seed=0), checkpoint, device)


@torch.no_grad()
def bare_speeds(predictor: Predictor, paths: list[Path]) -> Speeds:
    """Of the model alone, over batches that are decoded and normalised before."""
    pixels = [predictor._pixels(path) for path in paths]
    normalize = predictor.checkpoint.preprocessing.normalize
    batches = [
        normalize(torch.stack(pixels[start : start + BATCH]).to(predictor.device))
        for start in range(0, len(pixels), BATCH)
    ]
    predictor.model(batches[0])
    with timed(len(paths)) as speeds:
        for batch in batches:
            predictor.model(batch).float().sigmoid().cpu().numpy()
    return speeds


def predicting_speeds(predictor: Predictor, paths: list[Path]) -> Speeds:
    """From files to rows."""
    with timed(len(paths)) as speeds:
        rows = sum(1 for _ in predict_rows(predictor, paths, Selection(top=5), Tally()))
    assert rows == len(paths)
    return speeds


def decoding_speeds(predictor: Predictor, paths: list[Path]) -> Speeds:
    """Of one thread that decodes and resizes."""
    with timed(len(paths)) as speeds:
        for path in paths:
            predictor._pixels(path)
    return speeds


def measure(title: str, predictor: Predictor, paths: list[Path]) -> float:
    """Print the best speeds of several turns, in which bare loop and prediction alternate; their ratio."""
    predicting_speeds(predictor, paths[: 2 * BATCH])
    turns = [(bare_speeds(predictor, paths), predicting_speeds(predictor, paths)) for _ in range(ROUNDS)]
    bare, predicting = (
        Speeds(max(one.wall for one in kind), max(one.cpu for one in kind))
        for kind in zip(*turns, strict=True)
    )
    ratio = predicting.wall / bare.wall
    print(
        f"{title}: {len(paths):,} images, bare {bare.wall:.1f}/s, prediction {predicting.wall:.1f}/s, ratio "
        f"{ratio:.3f} (by processor time {predicting.cpu / bare.cpu:.3f}); one thread decodes "
        f"{decoding_speeds(predictor, paths).wall:.0f}/s",
        flush=True,
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = os.environ.get("COTERIE_DATA")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--photos", type=Path, default=Path(data) / "corel5k" / "images" if data else None)
    parser.add_argument("--model", default="squeezenet1_1")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    predictor = make_predictor(options.model, options.size, options.device)
    print(
        f"{options.model} at {options.size} pixels on {predictor.device}: {torch.get_num_threads()} threads "
        f"compute, {DECODING_THREADS} decode, {os.cpu_count()} processors"
    )
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), options.images)
        paths = [Path(str(source)) for source in find_pictures([folder])]
        ratios.append(measure("generated", predictor, paths))
    if options.photos is not None and options.photos.is_dir():
        paths = [Path(str(source)) for source in find_pictures([options.photos])][: options.images]
        ratios.append(measure("photographs", predictor, paths))
    if min(ratios) < LEAST:
        sys.exit(f"prediction has {min(ratios):.3f} of the bare loop's throughput, less than {LEAST}")


if __name__ == "__main__":
    main()
