"""Class-specific residual attention (CSRA; Zhu and Wu, ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.config import CsraConfig


class CsraHead(nn.Module):
    """Feature map [B, D, H, W] -> logits [B, C].

    Each class c scores every position x, s = m_c . x. Its logit is the mean of its scores plus `weight` times
    their mean under softmax(T * s), which for T = 'max' is their maximum. Several attention heads, each with
    weights m and a temperature T of its own, add up.
    """

    def __init__(self, num_features: int, num_classes: int, settings: CsraConfig) -> None:
        super().__init__()
        self.temperatures = settings.temperatures
        self.weight = settings.weight
        self.normalize = settings.normalize
        # the classes of the first attention head, then those of the second, ...
        self.scores = nn.Conv2d(num_features, len(self.temperatures) * num_classes, kernel_size=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        logits = [
            head.mean(dim=2) + self.weight * _attended(head, temperature)
            for head, temperature in zip(self.position_scores(features), self.temperatures, strict=True)
        ]
        return torch.stack(logits).sum(dim=0)

    def position_scores(self, features: Tensor) -> tuple[Tensor, ...]:
        """Of each attention head the scores [B, C, positions]."""
        scores = self.scores(features).flatten(2)  # [B, heads * C, positions]
        if self.normalize:
            scores = scores / self.scores.weight.flatten(1).norm(dim=1)[:, None]
        heads: tuple[Tensor, ...] = scores.chunk(len(self.temperatures), dim=1)
        return heads


def _attended(scores: Tensor, temperature: float | str) -> Tensor:
    """The mean of scores [B, C, positions] under their softmax at a temperature -> [B, C]."""
    if isinstance(temperature, str):
        return scores.amax(dim=2)
    return ((temperature * scores).softmax(dim=2) * scores).sum(dim=2)
