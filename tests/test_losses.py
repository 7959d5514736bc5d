"""Losses against torch, against plain formulas in float64, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from coterie.losses import (
    asymmetric_loss,
    bernoulli_kl,
    binary_cross_entropy,
    squared_error,
    weigh_by_precision,
)

CLASSIFICATION = [
    binary_cross_entropy,
    asymmetric_loss,
    lambda z, y: asymmetric_loss(z, y, gamma_neg=2, gamma_pos=1, clip=0),
]
ONE = torch.ones(1)
DISTILLATION = [
    lambda z, t: squared_error(z, t[None], ONE),
    lambda z, t: bernoulli_kl(z, t[None], ONE),
    lambda z, t: bernoulli_kl(z, t[None], ONE, 4.0),
]
DISTILLATION_OF_BRANCHES = [
    squared_error,
    bernoulli_kl,
    lambda z, t, weights: bernoulli_kl(z, t, weights, temperature=4.0),
]
Loss = Callable[[Tensor, Tensor], Tensor]


def logits(*shape: int, seed: int = 0, scale: float = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def targets(*shape: int, seed: int = 1, lowest: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lowest, 2, shape, generator=generator).to(torch.int8)


def gradient(loss: Loss, z: Tensor, other: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    loss(z, other).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return z.grad


def plain_asymmetric_loss(
    z: Tensor, y: Tensor, gamma_neg: float, gamma_pos: float, clip: float
) -> tuple[float, Tensor]:
    """The loss, and its gradient [B, C] where the focal weight is a constant, entry by entry in float64."""
    total, grad = 0.0, torch.zeros(z.shape, dtype=torch.float64)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            p = 1 / (1 + math.exp(-float(z[i, j])))
            if y[i, j] == 1:
                weight = (1 - p) ** gamma_pos
                total -= weight * math.log(p)
                grad[i, j] = -weight * (1 - p)
            elif y[i, j] == 0:
                shifted = max(p - clip, 0)
                weight = shifted**gamma_neg
                total -= weight * math.log(1 - shifted)
                grad[i, j] = weight * p * (1 - p) / (1 - shifted) if p > clip else 0
    return total / len(z), grad / len(z)


def test_binary_cross_entropy_is_that_of_torch_summed_over_labels() -> None:
    z, y = logits(6, 5), targets(6, 5)
    expected = functional.binary_cross_entropy_with_logits(z, y.float(), reduction="sum") / 6
    torch.testing.assert_close(binary_cross_entropy(z, y), expected)


@pytest.mark.parametrize(
    ("gamma_neg", "gamma_pos", "clip"), [(4, 0, 0.05), (4, 1, 0.05), (2, 2, 0), (0, 0, 0), (1, 0, 0.2)]
)
def test_asymmetric_loss_and_its_gradient_are_the_paper_s_formula(
    gamma_neg: float, gamma_pos: float, clip: float
) -> None:
    z, y = logits(7, 6), targets(7, 6, lowest=-1)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return asymmetric_loss(z, y, gamma_neg, gamma_pos, clip)

    value, grad = plain_asymmetric_loss(z, y, gamma_neg, gamma_pos, clip)
    assert loss(z, y).item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(gradient(loss, z, y).double(), grad, rtol=1e-4, atol=1e-7)


def test_asymmetric_loss_without_focus_and_shift_is_binary_cross_entropy() -> None:
    z, y = logits(4, 3), targets(4, 3)
    torch.testing.assert_close(asymmetric_loss(z, y, 0, 0, 0), binary_cross_entropy(z, y))


@pytest.mark.parametrize("loss", CLASSIFICATION)
def test_unknown_targets_add_nothing_and_get_no_gradient(loss: Loss) -> None:
    z, y = logits(5, 4), targets(5, 4, lowest=-1)
    unknown = y == -1
    assert unknown.any()
    other = torch.where(unknown, 1e4, z)
    assert loss(other, y) == loss(z, y)
    grad = gradient(loss, other, y)
    assert (grad[unknown] == 0).all()
    assert torch.equal(grad[~unknown], gradient(loss, z, y)[~unknown])
    assert loss(z, torch.full_like(y, -1)) == 0


@pytest.mark.parametrize("loss", CLASSIFICATION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(loss: Loss, dtype: torch.dtype) -> None:
    z = torch.tensor([[1e4, -1e4, 1e4, -1e4, 0.0]], dtype=dtype)
    y = torch.tensor([[1, 1, 0, 0, 1]], dtype=torch.int8)
    value = loss(z, y)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient(loss, z, y).isfinite().all()


@pytest.mark.parametrize("loss", DISTILLATION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_teachers_give_finite_losses_and_gradients(loss: Loss, dtype: torch.dtype) -> None:
    z = torch.tensor([[1e4, -1e4, 1e4, -1e4, 0.0]], dtype=dtype)
    t = torch.tensor([[1e4, 1e4, -1e4, 0.0, 1e4]], dtype=dtype)
    value = loss(z, t)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient(loss, z, t).isfinite().all()


@pytest.mark.parametrize("loss", CLASSIFICATION)
def test_a_classification_loss_does_not_depend_on_the_batch_size(loss: Loss) -> None:
    z, y = logits(6, 5), targets(6, 5, lowest=-1)
    torch.testing.assert_close(loss(z.repeat(2, 1), y.repeat(2, 1)), loss(z, y))


@pytest.mark.parametrize("loss", DISTILLATION)
def test_a_distillation_loss_does_not_depend_on_the_batch_size(loss: Loss) -> None:
    z, t = logits(6, 5), logits(6, 5, seed=2)
    torch.testing.assert_close(loss(z.repeat(2, 1), t.repeat(2, 1)), loss(z, t))


@pytest.mark.parametrize("loss", DISTILLATION)
def test_a_distillation_loss_is_zero_where_student_and_teacher_agree(loss: Loss) -> None:
    z = logits(6, 5)
    assert loss(z, z) == 0
    assert loss(z, z + 1) > 0


def test_squared_error_is_summed_over_labels() -> None:
    z, t = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert squared_error(z, t[None], ONE) == (1 + 4 + 9) / 2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_bernoulli_kl_is_the_sum_of_two_class_divergences(temperature: float) -> None:
    z, t = logits(5, 4), logits(5, 4, seed=2)
    p, q = (torch.sigmoid(x.double() / temperature) for x in (t, z))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 5 * temperature**2
    assert bernoulli_kl(z, t[None], ONE, temperature).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_bernoulli_kl_is_the_difference_of_probabilities(temperature: float) -> None:
    z, t = logits(5, 4), logits(5, 4, seed=2)
    grad = gradient(lambda z, t: bernoulli_kl(z, t[None], ONE, temperature), z, t)
    expected = temperature * (torch.sigmoid(z / temperature) - torch.sigmoid(t / temperature)) / 5
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", DISTILLATION_OF_BRANCHES)
def test_the_loss_of_branches_and_its_gradient_are_the_weighted_sum_of_those_of_each(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    z, teachers, weights = logits(4, 3), logits(3, 4, 3, seed=2), torch.tensor([0.2, 0.5, 0.3])

    def one_by_one(z: Tensor, teachers: Tensor) -> Tensor:
        parts = [loss(z, t[None], ONE) for t in teachers]
        return (torch.stack(parts) * weights).sum()

    def together(z: Tensor, teachers: Tensor) -> Tensor:
        return loss(z, teachers, weights)

    torch.testing.assert_close(together(z, teachers), one_by_one(z, teachers))
    torch.testing.assert_close(gradient(together, z, teachers), gradient(one_by_one, z, teachers))


@pytest.mark.parametrize("loss", DISTILLATION_OF_BRANCHES)
def test_weights_by_label_weigh_each_label_on_its_own(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    z, teachers = logits(4, 3), logits(2, 4, 3, seed=2)
    weights = torch.tensor([[0.2, 0.5, 1.0], [0.8, 0.5, 0.0]])

    def label_by_label(z: Tensor, teachers: Tensor) -> Tensor:
        return torch.stack([loss(z[:, [c]], teachers[..., [c]], weights[:, c]) for c in range(3)]).sum()

    def together(z: Tensor, teachers: Tensor) -> Tensor:
        return loss(z, teachers, weights)

    torch.testing.assert_close(together(z, teachers), label_by_label(z, teachers))
    torch.testing.assert_close(gradient(together, z, teachers), gradient(label_by_label, z, teachers))


def test_branches_are_weighed_by_their_precision_to_a_power() -> None:
    weights = torch.tensor([0.25, 0.75])
    precision = torch.tensor([[0.8, 0.6, 0.5, math.nan], [0.4, 0.2, 0.5, math.nan]])
    # 0.25 * 0.8 : 0.75 * 0.4 is 2 : 3, and 0.25 * 0.6 : 0.75 * 0.2 is 1 : 1
    expected = torch.tensor([[0.4, 0.5, 0.25, 0.25], [0.6, 0.5, 0.75, 0.75]])
    torch.testing.assert_close(weigh_by_precision(weights, precision, 1), expected)
    # 0.25 * 0.64 : 0.75 * 0.16 is 4 : 3, and 0.25 * 0.36 : 0.75 * 0.04 is 3 : 1
    expected = torch.tensor([[4 / 7, 0.75, 0.25, 0.25], [3 / 7, 0.25, 0.75, 0.75]])
    torch.testing.assert_close(weigh_by_precision(weights, precision, 2), expected)
    torch.testing.assert_close(weigh_by_precision(weights, precision, 0), weights[:, None].expand(2, 4))
    one_each = torch.tensor([[1, 1, 0.25, 0.25], [0, 0, 0.75, 0.75]])
    torch.testing.assert_close(weigh_by_precision(weights, precision, 1e4), one_each)


@pytest.mark.parametrize("loss", DISTILLATION_OF_BRANCHES)
def test_under_autocast_branches_are_still_merged_in_full_precision(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    z, teachers, weights = logits(4, 3), logits(2, 4, 3, seed=2), torch.tensor([0.3, 0.7])
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(z, teachers, weights)
    assert torch.equal(inside, loss(z, teachers, weights))
