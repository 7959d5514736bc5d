"""ML-Decoder (Ridnik et al., WACV 2023): a decoder whose cost grows with the groups, not with the classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.config import MlDecoderConfig
from coterie.errors import ConfigError
from coterie.models.heads.grouped_linear import GroupedLinear


class MlDecoderHead(nn.Module):
    """Feature map [B, D, H, W] -> logits [B, C].

    One decoder layer without self-attention: K queries look at the positions, and each answers for C / K
    classes. The queries are random and not trained, as in the paper: what follows them is.
    """

    queries: Tensor

    def __init__(self, num_features: int, num_classes: int, settings: MlDecoderConfig) -> None:
        super().__init__()
        width, dropout = settings.width, settings.dropout
        if width % settings.heads:
            raise ConfigError(
                f"model.ml_decoder.heads={settings.heads} must divide model.ml_decoder.width={width}"
            )
        queries = torch.randn(min(settings.groups, num_classes), width)
        if settings.learned_queries:
            self.queries = nn.Parameter(queries)
        else:
            self.register_buffer("queries", queries)
        self.project = nn.Linear(num_features, width)
        self.query_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, settings.heads, dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, settings.feedforward),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(settings.feedforward, width),
        )
        self.output_norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.classify = GroupedLinear(len(queries), width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        positions = self.project(features.flatten(2).transpose(1, 2)).relu()  # [B, positions, width]
        queries = self.query_norm(self.queries).expand(features.shape[0], -1, -1)  # [B, K, width]
        seen, _ = self.attention(queries, positions, positions, need_weights=False)
        queries = self.attention_norm(queries + self.drop(seen))
        queries = self.output_norm(queries + self.drop(self.feedforward(queries)))
        logits: Tensor = self.classify(queries)
        return logits
