"""ML-Decoder against a decoder written out, and how its queries share the classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from coterie.config import MlDecoderConfig
from coterie.errors import ConfigError
from coterie.models.heads.ml_decoder import MlDecoderHead
from tests.models.heads.slow import (
    Array,
    array,
    attention,
    feedforward,
    layer_norm,
    linear,
    positions,
    random_map,
    randomized,
)


def small(num_classes: int, groups: int = 100, **settings: float) -> MlDecoderHead:
    given = {"width": 8, "heads": 2, "feedforward": 6, "groups": groups} | settings
    return MlDecoderHead(5, num_classes, MlDecoderConfig.model_validate(given))


def slow_logits(head: MlDecoderHead, features: Array, num_classes: int) -> list[float]:
    """The logits of one image: features [D, H, W] -> [C]."""
    memory = np.array([np.maximum(linear(x, head.project), 0) for x in positions(features)])
    queries = np.array([layer_norm(query, head.query_norm) for query in array(head.queries)])
    seen = attention(head.attention, queries, memory, memory)
    logits: list[float] = []
    for number, query in enumerate(queries):
        after = layer_norm(query + seen[number], head.attention_norm)
        answer = layer_norm(after + feedforward(after, head.feedforward), head.output_norm)
        weights = array(head.classify.weight[number])  # [width, classes of this query]
        logits.extend(float(answer @ weights[:, place]) for place in range(weights.shape[1]))
    bias = array(head.classify.bias)
    return [logits[label] + bias[label] for label in range(num_classes)]


@pytest.mark.parametrize(
    ("num_classes", "groups", "queries", "each"),
    [(1, 100, 1, 1), (3, 100, 3, 1), (3, 3, 3, 1), (6, 3, 3, 2), (7, 3, 3, 3), (7, 4, 4, 2), (5, 1, 1, 5)],
)
def test_logits_are_those_of_a_decoder_written_out(
    num_classes: int, groups: int, queries: int, each: int
) -> None:
    head = randomized(small(num_classes, groups))
    assert isinstance(head, MlDecoderHead)
    assert head.classify.weight.shape == (queries, 8, each)
    features = random_map(2, 5, 2, 3)

    expected = [slow_logits(head, array(image), num_classes) for image in features]

    np.testing.assert_allclose(array(head(features)), expected, rtol=1e-4, atol=1e-4)


def test_queries_are_random_and_trained_only_if_asked() -> None:
    fixed, trained = small(4), small(4, learned_queries=True)
    assert "queries" not in dict(fixed.named_parameters())
    assert "queries" in dict(trained.named_parameters())
    assert fixed.state_dict().keys() == trained.state_dict().keys()
    assert fixed.queries.std() > 0.5


def test_the_cost_of_attention_is_that_of_the_groups() -> None:
    """A head for a thousand classes has as many queries as one for a hundred, by default."""
    assert len(small(1000).queries) == len(small(100).queries) == 100


def test_dropout_works_in_training_only() -> None:
    torch.manual_seed(0)
    head = small(3, dropout=0.5)
    features = random_map(1, 5, 2, 2)
    assert not torch.equal(head.train()(features), head(features))
    assert torch.equal(head.eval()(features), head(features))
    assert sum(isinstance(module, nn.Dropout) for module in head.modules()) == 2


def test_heads_that_do_not_divide_the_width_are_told() -> None:
    expected = r"model\.ml_decoder\.heads=3 must divide model\.ml_decoder\.width=8"
    with pytest.raises(ConfigError, match=expected):
        small(3, heads=3)
