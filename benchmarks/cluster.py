"""A run on a Ray cluster that loses two of its nodes, against the same run undisturbed.

    python -m benchmarks.cluster [--processes 1] [--folder FOLDER] [KEY=VALUE ...]

A cluster of a head without CPUs and two nodes of one CPU each is started on this machine, each with
processes and resources of its own, all bound to 127.0.0.1. A baseline, a teacher and a student are trained on
it. The node of the teacher is killed (SIGKILL) in the middle of its second epoch, and so is that of the
student; for each that is killed a new one joins. The undisturbed run trains in this process (engine=local).

With `--processes 2` each training is done by two processes, one on each node, and the loss of one ends both.

By default the nodes share the run folder. With storage=URL each has a folder of its own, and they share only
what is at that URL.

Exit status 1 where the run does not end, or one hash of its weights is not that of the undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from coterie.config import load_config
from coterie.pipeline import run
from coterie.ray_engine import stay_on_this_machine
from coterie.runfolder import RunFolder

HERE = "127.0.0.1"
VICTIMS = ("teachers/co-occurrence-0", "student")
# 96 images in batches of 16: six steps make an epoch
WORDS = (
    *("data=scenes", "data.scenes.train=96", "data.scenes.val=32", "data.scenes.test=16"),
    *("data.scenes.test_shifted=16", "data.scenes.size=32", "model.image_size=32", "k=1", "device=cpu"),
    # a machine that is busy may take a node for dead
    *("train.epochs=4", "train.batch_size=16", "retries=5"),
)
STOP_AT = 9
# Half a minute does; what takes so long hangs.
LIMIT = 600.0
MEMORY = 150 * 2**20


class Interrupted(nn.Module):
    """A small network that, where it has a folder of `marks`, leaves one in the `STOP_AT`th step of a victim,
    with the id of the node, and waits there to be killed. A victim that has left its mark before goes on.
    """

    def __init__(self, num_classes: int, marks: Path | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, num_classes)),
        )
        self.marks = marks
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self.marks is not None:
            self.steps += 1
            # a training on Ray is in a thread of its name
            if self.steps == STOP_AT and threading.current_thread().name in VICTIMS:
                self._wait_once(mark_of(self.marks, threading.current_thread().name))
        logits: Tensor = self.layers(images)
        return logits

    def _wait_once(self, mark: Path) -> None:
        import ray

        if not mark.exists():
            unfinished = mark.with_suffix(".tmp")
            unfinished.write_text(ray.get_runtime_context().get_node_id())
            unfinished.rename(mark)
            threading.Event().wait()


def mark_of(marks: Path, name: str) -> Path:
    return marks / name.replace("/", "-")


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of a head and two nodes of one CPU each, gone for certain afterwards."""
    stay_on_this_machine()
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(
            num_cpus=0, node_ip_address=HERE, include_dashboard=False, object_store_memory=MEMORY
        )
        for _ in range(2):
            add_node(cluster, wait=True)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any, wait: bool) -> None:
    cluster.add_node(wait, num_cpus=1, node_ip_address=HERE, object_store_memory=MEMORY)


def kill_nodes(cluster: Any, marks: Path, running: Future[object]) -> None:
    """Kill the node of each victim when it has left its mark, and let a new one join, as long as it runs."""
    end = time.monotonic() + LIMIT
    for name in VICTIMS:
        while not (mark := mark_of(marks, name)).exists():
            if wait([running], timeout=0.05).done:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"{name} has not come to its step {STOP_AT} in {LIMIT} seconds")
        (victim,) = [node for node in cluster.worker_nodes if node.node_id == mark.read_text()]
        cluster.remove_node(victim, allow_graceful=False)
        add_node(cluster, wait=False)


def hashes(folder: Path) -> dict[str, str]:
    """The hash of the weights of each training of a run."""
    return {training.name: training.weights_sha256 for training in RunFolder(folder).trainings()}


def undisturbed(folder: Path, *words: str) -> dict[str, str]:
    """The hashes of the run on this machine."""
    with one_thread():
        run(load_config([*WORDS, f"out={folder}", *words]), builder=Interrupted)
    return hashes(folder)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute as a node of one CPU does: sums over more threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def disturbed(cluster: Any, folder: Path, *words: str) -> tuple[dict[str, str], str]:
    """The hashes of the run on a `cluster` that loses two nodes, and what it printed."""
    marks = folder.with_name(f"{folder.name}-marks")
    marks.mkdir(parents=True)
    console = Console(file=io.StringIO(), width=200)
    builder = partial(Interrupted, marks=marks)
    config = load_config([*WORDS, "engine=ray", f"ray.address={cluster.address}", f"out={folder}", *words])
    running: Future[object] = Future()

    def drive() -> None:
        try:
            running.set_result(run(config, builder=builder, console=console))
        except BaseException as error:
            running.set_exception(error)

    # Ray wants its nodes to be added by the main thread
    threading.Thread(target=drive, daemon=True).start()
    kill_nodes(cluster, marks, running)
    running.result(LIMIT)
    assert isinstance(console.file, io.StringIO)
    return hashes(folder), console.file.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=1, help="of each training (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="for both runs; by default one that is removed again")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="further settings of the disturbed run")
    arguments = parser.parse_args()
    folder = arguments.folder
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        width = f"processes={arguments.processes}"
        expected = undisturbed(Path(place) / "undisturbed", width)
        with two_nodes() as cluster:
            found, printed = disturbed(cluster, Path(place) / "disturbed", width, *arguments.words)
    print(printed)
    lost = [name for name in VICTIMS if f"{name}: its process or its node died" in printed]
    for name, sha256 in expected.items():
        print(f"{name:<26} {sha256[:16]}  {'the same' if found[name] == sha256 else found[name][:16]}")
    print(f"killed in the middle: {', '.join(lost) or 'none'}")
    return 0 if found == expected and lost == list(VICTIMS) else 1


if __name__ == "__main__":
    sys.exit(main())
