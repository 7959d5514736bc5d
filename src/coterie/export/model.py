"""What every exported file holds: pixels to scores and labels in one module, and its description."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from coterie.checkpoint import Checkpoint
from coterie.errors import ConfigError, ExportError
from coterie.predictor import Predictor

# The key of the description in the metadata of an ONNX file, and the name of the JSON in a .pt2 file.
METADATA_KEY = "coterie"
METADATA_FILE = "coterie.json"
INPUT = "pixels"
OUTPUTS = ("scores", "labels", "logits")
RESIZE = (
    "turn upright by EXIF, convert to RGB, resize the whole picture to image_size x image_size (the aspect "
    "ratio is not kept) by bilinear interpolation with antialiasing, as Pillow's BILINEAR"
)


class ExportedClassifier(nn.Module):
    """Pixels uint8 [B, 3, S, S] (RGB) -> scores float32 [B, C] in 0..1, labels bool [B, C]: the scores above
    the thresholds, and logits float32 [B, C], of which the scores are made.
    """

    thresholds: Tensor

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = checkpoint.preprocessing
        self.temperature = checkpoint.temperature
        self.register_buffer("thresholds", torch.tensor(checkpoint.class_thresholds()))  # [C]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.model(self.preprocessing.normalize(pixels)).float()
        scores = (logits / self.temperature).sigmoid()
        return scores, scores > self.thresholds, logits


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What one needs to know to use an exported file, as plain values."""
    return {
        "name": checkpoint.name,
        "class_names": list(checkpoint.class_names),
        "thresholds": list(checkpoint.class_thresholds()),
        "temperature": checkpoint.temperature,
        "image_size": checkpoint.preprocessing.image_size,
        "mean": list(checkpoint.preprocessing.mean),
        "std": list(checkpoint.preprocessing.std),
        "resize": RESIZE,
        "input": f"{INPUT}: uint8 [batch, 3, image_size, image_size], RGB; mean and std are applied inside",
        "outputs": "scores: float32 [batch, classes] in 0..1, sigmoid(logits / temperature); labels: bool, "
        "the scores above thresholds; logits: float32",
        "weights_sha256": checkpoint.weights_sha256,
        "coterie_version": version("coterie"),
    }


def trace(predictor: Predictor) -> ExportedProgram:
    """The classifier as a graph that takes batches of any size, without paths of this machine.

    ExportError where torch.export cannot follow the model; ConfigError for one that is not on the CPU.
    """
    if predictor.device.type != "cpu":
        raise ConfigError(f"a model is exported on the CPU, and this one is on {predictor.device}")
    side = predictor.checkpoint.preprocessing.image_size
    # a batch of one would be taken for a constant
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    module = ExportedClassifier(predictor.model, predictor.checkpoint).eval()
    try:
        with quiet():
            program = export(module, (example,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})
    except Exception as error:  # it runs the model's own code, which may raise anything
        raise ExportError(
            f"torch.export cannot follow the model of {predictor.checkpoint.name}: {_first_line(error)}. "
            "Its forward must do the same for every picture, and take batches of any size "
            "(features.shape[0], not len(features))"
        ) from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters tell their own developers."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
