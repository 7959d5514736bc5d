"""A backbone and a head on its features."""

from __future__ import annotations

import torch
from torch import nn

from coterie.models.classifier import Classifier
from coterie.models.heads.linear import LinearHead


def test_logits_are_a_linear_function_of_the_backbone_s_features() -> None:
    head = LinearHead(12, 5)
    images = torch.randn(3, 3, 2, 2)
    expected = images.flatten(1) @ head.weight.T + head.bias
    torch.testing.assert_close(Classifier(nn.Flatten(), head)(images), expected)


def test_dropout_is_on_the_features_and_only_in_training() -> None:
    head = LinearHead(3000, 1)
    nn.init.ones_(head.weight)
    nn.init.zeros_(head.bias)
    model = Classifier(nn.Flatten(), head, drop_rate=0.5)
    images = torch.ones(1, 3, 1000, 1)
    assert model.eval()(images).item() == 3000
    torch.manual_seed(0)
    dropped = model.train()(images).item()
    assert dropped != 3000
    assert abs(dropped - 3000) < 300


def test_images_are_shrunk_in_full_precision_whatever_that_of_the_model() -> None:
    images = torch.rand(2, 3, 32, 32)
    model = Classifier(nn.Flatten(), LinearHead(3 * 24 * 24, 2), shrink=24).eval()
    smaller = torch.nn.functional.interpolate(images, size=(24, 24), mode="bilinear", antialias=True)
    plain = Classifier(model.backbone, model.head).eval()
    with torch.no_grad():
        expected = plain(smaller)
        assert torch.equal(model(images), expected)
        assert torch.equal(model(smaller), expected)  # no larger than that: as they are
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(images), plain(smaller))
        half = model.to(torch.bfloat16)
        torch.testing.assert_close(half(images.bfloat16()).float(), expected, rtol=0.05, atol=0.05)
