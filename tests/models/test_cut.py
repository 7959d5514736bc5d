"""A model in two parts: together what the model is, and nothing of the lower one learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.config import ModelConfig
from coterie.errors import ConfigError
from coterie.models.cut import Cut
from coterie.models.factory import ModelFactory

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name: str, head: str = "linear") -> nn.Module:
    settings = ModelConfig.model_validate({"name": name, "head": head, "image_size": 64})
    return ModelFactory(settings).build(["cat", "dog", "mouse"]).eval()


@pytest.mark.parametrize(
    ("name", "head", "module"),
    [
        ("squeezenet1_1", "linear", "backbone.features.7"),
        ("squeezenet1_1", "csra", "backbone.features"),
        ("test_resnet", "linear", "backbone.layer2"),
        ("test_resnet", "ml-decoder", "backbone.layer3.0"),
        ("test_efficientnet", "linear", "backbone.blocks.1"),
        ("test_convnext", "linear", "backbone.stages.0"),
        ("resnet18", "query2label", "backbone.layer1.0.act2"),
    ],
)
def test_the_two_parts_are_the_model(name: str, head: str, module: str) -> None:
    model = build(name, head)
    cut = Cut(model, module)
    with torch.no_grad():
        features = cut.lower(IMAGES)
        assert torch.equal(cut.upper(features), model(IMAGES))
    names = {name for name, _ in model.named_parameters()}
    prefix = "backbone." if name else ""
    lower = {f"{prefix}{name}" for name, _ in cut.lower_part.named_parameters()}
    upper = {name.replace("backbone.", prefix, 1) for name, _ in cut.upper_part.named_parameters()}
    assert lower | upper == names
    assert not lower & upper
    assert any(name.startswith(f"{module}.") for name in lower) or module.endswith("act2")


def test_the_parts_share_the_weights_of_the_model() -> None:
    model = build("squeezenet1_1")
    cut = Cut(model, "backbone.features.4")
    before = cut.sha256()
    with torch.no_grad():
        next(model.parameters()).add_(1)
        assert torch.equal(cut.upper(cut.lower(IMAGES)), model(IMAGES))
    assert cut.sha256() != before
    assert Cut(copy.deepcopy(model), "backbone.features.4").sha256() == cut.sha256()
    assert Cut(model, "backbone.features.3").sha256() != cut.sha256()


def test_what_is_frozen_does_not_learn_and_its_norms_do_not_move() -> None:
    model = build("test_resnet").train()
    cut = Cut(model, "backbone.layer2")
    cut.freeze()
    lower = {name: tensor.clone() for name, tensor in cut.lower_part.state_dict().items()}
    assert any("running_mean" in name for name in lower)
    cut.upper(cut.lower(IMAGES)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(tensor, lower[name]) for name, tensor in cut.lower_part.state_dict().items())
    learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learns == {name for name, _ in cut.upper_part.named_parameters()}
    norms = [module for module in cut.upper_part.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training for norm in norms)


def test_dropout_of_the_head_is_that_of_the_model() -> None:
    settings = ModelConfig(name="squeezenet1_1", drop_rate=0.5, image_size=64)
    model = ModelFactory(settings).build(["cat"])
    cut = Cut(model, "backbone.features.9")
    features = cut.lower(IMAGES)
    model.eval()
    assert torch.equal(cut.upper(features), cut.upper(features))
    model.train()
    torch.manual_seed(0)
    first = cut.upper(features)
    assert not torch.equal(cut.upper(features), first)


class Decided(nn.Module):
    """Dropout that is no module, before and behind the cut, by what the model is in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(functional.dropout(images, 0.5, self.training))
        logits: Tensor = self.head(functional.dropout(features, 0.5, self.training).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("training", [True, False])
def test_what_a_model_decides_by_its_mode_does_not_depend_on_the_mode_it_is_cut_in(training: bool) -> None:
    model = Decided().train(training)
    expected = copy.deepcopy(model).eval()
    cut, learning = Cut(model, "stem"), Cut(model, "stem", learns=True)
    assert [module.training for module in model.modules()] == [training] * 3
    assert cut.sha256() == learning.sha256()
    with torch.no_grad():
        features = cut.lower(IMAGES)
        assert torch.equal(features, expected.stem(IMAGES))
        assert torch.equal(cut.upper(features), expected(IMAGES))
        assert torch.equal(learning.lower(IMAGES), features)
        assert not torch.equal(learning.upper(features), learning.upper(features))


def test_an_upper_part_leaves_the_features_as_they_are() -> None:
    """Others answer from them too."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)).eval()
    cut = Cut(model, "0")
    features = cut.lower(IMAGES)
    before = features.clone()
    expected = model(IMAGES)
    assert torch.equal(cut.upper(features), expected)
    assert torch.equal(features, before)


class Crossing(nn.Module):
    """What follows the first layer also looks at the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 2, 1)
        self.twice = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.second(self.twice(self.twice(self.first(images)) + images)).mean(dim=(2, 3))
        return found


class Undecided(Crossing):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


@pytest.mark.parametrize(
    ("model", "module", "message"),
    [
        (Crossing(), "frist", "no module of that name; did you mean 'first'"),
        (Crossing(), "first", "what follows also uses images"),
        (Crossing(), "twice", "that module is used 2 times"),
        (Undecided(), "first", "the steps of the model cannot be followed there"),
    ],
)
def test_a_model_that_cannot_be_cut_is_told(model: nn.Module, module: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^frozen={module}: .*{message}"):
        Cut(model, module)


def test_a_model_of_one_s_own_is_cut_too() -> None:
    class Answer:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Answer:
            return Answer(self.head(self.norm(self.stem(images)).mean(dim=(2, 3))))

    model = Own().eval()
    cut = Cut(model, "norm")
    assert cut.lower(IMAGES).shape == (2, 4, 62, 62)
    assert torch.equal(cut.upper(cut.lower(IMAGES)), model(IMAGES).logits)
