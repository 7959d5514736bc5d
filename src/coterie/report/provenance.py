"""How a run came about: its settings, its trainings epoch by epoch, and what it takes to make it again."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from coterie.config import ROLES, Config, describe_settings, leaves, plain
from coterie.report.reading import FinishedRun
from coterie.report.styles import STYLES, branch_model

# What a training logs in each epoch, and how it is named.
LEARNING = {"val_mAP": "val mAP", "loss": "training loss", "lr": "learning rate", "seconds": "seconds"}


def settings_rows(config: Config) -> list[dict[str, Any]]:
    """A row for every setting, and for what a role has of its own: "key", "value", "default", "meaning"."""
    values = dict(leaves(config.model_dump(mode="json")))
    described = list(describe_settings())
    meanings = {key: meaning for key, _, meaning in described}
    rows = []
    for key, default, meaning in described:
        options = {name: value for name, value in values.items() if name.startswith(f"{key}.")}
        value = plain(
            {name.removeprefix(f"{key}."): option for name, option in options.items()} or values.get(key, {})
        )
        rows.append(
            {"key": key, "value": value, "default": default, "meaning": meaning, "changed": value != default}
        )
    for key, value in leaves(config.to_values()):
        role, _, name = key.partition(".")
        if role in ROLES:
            shared = f"train.{name}"
            rows.append(
                {
                    "key": key,
                    "value": plain(value),
                    "default": plain(values[shared]),
                    "meaning": meanings[shared],
                    "changed": True,
                }
            )
    return rows


def training_rows(run: FinishedRun) -> list[dict[str, Any]]:
    """A row for each training of the run."""
    return [
        {
            "name": training.name,
            "classes": len(training.class_names),
            "best_epoch": training.best_epoch,
            "val_map": training.val_map,
            "minutes": training.seconds / 60,
            "weights": training.weights_sha256,
        }
        for training in run.trainings
    ]


def learning_curves(run: FinishedRun) -> list[dict[str, Any]]:
    """The learning curves of each training: "epochs", and "values" by quantity, one or None an epoch."""
    history = []
    for training in run.trainings:
        epochs = run.history(training.name)
        values = {
            what: [_finite(epoch.get(what)) for epoch in epochs]
            for what in LEARNING
            if any(what in epoch for epoch in epochs)
        }
        style = STYLES[branch_model(training.branch) if training.branch else training.name]
        history.append(
            {
                "name": training.name,
                "style": style,
                "epochs": [epoch["epoch"] for epoch in epochs],
                "values": values,
            }
        )
    return history


def _finite(value: Any) -> float | None:
    """A number of a log, None for what is none: JSON has no NaN."""
    fits = isinstance(value, int | float) and np.isfinite(value)
    return float(f"{value:.6g}") if fits else None


def version_rows(run: FinishedRun) -> list[tuple[str, str]]:
    """(name, value) of all that two people compare when their runs differ."""
    return [
        ("run folder", str(run.folder)),
        ("data", run.config.data.source),
        ("split hash", run.data.split_hash),
        ("seed", str(run.config.seed)),
        ("student's weights", run.checkpoints["student"].weights_sha256),
        *run.checkpoints["student"].versions.items(),
        ("coterie, of this report", version("coterie")),
    ]
