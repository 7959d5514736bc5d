"""Checkpoints to export: small networks with every head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from coterie.checkpoint import Checkpoint, describe_architecture, save_checkpoint
from coterie.config import HEAD_SECTIONS, ModelConfig
from coterie.models.factory import make_factory
from coterie.predictor import Predictor, load_classifier
from tests.models.heads.test_heads import SMALL

# What could break a table, a page or a file, and a plain one.
NAMES = ("cat, \"dog\" & 'co'", "<b>bold</b>", "été 猫", "a|b\\`*_", "plain")
THRESHOLDS = (0.4, 0.3, 0.5, 0.45, 0.6)
TEMPERATURE = 1.7
HEADS = ("linear", "csra", "ml-decoder", "query2label", "transformer", "transformer-words")


def save_small(
    folder: Path, head: str = "linear", name: str = "squeezenet", side: int = 64, **changes: Any
) -> Path:
    """A checkpoint with random weights whose scores are spread over 0..1, in `folder`."""
    settings: dict[str, Any] = {"name": name, "image_size": side, "head": head.removesuffix("-words")}
    if settings["head"] in SMALL:
        settings[HEAD_SECTIONS[settings["head"]]] = SMALL[settings["head"]]
    if head.endswith("-words"):
        settings["word_vectors"] = _write_words(folder.parent / "words.npz")
    settings |= changes
    factory = make_factory(ModelConfig.model_validate(settings))
    model = factory.build(NAMES).eval()
    spread_logits(model, side)
    checkpoint = Checkpoint(
        name="student",
        class_names=NAMES,
        architecture=describe_architecture(factory),
        preprocessing=factory.preprocessing,
        threshold=0.5,
        metrics={},
        config={},
        thresholds=THRESHOLDS,
        temperature=TEMPERATURE,
    )
    save_checkpoint(folder, model, checkpoint)
    return folder


def small_predictor(folder: Path, head: str = "linear", **changes: Any) -> Predictor:
    return load_classifier(save_small(folder, head, **changes))


def spread_logits(model: torch.nn.Module, side: int) -> None:
    """Weights anew, for scores of different pictures to differ: fresh networks say the same of everything."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                gain = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(gain * torch.randn(parameter.shape, generator=generator))
        logits = model(torch.randn(8, 3, side, side, generator=generator))
    assert logits.std(dim=0).max() > 1e-3


def _write_words(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(0).standard_normal((len(NAMES), 6)).astype(np.float32)
    np.savez(path, vectors=vectors, class_names=np.array(NAMES))
    return path


def scores_of(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """The predictor's scores of pixels [B, 3, S, S]."""
    return predictor.scores(list(pixels.transpose(0, 2, 3, 1)))
