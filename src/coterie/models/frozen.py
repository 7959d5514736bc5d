"""Trained models made ready to answer fast: no gradients, batch norm folded, low precision where it holds."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from coterie.devices import DTYPES, low_precisions
from coterie.errors import is_out_of_memory
from coterie.models.folding import fold_batch_norm, relative_error

# Folding is proven on this many images, in float64, where a forward pass is slow.
PROOF_IMAGES = 1


class FrozenModel(nn.Module):
    """A trained model that answers and does not learn: images [B, 3, H, W] float32 -> logits [B, C] float32.

    It stays in evaluation mode whatever the module around it does, and in its own precision whatever autocast
    is on around it: `dtype` is that of its weights, or with `autocast` that of the operations that torch
    holds to be safe in it. `error` is how far its logits were from those in fp32 when it was made.
    """

    error: float = 0.0

    def __init__(
        self, model: nn.Module, dtype: torch.dtype = torch.float32, *, autocast: bool = False
    ) -> None:
        super().__init__()
        self.model = model if autocast else model.to(dtype)
        self.dtype = dtype
        self.autocast = autocast
        self.requires_grad_(False)
        self.eval()

    @property
    def form(self) -> str:
        """Its precision, such as "bfloat16" or "bfloat16 by autocast"."""
        return str(self.dtype).removeprefix("torch.") + (" by autocast" if self.autocast else "")

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode: batch norm and dropout must not move while the model gives targets."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.autocast):
            logits: Tensor = self.model(images if self.autocast else images.to(self.dtype))
        return logits.float()


def freeze(model: nn.Module, images: Tensor, *, tolerance: float, precision: str = "fp32") -> FrozenModel:
    """`model` in the cheapest form whose logits on `images` are within `tolerance` of its own in fp32.

    Cheapest first: folded, with weights in low precision; as it is, under autocast; folded, in fp32. The
    error is the norm of the difference over the norm of the logits. `images` [B, 3, H, W] are real ones, on
    the device that is to answer. `precision`: that of the run, one of DTYPES. A tolerance of 0 leaves the
    model as it is, in the precision of the run.
    """
    # before the model goes to the device: not every device has float64
    folded = fold_batch_norm(model.cpu(), images[:PROOF_IMAGES].cpu()) if tolerance > 0 else model
    plain = FrozenModel(model.to(images.device))
    expected = plain(images)

    def measured(form: FrozenModel) -> FrozenModel:
        form.error = _error(form, images, expected)
        return form

    if tolerance == 0:
        return plain if precision == "fp32" else measured(_autocast(plain, DTYPES[precision]))
    folded = folded.to(images.device)
    for dtype in low_precisions(images.device.type, precision):
        for form in (FrozenModel(copy.deepcopy(folded), dtype), _autocast(plain, dtype)):
            if measured(form).error <= tolerance:
                return form
    return measured(FrozenModel(folded))


def _autocast(plain: FrozenModel, dtype: torch.dtype) -> FrozenModel:
    return FrozenModel(plain.model, dtype, autocast=True)


def _error(form: FrozenModel, images: Tensor, expected: Tensor) -> float:
    """The relative error of a form's logits; infinite where the model does not run in that form."""
    try:
        return relative_error(form(images), expected)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return math.inf  # a model may make tensors of a type of its own choice
