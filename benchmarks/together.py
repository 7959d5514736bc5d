"""All teachers of K = 5 on one device: one after the other, and from one stream of batches.

    python -m benchmarks.together [--model squeezenet] [--size 96] [--images 2048] [KEY=VALUE ...]

The ten teachers train for one epoch on pictures and labels drawn at random, with the default augmentation
(Cutout and RandAugment) and with resized images in memory, as in every training after its first epoch.

- "one after the other": each training decodes and augments for itself, all threads for one, as the published
  procedure does on one device. It is written here for the purpose, over the same trainer.
- "together": a group of trainings in one process, each batch decoded and augmented once for all of them.
- "together, in processes": as many groups as there are cores, on one thread each (`jobs`), and on a GPU two.

Exit status 1 where the best of the last two is not 1.5 times as fast as the first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.pictures import random_dataset
from coterie.config import Config, load_config
from coterie.data.loading import ResizedImages
from coterie.models.factory import make_factory
from coterie.pipeline import planned_trainings
from coterie.preparation import make_partitions, prepare_data
from coterie.progress import Bars
from coterie.sidebyside import prepare_processes, train_side_by_side
from coterie.training import Job, Workshop, grouped

K, LEAST = 5, 1.5


class Bench:
    """Ten teachers to train, in ways to be compared."""

    def __init__(self, words: list[str], images: int) -> None:
        self.config = load_config(words)
        self.factory = make_factory(self.config.model)
        self.dataset = random_dataset(images, self.factory.preprocessing.image_size, validation=True)

    def seconds(self, together: int, jobs: int) -> float:
        """How long all teachers take, from the first batch to the last checkpoint."""
        config = self.config.model_copy(update={"together": together, "jobs": jobs})
        dataset = prepare_data(config, self.dataset)
        trainings = planned_trainings(dataset.class_names, make_partitions(config, dataset))
        teachers = [training for training in trainings if training.branch]
        images = ResizedImages(dataset, self.factory.preprocessing, memory_gb=8, shared=jobs > 1)
        for index in range(len(dataset)):
            images[index]  # decoded before the clock runs
        bars = Bars(Console(quiet=True))
        with tempfile.TemporaryDirectory() as folder:
            workshop = Workshop(config, Path(folder), dataset, self.factory, images, "benchmark")
            groups = grouped([Job(each, config.teacher, "benchmark") for each in teachers], together, jobs)
            start = time.perf_counter()
            if jobs > 1:
                done = list(train_side_by_side(workshop, groups, (), jobs, bars))
            else:
                done = [each for group in groups for each in workshop.train(group, bars)]
            taken = time.perf_counter() - start
        failures = [result for result in done if isinstance(result, tuple)]
        assert len(done) == 2 * K, done
        assert not failures, failures
        return taken


def ways(config: Config) -> dict[str, tuple[int, int]]:
    """Names, and (together, jobs) of each."""
    processes = 2 if torch.cuda.is_available() and config.device != "cpu" else torch.get_num_threads()
    return {
        "one after the other": (1, 1),
        "together": (2 * K, 1),
        f"together, in {processes} processes": (2 * K, processes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="squeezenet")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures (default %(default)s)")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2, help="best of so many (default %(default)s)")
    arguments, words = parser.parse_known_args()
    words = [
        f"model={arguments.model}",
        f"model.image_size={arguments.size}",
        f"k={K}",
        "train.epochs=1",
        *words,
    ]
    bench = Bench(words, arguments.images)
    prepare_processes(bench.factory)
    taken: dict[str, list[float]] = {}
    chosen = ways(bench.config)
    for _ in range(arguments.rounds):  # taken in turn, so that what else runs here is fair to all
        for name, (together, jobs) in chosen.items():
            taken.setdefault(name, []).append(bench.seconds(together, jobs))
    best = {name: min(seconds) for name, seconds in taken.items()}
    first = best["one after the other"]
    for name, seconds in best.items():
        print(f"{name:<28} {seconds:7.1f} s   {first / seconds:.2f} x")
    ratio = first / min(best.values())
    print(f"ten teachers: {ratio:.2f} times as fast as one after the other (at least {LEAST} wanted)")
    return 0 if ratio >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
