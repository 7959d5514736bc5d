"""What each class has: its frequency, its groups, its AP by every model; and the classes by frequency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import PRESENT
from coterie.intervals import Differences, interval
from coterie.labels import Partition

BUCKETS = 4
LEAST_CLASSES = 3  # of a bucket


def class_rows(
    class_names: Sequence[str],
    class_counts: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int8],
    results: Mapping[str, Mapping[str, Any]],
    partitions: Mapping[str, Partition],
    differences: Differences | None,
) -> list[dict[str, Any]]:
    """A row for each class: "name", "train" and "positives" (images), "groups" {branch: index}.

    With "ap" {model: percent}, "difference" of student and baseline, its "interval"; None without AP.
    """
    group_of = {
        branch: {index: number for number, group in enumerate(partition.groups) for index in group}
        for branch, partition in partitions.items()
    }
    positives = (targets == PRESENT).sum(axis=0).tolist()
    rows = []
    for index, name in enumerate(class_names):
        ap = {model: metrics["AP"][index] for model, metrics in results.items()}
        rows.append(
            {
                "name": name,
                "train": int(class_counts[index]),
                "positives": positives[index],
                "groups": {branch: numbers[index] for branch, numbers in group_of.items()},
                "ap": ap,
                "difference": difference(ap["student"], ap["baseline"]),
                "interval": None if differences is None else interval(differences.ap[:, index]),
            }
        )
    return rows


def frequency_buckets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The classes with an AP, by training images, in up to four parts of about as many classes, rarest first.

    "low" and "high" (training images), "classes", the means of "ap" {model: percent} and of the "difference",
    and how many classes have "gained" and "lost".
    """
    counted = sorted((row for row in rows if row["difference"] is not None), key=lambda row: row["train"])
    buckets: list[dict[str, Any]] = []
    parts = max(1, min(BUCKETS, len(counted) // LEAST_CLASSES))
    for positions in np.array_split(np.arange(len(counted)), parts):
        part = [counted[position] for position in positions]
        if not part:
            continue
        differences = [row["difference"] for row in part]
        buckets.append(
            {
                "low": part[0]["train"],
                "high": part[-1]["train"],
                "classes": len(part),
                "ap": {model: float(np.mean([row["ap"][model] for row in part])) for model in part[0]["ap"]},
                "difference": float(np.mean(differences)),
                "gained": sum(value > 0 for value in differences),
                "lost": sum(value < 0 for value in differences),
            }
        )
    return buckets


def difference(new: float | None, old: float | None) -> float | None:
    """`new` less `old`, None where one is missing."""
    return None if new is None or old is None else new - old
