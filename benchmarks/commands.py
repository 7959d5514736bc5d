"""Time of the commands that use a finished run: `python -m benchmarks.commands RUN [--photos FOLDER]`.

Runs `coterie report`, `coterie predict` on 1,000 photographs, `coterie explain` on 20 and `coterie export` to
ONNX as programs, start of Python included, with the student of RUN (`explain`: all its models). Photographs
are those of `--photos`, by default of Corel5k below COTERIE_DATA. Writes nothing into the run. Exit status 1
where a command fails or takes more than a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coterie.sources import find_pictures

MOST_SECONDS = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("COTERIE_DATA")
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--photos", type=Path, default=Path(data) / "corel5k" if data else None)
    parser.add_argument("--images", type=int, default=1_000, help="to predict (default %(default)s)")
    parser.add_argument("--explained", type=int, default=20, help="to explain (default %(default)s)")
    options = parser.parse_args()
    if options.photos is None:
        parser.error("name a folder of photographs with --photos")
    photos = [str(source) for source in islice(find_pictures([options.photos]), options.images)]
    if len(photos) < max(options.images, options.explained):
        parser.error(f"{options.photos} holds {len(photos)} photographs, fewer than were asked for")
    with tempfile.TemporaryDirectory() as folder:
        try:
            seconds = timed_commands(options.run, photos, options.explained, Path(folder))
        except subprocess.CalledProcessError as error:  # it has said why
            print(f"coterie {error.cmd[3]} ended with status {error.returncode}", file=sys.stderr)
            return 1
    show(seconds)
    return int(max(seconds.values()) > MOST_SECONDS)


def timed_commands(run: Path, photos: list[str], explained: int, out: Path) -> dict[str, float]:
    """The seconds of each command, by what it does. CalledProcessError where one fails."""
    commands: dict[str, tuple[list[str], str]] = {
        "report": (["report", str(run), "--out", str(out / "report.html")], ""),
        f"predict, {len(photos):,} photographs": (
            ["predict", str(run), "-", "--out", str(out / "labels.csv")],
            "\n".join(photos),
        ),
        f"explain, {explained} photographs": (
            ["explain", str(run), *photos[:explained], "--out", str(out / "maps")],
            "",
        ),
        "export --format onnx": (["export", str(run), "--out", str(out / "student.onnx")], ""),
    }
    seconds = {}
    for name, (words, given) in commands.items():
        start = time.monotonic()
        command = [sys.executable, "-m", "coterie", *words]
        subprocess.run(command, input=given, text=True, check=True, stdout=subprocess.DEVNULL)
        seconds[name] = time.monotonic() - start
    return seconds


def show(seconds: dict[str, float]) -> None:
    """Print a row for each command."""
    table = Table("command", "seconds", "limit")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", f"{MOST_SECONDS:.0f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
