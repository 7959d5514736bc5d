"""Classification and distillation losses for multi-label logits, all in float32 and computed from logits.

Every loss takes logits [B, C], sums over labels and averages over images, so that the learning rate that
suits it does not depend on the batch size. An unknown target (-1) adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from coterie.data.dataset import PRESENT, UNKNOWN

ClassificationLoss = Callable[[Tensor, Tensor], Tensor]
# (student's logits, teachers' logits, weights of the branches) -> loss
DistillationLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits [B, C] against targets [B, C] in {1, 0, -1}."""
    logits = logits.float()
    present = (targets == PRESENT).to(logits.dtype)
    loss = functional.binary_cross_entropy_with_logits(logits, present, reduction="none")
    return _reduce(loss * (targets != UNKNOWN))


def asymmetric_loss(
    logits: Tensor, targets: Tensor, gamma_neg: float = 4.0, gamma_pos: float = 0.0, clip: float = 0.05
) -> Tensor:
    """Asymmetric loss (ASL; Ridnik et al., ICCV 2021, eq. 7) of logits [B, C], targets [B, C] in {1, 0, -1}.

    The probability of a negative is shifted down by `clip`; the focal weights carry no gradient.
    """
    logits = logits.float()
    present = targets == PRESENT
    probability = torch.sigmoid(logits)
    shifted = (probability - clip).clamp(min=0)
    log_positive = functional.logsigmoid(logits)
    # 1 - p + clip, at most 1. As 1 - p = sigmoid(-z) it keeps its precision where p is near 1.
    log_negative = (
        torch.log((torch.sigmoid(-logits) + clip).clamp(max=1))
        if clip > 0
        else functional.logsigmoid(-logits)
    )
    with torch.no_grad():
        weight = torch.where(present, (1 - probability) ** gamma_pos, shifted**gamma_neg)
    loss = -weight * torch.where(present, log_positive, log_negative)
    return _reduce(loss * (targets != UNKNOWN))


def squared_error(logits: Tensor, teacher_logits: Tensor, weights: Tensor) -> Tensor:
    """Squared error of raw logits [B, C] (PSD; Xu et al., IJCAI 2022), summed over labels.

    `teacher_logits` [R, B, C] of R branches, with `weights` [R], or [R, C] by label, that sum to 1. The
    gradient is that of one target, their weighted mean; how far the branches are from it is added as a
    constant.
    """
    teachers = teacher_logits.float()
    target = _mean(teachers, weights)
    spread = _mean((teachers - target) ** 2, weights)
    return _reduce((logits.float() - target) ** 2 + spread)


def bernoulli_kl(logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of one Bernoulli for each label, from logits [B, C], times temperature squared.

    `teacher_logits` [R, B, C] of R branches, with `weights` [R], or [R, C] by label, that sum to 1. The
    divergences from all of them are the cross-entropy against the weighted mean of their probabilities, less
    their own entropies. The square keeps the gradient's size when the temperature changes (Hinton et al.,
    2015, section 2).
    """
    student = logits.float() / temperature
    teachers = teacher_logits.float() / temperature
    target = _mean(torch.sigmoid(teachers), weights)
    own = _mean(_log_likelihood(teachers, torch.sigmoid(teachers)), weights)
    return _reduce(own - _log_likelihood(student, target)) * temperature**2


def weigh_by_precision(weights: Tensor, precision: Tensor, power: float) -> Tensor:
    """The weights [R, C] of R branches by label: proportional to `weights` [R] times `precision` [R, C], the
    average precision of each for the label, to the `power`. They sum to 1 over the branches.

    A label without a precision (NaN), as it has no positive, keeps `weights`, which sum to 1.
    """
    plain = weights.double()[:, None].expand(precision.shape)
    # by logarithms: a high power takes the precisions of all branches to 0
    weighed = (plain.log() + power * precision.double().log()).softmax(dim=0)
    return torch.where(precision.isnan(), plain, weighed).to(weights.dtype)


def _log_likelihood(logits: Tensor, probability: Tensor) -> Tensor:
    """The expected log-likelihood of Bernoullis with `logits` where a label is there with `probability`."""
    return probability * functional.logsigmoid(logits) + (1 - probability) * functional.logsigmoid(-logits)


def _mean(branches: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of branches: [R, B, C] and [R] or [R, C] -> [B, C]."""
    # not a matrix product, which autocast would take to half precision
    return (branches * weights.reshape(len(weights), 1, -1)).sum(dim=0)


def _reduce(loss: Tensor) -> Tensor:
    """Sum over labels, mean over images: [B, C] -> []."""
    return loss.sum(dim=1).mean()
