from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from coterie.config import MlDecoderConfig, Query2LabelConfig, TransformerConfig
from coterie.errors import ConfigError
from coterie.models.classifier import Classifier
from coterie.models.cut import Cut
from coterie.models.heads.grouped_linear import GroupedLinear
from coterie.models.heads.linear import LinearHead
from coterie.models.heads.ml_decoder import MlDecoderHead
from coterie.models.heads.query2label import Query2LabelHead
from coterie.models.heads.transformer import TransformerHead
from coterie.models.output_layer import OutputLayer

CLASSES = 5
WIDTH = 16
POOLED, MAP = torch.randn(3, 8), torch.randn(3, 8, 2, 2)


def transformer(shared: bool) -> TransformerHead:
    return TransformerHead(
        8, CLASSES, TransformerConfig(width=WIDTH, heads=2, layers=1, shared_output=shared)
    )


HEADS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: LinearHead(8, CLASSES), POOLED),
    "one class": (lambda: LinearHead(8, 1), POOLED),
    "ml-decoder": (lambda: MlDecoderHead(8, CLASSES, MlDecoderConfig(width=WIDTH, groups=5)), MAP),
    "ml-decoder, two classes a query": (
        lambda: MlDecoderHead(8, CLASSES, MlDecoderConfig(width=WIDTH, groups=3)),
        MAP,
    ),
    "query2label": (lambda: Query2LabelHead(8, CLASSES, Query2LabelConfig(width=WIDTH, heads=2)), MAP),
    "transformer": (lambda: transformer(shared=False), MAP),
    "transformer, shared output": (lambda: transformer(shared=True), MAP),
}


@pytest.mark.parametrize("name", HEADS)
def test_an_embedding_and_the_bias_add_up_to_the_logit(name: str) -> None:
    build, features = HEADS[name]
    model = Classifier(nn.Identity(), build()).eval()
    classes = 1 if name == "one class" else CLASSES
    layer = OutputLayer(model, classes, "distill.relations")
    with layer.watched():
        logits = model(features)
    images, labels = torch.cartesian_prod(torch.arange(3), torch.arange(classes)).T
    bias = layer.layer.bias.expand(classes)[labels]
    sums = layer.embeddings(images, labels).sum(dim=1) + bias
    torch.testing.assert_close(sums, logits[images, labels])
    torch.testing.assert_close(layer.logits(layer.seen()).reshape(3, classes), logits)


def test_what_a_label_is_seen_by() -> None:
    pooled, queries = torch.randn(3, 8), torch.randn(3, 2, 8)
    labels = torch.tensor([2, 0, 1])
    linear = OutputLayer(LinearHead(8, 3), 3, "")
    assert torch.equal(linear.vectors(pooled, labels), pooled[:, None])
    grouped = OutputLayer(GroupedLinear(2, 8, 3), 3, "")  # query 0 answers for classes 0 and 1
    assert torch.equal(grouped.vectors(queries, labels), queries[:, [1, 0, 0]])


def test_the_last_layer_of_all_classes_is_the_output_layer() -> None:
    first, last = nn.Linear(4, 3), nn.Linear(3, 3)
    model = nn.Sequential(nn.Linear(2, 4), first, last, nn.Identity())
    assert OutputLayer(model, 3, "").layer is last
    attention = nn.Linear(3, 1)
    assert OutputLayer(nn.Sequential(model, attention), 3, "").layer is last


def test_the_layer_is_seen_behind_a_frozen_part() -> None:
    model = Classifier(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8)), LinearHead(8, CLASSES))
    layer = OutputLayer(model, CLASSES, "")
    cut, images = Cut(model, "backbone.0"), torch.randn(2, 4)
    with layer.watched():
        cut.upper(cut.lower(images))
    torch.testing.assert_close(layer.seen(), model.backbone(images))


def test_nothing_is_kept_outside_of_a_watched_block() -> None:
    model = Classifier(nn.Identity(), LinearHead(8, CLASSES))
    layer = OutputLayer(model, CLASSES, "")
    model(POOLED)
    with pytest.raises(RuntimeError, match="watched block"):
        layer.seen()


def test_a_model_without_such_a_layer_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    model = nn.Sequential(nn.Conv2d(3, CLASSES, 1), Mean())
    with pytest.raises(
        ConfigError, match=r"^distill\.generator looks at .* none .* 5 classes; choose another"
    ):
        OutputLayer(model, CLASSES, "distill.generator")
