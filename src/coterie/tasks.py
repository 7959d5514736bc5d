"""What one training optimises: a task owns its model and turns a batch into a loss, so the loop stays
plain.
"""

from __future__ import annotations

from functools import partial

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
from coterie.teachers import Branch


class ClassificationTask(nn.Module):
    """Train `model` on the targets in `columns` of the full label set: baseline (all) and teachers."""

    def __init__(self, model: nn.Module, columns: list[int], loss: ClassificationLoss) -> None:
        super().__init__()
        self.model = model
        self.columns = columns
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W], targets [B, C] -> loss [], logits [B, len(columns)], named parts of the loss
        [].
        """
        logits = self.model(images)
        return {"loss": self.loss(logits, targets[:, self.columns]), "logits": logits}


class DistillationTask(nn.Module):
    """Train `model` on the labels and on frozen teachers (PSD; Xu et al., IJCAI 2022, eq. 3-5).

    `(1 - w) * cls(z, y) + w * sum_b weight_b * kd(z, z_b)`, where z_b [B, C] are branch b's logits in full
    label order and the weights are a and 1 - a.
    """

    def __init__(
        self,
        model: nn.Module,
        branches: dict[str, tuple[Branch, float]],
        loss: ClassificationLoss,
        distillation_loss: DistillationLoss,
        w: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.branches = nn.ModuleDict({name: branch for name, (branch, _) in branches.items()})
        self.weights = {name: weight for name, (_, weight) in branches.items()}
        self.loss = loss
        self.distillation_loss = distillation_loss
        self.w = w
        self.columns = list(range(next(iter(branches.values()))[0].num_classes))

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W], targets [B, C] -> loss [], logits [B, C], and the parts "cls", "kd-<branch>"
        [].
        """
        logits = self.model(images)
        classification = self.loss(logits, targets)
        parts = {"cls": classification}
        loss = (1 - self.w) * classification
        for name, branch in self.branches.items():
            part = self.distillation_loss(logits, branch(images))
            parts[f"kd-{name}"] = part
            loss = loss + self.w * self.weights[name] * part
        return {"loss": loss, "logits": logits, **parts}


Task = ClassificationTask | DistillationTask


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
