"""SqueezeNet 1.1 (Iandola et al., 2016) as a backbone, from torchvision: timm has none."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import squeezenet1_1

NUM_FEATURES = 512


class SqueezeNetBackbone(nn.Module):
    """Images [B, 3, H, W] -> features [B, 512], or [B, 512, H / 16, W / 16] where they are not `pooled`.

    State-dict keys are torchvision's `features.*`.
    """

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        self.features = squeezenet1_1(weights="DEFAULT" if pretrained else None).features
        self.pooled = True

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return features.mean(dim=(2, 3)) if self.pooled else features
