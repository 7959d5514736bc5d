"""Predictors around small models, for tests of explanations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from coterie.checkpoint import Checkpoint
from coterie.config import HEAD_SECTIONS, ModelConfig
from coterie.data.transforms import Preprocessing
from coterie.models.factory import ModelFactory
from coterie.predictor import Predictor
from tests.models.heads.test_heads import SMALL

CLASSES = ("ant", "bee", "cat", "dog", "elk")


def predictor_of(model: nn.Module, class_names: tuple[str, ...] = CLASSES, image_size: int = 64) -> Predictor:
    preprocessing = Preprocessing(image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Predictor(model, Checkpoint("model", class_names, {}, preprocessing, 0.5, {}, {}))


def built(name: str, head: str = "linear", image_size: int = 64, **options: Any) -> nn.Module:
    settings = {"name": name, "image_size": image_size, "head": head, **options}
    if head in SMALL and HEAD_SECTIONS[head] not in settings:
        settings[HEAD_SECTIONS[head]] = SMALL[head]
    return ModelFactory(ModelConfig.model_validate(settings)).build(CLASSES).eval()


def noise(batch: int = 2, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn((batch, 3, side, side), generator=torch.Generator().manual_seed(seed))
