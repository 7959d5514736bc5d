"""The feature map of every kind of backbone: in one form, the same features that would be pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from coterie.config import ModelConfig
from coterie.errors import ConfigError
from coterie.models.classifier import Classifier
from coterie.models.factory import ModelFactory
from coterie.models.feature_map import FeatureMap


def built(name: str, image_size: int = 64, head: str = "csra") -> Classifier:
    settings = ModelConfig.model_validate({"name": name, "image_size": image_size, "head": head})
    model = ModelFactory(settings).build(["ant", "bee"])
    assert isinstance(model, Classifier)
    return model.eval()


def features_of(name: str, image_size: int = 64) -> torch.Tensor:
    model = built(name, image_size)
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(images).shape == (2, 2)
        assert model.feature_map is not None
        return model.feature_map(model.backbone(images))


@pytest.mark.parametrize(
    ("name", "image_size", "channels", "side"),
    [
        ("test_resnet", 64, 96, 2),
        ("tresnet_m", 64, 2048, 2),
        ("mobilenetv3_small_050", 64, 1024, 2),
        ("test_convnext", 64, 64, 2),
        ("test_mambaout", 64, 256, 2),  # [B, H, W, D]
        ("swin_tiny_patch4_window7_224", 224, 768, 7),  # [B, H, W, D]
        ("test_vit", 64, 64, 4),  # a class token before the patches
        ("test_vit_relpos", 64, 96, 4),  # no class token
        ("mixer_s32_224", 224, 512, 7),  # tokens, none before them
        ("xcit_nano_12_p16_224", 64, 128, 4),
        ("squeezenet1_1", 64, 512, 3),
    ],
)
def test_the_map_has_the_channels_first(name: str, image_size: int, channels: int, side: int) -> None:
    assert features_of(name, image_size).shape == (2, channels, side, side)


@pytest.mark.parametrize("name", ["test_resnet", "squeezenet1_1", "mixer_s32_224"])
def test_the_mean_of_the_map_is_what_the_linear_head_sees(name: str) -> None:
    """Of backbones whose pooling is a mean, and comes last."""
    size = 224 if name.startswith("mixer") else 64
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = built(name, size, "linear").backbone(images)
    torch.testing.assert_close(features_of(name, size).mean(dim=(2, 3)), pooled, rtol=1e-4, atol=1e-4)


def test_registers_are_left_out_as_the_class_token_is() -> None:
    settings = ModelConfig(name="test_vit", image_size=64, head="csra", options={"reg_tokens": 3})
    model = ModelFactory(settings).build(["ant"]).eval()
    assert isinstance(model, Classifier)
    assert model.feature_map == FeatureMap("test_vit", 64, prefix_tokens=4)
    tokens = model.backbone(torch.randn(2, 3, 64, 64))
    assert tokens.shape == (2, 4 + 16, 64)
    torch.testing.assert_close(model.feature_map(tokens).flatten(2), tokens[:, 4:].transpose(1, 2))


def test_tokens_come_from_left_to_right_and_top_to_bottom() -> None:
    tokens = torch.arange(2 * 6 * 4).view(2, 4, 6).transpose(1, 2)  # [B, 2 + 4, D = 4]
    expected = np.array([[[2, 3], [4, 5]], [[8, 9], [10, 11]]])
    np.testing.assert_array_equal(FeatureMap("net", 4, prefix_tokens=2)(tokens)[0, :2], expected)


def test_channels_at_the_end_are_brought_to_the_front() -> None:
    features = torch.randn(2, 3, 3, 5)
    torch.testing.assert_close(
        FeatureMap("net", 5, channels_at_end=True)(features), features.permute(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (torch.zeros(2, 8), r"it gives features of the shape \[2, 8\]"),
        (torch.zeros(2, 7, 3, 3), r"it gives features of the shape \[2, 7, 3, 3\]"),
        (torch.zeros(2, 9, 7), r"it gives features of the shape \[2, 9, 7\]"),
        (torch.zeros(2, 10, 8), "its 10 tokens are no square"),
        (torch.zeros(2, 0, 8), "its 0 tokens are no square"),
        ([torch.zeros(2, 8)], "it gives a list"),
    ],
)
def test_features_that_are_no_map_are_told(features: object, reason: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^model\.name=net has no feature map: {reason}\. Use model\.head="
    ):
        FeatureMap("net", 8)(features)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crossvit_tiny_240", r"timm says, Only token or avg pooling is supported\. Use model"),
        ("efficientvit_b0", r"timm says, Cannot disable pooling\. Use model"),
    ],
)
def test_a_backbone_whose_pooling_cannot_be_taken_off_is_told(name: str, reason: str) -> None:
    size = 240 if name.startswith("cross") else 64
    with pytest.raises(ConfigError, match=f"model.name={name} has no feature map: {reason}"):
        built(name, size)


def test_weights_of_a_linear_model_fit_the_backbone_without_pooling() -> None:
    for name in ("test_resnet", "test_vit", "test_convnext", "squeezenet1_1"):
        pooled, unpooled = (built(name, head=head).backbone for head in ("linear", "csra"))
        assert pooled.state_dict().keys() == unpooled.state_dict().keys()


def test_weights_of_pooling_are_left_out_with_the_pooling(tmp_path: Path) -> None:
    options: dict[str, Any] = {"global_pool": "map", "num_heads": 4}
    torch.save(timm.create_model("test_vit", num_classes=0, **options).state_dict(), tmp_path / "vit.pt")
    given = {"name": "test_vit", "image_size": 160, "options": options, "weights": tmp_path / "vit.pt"}
    factory = ModelFactory(ModelConfig.model_validate(given | {"head": "csra"}))
    report = factory.load_weights(factory.build(["ant"]))
    assert report.left_out
    assert all(key.startswith("attn_pool.") for key in report.left_out)
    linear = ModelFactory(ModelConfig.model_validate(given))
    assert linear.load_weights(linear.build(["ant"])).left_out == ()


def test_every_parameter_of_a_backbone_without_pooling_is_trained() -> None:
    """Norms between pooling and head are part of the map, or they would never get a gradient."""
    for name in ("test_convnext", "test_vit", "mobilenetv3_small_050", "test_nfnet"):
        model = built(name)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        assert without == []


def test_the_class_token_is_left_out_where_the_model_does_not_count_it() -> None:
    assert not hasattr(timm.create_model("volo_d1_224"), "num_prefix_tokens")
    assert features_of("volo_d1_224", 224).shape == (2, 384, 14, 14)


def test_a_map_goes_through_a_classifier() -> None:
    model = Classifier(nn.Identity(), nn.Flatten(), feature_map=FeatureMap("net", 2, channels_at_end=True))
    images = torch.arange(8.0).view(1, 2, 2, 2)
    assert model(images).tolist() == [[0, 2, 4, 6, 1, 3, 5, 7]]
