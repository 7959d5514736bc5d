"""What the demo's student gains over its baseline, and whether that baseline was trained enough.

    python -m benchmarks.demo [KEY=VALUE ...] [--seeds 0 1 2] [--out runs/benchmark-demo]

For each seed: the demo as `make demo` runs it, then its baseline alone with twice the epochs. Prints test
mAP, and writes all numbers to OUT/demo.json, of which `python -m benchmarks.page OUT` makes the tables of the
README. Exits with status 1 where the mean gain is under 2 mAP, doubling the baseline's epochs gains 0.5 or
more, or a run takes over 4 minutes or has no time, since it was stopped on its way; with 2 where OUT holds
the demo with other settings, or as measured on another machine. What is done is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.environment import environment
from benchmarks.markdown import table
from coterie.config import load_config
from coterie.files import atomic_write
from coterie.pipeline import run
from coterie.runfolder import relevant_settings

NAME = "demo"
LEAST_GAIN, MOST_FROM_DOUBLING, MOST_MINUTES = 2.0, 0.5, 4.0
MODELS = ("baseline", "CGP teachers", "DGP teachers", "all teachers", "student")
MEASURES = ("mAP", "CF1", "OF1")
DOUBLED = "baseline, epochs doubled"
GAIN, DOUBLING = "student - baseline", "doubling - baseline"

Content = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-demo"))
    arguments, words = parser.parse_known_args()
    path = arguments.out / f"{NAME}.json"
    content: Content = {
        "words": words,
        "settings": settings_of([*words, f"out={arguments.out}"]),
        "measured_on": environment(),
        "runs": [],
    }
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differ = [name for name in ("settings", "measured_on") if before.get(name) != content[name]]
        if differ:
            named = " and ".join(differ)
            print(f"{path} holds other {named}; choose another --out", file=sys.stderr)
            return 2
        content = before
    for seed in arguments.seeds:
        if seed not in (each["seed"] for each in content["runs"]):
            content["runs"].append(measured(seed, arguments.out, words))
            arguments.out.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(content, indent=1))
    Console().print(Markdown(f"{run_table(content)}\n\n{seeds_table(content)}"))
    return judged(content)


def settings_of(words: Sequence[str]) -> Content:
    """All settings of the demo that change its numbers, but for the seed. `words` say where it is, since a
    demo that is elsewhere may have settled another precision.
    """
    settings = relevant_settings(load_config(words, recipe="demo"))
    del settings["seed"]
    return settings


def measured(seed: int, out: Path, words: Sequence[str]) -> Content:
    """All measures of the demo's models at one seed, and of its baseline with twice the epochs."""
    folder = out / f"seed-{seed}"
    fresh = not folder.exists()
    config = load_config([*words, f"seed={seed}", f"out={folder}"], recipe="demo")
    start = time.monotonic()
    finished = run(config, console=Console())
    minutes = (time.monotonic() - start) / 60
    twice = (f"baseline.epochs={2 * config.baseline.epochs}", f"out={out / f'seed-{seed}-doubled'}")
    doubled = run(
        load_config([*words, f"seed={seed}", *twice], recipe="demo"), only=("baseline",), console=Console()
    )
    metrics = {
        split: {name: {measure: of_split[name][measure] for measure in MEASURES} for name in MODELS}
        for split, of_split in finished.metrics.items()
    }
    for split, of_split in doubled.metrics.items():
        metrics[split][DOUBLED] = {measure: of_split["baseline"][measure] for measure in MEASURES}
    return {
        "seed": seed,
        "minutes": minutes if fresh else None,
        "cores": len(os.sched_getaffinity(0)),
        "epochs": config.baseline.epochs,
        "metrics": metrics,
    }


def run_table(content: Content) -> str:
    """All measures of the first seed's run, and what it took."""
    first = content["runs"][0]
    lines = []
    for split, of_split in first["metrics"].items():
        for measure in MEASURES:
            values = [of_split[name][measure] for name in MODELS]
            gain = of_split["student"][measure] - of_split["baseline"][measure]
            lines.append([f"{split} {measure}", *(f"{value:.2f}" for value in values), f"{gain:+.2f}"])
    heading = f"seed {first['seed']}"
    if first["minutes"] is not None:
        heading += f", {first['minutes']:.1f} minutes on {first['cores']} cores"
    return table([heading, *MODELS, GAIN], lines)


def seeds_table(content: Content) -> str:
    """A line for each model, a column for each seed, then mean and standard deviation."""
    runs = content["runs"]
    of_seeds = [shown(each["metrics"]) for each in runs]
    lines = []
    for name in of_seeds[0]:
        values = [of_seed[name] for of_seed in of_seeds]
        sign = "+" if " - " in name else ""
        spread = f"{stdev(values):.2f}" if len(values) > 1 else ""
        lines.append([name, *(f"{value:{sign}.2f}" for value in (*values, mean(values))), spread])
    headings = [f"test mAP, {runs[0]['epochs']} epochs", *(f"seed {each['seed']}" for each in runs)]
    return table([*headings, "mean", "sd"], lines)


def shown(metrics: Content) -> dict[str, float]:
    """The mAP of each model on test, and of some on the shifted split; what is gained over the baseline."""
    test, shifted = (
        {name: float(of_model["mAP"]) for name, of_model in metrics[split].items()}
        for split in ("test", "test_shifted")
    )
    return {
        **{name: test[name] for name in ("baseline", DOUBLED, *MODELS[1:])},
        GAIN: test["student"] - test["baseline"],
        DOUBLING: test[DOUBLED] - test["baseline"],
        **{f"{name}, shifted": shifted[name] for name in ("baseline", DOUBLED, "student")},
        f"{GAIN}, shifted": shifted["student"] - shifted["baseline"],
        f"{DOUBLING}, shifted": shifted[DOUBLED] - shifted["baseline"],
    }


def judged(content: Content) -> int:
    """The exit status."""
    of_seeds = [shown(each["metrics"]) for each in content["runs"]]
    gain, doubling = (mean(of_seed[name] for of_seed in of_seeds) for name in (GAIN, DOUBLING))
    minutes = [each["minutes"] for each in content["runs"]]
    slowest = None if None in minutes else max(minutes)
    print(
        f"{GAIN}: {gain:+.2f} test mAP; doubling the baseline's epochs: {doubling:+.2f}; slowest "
        f"run {'not known, as one was stopped' if slowest is None else f'{slowest:.1f} minutes'}"
    )
    fast = slowest is not None and slowest <= MOST_MINUTES
    return 0 if gain >= LEAST_GAIN and doubling < MOST_FROM_DOUBLING and fast else 1


if __name__ == "__main__":
    sys.exit(main())
