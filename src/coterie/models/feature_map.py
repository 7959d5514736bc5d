"""The feature map of a backbone, in one form whatever the backbone: what heads with attention look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from coterie.errors import ConfigError

# What timm's models raise where pooling cannot be taken off.
NO_MAP_ERRORS = (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class FeatureMap:
    """Brings the features of a backbone without pooling into the form [B, D, H, W].

    They come as [B, D, H, W], as [B, H, W, D] with `channels_at_end`, or as tokens [B, prefix_tokens + H * W,
    D] of a square picture, from left to right and top to bottom.
    """

    name: str
    num_features: int
    prefix_tokens: int = 0
    channels_at_end: bool = False

    def __call__(self, features: object) -> Tensor:
        """The feature map; ConfigError where the backbone gives something else."""
        if not isinstance(features, Tensor):
            raise no_feature_map(self.name, f"it gives a {type(features).__name__}")
        found = features
        if features.ndim == 3:
            tokens = features[:, self.prefix_tokens :].transpose(1, 2)  # [B, D, positions]
            side = math.isqrt(tokens.shape[2])
            if side * side != tokens.shape[2] or side == 0:
                raise no_feature_map(self.name, f"its {tokens.shape[2]} tokens are no square")
            found = tokens.reshape(*tokens.shape[:2], side, side)
        elif features.ndim == 4 and self.channels_at_end:
            found = features.permute(0, 3, 1, 2)
        if found.ndim != 4 or found.shape[1] != self.num_features:
            raise no_feature_map(self.name, f"it gives features of the shape {list(features.shape)}")
        return found


def no_feature_map(name: str, reason: str) -> ConfigError:
    """The error that a head with attention cannot look at what this backbone gives."""
    return ConfigError(
        f"model.name={name} has no feature map: {reason}. Use model.head=linear, which needs none, or "
        "another model.name"
    )


def without_pooling(backbone: nn.Module, name: str, num_features: int) -> FeatureMap:
    """Take the pooling off a timm model, in place: it gives features of every position then, normalised as
    those that were pooled. ConfigError where it cannot.
    """
    try:
        backbone.reset_classifier(0, "")  # type: ignore[operator]
    except NO_MAP_ERRORS as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise no_feature_map(name, f"timm says, {reason}") from None
    return map_form(backbone, name, num_features)


def map_form(backbone: nn.Module, name: str, num_features: int) -> FeatureMap:
    """In which form a timm model gives the features of every position."""
    prefix_tokens = getattr(backbone, "num_prefix_tokens", None)
    if prefix_tokens is None:
        prefix_tokens = int(getattr(backbone, "cls_token", None) is not None)
    channels_at_end = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return FeatureMap(name, num_features, int(prefix_tokens), channels_at_end)
