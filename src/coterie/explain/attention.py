"""The attention of heads whose queries answer for labels: where the query of a class looks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from coterie.explain.hooks import in_this_thread
from coterie.models.classifier import Classifier
from coterie.models.heads.ml_decoder import MlDecoderHead
from coterie.models.heads.query2label import Query2LabelHead
from coterie.models.heads.transformer import SelfAttention, TransformerHead

QUERY_HEADS = (MlDecoderHead, Query2LabelHead, TransformerHead)


def attention_maps(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """(maps [B, C, h, w], logits [B, C]): the share of its attention that the query of each class gives to
    each position, the mean over the attention heads and layers; a map sums to 1.

    Classes that share a query (ML-Decoder with fewer groups than classes) share its map. A label token of the
    transformer looks at labels too: its shares are of what goes to positions.
    """
    head = model.head
    assert isinstance(head, QUERY_HEADS)
    assert model.feature_map is not None
    weights: list[Tensor] = []  # of each layer [B, queries, keys]
    features = model.feature_map(model.backbone(images))
    with ExitStack() as hooks:
        for layer in _attention_layers(head):
            watch = _watch_self if isinstance(layer, SelfAttention) else _watch_multihead
            hook = in_this_thread(watch(weights))
            hooks.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        logits: Tensor = head(features)
    maps = torch.stack(weights).mean(dim=0)
    classes, positions = logits.shape[1], features.shape[2] * features.shape[3]
    if isinstance(head, TransformerHead):
        maps = maps[:, positions:, :positions]  # tokens are positions, then labels
        maps = maps / maps.sum(dim=2, keepdim=True)
    elif maps.shape[1] != classes:
        maps = maps.repeat_interleave(-(-classes // maps.shape[1]), dim=1)[:, :classes]
    return maps.reshape(*maps.shape[:2], *features.shape[2:]), logits


def _attention_layers(head: nn.Module) -> list[nn.Module]:
    """The layers in which the queries of classes look at positions."""
    if isinstance(head, MlDecoderHead):
        return [head.attention]
    layers = head.decoder if isinstance(head, Query2LabelHead) else head.layers
    assert isinstance(layers, nn.ModuleList)
    return [layer.get_submodule("attention") for layer in layers]


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def _watch_multihead(weights: list[Tensor]) -> Hook:
    def watch(layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        assert isinstance(layer, nn.MultiheadAttention)
        options = {**options, "need_weights": True, "average_attn_weights": True}
        _, seen = layer.forward(*given, **options)  # not a call of the module, which would come back here
        assert seen is not None
        weights.append(seen)

    return watch


def _watch_self(weights: list[Tensor]) -> Hook:
    def watch(layer: nn.Module, given: tuple[Any, ...], _options: dict[str, Any]) -> None:
        assert isinstance(layer, SelfAttention)
        queries, keys, _ = layer.projected(given[0])
        scaled = queries @ keys.transpose(2, 3) / queries.shape[3] ** 0.5
        weights.append(scaled.softmax(dim=3).mean(dim=1))

    return watch
