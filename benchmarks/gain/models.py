"""Another backbone with ImageNet weights, as a model of one's own."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from torchvision.models import MobileNetV2
from torchvision.models import mobilenet_v2 as build

WEIGHTS = "weights/mobilenet_v2_imagenet.safetensors"


def mobilenet_v2(num_classes: int) -> MobileNetV2:
    """MobileNetV2 (Sandler et al., 2018) from the weights below COTERIE_DATA: images in -1..1."""
    model: MobileNetV2 = build(weights=None)
    model.load_state_dict(load_file(Path(os.environ["COTERIE_DATA"]) / WEIGHTS))
    model.classifier[1] = nn.Linear(model.last_channel, num_classes)
    return model
