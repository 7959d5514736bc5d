"""A backbone and a linear head on its pooled features."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """Images [B, 3, H, W] -> logits [B, C]. The backbone gives pooled features [B, num_features]."""

    def __init__(
        self, backbone: nn.Module, num_features: int, num_classes: int, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        logits: Tensor = self.head(self.drop(features))
        return logits
