"""The transformer over patches and labels against one written out; label tokens from words and learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coterie.config import TransformerConfig
from coterie.errors import ConfigError
from coterie.models.heads.transformer import Layer, TransformerHead
from tests.models.heads.slow import (
    Array,
    array,
    attend,
    feedforward,
    layer_norm,
    linear,
    positions,
    random_map,
    randomized,
)

WORDS = random_map(3, 7, seed=9)


def small(num_classes: int = 3, words: Tensor | None = None, **settings: Any) -> TransformerHead:
    given = {"width": 6, "layers": 2, "heads": 2, "head_width": 5, "feedforward": 4} | settings
    return TransformerHead(5, num_classes, TransformerConfig.model_validate(given), words)


def slow_attention(layer: Layer, tokens: Array) -> Array:
    heads, projected = layer.attention.heads, array(layer.attention.project.weight)
    queries, keys, values = np.split(tokens @ projected.T, 3, axis=1)  # each [N, heads * head_width]
    each = queries.shape[1] // heads
    answers = []
    for query in queries:
        parts = [slice(head * each, (head + 1) * each) for head in range(heads)]
        seen = [attend(query[part], keys[:, part], values[:, part]) for part in parts]
        answers.append(linear(np.concatenate(seen), layer.attention.output))
    return np.array(answers)


def slow_logits(head: TransformerHead, features: Array) -> list[float]:
    """The logits of one image: features [D, H, W] -> [C]."""
    patches = [linear(x, head.project) for x in positions(features)]
    labels = list(array(head.label_vectors))
    if isinstance(head.project_labels, nn.Sequential):
        projection = head.project_labels[0]
        assert isinstance(projection, nn.Linear)
        labels = [np.maximum(linear(vector, projection), 0) for vector in labels]
    tokens = np.array([*patches, *labels])
    for layer in head.layers:
        assert isinstance(layer, Layer)
        tokens = tokens + slow_attention(
            layer, np.array([layer_norm(x, layer.attention_norm) for x in tokens])
        )
        tokens = np.array(
            [x + feedforward(layer_norm(x, layer.feedforward_norm), layer.feedforward) for x in tokens]
        )
    answers = tokens[len(patches) :]
    if isinstance(head.classify, nn.Linear):
        return [float(linear(answer, head.classify)[0]) for answer in answers]
    weights, biases = array(head.classify.weight), array(head.classify.bias)
    return [float(answer @ weights[label, :, 0] + biases[label]) for label, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("num_classes", "words", "settings"),
    [
        (3, WORDS, {}),
        (1, WORDS[:1], {}),
        (3, None, {}),
        (1, None, {"shared_output": False}),
        (3, None, {"label_dimensions": 4}),
        (3, WORDS, {"shared_output": False, "head_width": None, "feedforward": None, "layers": 1}),
    ],
)
def test_logits_are_those_of_a_transformer_written_out(
    num_classes: int, words: Tensor | None, settings: dict[str, Any]
) -> None:
    head = randomized(small(num_classes, words, **settings))
    assert isinstance(head, TransformerHead)
    features = random_map(2, 5, 2, 3)

    expected = [slow_logits(head, array(image)) for image in features]

    np.testing.assert_allclose(array(head(features)), expected, rtol=1e-4, atol=1e-4)


def test_word_vectors_are_saved_and_not_trained() -> None:
    head = small(words=WORDS)
    assert "label_vectors" not in dict(head.named_parameters())
    assert torch.equal(head.state_dict()["label_vectors"], WORDS)
    assert "label_vectors" in dict(small().named_parameters())


def test_a_head_without_the_file_takes_the_weights_of_one_with_word_vectors() -> None:
    head, again = small(words=WORDS).eval(), small(label_dimensions=7).eval()
    again.load_state_dict(head.state_dict())
    features = random_map(2, 5, 2, 2)
    torch.testing.assert_close(again(features), head(features))


def test_the_vectors_of_labels_are_told_apart() -> None:
    """With one output layer for all, a label is known by its token alone."""
    head = small(words=WORDS).eval()
    features = random_map(1, 5, 2, 2)
    logits = head(features)
    assert logits.unique().numel() == 3
    swapped = small(words=WORDS[[1, 0, 2]]).eval()
    weights = {name: tensor for name, tensor in head.state_dict().items() if name != "label_vectors"}
    swapped.load_state_dict(weights, strict=False)
    torch.testing.assert_close(swapped(features), logits[:, [1, 0, 2]])


def test_widths_are_those_of_the_paper_s_model_by_default() -> None:
    head = TransformerHead(8, 2, TransformerConfig(layers=1))
    shapes = {name: list(tensor.shape) for name, tensor in head.layers[0].state_dict().items()}
    assert shapes["attention.project.weight"] == [12288, 1024]
    assert shapes["attention.output.weight"] == [1024, 4096]
    assert shapes["feedforward.0.weight"] == [1024, 1024]
    assert head.classify.weight.shape == (1, 1024)


def test_dimensions_that_contradict_the_file_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"label_dimensions=4, but the vectors in model\.word_vectors have 7"
    ):
        small(words=WORDS, label_dimensions=4)
