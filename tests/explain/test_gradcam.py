"""Grad-CAM: the layer that is found, and values against gradients that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coterie.errors import ConfigError
from coterie.explain.exact import linear_maps
from coterie.explain.gradcam import find_layer, grad_cam
from coterie.explain.grids import Grid
from coterie.models.classifier import Classifier
from tests.explain.models import built, noise
from tests.tiny import tiny_net


@pytest.mark.parametrize(
    ("name", "layer", "grid"),
    [
        ("test_convnext", "backbone.stages", Grid(2)),
        ("mobilenetv3_small_050", "backbone.blocks", Grid(2)),  # behind it, pooling to one position
        ("test_vit", "backbone.blocks.5.norm1", Grid(4, prefix_tokens=1)),  # only its class token goes on
    ],
)
def test_the_last_layer_with_a_map_that_counts_is_found(name: str, layer: str, grid: Grid) -> None:
    found = find_layer(built(name), noise())
    assert (found.name, found.grid) == (layer, grid)


def test_grad_cam_of_a_linear_head_is_its_class_activation_map() -> None:
    """The gradient of a mean over N positions is w / N, so that Grad-CAM is the exact map over N."""
    model = built("squeezenet1_1")
    assert isinstance(model, Classifier)
    image = noise(1)
    layer = find_layer(model, noise())
    maps = grad_cam(model, layer, image, [4, 1])
    exact = linear_maps(model, image)[0][0, [4, 1]].detach()
    assert maps.shape == (2, 3, 3)
    torch.testing.assert_close(maps * 9, exact, rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """Tokens of a class and of four positions through a norm that is next to nothing; an in-place layer
    behind it. The logit of class c sums channel c over positions, twice for the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(2, elementwise_affine=False, eps=1e4)  # x / 100, for small x
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        positions = images[:, :2].flatten(2).transpose(1, 2)
        tokens = self.act(self.norm(torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)))
        logits: Tensor = tokens[:, 1:].sum(dim=1) * torch.tensor([2.0, 1.0])
        return logits


def test_grad_cam_of_tokens_by_hand() -> None:
    """Channels are weighted by the mean of their gradient: 2 for the first class, where the token is above 0
    for 3 of 4 positions 2 * 3 / 4.
    """
    image = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]], [[5.0, 6.0], [7.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    model = Tokens()
    layer = find_layer(model, image)
    assert layer.name == "norm"
    maps = grad_cam(model, layer, image, [0, 1])
    expected = torch.stack([1.5 * image[0, 0] / 100, image[0, 1] / 100])
    torch.testing.assert_close(maps, expected, rtol=1e-2, atol=1e-4)


def test_a_model_is_as_it_was_afterwards() -> None:
    model = tiny_net().eval()
    images = noise(side=16)
    before = model(images)
    grad_cam(model, find_layer(model, images), images[:1], [0])
    torch.testing.assert_close(model(images), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_frozen_model_is_explained_under_no_grad() -> None:
    model = tiny_net().eval().requires_grad_(False)
    with torch.no_grad():
        maps = grad_cam(model, find_layer(model, noise(side=16)), noise(1, side=16), [2])
    assert maps.shape == (1, 7, 7)
    assert bool(maps.count_nonzero())


def test_a_named_layer_is_taken() -> None:
    model = tiny_net().eval()
    assert find_layer(model, noise(side=16)).name == "norm"
    assert find_layer(model, noise(side=16), "convolution").name == "convolution"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("convolutoin", "the model has no layer 'convolutoin'; did you mean 'convolution'"),
        ("xyz", "the model has no layer 'xyz'; it has 'convolution', 'norm', 'drop', 'head'"),
        ("", "the model has no layer ''"),
        ("head", r"layer 'head' gives no map of the picture, but \[2, 4\]; name another"),
    ],
)
def test_a_layer_that_is_not_there_or_gives_no_map_is_told(layer: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_layer(tiny_net().eval(), noise(side=16), layer)


def test_a_layer_that_runs_twice_is_told() -> None:
    act, pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), act, pool, nn.Flatten())
    assert find_layer(model, noise(side=16)).name == "2"
    with pytest.raises(ConfigError, match="layer '1' runs 2 times for a picture"):
        find_layer(model, noise(side=16), "1")


def test_a_model_without_a_map_is_told() -> None:
    with pytest.raises(ConfigError, match="no layer of the model gives a map of the picture"):
        find_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), noise(side=16))
