"""What a second process adds to one training: both with one thread, and the batch the same in all.

    python -m benchmarks.data_parallel [--model resnet18] [--size 128] [--batch 32] [--steps 4] [--rounds 3]

Three ways take turns in one run, on random pictures in memory: one process with the whole batch; two that
share it; and two at once that know nothing of each other, each with half a batch. The last is what the second
core of the machine, its caches and its memory allow: no way to share a training can be faster. Prints images
a second, the best of ROUNDS, and the CPU time of an image, the least: other programs change it little.

Exit status 1 where two processes are neither 1.7 times as fast as one, nor 0.9 of what the machine allows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from benchmarks.pictures import CLASS_NAMES, random_dataset
from coterie.config import TrainConfig, load_config
from coterie.data.loading import EpochSampler, ImageBatches, ResizedImages, Views, plain_batches
from coterie.lockstep import train
from coterie.models.factory import make_factory
from coterie.ranks import ALONE, Meeting, Ranks, joined, ranks_in
from coterie.tasks import ClassificationTask, classification_loss
from coterie.trainer import Data, Trainer, make_fabric

LEAST, LEAST_OF_THE_MACHINE = 1.7, 0.9
SIZE = 2
tell = partial(print, flush=True)


@dataclass(frozen=True)
class Subject:
    """A model and its batches."""

    model: str
    size: int
    batch: int
    steps: int

    def speed(self, ranks: Ranks, batch: int) -> tuple[float, float]:
        """Images a second of a training of `ranks`, in its second epoch; the CPU seconds of this process for
        all of it.
        """
        config = load_config([f"model={self.model}", f"model.image_size={self.size}", "device=cpu"])
        factory = make_factory(config.model)
        dataset = random_dataset(self.steps * batch, self.size)
        images = ResizedImages(dataset, factory.preprocessing, memory_gb=8)
        everything = dataset.indices("train")
        training = ImageBatches(Views(images), EpochSampler(everything, batch, shuffle=True, ranks=ranks))
        validation = plain_batches(images, everything[:SIZE], SIZE, ranks=ranks)
        settings = TrainConfig(epochs=2, batch_size=batch)
        task = ClassificationTask(
            factory.build(CLASS_NAMES), list(range(len(CLASS_NAMES))), classification_loss(settings)
        )
        with tempfile.TemporaryDirectory() as folder:
            data = Data(training, validation, images.preprocessing, dataset.image_ids)
            fabric = make_fabric(config, ranks=ranks)
            trainer = Trainer(task, data, settings, fabric, Path(folder), key="", seed=0)
            begun = time.process_time()
            state = train(trainer)
        return float(state.history[-1]["images_per_second"]), time.process_time() - begun


@dataclass
class Speeds:
    """[images a second, CPU seconds an image] of each way in each round."""

    one: list[list[float]] = field(default_factory=list)
    two: list[list[float]] = field(default_factory=list)
    apart: list[list[float]] = field(default_factory=list)


def best(rounds: list[list[float]]) -> tuple[float, float]:
    """The most images a second, the least CPU seconds an image."""
    speeds, costs = zip(*rounds, strict=True)
    return max(speeds), min(costs)


def in_all(value: float) -> float:
    """The sum over both processes."""
    values = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(values)
    return float(values)


def be_one(environment: dict[str, str], subject: Subject, rounds: int, results: str) -> None:
    """One of both processes; the first has the speeds of all three ways in a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    ranks = ranks_in(os.environ)
    speeds = Speeds()
    with joined(ranks, on_gpu=False):
        for _ in range(rounds):
            images = 2 * subject.steps * subject.batch
            if ranks.is_first:
                speed, seconds = subject.speed(ALONE, subject.batch)
                speeds.one.append([speed, seconds / images])
            distributed.barrier()
            speed, seconds = subject.speed(ranks, subject.batch)
            speeds.two.append([speed, in_all(seconds) / images])
            distributed.barrier()
            speed, seconds = subject.speed(ALONE, subject.batch // SIZE)
            speeds.apart.append([in_all(speed), in_all(seconds) / images])
    if ranks.is_first:
        torch.save(vars(speeds), results)


def measured(subject: Subject, rounds: int) -> Speeds:
    """The speeds of all three ways; SystemExit where a process fails."""
    meeting = Meeting(SIZE)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = f"{folder}/speeds.pt"
        processes = [
            context.Process(target=be_one, args=(meeting.environment(rank, rank), subject, rounds, results))
            for rank in range(SIZE)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit("a process failed")
        return Speeds(**torch.load(results))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    for name, default in (("size", 128), ("batch", 32), ("steps", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    subject = Subject(options.model, options.size, options.batch, options.steps)
    speeds = measured(subject, options.rounds)
    (one, cost), (two, cost_of_two), (apart, cost_apart) = map(best, (speeds.one, speeds.two, speeds.apart))
    tell(f"{subject.model}, {subject.size} px, a batch of {subject.batch}, one thread a process")
    tell("                                     images/s   of one   CPU ms an image")
    tell(f"  one process                        {one:8.1f}   {1:6.2f}   {1000 * cost:8.1f}")
    tell(f"  two that share the batch           {two:8.1f}   {two / one:6.2f}   {1000 * cost_of_two:8.1f}")
    tell(f"  two that know nothing of the other {apart:8.1f}   {apart / one:6.2f}   {1000 * cost_apart:8.1f}")
    tell(f"  sharing reaches {two / apart:.2f} of what the machine allows")
    return 0 if two >= LEAST * one or two >= LEAST_OF_THE_MACHINE * apart else 1


if __name__ == "__main__":
    sys.exit(main())
