"""Multi-label image classifiers trained by Parallel Self-Distillation."""

from coterie.api import evaluate, fit
from coterie.config import Config, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.scenes import SceneSizes, make_scenes
from coterie.data.table import read_table
from coterie.errors import CoterieError
from coterie.labels import CooccurrenceGraph, Partition, partition_labels
from coterie.metrics import multilabel_metrics
from coterie.pipeline import Run, run
from coterie.predictor import Prediction, Predictor, load_classifier

__all__ = [
    "Config",
    "CooccurrenceGraph",
    "CoterieError",
    "MultiLabelDataset",
    "Partition",
    "Prediction",
    "Predictor",
    "Run",
    "SceneSizes",
    "evaluate",
    "fit",
    "load_classifier",
    "load_config",
    "make_scenes",
    "multilabel_metrics",
    "partition_labels",
    "read_table",
    "run",
]
