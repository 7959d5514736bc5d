"""What explains the method: how partitions divide the labels, and how far a model leans on companions.

A label j has a *companion* i where both are often on the same image. A model that leans on companions misses
j where i is absent, and sees j where only i is present: the conditional rates here show both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import PRESENT, UNKNOWN
from coterie.errors import PartitionError
from coterie.labels import CooccurrenceGraph, Partition, normalized_cut, share_inside

# The pairs are chosen by this root whatever `partition.root` is, so that all runs on the same data are asked
# about the same pairs.
PAIR_ROOT = 2.0
PAIRS = 20
PAIR_IMAGES = 10

# Where a run keeps them, and in which form.
SCHEMA_VERSION = 1
LEANING_FILE = "leaning.json"
PARTITIONS = "partitions"
DIAGNOSTICS_FILE = "diagnostics.json"

# {split: {model: leaning_summary}}
Leaning = dict[str, dict[str, dict[str, Any]]]


class Pair(NamedTuple):
    """Label j and its companion i, as positions; P(i | j) and `images` with both, in the training split."""

    label: int
    companion: int
    probability: float
    images: int


class Rate(NamedTuple):
    """A share in percent `of` that many images; None where there are none."""

    percent: float | None
    of: int


class CompanionRates(NamedTuple):
    """How a model predicts j by whether its companion i is there, over images where both are known.

    recall_with: of the images with j and i, the share where j is predicted; recall_without: with j, not i.
    false_positives_with: of the images with i and not j, the share where j is predicted;
    false_positives_without: with neither.
    """

    recall_with: Rate
    recall_without: Rate
    false_positives_with: Rate
    false_positives_without: Rate


def strongest_pairs(
    graph: CooccurrenceGraph, most: int = PAIRS, images: int = PAIR_IMAGES
) -> tuple[Pair, ...]:
    """The `most` pairs of the highest affinity (root 2) of those on `images` or more, each both ways round.

    Affinity rather than P(i | j) alone: a label that is nearly everywhere would be the companion of all.
    """
    affinity = graph.affinity(PAIR_ROOT)
    rows, columns = np.triu_indices(graph.num_classes, k=1)
    enough = graph.counts[rows, columns] >= max(images, 1)
    rows, columns = rows[enough], columns[enough]
    strongest = np.argsort(-affinity[rows, columns], kind="stable")[:most]
    pairs = zip(rows[strongest].tolist(), columns[strongest].tolist(), strict=True)
    return tuple(_pair(graph, *ordered) for i, j in pairs for ordered in ((i, j), (j, i)))


def companion_rates(
    scores: npt.ArrayLike, targets: npt.ArrayLike, pairs: Sequence[Pair], threshold: float = 0.5
) -> list[CompanionRates]:
    """The rates of each pair for `scores` [N, C] in 0..1 and `targets` [N, C] in {1, 0, -1}.

    A label is predicted where its score is above `threshold`. Images on which j or i is unknown are left out.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    predicted = scores > scores.dtype.type(threshold)
    return [
        _rates(predicted[:, pair.label], targets[:, pair.label], targets[:, pair.companion]) for pair in pairs
    ]


def leaning_summary(rates: Sequence[CompanionRates]) -> dict[str, Any]:
    """Means over pairs, ready for JSON: "recall" and "false_positives", each {"with", "without",
    "difference", "pairs"}, and the rates of "each" pair.

    "difference" is with - without, in percent: 0 for a model that does not lean. Means are over the "pairs"
    that have both rates, and None where none has.
    """
    return {
        "recall": _means([(each.recall_with, each.recall_without) for each in rates]),
        "false_positives": _means(
            [(each.false_positives_with, each.false_positives_without) for each in rates]
        ),
        "each": [{name: rate._asdict() for name, rate in each._asdict().items()} for each in rates],
    }


def describe_partition(graph: CooccurrenceGraph, partition: Partition) -> dict[str, Any]:
    """What the groups of `partition` do to the affinity S of its root, ready for JSON.

    "kind", "method", "normalized_cut"; "share_inside": assoc(G, G) summed over groups / assoc(V, V); of each
    of the "groups" "names", "size", and "share_inside" assoc(G, G) / assoc(G, V): how much of its own
    affinity stays in it, None where it has none. assoc is the sum of S between two sets of labels, V all.
    """
    affinity = graph.affinity(partition.root)
    groups = []
    for names, group in zip(partition.group_names, partition.groups, strict=True):
        own = float(affinity[list(group)].sum())
        inside = float(affinity[np.ix_(group, group)].sum())
        share = inside / own if own else None
        groups.append({"names": names, "size": len(group), "share_inside": share})
    return {
        "kind": partition.kind,
        "method": partition.method,
        "normalized_cut": normalized_cut(affinity, partition.groups),
        "share_inside": share_inside(affinity, partition.groups),
        "groups": groups,
    }


def seed_agreement(partitions: Sequence[Partition]) -> dict[str, float]:
    """The "mean" and the "lowest" adjusted Rand index over all two of `partitions` of the same classes.

    1 where all are the same groups, about 0 for groups at random. From: Hubert and Arabie, "Comparing
    partitions", 1985. PartitionError where there are fewer than two, or the classes differ.
    """
    # here, not above: half a second that the command line need not wait
    from sklearn.metrics import adjusted_rand_score

    if len(partitions) < 2:
        raise PartitionError(f"agreement is between two partitions at least, got {len(partitions)}")
    names = partitions[0].class_names
    labels = [_group_of_each(partition.reordered(names)) for partition in partitions]
    indices = [float(adjusted_rand_score(one, other)) for one, other in combinations(labels, 2)]
    return {"mean": float(np.mean(indices)), "lowest": min(indices)}


def describe_pairs(pairs: Sequence[Pair], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs by class name, ready for JSON."""
    return [
        pair._asdict() | {"label": class_names[pair.label], "companion": class_names[pair.companion]}
        for pair in pairs
    ]


def _pair(graph: CooccurrenceGraph, label: int, companion: int) -> Pair:
    images = int(graph.counts[companion, label])
    return Pair(label, companion, images / int(graph.class_counts[label]), images)


def _rates(
    predicted: npt.NDArray[np.bool_], label: npt.NDArray[Any], companion: npt.NDArray[Any]
) -> CompanionRates:
    """The rates of one pair from `predicted` [N] of the label and the targets [N] of both."""
    known = (label != UNKNOWN) & (companion != UNKNOWN)
    present, accompanied = label == PRESENT, companion == PRESENT
    return CompanionRates(
        recall_with=_rate(predicted, known & present & accompanied),
        recall_without=_rate(predicted, known & present & ~accompanied),
        false_positives_with=_rate(predicted, known & ~present & accompanied),
        false_positives_without=_rate(predicted, known & ~present & ~accompanied),
    )


def _means(rates: Sequence[tuple[Rate, Rate]]) -> dict[str, Any]:
    both = [
        (accompanied.percent, alone.percent)
        for accompanied, alone in rates
        if accompanied.percent is not None and alone.percent is not None
    ]
    if not both:
        return {"with": None, "without": None, "difference": None, "pairs": 0}
    accompanied, alone = np.mean(both, axis=0).tolist()
    return {"with": accompanied, "without": alone, "difference": accompanied - alone, "pairs": len(both)}


def _rate(predicted: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> Rate:
    images = int(np.count_nonzero(among))
    found = int(np.count_nonzero(predicted & among))
    return Rate(100 * found / images if images else None, images)


def _group_of_each(partition: Partition) -> list[int]:
    """The group [C] of each class."""
    group_of = {index: number for number, group in enumerate(partition.groups) for index in group}
    return [group_of[index] for index in range(len(partition.class_names))]
