"""Query2Label against encoder and decoder written out, and its sine positions against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from coterie.config import Query2LabelConfig
from coterie.errors import ConfigError
from coterie.models.heads.query2label import DecoderLayer, EncoderLayer, Query2LabelHead, sine_positions
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


def small(num_classes: int, **settings: int | float | None) -> Query2LabelHead:
    given = {"width": 8, "heads": 2, "feedforward": 6} | settings
    return Query2LabelHead(5, num_classes, Query2LabelConfig.model_validate(given))


def slow_positions(height: int, width: int, channels: int) -> Array:
    """DETR's encoding, number by number: the row in one half of the channels, the column in the other."""
    half = channels // 2
    encoding = np.zeros((height * width, channels))
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                place, extent = (row, height) if channel < half else (column, width)
                index = channel % half
                angle = (place + 1) / (extent + 1e-6) * 2 * math.pi / 10_000 ** (2 * (index // 2) / half)
                wave = math.sin(angle) if index % 2 == 0 else math.cos(angle)
                encoding[row * width + column, channel] = wave
    return encoding


def slow_logits(head: Query2LabelHead, features: Array) -> list[float]:
    """The logits of one image: features [D, H, W] -> [C]."""
    memory = np.array([linear(x, head.project) for x in positions(features)])
    places = slow_positions(features.shape[1], features.shape[2], memory.shape[1])
    queries = array(head.queries)
    for layer in head.encoder:
        assert isinstance(layer, EncoderLayer)
        seen = attention(layer.attention, memory + places, memory + places, memory)
        memory = np.array([layer_norm(x, layer.attention_norm) for x in memory + seen])
        memory = np.array(
            [layer_norm(x + feedforward(x, layer.feedforward), layer.output_norm) for x in memory]
        )
    answers = np.zeros_like(queries)
    for layer in head.decoder:
        assert isinstance(layer, DecoderLayer)
        if layer.label_attention is not None:
            assert layer.label_norm is not None
            heard = attention(layer.label_attention, answers + queries, answers + queries, answers)
            answers = np.array([layer_norm(x, layer.label_norm) for x in answers + heard])
        seen = attention(layer.attention, answers + queries, memory + places, memory)
        answers = np.array([layer_norm(x, layer.attention_norm) for x in answers + seen])
        answers = np.array(
            [layer_norm(x + feedforward(x, layer.feedforward), layer.output_norm) for x in answers]
        )
    weights, biases = array(head.classify.weight), array(head.classify.bias)
    return [
        float(layer_norm(answer, head.norm) @ weights[label, :, 0] + biases[label])
        for label, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("label_attention", [False, True])
@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [(1, 2), (0, 1), (2, 1)])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_logits_are_those_of_encoder_and_decoder_written_out(
    num_classes: int, encoder_layers: int, decoder_layers: int, label_attention: bool
) -> None:
    head = randomized(
        small(
            num_classes,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            label_attention=label_attention,
        )
    )
    assert isinstance(head, Query2LabelHead)
    features = random_map(2, 5, 2, 3)

    expected = [slow_logits(head, array(image)) for image in features]

    np.testing.assert_allclose(array(head(features)), expected, rtol=1e-4, atol=1e-4)


def test_labels_hear_each_other_from_the_second_layer_on() -> None:
    head = small(3, decoder_layers=3, label_attention=True)
    heard = [layer.label_attention is not None for layer in head.decoder if isinstance(layer, DecoderLayer)]
    assert heard == [False, True, True]


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 4), (3, 2, 8), (14, 14, 16)])
def test_positions_are_detr_s(height: int, width: int, channels: int) -> None:
    np.testing.assert_allclose(
        array(sine_positions(height, width, channels)), slow_positions(height, width, channels), atol=1e-5
    )


def test_the_width_is_that_of_the_features_and_the_inner_one_four_times_it() -> None:
    head = Query2LabelHead(12, 3, Query2LabelConfig())
    assert head.queries.shape == (3, 12)
    (layer,) = head.encoder
    assert isinstance(layer, EncoderLayer)
    assert layer.feedforward[0].weight.shape == (48, 12)


def test_the_order_of_labels_is_that_of_the_queries() -> None:
    head = small(3).eval()
    features = random_map(1, 5, 2, 2)
    before = head(features)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        for tensor in (head.queries, head.classify.weight, head.classify.bias):
            tensor.copy_(tensor[order].clone())
    torch.testing.assert_close(head(features), before[:, order])


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (10, 2), (None, 4)])
def test_a_width_that_does_not_fit_is_told(width: int | None, heads: int) -> None:
    got = width or 5
    expected = f"width must be a multiple of 4 and of model.query2label.heads={heads}, got {got}$"
    with pytest.raises(ConfigError, match=expected):
        small(3, width=width, heads=heads)
