"""What the demo's student gains over its baseline, and whether that baseline was trained enough.

    python -m benchmarks.demo [--seeds 0 1 2] [--out runs/benchmark-demo] [KEY=VALUE ...]

For each seed: the demo as `make demo` runs it, then its baseline alone with twice the epochs. Prints test
mAP, writes all numbers to OUT/results.json, and exits with status 1 where the mean gain is under 2 mAP,
doubling the baseline's epochs gains 0.5 or more, or a run takes over 4 minutes. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from coterie.config import load_config
from coterie.pipeline import run

LEAST_GAIN, MOST_FROM_DOUBLING, MOST_MINUTES = 2.0, 0.5, 4.0
SHOWN = ("baseline", "CGP teachers", "DGP teachers", "all teachers", "student")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-demo"))
    arguments, words = parser.parse_known_args()
    rows = [measure(seed, arguments.out, words) for seed in arguments.seeds]
    gains = [row["student"] - row["baseline"] for row in rows]
    doubling = [row["baseline, epochs doubled"] - row["baseline"] for row in rows]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=1))
    Console().print(as_table(rows, gains, doubling))
    slowest = max(row["minutes"] for row in rows)
    print(
        f"student - baseline: {mean(gains):+.2f} test mAP; "
        f"doubling the baseline's epochs: {mean(doubling):+.2f}; slowest run {slowest:.1f} minutes"
    )
    reached = mean(gains) >= LEAST_GAIN and mean(doubling) < MOST_FROM_DOUBLING and slowest <= MOST_MINUTES
    sys.exit(0 if reached else 1)


def measure(seed: int, out: Path, words: list[str]) -> dict[str, float]:
    """Test mAP of every model of the demo at one seed, and of its baseline with twice the epochs."""
    config = load_config([*words, f"seed={seed}", f"out={out / f'seed-{seed}'}"], recipe="demo")
    start = time.monotonic()
    finished = run(config, console=Console())
    minutes = (time.monotonic() - start) / 60
    doubled = load_config(
        [
            *words,
            f"seed={seed}",
            f"out={out / f'seed-{seed}-doubled'}",
            f"baseline.epochs={2 * config.baseline.epochs}",
        ],
        recipe="demo",
    )
    alone = run(doubled, only=("baseline",), console=Console())
    row = {name: finished.metrics["test"][name]["mAP"] for name in SHOWN}
    row |= {f"{name}, shifted": finished.metrics["test_shifted"][name]["mAP"] for name in SHOWN}
    return row | {
        "seed": seed,
        "minutes": minutes,
        "baseline, epochs doubled": alone.metrics["test"]["baseline"]["mAP"],
    }


def as_table(rows: list[dict[str, float]], gains: list[float], doubling: list[float]) -> Table:
    """A row for each model, a column for each seed, then mean and standard deviation."""
    table = Table("test mAP", *(f"seed {row['seed']}" for row in rows), "mean", "sd")
    lines = {
        name: [row[name] for row in rows] for name in ("baseline", "baseline, epochs doubled", *SHOWN[1:])
    }
    lines |= {"student - baseline": gains, "doubling - baseline": doubling}
    lines |= {
        f"{name}, shifted": [row[f"{name}, shifted"] for row in rows] for name in ("baseline", "student")
    }
    for name, values in lines.items():
        spread = f"{stdev(values):.2f}" if len(values) > 1 else "-"
        table.add_row(name, *(f"{value:.2f}" for value in values), f"{mean(values):.2f}", spread)
    return table


if __name__ == "__main__":
    main()
