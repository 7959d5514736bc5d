"""Label co-occurrence and the groups of labels made from it."""

from coterie.labels.graph import CooccurrenceGraph
from coterie.labels.objectives import normalized_cut, share_inside
from coterie.labels.partition import Partition, partition_labels

__all__ = ["CooccurrenceGraph", "Partition", "normalized_cut", "partition_labels", "share_inside"]
