"""What comes before any model: the data as a run uses them, and the label groups of each branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from coterie.config import BASELINE, Config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.reading import read_dataset, with_splits
from coterie.data.splits import check_labels, filter_classes
from coterie.diagnostics import describe_partition, seed_agreement
from coterie.labels import CooccurrenceGraph, Partition, partition_labels
from coterie.seeding import derive_seed

# How many seeds the groups of a run are compared over.
REPEATS = 3
_graphs: WeakKeyDictionary[MultiLabelDataset, CooccurrenceGraph] = WeakKeyDictionary()


def prepare_data(config: Config, dataset: MultiLabelDataset | None = None) -> MultiLabelDataset:
    """The dataset as a run uses it: splits made where there are none, classes chosen, labels checked."""
    dataset = read_dataset(config.data, config.seed) if dataset is None else dataset
    dataset = with_splits(dataset, config)
    dataset = filter_classes(dataset, config.data.min_positives)
    return replace(dataset, notes=(*dataset.notes, *check_labels(dataset)))


def make_partitions(config: Config, dataset: MultiLabelDataset) -> dict[str, Partition]:
    """A partition for each branch that the student's loss gives weight, from the training split alone."""
    graph = training_graph(dataset)
    return {kind: make_partition(config, graph, kind) for kind in branch_weights(config)}


def training_graph(dataset: MultiLabelDataset) -> CooccurrenceGraph:
    """The co-occurrence graph of the training split, counted once for a dataset."""
    if dataset not in _graphs:
        targets = dataset.targets_at(dataset.indices("train"))
        _graphs[dataset] = CooccurrenceGraph.from_targets(targets, dataset.class_names)
    return _graphs[dataset]


def make_partition(
    config: Config, graph: CooccurrenceGraph, branch: str, seed: int | None = None
) -> Partition:
    """The groups of a branch at `seed`, by default the config's.

    With `partition.random` groups drawn at random, of the same sizes or of equal ones.
    """
    settings = config.partition
    seed = config.seed if seed is None else seed
    kind, number = branch_kind(branch)
    method = settings.co_method if kind == "co-occurrence" else settings.dis_method
    made: list[Partition] = []
    for _ in range(number):
        made.append(partition_labels(graph, config.k, kind, method, settings.root, seed, before=made))
    if settings.random is None:
        return made[-1]
    # a seed for each branch, or both would draw the same groups where their sizes agree
    drawn = 2 * seed + (kind == "dis-occurrence") if number == 1 else derive_seed(seed, "random", branch)
    sizes = made[-1].sizes if settings.random == "same-sizes" else None
    return partition_labels(graph, config.k, "random", None, settings.root, drawn, sizes)


def diagnose_partitions(
    config: Config, dataset: MultiLabelDataset, partitions: Mapping[str, Partition], repeats: int = REPEATS
) -> dict[str, Any]:
    """What the groups of each branch do, by `describe_partition`, and how far the method agrees with itself:
    "agreement" {"seeds", "mean", "lowest"} between the groups at `repeats` seeds, the config's the first.
    """
    graph = training_graph(dataset)
    seeds = list(range(config.seed, config.seed + repeats))
    described = {}
    for kind, partition in partitions.items():
        others = [make_partition(config, graph, kind, seed) for seed in seeds[1:]]
        agreement = {"seeds": seeds, **seed_agreement([partition, *others])} if others else None
        described[kind] = describe_partition(graph, partition) | {"agreement": agreement}
    return described


def branch_weights(config: Config) -> dict[str, float]:
    """The weight of each branch in the student's loss; a branch of weight 0 is not trained.

    With K = 1 both branches would be the one group of all labels: one teacher then, plain self-distillation.
    Each of `partition.repeats` is a branch of its own, with its part of the weight.
    """
    weights = {"co-occurrence": config.distill.a, "dis-occurrence": 1 - config.distill.a}
    if config.k == 1:
        weights = {"co-occurrence": 1.0}
    repeats = config.partition.repeats
    return {
        kind if number == 1 else f"{kind}.{number}": weight / repeats
        for number in range(1, repeats + 1)
        for kind, weight in weights.items()
        if weight > 0
    }


def branch_kind(branch: str) -> tuple[str, int]:
    """The kind of a branch's groups, and its number among those of that kind: "co-occurrence.2" is the
    second, "co-occurrence" the first.
    """
    kind, _, number = branch.partition(".")
    return kind, int(number) if number.isdecimal() else 1


def teacher_weights(config: Config) -> dict[str, float]:
    """The weight of all that the student learns from: the branches, and a baseline that teaches."""
    of_baseline = config.distill.baseline
    weights = {kind: weight * (1 - of_baseline) for kind, weight in branch_weights(config).items()}
    return weights | ({BASELINE: of_baseline} if of_baseline > 0 else {})
