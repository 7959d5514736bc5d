"""What comes before any model: the data as a run uses them, and the label groups of each branch."""

from __future__ import annotations

from dataclasses import replace

from coterie.config import Config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.reading import read_dataset
from coterie.data.splits import check_labels, ensure_splits, filter_classes
from coterie.labels import CooccurrenceGraph, Partition, partition_labels


def prepare_data(config: Config, dataset: MultiLabelDataset | None = None) -> MultiLabelDataset:
    """The dataset as a run uses it: splits made where there are none, classes chosen, labels checked."""
    dataset = read_dataset(config.data, config.seed) if dataset is None else dataset
    dataset = ensure_splits(dataset, config.data.val_fraction, config.data.test_fraction, config.seed)
    dataset = filter_classes(dataset, config.data.min_positives)
    return replace(dataset, notes=(*dataset.notes, *check_labels(dataset)))


def make_partitions(config: Config, dataset: MultiLabelDataset) -> dict[str, Partition]:
    """A partition for each branch that the student's loss gives weight, from the training split alone."""
    train = dataset.targets[dataset.indices("train")]
    graph = CooccurrenceGraph.from_targets(train, dataset.class_names)
    methods = {"co-occurrence": config.partition.co_method, "dis-occurrence": config.partition.dis_method}
    return {
        kind: partition_labels(graph, config.k, kind, methods[kind], config.partition.root, config.seed)
        for kind in branch_weights(config)
    }


def branch_weights(config: Config) -> dict[str, float]:
    """The weight of each branch in the student's loss; a branch of weight 0 is not trained."""
    weights = {"co-occurrence": config.distill.a, "dis-occurrence": 1 - config.distill.a}
    return {kind: weight for kind, weight in weights.items() if weight > 0}
