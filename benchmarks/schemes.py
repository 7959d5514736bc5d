"""What cheaper ways to have teachers cost, and what they lose, on real photographs.

    python -m benchmarks.schemes [--data FOLDER] [--seeds 0 1 2] [--schemes full ...] [KEY=VALUE ...]

FOLDER holds `corel5k/labels.csv` and `weights/squeezenet1_1_imagenet_features.safetensors`; by default what
COTERIE_DATA names. SqueezeNet on the 63 classes with 50 training images or more, K = 3, so six teachers.

For each seed a plain training (the baseline alone), then each scheme's teachers and student over it. Time is
that of the baseline and of all that the scheme adds, in plain trainings of the same seed. Results are in
OUT/results.json; a stopped benchmark goes on, but a run that was stopped has no time.

Exit status 1 where the recommended scheme is more than 0.3 test mAP under the full one, on the mean of the
seeds, or takes more than 4 plain trainings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from coterie.config import load_config
from coterie.files import atomic_write
from coterie.pipeline import run

RECOMMENDED = "frozen"
MOST_TIME, MOST_LOSS = 4.0, 0.3
SHOWN = ("baseline", "all teachers", "student")
EPOCHS = 12
COMMON = (
    *("data.min_positives=50", "model=squeezenet", "model.image_size=64", "k=3", "jobs=2", "precision=bf16"),
    *("augment.flip=0.5", f"train.epochs={EPOCHS}", "train.lr=5e-4"),
)
# As published: teachers from the same start as the baseline, for as long; live in every step of the student.
SCHEMES: dict[str, tuple[str, ...]] = {
    "full": (),
    "inherited": ("together=3", "teacher.start=baseline", "teacher.epochs=3", "student.views=6"),
    "frozen": (
        *("together=3", "teacher.start=baseline", "teacher.frozen=backbone.features.8"),
        *("teacher.epochs=4", "teacher.views=2", "student.views=6"),
    ),
    "smaller": ("together=3", "teacher.shrink=48", "student.views=6"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COTERIE_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schemes", nargs="+", choices=list(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-schemes"))
    arguments, words = parser.parse_known_args()
    table = arguments.data / "corel5k" / "labels.csv"
    weights = arguments.data / "weights" / "squeezenet1_1_imagenet_features.safetensors"
    if not table.exists() or not weights.exists():
        print(f"{table} or {weights} is not there; name the folder by --data", file=sys.stderr)
        return 2
    words = [f"data={table}", f"model.weights={weights}", *COMMON, *words]
    rows = []
    for seed in arguments.seeds:
        plain = measured(arguments.out, "plain", seed, words, ("baseline",))
        for scheme in arguments.schemes:
            row = measured(arguments.out, scheme, seed, [*words, *SCHEMES[scheme]])
            known = plain["seconds"] is not None and row["seconds"] is not None
            ratio = (plain["seconds"] + row["seconds"]) / plain["seconds"] if known else None
            rows.append(row | {"plain trainings": ratio})
    Console().print(as_table(rows, arguments.schemes))
    return judged(rows)


def measured(
    out: Path, name: str, seed: int, words: Sequence[str], only: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Test mAP and seconds of one run; from the results of an earlier call where they are there."""
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    key = f"{name}, seed {seed}"
    if results.get(key, {}).get("words") != list(words):
        folder = out / f"{name}-{seed}"
        fresh = not folder.exists()
        config = load_config([*words, f"seed={seed}", f"out={folder}"])
        start = time.monotonic()
        finished = run(config, only=only, store=out / "trainings", console=Console())
        seconds = time.monotonic() - start
        results[key] = {
            "scheme": name,
            "seed": seed,
            "words": list(words),
            "seconds": seconds if fresh else None,
            "test mAP": {model: values["mAP"] for model, values in finished.metrics["test"].items()},
        }
        atomic_write(path, json.dumps(results, indent=1))
    return dict(results[key])


def of_scheme(rows: Sequence[dict[str, Any]], scheme: str, model: str) -> list[float]:
    return [row["test mAP"][model] for row in rows if row["scheme"] == scheme]


def as_table(rows: Sequence[dict[str, Any]], schemes: Sequence[str]) -> Table:
    """A row for each scheme: means over the seeds, and the student of each seed."""
    seeds = [f"student, seed {row['seed']}" for row in rows if row["scheme"] == schemes[0]]
    table = Table("test mAP", *SHOWN, "student - full", "plain trainings", *seeds)
    for scheme in schemes:
        students = of_scheme(rows, scheme, "student")
        means = [f"{mean(of_scheme(rows, scheme, model)):.2f}" for model in SHOWN]
        full = of_scheme(rows, "full", "student")
        difference = f"{mean(students) - mean(full):+.2f}" if full else "-"
        times = [row["plain trainings"] for row in rows if row["scheme"] == scheme]
        known = [ratio for ratio in times if ratio is not None]
        cost = f"{mean(known):.1f}" if known else "-"
        table.add_row(scheme, *means, difference, cost, *(f"{value:.2f}" for value in students))
    return table


def judged(rows: Sequence[dict[str, Any]]) -> int:
    """The exit status; what could not be compared is no success."""
    full, cheap = (of_scheme(rows, scheme, "student") for scheme in ("full", RECOMMENDED))
    times = [row["plain trainings"] for row in rows if row["scheme"] == RECOMMENDED]
    if not full or not cheap or None in times:
        print(f"{RECOMMENDED} and full were not both measured, with their times")
        return 1
    loss, cost = mean(full) - mean(cheap), max(times)
    print(
        f"{RECOMMENDED}: {loss:+.2f} mAP under the full scheme (at most {MOST_LOSS} wanted), in {cost:.1f} "
        f"plain trainings (at most {MOST_TIME:.0f} wanted)"
    )
    return 0 if loss <= MOST_LOSS and cost <= MOST_TIME else 1


if __name__ == "__main__":
    sys.exit(main())
