"""The layer that gives a model's logits, and what it sees of each label."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import ConfigError
from coterie.models.heads.grouped_linear import GroupedLinear


class OutputLayer:
    """The last linear layer of `model`, whose outputs are the logits of `num_classes` labels.

    It sees one vector for all labels, [B, D]; or one for each of K queries, [B, K, D]; or one for each label,
    [B, C, D], of which all have the same weights. ConfigError, which begins with the setting `asked_by`,
    where the model has no such layer.
    """

    def __init__(self, model: nn.Module, num_classes: int, asked_by: str) -> None:
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear | GroupedLinear)]
        of_all = [layer for layer in linear if _num_outputs(layer) == num_classes]
        of_each = [layer for layer in linear if _num_outputs(layer) == 1]
        if not (of_all or of_each):
            raise ConfigError(
                f"{asked_by} looks at what the last linear layer of a model sees, and this model has none "
                f"with an output for each of {num_classes} classes; choose another model.head, or leave the "
                "setting out"
            )
        self.layer: nn.Linear | GroupedLinear = (of_all or of_each)[-1]
        self._seen: Tensor | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep what the layer sees inside the block, for `seen`."""

        def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._seen = inputs[0]

        handle = self.layer.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def seen(self) -> Tensor:
        """What the layer saw last in a watched block, in float32."""
        if self._seen is None:
            raise RuntimeError("the output layer has not been called inside a watched block")
        return self._seen.float()

    def logits(self, seen: Tensor) -> Tensor:
        """The logits [B, C] of what was `seen`."""
        logits: Tensor = self.layer(seen)
        return logits

    def vectors(self, seen: Tensor, labels: Tensor) -> Tensor:
        """What was `seen` of `labels` [P]: [B, P, D], or [B, 1, D] where it is the same of all."""
        if seen.ndim == 2:
            return seen[:, None]
        return seen[:, self._queries(labels)]

    def embeddings(self, images: Tensor, labels: Tensor) -> Tensor:
        """The label-wise embeddings [P, D] (Yang et al., ICCV 2023) of `labels` [P] in `images` [P] of the
        batch that was seen last: what the layer saw of the label times the label's weights, whose sum is the
        logit but for the bias.
        """
        seen, weight = self.seen(), self.layer.weight.float()
        if isinstance(self.layer, GroupedLinear):
            queries = self._queries(labels)
            return seen[images, queries] * weight[queries, :, labels % weight.shape[2]]
        if seen.ndim == 2:
            return seen[images] * weight[labels]
        return seen[images, labels] * weight[0]

    def _queries(self, labels: Tensor) -> Tensor:
        """The query that answers for each of `labels`."""
        if isinstance(self.layer, GroupedLinear):
            return torch.div(labels, self.layer.weight.shape[2], rounding_mode="floor")
        return labels


def _num_outputs(layer: nn.Linear | GroupedLinear) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.num_classes
