"""What one training optimises: a task owns its model and turns a batch into a loss, so the loop stays
plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from coterie.config import DistillConfig, TrainConfig
from coterie.losses import (
    ClassificationLoss,
    DistillationLoss,
    asymmetric_loss,
    bernoulli_kl,
    binary_cross_entropy,
    squared_error,
)
from coterie.models.cut import Cut
from coterie.models.shared_norm import SharedBatchNorm


class Task(nn.Module):
    """What all tasks have: the `model`, the `columns` of the full label set that it answers for, and where it
    is `cut` if a part of it is frozen. It `needs_images` where features of that part are not enough, and
    `shares_batches` where other processes have the rest of each batch. `progress` is where the training is: 0
    at its first step, 1 at its last.
    """

    progress: float = 0.0
    cut: Cut | None = None
    needs_images: bool = False
    shares_batches: bool = False

    def __init__(self, model: nn.Module, columns: list[int]) -> None:
        super().__init__()
        self.model = model
        self.columns = columns

    def answer(self, images: Tensor, are_features: bool) -> Tensor:
        """The model's logits of images, or of the features of its frozen part."""
        with SharedBatchNorm() if self.shares_batches else nullcontext():
            if self.cut is None:
                logits: Tensor = self.model(images)
                return logits
            return self.cut.upper(images if are_features else self.cut.lower(images))


class ClassificationTask(Task):
    """Train `model` on the targets in `columns` of the full label set: baseline (all) and teachers."""

    def __init__(self, model: nn.Module, columns: list[int], loss: ClassificationLoss) -> None:
        super().__init__(model, columns)
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor, are_features: bool = False) -> dict[str, Tensor]:
        """Images [B, 3, H, W] or features of the frozen part, targets [B, C] -> loss [], logits
        [B, len(columns)], named parts of the loss [].
        """
        logits = self.answer(images, are_features)
        return {"loss": self.loss(logits, targets[:, self.columns]), "logits": logits}


class DistillationTask(Task):
    """Train `model` on the labels and on frozen teachers (PSD; Xu et al., IJCAI 2022, eq. 3-5).

    `(1 - w) * cls(z, y) + w * sum_r weight_r * kd(z, z_r)`, where z_r [B, C] are the logits of branch r in
    full label order and the weights [R] are a and 1 - a, or those of each label [R, C]. `teachers`: images
    -> logits [R, B, C]; None where every batch brings those logits with it. With `w_end`, w goes there in
    equal parts, from the first step to the last.
    """

    weights: Tensor

    def __init__(
        self,
        model: nn.Module,
        teachers: nn.Module | None,
        weights: Sequence[float] | Tensor,
        loss: ClassificationLoss,
        distillation_loss: DistillationLoss,
        w: float,
        num_classes: int,
        w_end: float | None = None,
    ) -> None:
        super().__init__(model, list(range(num_classes)))
        self.teachers = teachers
        self.needs_images = teachers is not None
        self.register_buffer("weights", torch.as_tensor(weights, dtype=torch.float32), persistent=False)
        self.loss = loss
        self.distillation_loss = distillation_loss
        self.w = w
        self.w_end = w if w_end is None else w_end

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        are_features: bool = False,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Images [B, 3, H, W] or features of the frozen part, targets [B, C], and the teachers' logits
        [R, B, C] where they are known -> loss [], logits [B, C], and the parts "cls" and "kd" [].
        """
        if teacher_logits is None:
            if self.teachers is None or are_features:
                raise ValueError("the student has neither teachers and images, nor the logits of teachers")
            teacher_logits = self.teachers(images)
        logits = self.answer(images, are_features)
        classification = self.loss(logits, targets)
        distillation = self.distillation_loss(logits, teacher_logits, self.weights)
        w = self.w + (self.w_end - self.w) * self.progress
        loss = (1 - w) * classification + w * distillation
        return {"loss": loss, "logits": logits, "cls": classification, "kd": distillation}


def classification_loss(settings: TrainConfig) -> ClassificationLoss:
    """The loss that `train.loss` names."""
    if settings.loss == "bce":
        return binary_cross_entropy
    return partial(
        asymmetric_loss, gamma_neg=settings.gamma_neg, gamma_pos=settings.gamma_pos, clip=settings.clip
    )


def distillation_loss(settings: DistillConfig) -> DistillationLoss:
    """The loss that `distill.loss` names."""
    if settings.loss == "squared-error":
        return squared_error
    return partial(bernoulli_kl, temperature=settings.temperature)
