"""Maps that add up to the logit: what each position brings to it, for heads where that is exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.errors import ConfigError
from coterie.models.classifier import Classifier
from coterie.models.feature_map import map_form
from coterie.models.heads.csra import CsraHead
from coterie.models.heads.linear import LinearHead
from coterie.models.squeezenet import SqueezeNetBackbone

# How far the logits of a map may be from the model's: what sums in another order differ by.
TOLERANCE = 1e-3


def linear_maps(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """(maps [B, C, h, w], bias [C]) of a linear head on pooled features: the mean of a map, plus the bias, is
    the logit. Class activation maps (Zhou et al., CVPR 2016).

    ConfigError where the backbone has no map whose mean it pools: `is_linear_in_map` tells.
    """
    head = model.head
    assert isinstance(head, LinearHead)
    features = _unpooled(model.backbone, images, head.in_features)
    return torch.einsum("bdhw,cd->bchw", features, head.weight), head.bias


def is_linear_in_map(model: nn.Module, images: Tensor) -> bool:
    """Whether the logits of `model` are those of its map: some backbones pool a class token, or have layers
    between pooling and head.
    """
    if not isinstance(model, Classifier) or not isinstance(model.head, LinearHead):
        return False
    try:
        maps, bias = linear_maps(model, images)
    except (ConfigError, AttributeError, TypeError):
        return False
    logits = model(images)
    return torch.allclose(maps.mean(dim=(2, 3)) + bias, logits, rtol=TOLERANCE, atol=TOLERANCE)


def csra_maps(model: Classifier, images: Tensor) -> Tensor:
    """Maps [B, C, h, w] of residual attention, whose mean is the logit.

    With N positions x and scores s, logit = mean s + weight * sum_x a_x s_x, where a is the softmax of T * s:
    position x brings s_x / N + weight * a_x s_x, here times N. With T = "max", a is shared by the greatest.
    """
    head = model.head
    assert isinstance(head, CsraHead)
    assert model.feature_map is not None
    features = model.feature_map(model.backbone(images))
    parts = []
    for each, temperature in zip(head.position_scores(features), head.temperatures, strict=True):
        if isinstance(temperature, str):
            greatest = (each == each.amax(dim=2, keepdim=True)).to(each.dtype)
            attention = greatest / greatest.sum(dim=2, keepdim=True)
        else:
            attention = (temperature * each).softmax(dim=2)
        parts.append(each * (1 + head.weight * each.shape[2] * attention))
    maps = torch.stack(parts).sum(dim=0)
    return maps.reshape(*maps.shape[:2], *features.shape[2:])


def _unpooled(backbone: nn.Module, images: Tensor, num_features: int) -> Tensor:
    """The feature map [B, D, h, w] of a backbone that pools."""
    if isinstance(backbone, SqueezeNetBackbone):
        features: Tensor = backbone.features(images)
        return features
    form = map_form(backbone, type(backbone).__name__, num_features)
    return form(backbone.forward_features(images))  # type: ignore[operator]
