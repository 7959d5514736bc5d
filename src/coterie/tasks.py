"""What one training optimises: a task owns its model and turns a batch into a loss, so the loop stays
plain.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coterie.config import LOOK_AT_OUTPUT_LAYER, DistillConfig, TrainConfig
from coterie.data.dataset import PRESENT, UNKNOWN
from coterie.generator import TargetGenerator
from coterie.losses import (
    ClassificationLoss,
    DistillationLoss,
    asymmetric_loss,
    bernoulli_kl,
    binary_cross_entropy,
    squared_error,
)
from coterie.models.cut import Cut
from coterie.models.output_layer import OutputLayer
from coterie.models.shared_norm import SharedBatchNorm
from coterie.relations import relation_loss
from coterie.teachers import Teachers


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
    for none. `counts` [len(columns)]: what each of these labels counts on validation; None: all the same.
    """

    progress: float = 0.0
    counts: Tensor | None = None
    cut: Cut | None = None
    shares_batches: bool = False

    def __init__(self, model: nn.Module, columns: list[int], mixup: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.columns = columns
        self.mixup = mixup
        self.needs_images = mixup > 0

    @property
    def learned(self) -> Mapping[str, nn.Module]:
        """What is learned beside the model, and is part of the training's state."""
        return {}

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
    """Train `model` on the targets in `columns` of the full label set: baseline (all) and teachers.

    `counts` [len(columns)]: what each of these labels counts in the loss, and on validation.
    """

    def __init__(
        self,
        model: nn.Module,
        columns: list[int],
        loss: ClassificationLoss,
        mixup: float = 0.0,
        counts: Sequence[float] | None = None,
    ) -> None:
        super().__init__(model, columns, mixup)
        self.plain_loss = loss
        self.counts = None if counts is None else torch.tensor(counts)
        # the places of the labels that count the same; on the device, as a copy there would wait for it
        self.alike = sorted(set(counts or ()), reverse=True)
        for number, count in enumerate(self.alike):
            places = [place for place, other in enumerate(counts or ()) if other == count]
            self.register_buffer(f"places_{number}", torch.tensor(places), persistent=False)

    def forward(self, images: Tensor, targets: Tensor, are_features: bool = False) -> dict[str, Tensor]:
        """Images [B, 3, H, W] or features of the frozen part, targets [B, C] -> loss [], logits
        [B, len(columns)], named parts of the loss [].
        """
        mixture, targets = self.mixture(images, are_features), targets[:, self.columns]
        logits = self.answer(images if mixture is None else mixture.images(images), are_features)
        loss = self.loss(logits, targets) if mixture is None else mixture.loss(self.loss, logits, targets)
        return {"loss": loss, "logits": logits}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a sum over labels, in which each counts as much as it should."""
        if not self.alike:
            return self.plain_loss(logits, targets)
        losses = []
        for number, count in enumerate(self.alike):
            places = self.get_buffer(f"places_{number}")
            losses.append(count * self.plain_loss(logits[:, places], targets[:, places]))
        return torch.stack(losses).sum()


class DistillationTask(Task):
    """Train `model` on the labels and on frozen teachers (PSD; Xu et al., IJCAI 2022, eq. 3-5).

    `(1 - w) * cls(z, y) + w * sum_r weight_r * kd(z, z_r)`, where z_r [B, C] are the logits of branch r in
    full label order and the weights [R] are a and 1 - a, or those of each label [R, C]. `settings` say what
    kd is; `w`, which may go to `w_end` in equal parts, from the first step to the last; and what is added:
    `relations` times the loss of label-wise embeddings, and a generator, which makes one target of all z_r.

    `teachers`: images -> logits [R, B, C]; None where every batch brings those logits with it. With `mixup`,
    teachers and student see the mixed image. ConfigError where `model` has no output layer to look at.
    """

    weights: Tensor

    def __init__(
        self,
        model: nn.Module,
        teachers: Teachers | None,
        weights: Sequence[float] | Tensor,
        loss: ClassificationLoss,
        settings: DistillConfig,
        num_classes: int,
        mixup: float = 0.0,
    ) -> None:
        super().__init__(model, list(range(num_classes)), mixup)
        self.teachers = teachers
        self.needs_images = teachers is not None
        self.register_buffer("weights", torch.as_tensor(weights, dtype=torch.float32), persistent=False)
        self.loss = loss
        self.distillation_loss = distillation_loss(settings)
        self.settings = settings
        self.generator = (
            TargetGenerator(self.weights, num_classes, settings.generator) if settings.generator else None
        )
        self.output_layer = None
        for name in LOOK_AT_OUTPUT_LAYER:
            if getattr(settings, name):
                self.output_layer = OutputLayer(model, num_classes, f"distill.{name}")

    @property
    def learned(self) -> Mapping[str, nn.Module]:
        return {} if self.generator is None else {"generator": self.generator}

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        are_features: bool = False,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Images [B, 3, H, W] or features of the frozen part, targets [B, C], and the teachers' logits
        [R, B, C] where they are known -> loss [], logits [B, C], and the parts "cls" and "kd" [], with
        relations also "relations" [].
        """
        if (mixture := self.mixture(images, are_features)) is not None:
            if teacher_logits is not None:
                raise ValueError("logits of teachers that are known are not those of mixed images")
            images = mixture.images(images)
        rows, labels = (targets == PRESENT).nonzero(as_tuple=True)
        positives = (rows, labels)
        embeddings = None
        if teacher_logits is None:
            if self.teachers is None or are_features:
                raise ValueError("the student has neither teachers and images, nor the logits of teachers")
            if self.settings.relations:
                teacher_logits, embeddings = self.teachers.with_embeddings(images, positives)
            else:
                teacher_logits = self.teachers(images)
        with nullcontext() if self.output_layer is None else self.output_layer.watched():
            logits = self.answer(images, are_features)
        classification = (
            self.loss(logits, targets) if mixture is None else mixture.loss(self.loss, logits, targets)
        )
        distillation = self._distillation(logits, teacher_logits, targets)
        parts = {"cls": classification, "kd": distillation}
        w, w_end = self.settings.w, self.settings.w_end
        if w_end is not None:
            w += (w_end - w) * self.progress
        loss = (1 - w) * classification + w * distillation
        if embeddings is not None:
            parts["relations"] = self._relations(embeddings, positives)
            loss = loss + self.settings.relations * parts["relations"]
        return {"loss": loss, "logits": logits, **parts}

    def _distillation(self, logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        if self.generator is None or self.output_layer is None:
            return self.distillation_loss(logits, teacher_logits, self.weights)
        if self.training:
            self.generator.learn(self.output_layer, logits, teacher_logits, targets, self.distillation_loss)
        with torch.no_grad():
            target = self.generator(teacher_logits)
        return self.distillation_loss(logits, target[None], self.weights.new_ones(1))

    def _relations(self, embeddings: Tensor, positives: tuple[Tensor, Tensor]) -> Tensor:
        if self.teachers is None or self.output_layer is None:
            raise ValueError("relations need teachers and an output layer")
        own = self.output_layer.embeddings(*positives)
        return relation_loss(own, embeddings, self.teachers.owners, self.weights, positives)


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
