"""What Ray's scheduling adds to a run: the same ten trainings with engine=local and with engine=ray.

    python -m benchmarks.ray_cost [--slots 2] [--seconds 60] [--rounds 3] [KEY=VALUE ...]

Ten teachers train on pictures drawn at random, at most `--slots` at once, on one thread each: as processes
of this machine, and as tasks of a Ray cluster that is started on it for the purpose. The clock runs from the
moment the first is given out until the last is finished, so that the start of processes and the import of
libraries count on both sides. How long the cluster takes to start is said apart. Weights must be the same.

The trainings are shorter than a minute. What Ray adds hardly depends on their length: messages come some
times a second at most, whatever the model. So the seconds that it adds to the run are set against ten
trainings of `--seconds` each. Best of `--rounds`, taken in turn. Where other programs run on the machine,
look at the CPU seconds of this process and of all that it has started, Ray's own among them: they show what
Ray computes, and not what it waits for.

Exit status 1 where Ray adds 5 % or more, or where weights differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from benchmarks.pictures import random_dataset
from benchmarks.together import K
from coterie.config import Config, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages
from coterie.engine import make_engine
from coterie.models.factory import make_factory
from coterie.pipeline import planned_trainings
from coterie.preparation import make_partitions, prepare_data
from coterie.progress import Bars
from coterie.runfolder import Training
from coterie.training import Job, Workshop

MOST_ADDED = 0.05


class Taken(NamedTuple):
    """Seconds until the engine could begin, seconds that ten teachers took, and CPU seconds of both."""

    start: float
    trainings: float
    cpu: float


def measured(config: Config, dataset: MultiLabelDataset) -> tuple[Taken, dict[str, str]]:
    """What ten teachers take with the engine of the config, and the hashes of their weights."""
    factory = make_factory(config.model)
    dataset = prepare_data(config, dataset)
    planned = planned_trainings(dataset.class_names, make_partitions(config, dataset))
    jobs = [Job(training, config.teacher, "key") for training in planned if training.branch]
    images = ResizedImages(dataset, factory.preprocessing, memory_gb=8, shared=True)
    engine = make_engine(config)
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(config, Path(folder), dataset, factory, images, "benchmark")
        before, begun = cpu_seconds(), time.perf_counter()
        engine.prepare(factory)
        with engine:
            ready = time.perf_counter()
            done = list(engine.train(workshop, jobs, (), Bars(Console(quiet=True))))
            over = time.perf_counter()
            cpu = cpu_seconds() - before
    hashes = {each.name: each.weights_sha256 for each in done if isinstance(each, Training)}
    assert len(hashes) == len(jobs) == 2 * K, done
    return Taken(ready - begun, over - ready, cpu), hashes


def cpu_seconds() -> float:
    """CPU time of this process, of those that descend from it, and of those that these have waited for."""
    parents, times = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name of a program may hold anything
        except OSError:  # it has ended
            continue
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        times[process] = sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(times[process] for process in ours) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=2, help="trainings at once (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="of a training to set it against (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    arguments, words = parser.parse_known_args()
    # the threads of this process are shared out among the processes of engine=local
    torch.set_num_threads(arguments.slots)
    words = ["model=resnet10t", "model.image_size=64", f"k={K}", "device=cpu", "train.epochs=2", *words]
    dataset = random_dataset(arguments.images, load_config(words).model.image_size or 64, validation=True)
    engines = {"local": [f"jobs={arguments.slots}"], "ray": [f"ray.cpus={cpus(arguments.slots)}"]}
    taken: dict[str, list[Taken]] = {}
    weights = []
    for number in range(arguments.rounds):
        for name, more in engines.items():
            took, hashes = measured(load_config([*words, f"engine={name}", *more]), dataset)
            print(
                f"round {number + 1}, engine={name:<5}  start {took.start:5.1f} s, "
                f"trainings {took.trainings:6.1f} s, CPU {took.cpu:6.1f} s",
                flush=True,
            )
            taken.setdefault(name, []).append(took)
            weights.append(hashes)
    local, ray = (min(each.trainings for each in taken[name]) for name in engines)
    cpu = [min(each.cpu for each in taken[name]) for name in engines]
    whole = 2 * K * arguments.seconds / arguments.slots
    share = (ray - local) / whole
    print(f"ten trainings, {arguments.slots} at once: local {local:.1f} s, ray {ray:.1f} s")
    print(f"Ray adds {ray - local:.1f} s to the run, {(ray - local) / (2 * K):.2f} s to a training")
    print(f"of trainings of {arguments.seconds:g} s, which take {whole:g} s, it is {100 * share:.1f} %")
    print(
        f"of CPU time Ray adds {cpu[1] - cpu[0]:.1f} s, its start included: "
        f"{100 * (cpu[1] - cpu[0]) / (2 * K * arguments.seconds):.1f} % of that of such trainings"
    )
    same = all(hashes == weights[0] for hashes in weights)
    print(f"the weights are {'the same' if same else 'others'}")
    return 0 if share < MOST_ADDED and same else 1


def cpus(slots: int) -> float:
    """The CPUs that a task asks for, so that a cluster on this machine has room for so many."""
    return (os.cpu_count() or 1) / slots


if __name__ == "__main__":
    sys.exit(main())
