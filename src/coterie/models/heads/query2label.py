"""Query2Label (Liu et al., 2021, arXiv 2107.10834): each label is a query to a transformer decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from coterie.config import Query2LabelConfig
from coterie.errors import ConfigError
from coterie.models.heads.grouped_linear import GroupedLinear


class Query2LabelHead(nn.Module):
    """Feature map [B, D, H, W] -> logits [B, C].

    The map is projected, encoded with sine positions, and asked by one learned query for each label, whose
    answer goes through a linear layer of its own. The layers are those of DETR: norms come after the sums;
    positions and queries are added to what attention compares, not to what it takes over.
    """

    def __init__(self, num_features: int, num_classes: int, settings: Query2LabelConfig) -> None:
        super().__init__()
        width = num_features if settings.width is None else settings.width
        if width % settings.heads or width % 4:
            raise ConfigError(
                f"model.query2label.width must be a multiple of 4 and of model.query2label.heads="
                f"{settings.heads}, got {width}"
            )
        feedforward = 4 * width if settings.feedforward is None else settings.feedforward
        self.project = nn.Conv2d(num_features, width, kernel_size=1)
        self.queries = nn.Parameter(torch.randn(num_classes, width))
        self.encoder = nn.ModuleList(
            EncoderLayer(width, settings.heads, feedforward, settings.dropout)
            for _ in range(settings.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            # there is nothing yet that labels could tell each other before the first layer
            DecoderLayer(
                width, settings.heads, feedforward, settings.dropout, settings.label_attention and number > 0
            )
            for number in range(settings.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classify = GroupedLinear(num_classes, width, num_classes)
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.project(features)  # [B, width, H, W]
        height, width = projected.shape[2:]
        places = sine_positions(height, width, projected.shape[1], projected.device)  # [positions, width]
        memory = projected.flatten(2).transpose(1, 2)  # [B, positions, width]
        for layer in self.encoder:
            memory = layer(memory, places)
        answers = torch.zeros_like(self.queries).expand(features.shape[0], -1, -1)  # [B, C, width]
        for layer in self.decoder:
            answers = layer(answers, self.queries, memory, places)
        logits: Tensor = self.classify(self.norm(answers))
        return logits


class EncoderLayer(nn.Module):
    """Self-attention among positions: memory [B, N, width], places [N, width] -> [B, N, width]."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward = _feedforward(width, feedforward, dropout)
        self.output_norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, memory: Tensor, places: Tensor) -> Tensor:
        placed = memory + places
        seen, _ = self.attention(placed, placed, memory, need_weights=False)
        memory = self.attention_norm(memory + self.drop(seen))
        result: Tensor = self.output_norm(memory + self.drop(self.feedforward(memory)))
        return result


class DecoderLayer(nn.Module):
    """Queries look at positions: answers [B, C, width], queries [C, width], memory [B, N, width], places
    [N, width] -> [B, C, width]. With `label_attention` they look at each other first.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, label_attention: bool
    ) -> None:
        super().__init__()
        self.label_attention = (
            nn.MultiheadAttention(width, heads, dropout, batch_first=True) if label_attention else None
        )
        self.label_norm = nn.LayerNorm(width) if label_attention else None
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward = _feedforward(width, feedforward, dropout)
        self.output_norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, answers: Tensor, queries: Tensor, memory: Tensor, places: Tensor) -> Tensor:
        if self.label_attention is not None and self.label_norm is not None:
            asking = answers + queries
            heard, _ = self.label_attention(asking, asking, answers, need_weights=False)
            answers = self.label_norm(answers + self.drop(heard))
        seen, _ = self.attention(answers + queries, memory + places, memory, need_weights=False)
        answers = self.attention_norm(answers + self.drop(seen))
        result: Tensor = self.output_norm(answers + self.drop(self.feedforward(answers)))
        return result


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sine encoding of a grid, [height * width, channels], row by row (Carion et al., ECCV 2020, DETR).

    The first half of the channels tells the row, the second the column. Rows count from 1 and are scaled to
    2 pi at the last; pairs of sine and cosine have wave lengths from 2 pi to 10000 * 2 pi.
    """
    half = channels // 2
    wave = 10_000 ** (torch.arange(0, half, 2, device=device) / half)  # [half / 2]

    def encoded(extent: int) -> Tensor:
        steps = torch.arange(1, extent + 1, device=device) / (extent + 1e-6) * 2 * math.pi
        angles = steps[:, None] / wave
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # [extent, half]

    rows = encoded(height)[:, None].expand(-1, width, -1)
    columns = encoded(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def _feedforward(width: int, inner: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, width))
