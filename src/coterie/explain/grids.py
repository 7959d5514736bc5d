"""Where the positions of a picture are in what a layer gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Class tokens and registers that may stand before the tokens of positions.
MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Grid:
    """How an output of some layer is a map [B, D, side, side]: as it is, with its channels at the end, or as
    tokens [B, prefix_tokens + side * side, D].
    """

    side: int
    channels_at_end: bool = False
    prefix_tokens: int | None = None  # None: not tokens

    def to_map(self, output: Tensor) -> Tensor:
        if self.prefix_tokens is not None:
            tokens = output[:, self.prefix_tokens :].transpose(1, 2)  # [B, D, positions]
            return tokens.reshape(*tokens.shape[:2], self.side, self.side)
        return output.permute(0, 3, 1, 2) if self.channels_at_end else output

    def from_map(self, features: Tensor, output: Tensor) -> Tensor:
        """The output that `features` are the map of; what has no position is taken from `output`."""
        if self.prefix_tokens is not None:
            return torch.cat([output[:, : self.prefix_tokens], features.flatten(2).transpose(1, 2)], dim=1)
        return features.permute(0, 2, 3, 1) if self.channels_at_end else features


def grid_of(output: object) -> Grid | None:
    """The grid of positions in the output of a layer; None where it has none, or a single position.

    Pictures are squashed to squares, so that a map is one too.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 4:
        _, second, third, fourth = output.shape
        if third == fourth > 1:
            return Grid(third)
        return Grid(second, channels_at_end=True) if second == third > 1 else None
    if output.ndim == 3:
        length = output.shape[1]
        for prefix in range(min(MOST_PREFIX_TOKENS, length - 4) + 1):
            side = math.isqrt(length - prefix)
            if side * side == length - prefix:
                return Grid(side, prefix_tokens=prefix)
    return None
