"""Attention of query heads: the weights are those of a plain slow attention, of the query of the class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coterie.config import MlDecoderConfig, Query2LabelConfig, TransformerConfig
from coterie.explain.attention import attention_maps
from coterie.models.classifier import Classifier
from coterie.models.feature_map import FeatureMap
from coterie.models.heads.ml_decoder import MlDecoderHead
from coterie.models.heads.query2label import Query2LabelHead, sine_positions
from coterie.models.heads.transformer import TransformerHead
from tests.models.heads.slow import (
    Array,
    array,
    layer_norm,
    linear,
    positions,
    random_map,
    randomized,
    softmax,
)

HEADS: dict[str, Any] = {
    "ml-decoder": lambda: MlDecoderHead(8, 5, MlDecoderConfig(width=16, heads=4, feedforward=8, groups=3)),
    "query2label": lambda: Query2LabelHead(8, 5, Query2LabelConfig(width=16, label_attention=True)),
    "transformer": lambda: TransformerHead(8, 5, TransformerConfig(width=16, heads=4, layers=2)),
}


def on_maps(head: nn.Module) -> Classifier:
    """A classifier whose images are feature maps [B, 8, H, W]."""
    return Classifier(nn.Identity(), head, feature_map=FeatureMap("net", 8)).eval()


def slow_weights(queries: Array, keys: Array, heads: int) -> Array:
    """Mean over attention heads of softmax(q . k / sqrt(d)): projected [Q, D], [N, D] -> [Q, N]."""
    each = queries.shape[1] // heads
    result = np.zeros((len(queries), len(keys)))
    for head in range(heads):
        place = slice(head * each, (head + 1) * each)
        for number, query in enumerate(queries):
            result[number] += softmax(np.array([query[place] @ key[place] for key in keys]) / math.sqrt(each))
    return result / heads


def projected(layer: nn.MultiheadAttention, queries: Array, keys: Array) -> tuple[Array, Array]:
    assert layer.in_proj_weight is not None
    width, weights, biases = layer.embed_dim, array(layer.in_proj_weight), array(layer.in_proj_bias)
    return (
        queries @ weights[:width].T + biases[:width],
        keys @ weights[width : 2 * width].T + biases[width : 2 * width],
    )


@pytest.mark.parametrize("name", HEADS)
def test_the_map_of_a_class_sums_to_one_and_the_logits_are_those_of_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = on_maps(randomized(HEADS[name]()))
    features = random_map(2, 8, 2, 3)
    with torch.no_grad():
        maps, logits = attention_maps(model, features)
        torch.testing.assert_close(logits, model(features))
    assert maps.shape == (2, 5, 2, 3)
    assert bool((maps >= 0).all())
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 5))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_class_of_ml_decoder_has_the_attention_of_its_group() -> None:
    torch.manual_seed(0)
    head = HEADS["ml-decoder"]()  # 3 queries for 5 classes: two, two and one
    model = on_maps(randomized(head))
    features = random_map(1, 8, 2, 3)
    maps = array(attention_maps(model, features)[0])[0]
    keys = np.array([np.maximum(linear(row, head.project), 0) for row in positions(array(features[0]))])
    queries = np.array([layer_norm(query, head.query_norm) for query in array(head.queries)])
    expected = slow_weights(*projected(head.attention, queries, keys), heads=4).reshape(3, 2, 3)
    np.testing.assert_allclose(maps, expected[[0, 0, 1, 1, 2]], rtol=1e-4, atol=1e-6)


def test_query2label_looks_with_its_first_layer_where_queries_and_places_meet() -> None:
    torch.manual_seed(0)
    settings = Query2LabelConfig(width=16, heads=4, encoder_layers=0, decoder_layers=1)
    head: Any = Query2LabelHead(8, 5, settings)
    model = on_maps(randomized(head))
    features = random_map(1, 8, 2, 3)
    memory = np.array([linear(row, head.project) for row in positions(array(features[0]))])
    keys = memory + array(sine_positions(2, 3, 16))
    layer = head.decoder[0].attention
    expected = slow_weights(*projected(layer, array(head.queries), keys), heads=4).reshape(5, 2, 3)
    maps = array(attention_maps(model, features)[0])[0]
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


def test_a_map_is_the_mean_over_the_layers() -> None:
    torch.manual_seed(0)
    head: Any = Query2LabelHead(8, 5, Query2LabelConfig(width=16, heads=4, decoder_layers=2))
    model = on_maps(randomized(head))
    features = random_map(1, 8, 2, 3)
    seen = []

    def keep(layer: Any, given: Any, options: Any) -> None:
        seen.append(layer.forward(*given, **{**options, "need_weights": True})[1])

    for layer in head.decoder:
        layer.attention.register_forward_pre_hook(keep, with_kwargs=True)
    model(features)
    first, second = seen
    maps, _ = attention_maps(model, features)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(maps.flatten(2), (first + second) / 2)


def test_a_label_token_of_the_transformer_shares_what_it_gives_to_positions() -> None:
    torch.manual_seed(0)
    head: Any = TransformerHead(8, 5, TransformerConfig(width=16, heads=4, layers=1))
    model = on_maps(randomized(head))
    features = random_map(1, 8, 2, 3)
    patches = [linear(row, head.project) for row in positions(array(features[0]))]
    layer = head.layers[0]
    tokens = np.array(
        [layer_norm(token, layer.attention_norm) for token in [*patches, *array(head.label_vectors)]]
    )
    width = layer.attention.project.out_features // 3
    queries, keys = (
        tokens @ array(layer.attention.project.weight)[part * width : (part + 1) * width].T for part in (0, 1)
    )
    weights = slow_weights(queries, keys, heads=4)[6:, :6]
    expected = weights / weights.sum(axis=1, keepdims=True)
    maps = array(attention_maps(model, features)[0])[0]
    np.testing.assert_allclose(maps.reshape(5, 6), expected, rtol=1e-4, atol=1e-6)
