"""From settings to models: heads, seeds, preprocessing, own builders, and what a wrong name is told."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from coterie.config import ModelConfig
from coterie.data.transforms import Preprocessing
from coterie.errors import CheckpointError, ConfigError
from coterie.models import squeezenet
from coterie.models.factory import ModelFactory, import_builder, make_factory
from coterie.seeding import seeded

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def build(*names: str, seed: int = 0, **settings: Any) -> nn.Module:
    return ModelFactory(ModelConfig.model_validate({"name": "test_resnet"} | settings)).build(names, seed)


def equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet", "test_mambaout",
        "mobilenetv3_small_050", "squeezenet1_1",
    ],
)  # fmt: skip
def test_every_architecture_gives_a_logit_for_each_class(name: str) -> None:
    factory = ModelFactory(ModelConfig(name=name, image_size=64))
    model = factory.build(["ant", "bee", "cat"]).eval()
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3)
    assert logits.std() > 0


SMALL_HEADS: list[dict[str, Any]] = [
    {"head": "csra", "csra": {"temperatures": [1, "max"], "weight": 0.2}},
    {"head": "ml-decoder", "ml_decoder": {"width": 32, "feedforward": 16, "groups": 2}},
    {"head": "query2label", "query2label": {"width": 32}},
    {"head": "transformer", "transformer": {"width": 32, "layers": 1}},
]


@pytest.mark.parametrize("settings", SMALL_HEADS, ids=lambda settings: str(settings["head"]))
def test_every_head_goes_on_a_backbone_and_depends_on_the_seed_alone(settings: dict[str, Any]) -> None:
    images = torch.randn(2, 3, 64, 64)
    for name in ("test_resnet", "test_vit", "squeezenet1_1"):
        model = build("ant", "bee", "cat", seed=1, name=name, image_size=64, **settings).eval()
        assert model(images).shape == (2, 3)
        assert equal(build("ant", "bee", "cat", seed=1, name=name, image_size=64, **settings), model)
        one = build("ant", seed=1, name=name, image_size=64, **settings)
        a, b = one.state_dict(), model.state_dict()
        assert all(torch.equal(a[key], b[key]) for key in a if key.startswith("backbone."))


def test_the_linear_head_has_the_weights_that_torch_gives_a_linear_layer() -> None:
    """As they were when it was the only head: the same seeds give the same models."""
    model = build("ant", "bee", seed=3)
    with seeded(3, "weights"):
        backbone = timm.create_model("test_resnet", num_classes=0)
        head = nn.Linear(96, 2)
    expected = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
    expected |= {f"head.{key}": tensor for key, tensor in head.state_dict().items()}
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_a_head_gets_the_word_vectors_of_its_own_labels(tmp_path: Path) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(tmp_path / "words.npz", vectors=vectors, class_names=np.array(["ant", "bee", "cat"]))
    factory = ModelFactory(
        ModelConfig.model_validate(
            {"name": "test_resnet", "word_vectors": tmp_path / "words.npz", **SMALL_HEADS[3]}
        )
    )
    model = factory.build(["cat", "ant"])
    assert model.state_dict()["head.label_vectors"].tolist() == [[4, 5], [0, 1]]
    assert factory.head_options["label_dimensions"] == 2
    with pytest.raises(ConfigError, match=r"lack 1 of the 2 classes: 'bees' \(nearest: 'bee'\)"):
        factory.build(["ant", "bees"])


def test_weights_depend_on_the_seed_alone() -> None:
    first = build("ant", "bee", seed=1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert equal(build("ant", "bee", seed=1), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(build("ant", "bee", seed=2), first)


def test_models_of_one_seed_differ_in_the_head_alone() -> None:
    two, three = build("ant", "bee"), build("ant", "bee", "cat")
    a, b = two.state_dict(), three.state_dict()
    assert [key for key in a if a[key].shape != b[key].shape] == ["head.weight", "head.bias"]
    assert all(torch.equal(a[key], b[key]) for key in a if key.startswith("backbone."))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "resnet18"}, (224, *IMAGENET)),
        ({"name": "test_vit"}, (160, *HALF)),
        ({"name": "resnet50.a1_in1k"}, (224, *IMAGENET)),
        ({"name": "squeezenet"}, (224, *IMAGENET)),
        ({"name": "test_vit", "image_size": 96, "mean": (0, 0, 0)}, (96, (0, 0, 0), HALF[1])),
    ],
)
def test_preprocessing_is_the_model_s_own_unless_set(
    settings: dict[str, object], expected: tuple[int, tuple[float, ...], tuple[float, ...]]
) -> None:
    factory = ModelFactory(ModelConfig.model_validate(settings))
    assert factory.preprocessing == Preprocessing(*expected)  # type: ignore[arg-type]


def test_a_vision_transformer_is_built_for_the_image_size() -> None:
    model = build("ant", name="test_vit", image_size=96).eval()
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 1)


def test_options_reach_timm() -> None:
    shallow, deep = (
        build("ant", options={"layers": [1, 1, 1, 1]}),
        build("ant", options={"layers": [2, 2, 2, 2]}),
    )
    assert len(deep.state_dict()) > len(shallow.state_dict())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "resnet5"}, r"resnet5: there is no such model in timm; did you mean 'resnet50'\?"),
        ({"name": "squeeznet1_1"}, r"did you mean 'squeezenet1_1'\?"),
        ({"name": "xyzzy_net"}, "model.name=xyzzy_net: there is no such model in timm$"),
        ({"name": "resnet50.a1_in2k"}, r"no such weights of resnet50; did you mean 'resnet50.a1_in1k'\?"),
        ({"name": "hf-hub:timm/resnet18"}, "there is no such model in timm"),
        ({"name": "local-dir:/tmp/model"}, "there is no such model in timm"),
        ({"options": {"depth": 3}}, r"test_resnet with depth=3 \(model.options\): TypeError: .*'depth'"),
        ({"options": {"act_layer": "nope"}}, r"with act_layer='nope' \(model.options\): KeyError"),
        ({"name": "squeezenet", "options": {"depth": 3}}, "squeezenet takes no model.options"),
        ({"head": "query2label", "query2label": {"heads": 5}}, "must be a multiple of 4 and of .*=5, got 96"),
        ({"name": "crossvit_tiny_240", "head": "csra"}, "crossvit_tiny_240 has no feature map: timm says"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_built_is_told(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build("ant", **settings)


class Own(nn.Module):
    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = class_names
        self.head = nn.Linear(3, len(class_names))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def test_an_own_builder_gets_the_number_of_classes_and_the_names_if_it_asks() -> None:
    def by_number(num_classes: int) -> nn.Module:
        return Own([str(number) for number in range(num_classes)])

    def by_name(num_classes: int, class_names: tuple[str, ...]) -> nn.Module:
        assert num_classes == len(class_names)
        return Own(class_names)

    names = ["ant", "bee"]
    for builder, expected in ((by_number, ["0", "1"]), (by_name, ("ant", "bee"))):
        factory = make_factory(ModelConfig(), builder)
        model = factory.build(names, seed=4)
        assert isinstance(model, Own)
        assert model.class_names == expected
        assert equal(factory.build(names, seed=4), model)
        assert factory.preprocessing == Preprocessing(224, *IMAGENET)


class Wrapping(Own):
    """Returns its logits as the classifiers of `transformers` do."""

    def forward(self, images: torch.Tensor) -> Any:
        return SimpleNamespace(loss=None, logits=super().forward(images))


def test_an_own_model_may_return_an_object_that_holds_the_logits() -> None:
    factory = make_factory(ModelConfig(), lambda num_classes: Wrapping("x" * num_classes))
    model = factory.build(["ant", "bee"])
    images = torch.rand(5, 3, 4, 4)
    assert isinstance(model, Wrapping)
    assert torch.equal(model(images), model.head(images.mean(dim=(2, 3))))
    assert torch.equal(deepcopy(model)(images), model(images))


def test_an_own_builder_must_return_a_module() -> None:
    with pytest.raises(ConfigError, match=r"must return a torch.nn.Module, got int"):
        make_factory(ModelConfig(), lambda num_classes: num_classes).build(["ant"])


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": Path("a.pt")},
        {"pretrained": True},
        {"options": {"a": 1}},
        {"drop_rate": 0.1},
        {"head": "csra"},
    ],
)
def test_settings_that_an_own_model_cannot_take_are_refused(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"model.{name} does not reach your own model"):
        make_factory(ModelConfig.model_validate(settings), lambda num_classes: nn.Linear(1, num_classes))


def test_a_builder_that_takes_no_number_of_classes_is_refused() -> None:
    def build(classes: int) -> nn.Module:
        return nn.Linear(1, classes)

    with pytest.raises(ConfigError, match="build takes no `num_classes`; write it as"):
        make_factory(ModelConfig(), build).build(["ant", "bee"])
    assert isinstance(make_factory(ModelConfig(), lambda **_: nn.Identity()).build(["ant"]), nn.Identity)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `own_nets` in the current folder."""
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n\ndef build(num_classes):\n    return nn.Linear(1, num_classes)\n"
    )
    (tmp_path / "own_broken.py").write_text("import own_missing_dependency\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)


@pytest.mark.usefixtures("own_module")
def test_a_builder_is_found_by_module_and_function_in_the_current_folder() -> None:
    factory = make_factory(ModelConfig(name="own_nets:build"))
    model = factory.build(["ant", "bee"])
    assert isinstance(model, nn.Linear)
    assert model.out_features == 2


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("own_net:build", "module 'own_net' cannot be imported: No module named 'own_net'"),
        (
            "own_broken:build",
            "module 'own_broken' cannot be imported: No module named 'own_missing_dependency'",
        ),
        ("own_nets:buidl", r"'own_nets' has no function 'buidl'; did you mean 'build'\?"),
        ("own_nets:", "'own_nets:' names no function to build a model; write it as module:function"),
        (":build", "':build' names no function"),
        ("hf-hub:timm/resnet18", "'hf-hub:timm/resnet18' names no function"),
    ],
)
def test_a_builder_that_is_not_there_is_told(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        import_builder(name)


def without_network(error: Exception) -> Callable[..., nn.Module]:
    def download(*_: object, **__: object) -> nn.Module:
        raise error

    return download


# What the libraries raise without a network: timm by huggingface_hub, and torchvision.
@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("cannot find the files in the local cache. Check your connection.\nMore"),
        ConnectionError("offline mode is enabled"),
        RuntimeError("No pretrained weights exist"),
        type("ReadError", (Exception,), {})("the connection broke off"),
    ],
)
def test_pretrained_weights_without_a_network_are_one_clear_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "create_model", without_network(error))
    reason = str(error).splitlines()[0].rstrip(".")
    with pytest.raises(CheckpointError) as caught:
        build("ant", pretrained=True)
    assert str(caught.value) == (
        f"the pretrained weights of test_resnet cannot be had: {reason}. "
        "Check the network, or give a file with model.pretrained=false model.weights=FILE"
    )


def test_attempts_to_get_weights_are_not_told_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def attempt(*_: object, **__: object) -> nn.Module:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", attempt)
    before = logging.getLogger("huggingface_hub").level
    with pytest.raises(CheckpointError, match="cannot be had: no network"):
        build("ant", pretrained=True)
    assert caplog.records == []
    assert logging.getLogger("huggingface_hub").level == before


def test_pretrained_squeezenet_without_a_network_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squeezenet, "squeezenet1_1", without_network(URLError("Name or service not known")))
    with pytest.raises(
        CheckpointError, match=r"weights of squeezenet cannot be had: .*Name or service not known"
    ):
        build("ant", name="squeezenet", pretrained=True)


def test_wrong_options_are_told_as_such_with_pretrained_too() -> None:
    with pytest.raises(ConfigError, match="cannot build test_resnet with depth=3"):
        build("ant", pretrained=True, options={"depth": 3})
