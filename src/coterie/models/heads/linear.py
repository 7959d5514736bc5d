"""A linear classifier on pooled features."""

from __future__ import annotations

from torch import nn


class LinearHead(nn.Linear):
    """Pooled features [B, D] -> logits [B, C]."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
