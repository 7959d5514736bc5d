"""Readers against files that are nearly right: `python -m benchmarks.fuzz --minutes 30`.

Every kind of file that Coterie reads is changed at random by Hypothesis, and read in a process of its own,
with at most 1 GiB of memory and 20 seconds of computing a file. Whatever comes must be a result or a
CoterieError with a message. What is found is shrunk and left in build/fuzz, as a case for
`tests/fuzzing/cases`. The exit status is the number of targets with a find.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MALLOC_ARENA_MAX", "1")  # each thread would reserve addresses, which the limit counts
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir()) / "coterie-fuzz-datasets"))

import torch
from tests.fuzzing.fuzzing import fuzz
from tests.fuzzing.targets import TARGETS

from benchmarks.streams import status

MEMORY = 2**30  # bytes that a reader may take
SECONDS = 20  # of computing for one file
PATIENCE = 15  # times as long by the clock: what waits computes nothing, and the machine may be busy
EXAMPLES = 500  # in one process
OUT = Path("build/fuzz")


class Hang(BaseException):
    """A file took too long; no handler of readers takes it for a damaged file."""


def attempt(name: str, number: int, folder: Path, result: Any) -> None:
    """Fuzz one target in this process: sends how many files were tried, what is wrong with the last, and how
    many bytes of memory the process had at most beyond those that it began with.
    """
    logging.disable()
    torch.set_num_threads(1)
    faulthandler.enable()
    tried = 0
    last = folder / "last"

    def on_alarm(_signal: int, _frame: object) -> None:
        raise Hang(f"a file takes longer than {SECONDS} seconds")

    @contextlib.contextmanager
    def watch(path: Path, content: bytes) -> Iterator[None]:
        nonlocal tried
        tried += 1
        last.write_bytes(path.relative_to(files).as_posix().encode() + b"\0" + content)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(SECONDS * PATIENCE)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)

    for one in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(one, on_alarm)
    limit = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    files = folder / "files"
    files.mkdir()
    begun = status("VmRSS")
    problem = ""
    try:
        fuzz(TARGETS[name], files, EXAMPLES, number, watch)
    except BaseException:
        problem = traceback.format_exc()
    result.send((tried, problem, status("VmHWM") - begun))


def fuzz_once(name: str, number: int) -> tuple[int, str, float]:
    """Files tried of a target, where the case of a find was left, with its reason in CASE.txt, and the
    memory that was taken.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=attempt, args=(name, number, folder, sending))
        process.start()
        sending.close()
        try:
            tried, problem, memory = receiving.recv()
        except EOFError:
            process.join()
            tried, problem, memory = 0, f"the process ended by itself ({process.exitcode})", 0.0
        process.join()
        return tried, str(_keep(name, folder, problem)) if problem else "", memory


def _keep(name: str, folder: Path, problem: str) -> Path:
    """The last file that was read and the reason, in a folder of their own."""
    last = folder / "last"
    path, _, content = last.read_bytes().partition(b"\0") if last.exists() else (b"nothing", b"", b"")
    case = OUT / name / hashlib.sha256(content).hexdigest()[:8]
    (case / path.decode()).parent.mkdir(parents=True, exist_ok=True)
    (case / path.decode()).write_bytes(content)
    (OUT / name / f"{case.name}.txt").write_text(problem)
    return case


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    for name in options.targets:  # what is made once is made here, for all processes
        with tempfile.TemporaryDirectory() as scratch:
            TARGETS[name].make(Path(scratch))
    end = time.monotonic() + 60 * options.minutes
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    most = 0.0
    number = options.seed
    while time.monotonic() < end:
        for name in options.targets:
            if time.monotonic() >= end:
                break
            files, case, memory = fuzz_once(name, number)
            tried[name] += files
            most = max(most, memory)
            if case:
                found[name] += 1
                lines = Path(f"{case}.txt").read_text().strip().splitlines()
                reason = next((line for line in reversed(lines) if re.match(r"[\w.]+: ", line)), lines[-1])
                print(f"{name}: {reason[:150]} ({case})", flush=True)
        number += 1
    for name in options.targets:
        print(f"{name:18}{tried[name]:10,} files{found[name]:6} finds")
    print(
        f"{sum(tried.values()):,} files in {options.minutes:g} minutes, {sum(found.values())} finds, at most "
        f"{most / 2**20:,.0f} MiB; seeds {options.seed} to {number - 1}"
    )
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
