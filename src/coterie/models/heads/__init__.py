"""The heads by name: what turns a backbone's features into logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from coterie.config import ModelConfig
from coterie.models.heads.csra import CsraHead
from coterie.models.heads.linear import LinearHead
from coterie.models.heads.ml_decoder import MlDecoderHead
from coterie.models.heads.query2label import Query2LabelHead
from coterie.models.heads.transformer import TransformerHead

HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
    "csra": CsraHead,
    "ml-decoder": MlDecoderHead,
    "query2label": Query2LabelHead,
    "transformer": TransformerHead,
}
# Heads on pooled features [B, D]; the others take a feature map [B, D, H, W].
POOLED = frozenset({"linear"})


def build_head(
    settings: ModelConfig, num_features: int, num_classes: int, word_vectors: Tensor | None = None
) -> nn.Module:
    """The head `model.head`, with random weights: features of `num_features` channels -> logits [B, C].

    `word_vectors`: [C, dimensions], of the classes in order. ConfigError where widths do not fit.
    """
    arguments: list[Any] = [num_features, num_classes]
    if (section := settings.head_section()) is not None:
        arguments.append(section)
    if word_vectors is not None:
        arguments.append(word_vectors)
    return HEADS[settings.head](*arguments)
