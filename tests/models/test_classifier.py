"""A linear head on pooled features."""

from __future__ import annotations

import torch
from torch import nn

from coterie.models.classifier import Classifier


def test_logits_are_a_linear_function_of_the_backbone_s_features() -> None:
    model = Classifier(nn.Flatten(), num_features=12, num_classes=5)
    images = torch.randn(3, 3, 2, 2)
    expected = images.flatten(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected)


def test_dropout_is_on_the_features_and_only_in_training() -> None:
    model = Classifier(nn.Flatten(), num_features=3000, num_classes=1, drop_rate=0.5)
    nn.init.ones_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    images = torch.ones(1, 3, 1000, 1)
    assert model.eval()(images).item() == 3000
    torch.manual_seed(0)
    dropped = model.train()(images).item()
    assert dropped != 3000
    assert abs(dropped - 3000) < 300
