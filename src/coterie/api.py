"""The way in from Python: `fit` trains, `evaluate` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from torch import Tensor

from coterie.class_mapping import ClassMapping, map_classes, same_classes
from coterie.config import Config, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages
from coterie.evaluation import Results, evaluate_models, to_scores
from coterie.metrics import Definition
from coterie.models.factory import ModelBuilder, builder_name
from coterie.pipeline import Run, run
from coterie.predictor import Predictor
from coterie.trainer import make_fabric


def fit(
    dataset: MultiLabelDataset | str | Path,
    model: str | ModelBuilder | Mapping[str, Any] | None = None,
    *,
    k: int | None = None,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    update: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> Run:
    """Train baseline, teachers and student on `dataset`: a MultiLabelDataset, or what `data=` takes.

    `model`: a name, or a function that takes `num_classes` (and `class_names`, if it has such a parameter)
    and returns a module: images [B, 3, H, W] -> logits [B, num_classes]; with further settings as in
    {"name": "resnet50", "pretrained": True} or {"name": function, "image_size": 64}. `settings`: sections of
    the config, as in `fit(…, train={"epochs": 20}, seed=1)`. Calling again with the same arguments and `out`
    goes on with a run that was stopped. Raises CoterieError as the command line does.
    """
    values: dict[str, Any] = dict(settings)
    builder = None
    if model is not None:
        values["model"] = dict(model) if isinstance(model, Mapping) else {"name": model}
        given_name = values["model"].get("name")
        if callable(given_name):
            builder = given_name
            values["model"]["name"] = builder_name(builder)
    if isinstance(dataset, MultiLabelDataset):
        values["data"] = {"source": dataset.name} | dict(values.get("data") or {})
    else:
        values["data"] = dict(values.get("data") or {}) | {"source": str(dataset)}
    values |= {key: value for key, value in (("k", k), ("out", out)) if value is not None}
    config = load_config(recipe=recipe, settings=values)
    given = dataset if isinstance(dataset, MultiLabelDataset) else None
    return run(config, dataset=given, builder=builder, update=update, console=console)


def evaluate(
    predictors: Mapping[str, Predictor],
    dataset: MultiLabelDataset,
    split: str,
    config: Config,
    *,
    threshold: float | None = None,
    classes: Mapping[str, str | Sequence[str]] | None = None,
    ap: Definition = "all-point",
) -> Results:
    """The metrics of trained classifiers on one split: {split: {name: metrics}}.

    `threshold`: by default each classifier's own, one for each class where they were tuned. `classes`: which
    of the dataset stand for which of the classifiers, as in `map_classes`; without it they have the same
    names, and a DataError tells where the dataset lacks one. Another order is put right, and further classes
    are left out. `ap`: the definition of average precision. `config`: device, precision and processes.
    """
    results: Results = {split: {}}
    for name, predictor in predictors.items():
        own = predictor.class_names
        limits = predictor.thresholds if threshold is None else (threshold,) * len(own)
        if classes is None:
            mapping = same_classes(dataset.with_classes(own).class_names, own)
        else:
            mapping = map_classes(classes, dataset.class_names, own)
        images = ResizedImages(mapping.dataset_of(dataset), predictor.checkpoint.preprocessing)
        measured = evaluate_models(
            {name: predictor.model},
            images,
            [split],
            make_fabric(config),
            threshold=mapping.thresholds_of(limits, own),
            scores_of=partial(_mapped_scores, mapping, predictor),
            ap=ap,
            workers=config.data.workers,
        )
        results[split] |= measured[split]
    return results


def _mapped_scores(mapping: ClassMapping, predictor: Predictor, logits: Tensor) -> npt.NDArray[np.float64]:
    scores = to_scores(logits, predictor.checkpoint.temperature).numpy()
    return mapping.scores_of(scores, predictor.class_names)
