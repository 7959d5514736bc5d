"""A backbone and a head on its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from coterie.models.feature_map import FeatureMap


class Classifier(nn.Module):
    """Images [B, 3, H, W] -> logits [B, C].

    The backbone gives pooled features [B, D], or what `feature_map` turns into a map [B, D, H', W']. It sees
    the images at `shrink` x `shrink` pixels where they are larger.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        drop_rate: float = 0.0,
        feature_map: FeatureMap | None = None,
        shrink: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.drop = nn.Dropout(drop_rate)
        self.head = head
        self.feature_map = feature_map
        self.shrink = shrink

    def forward(self, images: Tensor) -> Tensor:
        if self.shrink is not None and images.shape[-1] > self.shrink:
            images = _shrunk(images, self.shrink)
        return self.classify(self.backbone(images))

    def classify(self, features: Tensor) -> Tensor:
        """What the backbone gives -> logits [B, C]."""
        if self.feature_map is not None:
            features = self.feature_map(features)
        logits: Tensor = self.head(self.drop(features))
        return logits


def _shrunk(images: Tensor, side: int) -> Tensor:
    """The images at `side` x `side` pixels, smoothed; in float32, as torch cannot do it in half precision."""
    with torch.autocast(images.device.type, enabled=False):
        shrunk = interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    return shrunk.to(images.dtype)
