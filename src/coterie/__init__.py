"""Multi-label image classifiers trained by Parallel Self-Distillation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.ablation import ablate
    from coterie.api import evaluate, fit
    from coterie.config import Config, load_config
    from coterie.data.coco import read_coco
    from coterie.data.dataset import MultiLabelDataset, StoredImage
    from coterie.data.huggingface import read_huggingface
    from coterie.data.nuswide import read_nuswide
    from coterie.data.scenes import SceneSizes, make_scenes
    from coterie.data.table import read_table
    from coterie.data.voc import read_voc
    from coterie.data.webdataset import read_webdataset
    from coterie.errors import CoterieError
    from coterie.explain import make_explainer
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
    "StoredImage",
    "ablate",
    "evaluate",
    "fit",
    "load_classifier",
    "load_config",
    "make_explainer",
    "make_scenes",
    "multilabel_metrics",
    "partition_labels",
    "read_coco",
    "read_huggingface",
    "read_nuswide",
    "read_table",
    "read_voc",
    "read_webdataset",
    "run",
]

# Names are imported when they are first used: torch takes seconds that `coterie --help` need not wait.
_MODULES = {
    "coterie.ablation": ("ablate",),
    "coterie.api": ("evaluate", "fit"),
    "coterie.config": ("Config", "load_config"),
    "coterie.data.coco": ("read_coco",),
    "coterie.data.dataset": ("MultiLabelDataset", "StoredImage"),
    "coterie.data.huggingface": ("read_huggingface",),
    "coterie.data.nuswide": ("read_nuswide",),
    "coterie.data.scenes": ("SceneSizes", "make_scenes"),
    "coterie.data.table": ("read_table",),
    "coterie.data.voc": ("read_voc",),
    "coterie.data.webdataset": ("read_webdataset",),
    "coterie.errors": ("CoterieError",),
    "coterie.explain": ("make_explainer",),
    "coterie.labels": ("CooccurrenceGraph", "Partition", "partition_labels"),
    "coterie.metrics": ("multilabel_metrics",),
    "coterie.pipeline": ("Run", "run"),
    "coterie.predictor": ("Prediction", "Predictor", "load_classifier"),
}

if not TYPE_CHECKING:  # or every name would be one of the package's to mypy

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                globals()[name] = getattr(import_module(module), name)
                return globals()[name]
        raise AttributeError(f"module 'coterie' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
