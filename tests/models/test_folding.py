"""Batch norm in the weights of convolutions: the same logits, and nothing folded where that is not so."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.models.folding import fold_batch_norm, relative_error

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> nn.Module:
    """`model` in evaluation mode, its batch norms far from the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 2.0),
                (module.bias, -1.0, 1.0),
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.5, 4.0),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


Layers = dict[str, nn.Module]


class Parts(nn.Module):
    """Two convolutions and two batch norms, put together by `forward_with`."""

    def __init__(self, forward_with: Callable[[Layers, Tensor], Tensor], **options: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict(
            {
                "first": nn.Conv2d(3, 6, 3, padding=1),
                "second": nn.Conv2d(6, 6, 3, padding=1, bias=False),
                "norm": nn.BatchNorm2d(6, **options),
                "other norm": nn.BatchNorm2d(6),
            }
        )
        self.forward_with = forward_with

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_with(dict(self.layers), images).mean(dim=(2, 3))


class Standardised(nn.Conv2d):
    """A convolution that does more with its weights than nn.Conv2d."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(images, weight, self.bias)


def chain(layers: Layers, images: Tensor, *names: str) -> Tensor:
    for name in names:
        images = layers[name](images)
    return images


def in_a_row(layers: Layers, images: Tensor) -> Tensor:
    return chain(layers, chain(layers, images, "first", "norm").relu(), "second", "other norm")


def norm_first(layers: Layers, images: Tensor) -> Tensor:
    features = chain(layers, images, "first").relu()
    return chain(layers, features, "norm", "second") + chain(layers, features, "other norm")


def used_beside(layers: Layers, images: Tensor) -> Tensor:
    features = chain(layers, images, "first")
    return chain(layers, features, "norm") + features


def written_over(layers: Layers, images: Tensor) -> Tensor:
    return chain(layers, chain(layers, images, "first").relu_(), "norm")


def one_norm_twice(layers: Layers, images: Tensor) -> Tensor:
    return chain(layers, images, "first", "norm", "second", "norm")


def one_convolution_twice(layers: Layers, images: Tensor) -> Tensor:
    return chain(layers, images, "first", "second", "norm", "second", "other norm")


def in_float32(layers: Layers, images: Tensor) -> Tensor:
    return in_a_row(layers, images) @ torch.eye(images.shape[-1])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet18d", "mobilenetv2_035"])
def test_timm_models_lose_every_batch_norm_and_keep_their_logits(name: str) -> None:
    torch.manual_seed(0)
    model = trained(timm.create_model(name, num_classes=5))
    images = torch.randn(4, 3, 32, 32)
    expected = model(images)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model, images[:2])
    assert (norms(model) > 10, norms(folded)) == (True, 0)
    assert relative_error(folded(images), expected) < 1e-5
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("forward_with", "options", "left"),
    [
        (in_a_row, {}, 0),
        (in_a_row, {"affine": False}, 0),
        (in_a_row, {"track_running_stats": False}, 1),
        (norm_first, {}, 2),
        (used_beside, {}, 2),
        (written_over, {}, 2),
        (one_norm_twice, {}, 2),
        (one_convolution_twice, {}, 2),
        (in_float32, {}, 2),
    ],
)
def test_only_what_is_the_same_function_is_folded(
    forward_with: Callable[[Layers, Tensor], Tensor], options: dict[str, bool], left: int
) -> None:
    model = trained(Parts(forward_with, **options))
    folded = fold_batch_norm(model, IMAGES[:2])
    assert norms(folded) == left
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_convolution_of_its_own_kind_is_left_alone() -> None:
    torch.manual_seed(0)
    model = trained(
        nn.Sequential(Standardised(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    )
    folded = fold_batch_norm(model, IMAGES[:2])
    assert norms(folded) == 1
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_the_error_is_relative_to_the_logits() -> None:
    expected = torch.tensor([[3.0, 4.0]])
    assert relative_error(torch.tensor([[3.0, 4.5]]), expected) == 0.1
    assert not relative_error(torch.tensor([[3.0, float("inf")]]), expected) <= 1
