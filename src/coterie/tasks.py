"""What one training optimises: a task owns its model and turns a batch into a loss, so the loop stays
plain.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coterie.config import DistillConfig, TrainConfig
from coterie.data.dataset import UNKNOWN
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


class Mixture(NamedTuple):
    """A batch mixed with itself (mixup; Zhang et al., ICLR 2018): `share` of each image, and of the image at
    its place in `order` [B] the rest.
    """

    share: float
    order: Tensor

    @classmethod
    def drawn(cls, alpha: float, images: Tensor) -> Mixture:
        """A share from Beta(alpha, alpha) and an order, by the global generators."""
        return cls(random.betavariate(alpha, alpha), torch.randperm(len(images)).to(images.device))

    def images(self, images: Tensor) -> Tensor:
        return images * self.share + images[self.order] * (1 - self.share)

    def loss(self, loss: ClassificationLoss, logits: Tensor, targets: Tensor) -> Tensor:
        """The losses against the targets [B, C] of both images, by their shares. A label that is unknown in
        one of the two is unknown.
        """
        others = targets[self.order]
        unknown = (targets == UNKNOWN) | (others == UNKNOWN)
        own, other = (part.masked_fill(unknown, UNKNOWN) for part in (targets, others))
        return self.share * loss(logits, own) + (1 - self.share) * loss(logits, other)


class Task(nn.Module):
    """What all tasks have: the `model`, the `columns` of the full label set that it answers for, and where it
    is `cut` if a part of it is frozen. It `needs_images` where features of that part are not enough, and
    `shares_batches` where other processes have the rest of each batch. `progress` is where the training is: 0
    at its first step, 1 at its last. `mixup`: images are mixed in pairs, by shares from Beta(mixup, mixup); 0
    for none.
    """

    progress: float = 0.0
    cut: Cut | None = None
    shares_batches: bool = False

    def __init__(self, model: nn.Module, columns: list[int], mixup: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.columns = columns
        self.mixup = mixup
        self.needs_images = mixup > 0

    def mixture(self, images: Tensor, are_features: bool = False) -> Mixture | None:
        """How this step mixes its batch, None where it does not; ValueError where it has no images."""
        if self.mixup == 0:
            return None
        if are_features:
            raise ValueError("mixup needs images: a frozen part does not make mixed features of them")
        return Mixture.drawn(self.mixup, images)

    def answer(self, images: Tensor, are_features: bool) -> Tensor:
        """The model's logits of images, or of the features of its frozen part."""
        with SharedBatchNorm() if self.shares_batches else nullcontext():
            if self.cut is None:
                logits: Tensor = self.model(images)
                return logits
            return self.cut.upper(images if are_features else self.cut.lower(images))


class ClassificationTask(Task):
    """Train `model` on the targets in `columns` of the full label set: baseline (all) and teachers."""

    def __init__(
        self, model: nn.Module, columns: list[int], loss: ClassificationLoss, mixup: float = 0.0
    ) -> None:
        super().__init__(model, columns, mixup)
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor, are_features: bool = False) -> dict[str, Tensor]:
        """Images [B, 3, H, W] or features of the frozen part, targets [B, C] -> loss [], logits
        [B, len(columns)], named parts of the loss [].
        """
        mixture, targets = self.mixture(images, are_features), targets[:, self.columns]
        logits = self.answer(images if mixture is None else mixture.images(images), are_features)
        loss = self.loss(logits, targets) if mixture is None else mixture.loss(self.loss, logits, targets)
        return {"loss": loss, "logits": logits}


class DistillationTask(Task):
    """Train `model` on the labels and on frozen teachers (PSD; Xu et al., IJCAI 2022, eq. 3-5).

    `(1 - w) * cls(z, y) + w * sum_r weight_r * kd(z, z_r)`, where z_r [B, C] are the logits of branch r in
    full label order and the weights [R] are a and 1 - a, or those of each label [R, C]. `teachers`: images
    -> logits [R, B, C]; None where every batch brings those logits with it. With `w_end`, w goes there in
    equal parts, from the first step to the last. With `mixup`, teachers and student see the mixed image.
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
        mixup: float = 0.0,
    ) -> None:
        super().__init__(model, list(range(num_classes)), mixup)
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
        if (mixture := self.mixture(images, are_features)) is not None:
            if teacher_logits is not None:
                raise ValueError("logits of teachers that are known are not those of mixed images")
            images = mixture.images(images)
        if teacher_logits is None:
            if self.teachers is None or are_features:
                raise ValueError("the student has neither teachers and images, nor the logits of teachers")
            teacher_logits = self.teachers(images)
        logits = self.answer(images, are_features)
        classification = (
            self.loss(logits, targets) if mixture is None else mixture.loss(self.loss, logits, targets)
        )
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
