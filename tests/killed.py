"""The command line as a process of its own, killed in the midst of its work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

LIMIT = 120  # seconds for a process to come to where it is killed


def killed_at(path: Path, *words: str) -> None:
    """Run `coterie` with these words, on as many threads as we have, and kill it when `path` is there."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", "coterie", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT
    try:
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
