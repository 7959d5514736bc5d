"""Whether images without labels help: half of the training images keep theirs, and the student has the others
for its teachers to speak of, or does not have them.
"""

from __future__ import annotations

import json
from functools import partial
from statistics import mean, stdev

from benchmarks.environment import environment
from benchmarks.gain.protocol import PATIENCE, Protocol, Rows, frequent
from benchmarks.gain.search import Words, value_of
from coterie.ablation import Ablation
from coterie.ablation.intervals import interval_between, resampled_maps
from coterie.data.dataset import UNLABELLED
from coterie.files import atomic_write
from coterie.intervals import Floats

NAME = "unlabelled"
LEFT_OUT = "left-out"  # no split that a run looks at
TITLES = {
    "baseline": "baseline on half of the images",
    LEFT_OUT: "PSD on half of the images",
    UNLABELLED: "PSD on half of the images, the other half unlabelled",
}


def measure_unlabelled(protocol: Protocol, recommended: Words) -> None:
    """The recommended recipe on half of the labels, every training with as many steps as on all of them."""
    found = {}
    for split in (LEFT_OUT, UNLABELLED):
        table = protocol.rewritten(f"half-{split}", partial(halved, split=split))
        words = (*recommended, *steps_kept(recommended, halves=1 if split == UNLABELLED else 2))
        found[split] = protocol.measured(f"half-{split}", words, (), ("baseline", "psd"), table=table)
    settings = {"settings": (*protocol.settings, *recommended), "measured_on": environment()}
    content = settings | compared(found)
    atomic_write(protocol.out / f"{NAME}.json", json.dumps(content, indent=1))


def halved(rows: Rows, split: str) -> Rows:
    """The rows of a table with the frequent classes alone, and every other training image in `split`."""
    chosen, number = [], 0
    for row in frequent(rows):
        number += row["split"] == "train"
        is_other = row["split"] == "train" and number % 2 == 0
        chosen.append(row | {"split": split} if is_other else row)
    return chosen


def steps_kept(words: Words, halves: int) -> Words:
    """Twice the epochs for what learns from half of the images: baseline and teachers, and the student where
    `halves` is 2.
    """
    epochs = value_of("train.epochs", words)
    own = []
    for role, times in (("student", halves), ("baseline", 2), ("teacher", 2)):
        of_role = [word.partition("=")[2] for word in words if word.startswith(f"{role}.epochs=")]
        own.append(f"{role}.epochs={times * int(of_role[-1] if of_role else epochs)}")
    return (*own, *(f"{role}.patience={2 * PATIENCE}" for role in ("baseline", "teacher")))


def compared(found: dict[str, Ablation]) -> dict[str, object]:
    """The three rows on test, each less PSD on half of the images."""
    rows = {
        "baseline": (LEFT_OUT, "baseline"),
        LEFT_OUT: (LEFT_OUT, "psd"),
        UNLABELLED: (UNLABELLED, "psd"),
    }
    maps: dict[tuple[str, int], Floats] = {}
    for split, ablation in found.items():
        for (row, seed), resampled in resampled_maps(ablation, "test").items():
            maps |= {(name, seed): resampled for name, place in rows.items() if place == (split, row)}
    content = []
    seeds = found[LEFT_OUT].seeds
    plain = found[LEFT_OUT].values("psd", "test")
    for name, (split, row) in rows.items():
        values = found[split].values(row, "test")
        content.append(
            {
                "row": name,
                "title": TITLES[name],
                "mAP": mean(values.values()),
                "mAP_sd": stdev(values.values()) if len(values) > 1 else 0.0,
                "difference": mean(values[seed] - plain[seed] for seed in seeds),
                "interval": interval_between(maps, name, LEFT_OUT, seeds),
            }
        )
    return {"seeds": seeds, "rows": content}
