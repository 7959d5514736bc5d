"""Maps that add up: the mean of a map, with the bias, is the logit of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coterie.config import CsraConfig
from coterie.explain.exact import csra_maps, is_linear_in_map, linear_maps
from coterie.models.classifier import Classifier
from coterie.models.feature_map import FeatureMap
from coterie.models.heads.csra import CsraHead
from tests.explain.models import built, noise
from tests.models.heads.slow import array, random_map, softmax


@pytest.mark.parametrize(
    ("name", "side"), [("squeezenet1_1", 64), ("test_resnet", 64), ("swin_tiny_patch4_window7_224", 224)]
)
def test_the_mean_of_a_linear_map_and_the_bias_are_the_logit(name: str, side: int) -> None:
    model = built(name, image_size=side)
    assert isinstance(model, Classifier)
    images = noise(side=side)
    with torch.no_grad():
        maps, bias = linear_maps(model, images)
        logits = model(images)
    assert is_linear_in_map(model, images)
    assert maps.shape[:2] == (2, 5)
    assert maps.shape[2] > 1
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + bias, logits, rtol=1e-4, atol=1e-4)


def test_a_position_of_a_linear_map_is_what_the_class_says_of_its_features() -> None:
    model = built("squeezenet1_1")
    assert isinstance(model, Classifier)
    features = array(model.backbone.features(noise()))  # type: ignore[operator]
    weight = array(model.head.weight)  # type: ignore[arg-type]
    maps = array(linear_maps(model, noise())[0])
    expected = sum(weight[3, channel] * features[1, channel, 2, 0] for channel in range(512))
    assert maps[1, 3, 2, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "mobilenetv3_small_050"])
def test_a_model_with_layers_behind_its_pooling_is_not_linear_in_its_map(name: str) -> None:
    assert not is_linear_in_map(built(name), noise())


def test_models_without_a_linear_head_are_not_linear() -> None:
    assert not is_linear_in_map(built("squeezenet1_1", "csra"), noise())
    assert not is_linear_in_map(nn.Flatten(), noise())


@pytest.mark.parametrize(
    "settings",
    [
        {"temperatures": (1.0,)},
        {"temperatures": ("max",)},
        {"temperatures": (1.0, 7.0, "max"), "weight": 0.3},
        {"temperatures": (2.0,), "normalize": False},
    ],
)
def test_the_mean_of_a_map_of_residual_attention_is_the_logit(settings: dict[str, Any]) -> None:
    model = built("squeezenet1_1", "csra", csra=settings)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        maps = csra_maps(model, noise())
        torch.testing.assert_close(maps.mean(dim=(2, 3)), model(noise()), rtol=1e-4, atol=1e-4)


def test_a_position_of_residual_attention_brings_its_share_of_mean_and_attention() -> None:
    torch.manual_seed(0)
    head = CsraHead(4, 5, CsraConfig(temperatures=(3.0,), weight=0.5, normalize=False))
    model = Classifier(nn.Identity(), head, feature_map=FeatureMap("net", 4))
    features = random_map(1, 4, 2, 3)
    scores = array(head.scores(features))[0, 1].ravel()  # of the second class, [6]
    attention = softmax(3 * scores)
    expected = 6 * (scores / 6 + 0.5 * attention * scores)
    np.testing.assert_allclose(array(csra_maps(model, features))[0, 1].ravel(), expected, rtol=1e-5)


def test_positions_that_are_equally_great_share_the_maximum() -> None:
    head = CsraHead(1, 1, CsraConfig(temperatures=("max",), weight=1.0, normalize=False))
    nn.init.ones_(head.scores.weight)
    model = Classifier(nn.Identity(), head, feature_map=FeatureMap("net", 1))
    features = torch.tensor([[[[3.0, 1.0], [3.0, 1.0]]]])
    assert csra_maps(model, features)[0, 0].tolist() == [[9.0, 1.0], [9.0, 1.0]]
    assert model(features).item() == 5.0
