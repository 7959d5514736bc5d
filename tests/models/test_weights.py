"""Backbone weights from a file: whole or refused, and no code in a file is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coterie.config import ModelConfig
from coterie.data.dataset import open_image
from coterie.data.transforms import to_pixels
from coterie.errors import CheckpointError, ConfigError
from coterie.models.classifier import Classifier
from coterie.models.factory import ModelFactory, make_factory
from coterie.models.squeezenet import SqueezeNetBackbone
from coterie.models.weights import load_backbone_weights, read_state_dict
from tests.conftest import shared_data

LAYERS = {"shallow": [1, 1, 1, 1], "deep": [2, 1, 1, 1]}


def resnet(num_classes: int = 0, seed: int = 0, depth: str = "shallow") -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("test_resnet", num_classes=num_classes, layers=LAYERS[depth])
    return model


def is_filled_from(backbone: nn.Module, given: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, given[key]) for key, tensor in backbone.state_dict().items())


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_state_dict_is_loaded_and_the_report_names_the_classifier_left_out(
    tmp_path: Path, suffix: str
) -> None:
    path, given = tmp_path / f"net{suffix}", resnet(7, seed=1).state_dict()
    save_file(given, path) if suffix == ".safetensors" else torch.save(given, path)
    backbone = resnet()
    report = load_backbone_weights(backbone, path, ("fc",))
    assert is_filled_from(backbone, given)
    assert report.loaded == len(backbone.state_dict())
    assert report.left_out == ("fc.bias", "fc.weight")
    assert str(report) == (
        f"net{suffix}: all {report.loaded} tensors of the backbone loaded; "
        "left out, as they are of its own classifier: 'fc.bias', 'fc.weight'"
    )


@pytest.mark.parametrize(
    "wrap",
    [
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("model."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module.backbone."),
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": prefixed("module.")(state), "optimizer": {"lr": 1}},
        lambda state: {"state_dict": {}, "state_dict_ema": state, "args": None},
    ],
)
def test_wrappers_and_containers_around_the_weights_are_seen_through(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    given = resnet(7, seed=1).state_dict()
    torch.save(wrap(given), tmp_path / "net.pth")
    backbone = resnet()
    report = load_backbone_weights(backbone, tmp_path / "net.pth", ("fc",))
    assert is_filled_from(backbone, given)
    assert len(report.left_out) == 2


def test_half_precision_is_loaded_into_a_model_of_full_precision(tmp_path: Path) -> None:
    given = {key: tensor.half() for key, tensor in resnet(seed=1).state_dict().items()}
    save_file(given, tmp_path / "net.safetensors")
    backbone = resnet()
    load_backbone_weights(backbone, tmp_path / "net.safetensors")
    assert all(
        torch.equal(tensor, given[key].to(tensor.dtype)) for key, tensor in backbone.state_dict().items()
    )
    assert next(backbone.parameters()).dtype == torch.float32


def test_a_file_without_batch_counters_is_whole(tmp_path: Path) -> None:
    state = resnet(seed=1).state_dict()
    given = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    assert len(given) < len(state)
    torch.save(given, tmp_path / "net.pth")
    assert load_backbone_weights(resnet(), tmp_path / "net.pth").loaded == len(given)


def test_a_classifier_that_coterie_trained_is_a_start_for_another(tmp_path: Path) -> None:
    factory = ModelFactory(ModelConfig(name="test_convnext"))
    trained = factory.build(["a", "b"], seed=1)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    model = ModelFactory(ModelConfig(name="test_convnext", weights=tmp_path / "model.safetensors")).build(
        ["c", "d", "e"], seed=2
    )
    assert isinstance(model, Classifier)
    assert isinstance(trained, Classifier)
    assert is_filled_from(model.backbone, trained.backbone.state_dict())
    assert model.head.out_features == 3


def refusal(backbone: nn.Module, state: dict[str, Tensor], folder: Path) -> str:
    torch.save(state, folder / "net.pth")
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(backbone, folder / "net.pth", ("fc",))
    assert is_filled_from(backbone, before)
    assert f"weights file {folder / 'net.pth'} is not of this backbone" in str(caught.value)
    assert "Choose the model.name that the file was made for, or another file" in str(caught.value)
    return str(caught.value)


def test_a_deeper_net_that_holds_every_tensor_of_the_backbone_is_refused(tmp_path: Path) -> None:
    shallow, deep = resnet(), resnet(7, depth="deep").state_dict()
    assert shallow.state_dict().keys() < deep.keys()
    assert all(deep[key].shape == tensor.shape for key, tensor in shallow.state_dict().items())
    assert "are of no part of the model ('layer1.1.conv1.weight'" in refusal(shallow, deep, tmp_path)


def test_a_shallower_net_is_refused(tmp_path: Path) -> None:
    said = refusal(resnet(depth="deep"), resnet().state_dict(), tmp_path)
    assert "tensors are missing from it ('layer1.1.conv1.weight'" in said


def test_a_net_of_other_widths_is_refused(tmp_path: Path) -> None:
    state = resnet().state_dict()
    (stem,) = (
        key for key in state if key.startswith("conv1.") and state[key].ndim == 4 and state[key].shape[1] == 3
    )
    state[stem] = torch.zeros(5, 3, 3, 3)
    assert "1 have another shape (conv1" in refusal(resnet(), state, tmp_path)


def test_a_net_of_another_kind_is_refused(tmp_path: Path) -> None:
    said = refusal(resnet(), timm.create_model("test_vit").state_dict(), tmp_path)
    assert "are missing from it" in said
    assert "are of no part of the model" in said


def test_another_model_s_file_is_refused_when_a_model_is_built(tmp_path: Path) -> None:
    torch.save(resnet(7, depth="deep").state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="is not of this backbone"):
        ModelFactory(ModelConfig(name="test_vit", weights=tmp_path / "net.pth")).build(["a"])


def test_a_damaged_file_is_told_wherever_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(resnet().state_dict(), path)
    whole = path.read_bytes()
    record = whole.find(b"data.pkl")
    broken = [whole[:length] for length in (0, 1, 10, 1000, len(whole) // 2, len(whole) - 1)]
    broken += [
        whole[:place] + b"\xf1\x07" + whole[place + 2 :] for place in range(record + 64, record + 400, 12)
    ]
    broken += [b"hello world", b"\x80\x02]."]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"net.pth (cannot be read|holds no state dict)"):
            read_state_dict(path)


def test_a_damaged_safetensors_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(resnet().state_dict(), path)
    whole = path.read_bytes()
    for content in (b"", b"hello world", whole[:100], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"net.safetensors cannot be read: ."):
            read_state_dict(path)


def test_a_file_that_is_not_there_or_holds_no_tensors_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights file .*none.pth is not there"):
        read_state_dict(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"empty.pth holds no state dict"):
        read_state_dict(tmp_path / "empty.pth")


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_file_is_not_run_and_nobody_is_told_to_allow_it(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "caught")
    torch.save({"weight": trap}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(trap, protocol=2))
    torch.save(resnet(), tmp_path / "module.pth")
    for name in ("torch.pth", "plain.pth", "module.pth"):
        with pytest.raises(
            CheckpointError, match="objects other than tensors; those are never loaded"
        ) as caught:
            read_state_dict(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "caught").exists()


def test_weights_of_an_own_model_are_the_builder_s_matter() -> None:
    model = make_factory(ModelConfig(), lambda num_classes: nn.Linear(1, num_classes)).build(["a"])
    with pytest.raises(ConfigError, match="works with the models that coterie builds"):
        ModelFactory(ModelConfig(weights=Path("x.pt"))).load_weights(model)


def test_imagenet_weights_of_squeezenet_tell_photographs_apart() -> None:
    data = shared_data()
    path = data / "weights" / "squeezenet1_1_imagenet_features.safetensors"
    photographs = sorted((data / "corel5k").rglob("*.jp*g"))[:12]
    if not path.exists() or not photographs:
        pytest.skip("no weights or photographs")
    factory = ModelFactory(ModelConfig(name="squeezenet", weights=path, image_size=128))
    model = factory.build(["a"]).eval()
    assert isinstance(model, Classifier)
    assert is_filled_from(model.backbone, load_file(path))
    assert factory.load_weights(model).left_out == ()
    preprocessing = factory.preprocessing
    pixels = torch.stack([to_pixels(preprocessing.resize(open_image(photo))) for photo in photographs])
    random = SqueezeNetBackbone().eval()
    with torch.no_grad():
        images = preprocessing.normalize(pixels)
        trained, untrained = (nn.functional.normalize(net(images)) for net in (model.backbone, random))
    assert (trained @ trained.T).mean() < 0.9 < (untrained @ untrained.T).mean()
