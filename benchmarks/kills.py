"""A hundred kills: whether a run that is killed at random moments ends as one that never was.

    python -m benchmarks.kills [--kills 100] [--seed 0]

A small run on the built-in scenes is started in a process of its own, killed with SIGKILL after a random
time, and started again, until it ends by itself; then the next one begins, until there were so many kills.
Runs take their trainings in turn one by one, in lockstep, side by side, and with the teachers' logits on the
disk. States are kept in every step, so that nearly every kill hits a training or a write.

- After every kill, each file that a reader would find must be whole: JSON, weights and arrays by their hash,
  states by theirs. No restart may say that something is damaged.
- After every run, the weights of all its trainings must have the hashes of an undisturbed run, and the
  metrics must be the same.

Exit status 1 on any difference. Python itself may print that a message to a process was cut short: the one
that sent it was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from coterie.array_store import HEADER_BYTES
from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE
from coterie.config import load_config
from coterie.files import file_sha256
from coterie.pipeline import run
from coterie.runfolder import METRICS_FILE
from coterie.states import PATTERN, read_state
from coterie.trainer import Trainer

WORDS = (
    *("data=scenes", "data.scenes.train=64", "data.scenes.val=24", "data.scenes.test=24"),
    *("data.scenes.test_shifted=24", "data.scenes.size=32", "model=benchmarks.kills:Net"),
    *("model.image_size=32", "device=cpu", "k=2", "train.epochs=3", "train.batch_size=16", "train.lr=0.01"),
    "resume.steps=1",
)
LONGEST_AFTER = 120  # seconds that what a killed process had started may go on
WAYS = {
    "one by one": (),
    "in lockstep": ("together=5",),
    "side by side": ("jobs=2", "together=2"),
    "logits on the disk": ("together=3", "student.views=2"),
}


class Net(nn.Module):
    """A convolution with batch norm and dropout, and a linear head: images [B, 3, H, W] -> logits [B, C]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.convolution(images)).relu().mean(dim=(2, 3))
        logits: Tensor = self.head(self.drop(features))
        return logits


class Runs:
    """Runs in processes that can be killed, each in a folder under `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._context = multiprocessing.get_context("forkserver")
        # loaded once, so that a process is there in an instant
        self._context.set_forkserver_preload(["coterie.pipeline"])

    def start(
        self,
        folder: str,
        words: Sequence[str],
        seconds: float | None = None,
        at_step: int | None = None,
        at_write: int | None = None,
    ) -> bool:
        """Start the run, or go on with it; whether it came to its end. It is killed after some seconds, by
        itself at a step of a training, or in the middle of a write; RuntimeError where it fails.
        """
        out, log = self.place / folder, self.place / f"{folder}.txt"
        process = self._context.Process(
            target=_run, args=([*WORDS, *words, f"out={out}"], log, at_step, at_write)
        )
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        _wait_for_group(process.pid or 0)
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"run {out} failed with status {process.exitcode}:\n{log.read_text()}")
        return process.exitcode == 0

    def result(self, folder: str) -> dict[str, Any]:
        """The hash of each training's weights, and the metrics."""
        out = self.place / folder
        weights = {str(path.relative_to(out)): file_sha256(path) for path in sorted(out.rglob(WEIGHTS_FILE))}
        return weights | {"metrics": json.loads((out / METRICS_FILE).read_text())["splits"]}

    def half_written(self, folder: str) -> list[str]:
        """What in the folder of a run is not whole, or was found to be damaged by the run itself."""
        out = self.place / folder
        wrong = [str(path.relative_to(self.place)) for path in _visible(out) if not _is_whole(path)]
        log = self.place / f"{folder}.txt"
        said = log.read_text().splitlines() if log.exists() else []
        return wrong + [line for line in said if "damaged" in line]


def _wait_for_group(group: int) -> None:
    """Wait for what a killed process had started. It ends by itself, but a hundred at once would fill the
    memory; RuntimeError where it does not end.
    """
    last = time.monotonic() + LONGEST_AFTER
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < last:
            os.killpg(group, 0)
            time.sleep(0.02)
        raise RuntimeError(f"what the killed process {group} had started goes on after {LONGEST_AFTER} s")


def _run(words: Sequence[str], log: Path, at_step: int | None, at_write: int | None) -> None:
    """The run of `words` in this process, which kills itself where it is told to."""
    os.setpgid(0, 0)  # what it starts is of its group
    torch.set_num_threads(1)
    if at_step is not None:
        Trainer.step = _fatal(Trainer.step, at_step)  # type: ignore[method-assign]
    if at_write is not None:
        os.fsync = _fatal(os.fsync, at_write)
    with log.open("a") as file:
        run(load_config(words), console=Console(file=file, width=200))


def _fatal(function: Any, at_call: int) -> Any:
    """The function, but the process is killed when it is called for the `at_call`th time."""
    calls = itertools.count(1)

    def counted(*arguments: Any) -> Any:
        if next(calls) == at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return counted


def _visible(folder: Path) -> Iterator[Path]:
    """The files that a reader would take for whole."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and "tensorboard" not in path.parts:
            yield path


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            weights = path.with_name(WEIGHTS_FILE)
            return path.name != INFO_FILE or content["weights_sha256"] == file_sha256(weights)
        if path.suffix == ".jsonl":
            return all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
        if path.match(PATTERN):
            return read_state(path) is not None
        if path.suffix == ".bin":
            content = path.read_bytes()
            header = json.loads(content[:HEADER_BYTES])
            return bool(header["sha256"] == hashlib.sha256(content[HEADER_BYTES:]).hexdigest())
    except FileNotFoundError:  # a process that outlives its parent by an instant may still remove some
        return not path.exists()
    except (ValueError, KeyError):
        return False
    return path.stat().st_size > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    begun, kills, wrong = time.monotonic(), 0, []
    with tempfile.TemporaryDirectory() as place:
        runs = Runs(Path(place))
        expected, seconds = {}, {}
        for way, words in WAYS.items():
            runs.start(f"undisturbed {way}", words)  # the first loads what the others find
            start = time.monotonic()
            runs.start(f"timed {way}", words)
            seconds[way] = time.monotonic() - start
            expected[way] = runs.result(f"undisturbed {way}")
            if expected[way] != runs.result(f"timed {way}"):
                wrong.append(f"two undisturbed runs {way} differ")
        for number, way in enumerate(itertools.cycle(WAYS)):
            folder, own = f"run {number}", 0
            # longer each time: on a machine that has become slow, no start would get anywhere
            while not runs.start(folder, WAYS[way], moments.uniform(0, seconds[way] * 1.1**own)):
                own += 1
                wrong += runs.half_written(folder)
            kills += own
            if own == 0:  # or faster
                seconds[way] *= 0.8
            wrong += runs.half_written(folder)
            result = runs.result(folder)
            wrong += [
                f"{folder} ({way}): {key}" for key in expected[way] if result.get(key) != expected[way][key]
            ]
            print(f"{folder} ({way}): {own} kills, {kills} in all; {len(wrong)} wrong", flush=True)
            if kills >= arguments.kills:
                break
    trainings = len(expected["one by one"]) - 1
    print(
        f"{kills} kills over {number + 1} runs of {trainings} trainings in {time.monotonic() - begun:.0f} s: "
        + (f"{len(wrong)} differences" if wrong else "every run ended in the same weights and metrics")
    )
    for difference in wrong:
        print(difference)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
