"""Models that answer and do not learn: the fastest form that holds the tolerance, and nothing of it moves."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import coterie.models.frozen
from coterie.models.folding import relative_error
from coterie.models.frozen import FrozenModel, freeze
from tests.tiny import tiny_net

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Low precision is bf16, whatever this machine has."""
    monkeypatch.setattr(coterie.models.frozen, "low_precisions", lambda *_: [torch.bfloat16])


class Cancelling(nn.Module):
    """Logits that are small differences of large numbers: low precision loses them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        nn.init.eye_(self.head.weight)
        nn.init.constant_(self.head.bias, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean(dim=(2, 3))) - 1000
        return logits


class MixedTypes(nn.Module):
    """Makes a tensor of float32 by itself: with weights in bf16 it does not run, under autocast it does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.ones(len(images), 3) * images.mean(dim=(2, 3)))
        return logits


def trained_resnet() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    for _ in range(3):  # running statistics
        model(IMAGES)
    return model.eval()


@pytest.mark.usefixtures("bf16")
def test_within_the_tolerance_the_weights_are_folded_and_in_low_precision() -> None:
    model = trained_resnet()
    expected = model(IMAGES).detach()
    frozen = freeze(model, IMAGES, tolerance=0.05)
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    logits = frozen(IMAGES)
    assert logits.dtype == torch.float32
    assert 0 < relative_error(logits, expected) <= 0.05


@pytest.mark.usefixtures("bf16")
def test_beyond_the_tolerance_a_model_stays_in_full_precision_and_is_folded() -> None:
    model = trained_resnet()
    expected = model(IMAGES).detach()
    frozen = freeze(model, IMAGES, tolerance=1e-4)
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.float32}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert relative_error(frozen(IMAGES), expected) < 1e-5


@pytest.mark.usefixtures("bf16")
def test_a_model_that_low_precision_ruins_answers_in_full_precision() -> None:
    frozen = freeze(Cancelling(), IMAGES, tolerance=0.01)
    assert (frozen.dtype, frozen.autocast) == (torch.float32, False)
    torch.testing.assert_close(frozen(IMAGES), IMAGES.mean(dim=(2, 3)), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("bf16")
def test_a_model_that_does_not_run_with_such_weights_runs_under_autocast() -> None:
    torch.manual_seed(0)
    model = MixedTypes()
    expected = model(IMAGES).detach()
    frozen = freeze(model, IMAGES, tolerance=0.02)
    assert (frozen.dtype, frozen.autocast) == (torch.bfloat16, True)
    assert 0 < relative_error(frozen(IMAGES), expected) <= 0.02


@pytest.mark.usefixtures("bf16")
def test_without_tolerance_a_model_stays_as_it_is() -> None:
    model = trained_resnet()
    expected = model(IMAGES)
    frozen = freeze(model, IMAGES, tolerance=0)
    assert any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert torch.equal(frozen(IMAGES), expected)


@pytest.mark.usefixtures("bf16")
def test_the_tolerance_holds_in_a_run_of_low_precision_too() -> None:
    torch.manual_seed(0)
    model = Cancelling()
    expected = model(IMAGES)
    own = FrozenModel(model, torch.bfloat16, autocast=True)
    assert relative_error(own(IMAGES), expected) > 0.01
    frozen = freeze(model, IMAGES, tolerance=0.01, precision="bf16")
    assert frozen.dtype == torch.float32
    assert relative_error(frozen(IMAGES), expected) < 1e-5
    wide = freeze(model, IMAGES, tolerance=1e9, precision="bf16")
    assert wide.dtype == torch.bfloat16


def test_without_tolerance_a_model_answers_as_it_does_in_the_run() -> None:
    model = trained_resnet()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(IMAGES).float()
    frozen = freeze(model, IMAGES, tolerance=0, precision="bf16")
    assert frozen.form == "bfloat16 by autocast"
    assert torch.equal(frozen(IMAGES), expected)


def test_a_frozen_model_has_its_own_precision_under_autocast() -> None:
    frozen = FrozenModel(tiny_net())
    expected = frozen(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        inside = frozen(IMAGES)
    assert torch.equal(inside, expected)


def test_a_frozen_model_takes_no_gradient_and_leaves_evaluation_mode_never() -> None:
    frozen = FrozenModel(tiny_net())
    nn.ModuleList([frozen]).train()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen(IMAGES.clone().requires_grad_()).requires_grad
