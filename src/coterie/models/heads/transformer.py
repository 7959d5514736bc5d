"""A transformer over patch tokens and label tokens: the TF of PSD's models (Xu et al., IJCAI 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.config import TransformerConfig
from coterie.errors import ConfigError
from coterie.models.heads.grouped_linear import GroupedLinear


class TransformerHead(nn.Module):
    """Feature map [B, D, H, W] -> logits [B, C].

    Every position is a token, every label is a token, and all of them attend to each other in layers whose
    norms come before attention and feed-forward block. A label's logit is read from its token. A token has no
    position of its own: convolutions have seen where it is.

    `word_vectors` [C, dimensions] are projected to be the label tokens, and are not trained. Without them
    the tokens are learned: directly, or as vectors of `label_dimensions` that are projected in the same way.
    """

    label_vectors: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        settings: TransformerConfig,
        word_vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        width = settings.width
        dimensions = settings.label_dimensions
        if word_vectors is not None and dimensions not in (None, word_vectors.shape[1]):
            raise ConfigError(
                f"model.transformer.label_dimensions={dimensions}, but the vectors in model.word_vectors "
                f"have {word_vectors.shape[1]}; leave one of them out"
            )
        self.project = nn.Linear(num_features, width)
        if word_vectors is not None:
            self.register_buffer("label_vectors", word_vectors.clone())
        else:
            self.label_vectors = nn.Parameter(0.02 * torch.randn(num_classes, dimensions or width))
        projected = word_vectors is not None or dimensions is not None
        self.project_labels = (
            nn.Sequential(nn.Linear(self.label_vectors.shape[1], width), nn.ReLU())
            if projected
            else nn.Identity()
        )
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.layers))
        self.classify = (
            nn.Linear(width, 1) if settings.shared_output else GroupedLinear(num_classes, width, num_classes)
        )

    def forward(self, features: Tensor) -> Tensor:
        patches = self.project(features.flatten(2).transpose(1, 2))  # [B, positions, width]
        labels = self.project_labels(self.label_vectors).expand(len(features), -1, -1)  # [B, C, width]
        tokens = torch.cat([patches, labels], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.classify(tokens[:, patches.shape[1] :])
        return logits.flatten(1)  # of the shared layer [B, C, 1]


class Layer(nn.Module):
    """Tokens [B, N, width] -> [B, N, width]: attention and a feed-forward block, each added to its input."""

    def __init__(self, settings: TransformerConfig) -> None:
        super().__init__()
        width, dropout = settings.width, settings.dropout
        inner = width if settings.feedforward is None else settings.feedforward
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(
            width, settings.heads, width if settings.head_width is None else settings.head_width
        )
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop(self.attention(self.attention_norm(tokens)))
        result: Tensor = tokens + self.drop(self.feedforward(self.feedforward_norm(tokens)))
        return result


class SelfAttention(nn.Module):
    """Attention whose heads may be wider than width / heads: tokens [B, N, width] -> [B, N, width]."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        # queries, then keys, then values; in each the heads one after the other
        self.project = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.projected(tokens)
        seen = functional.scaled_dot_product_attention(queries, keys, values)
        result: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return result

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, heads, N, head_width]."""
        batch, length, _ = tokens.shape
        projected = self.project(tokens).view(batch, length, 3, self.heads, -1)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        return queries, keys, values
