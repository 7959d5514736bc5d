"""A checkpoint gives back what was saved, or says why not; it runs no code and reads nothing elsewhere."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from coterie.checkpoint import (
    INFO_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    describe_architecture,
    load_model,
    read_checkpoint,
    save_checkpoint,
    write_description,
)
from coterie.config import Config, ModelConfig
from coterie.errors import CheckpointError
from coterie.models.factory import ModelFactory

NAMES = ("ant", "büe", "cat")
TINY = ModelConfig(name="test_resnet", image_size=64, mean=(0.1, 0.2, 0.3), options={"layers": [1, 1, 1, 1]})


def own_net(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


def saved(folder: Path, factory: ModelFactory | None = None, model: nn.Module | None = None) -> nn.Module:
    """A model with random weights and batch statistics, saved in `folder`."""
    factory = factory or ModelFactory(TINY)
    model = model or factory.build(NAMES, seed=3)
    model.train()(torch.randn(4, 3, 64, 64))
    checkpoint = Checkpoint(
        name="student",
        class_names=NAMES,
        architecture=describe_architecture(factory),
        preprocessing=factory.preprocessing,
        threshold=0.4,
        metrics={"val_mAP": 61.5, "best_epoch": 2},
        config=Config().model_dump(mode="json"),
    )
    assert save_checkpoint(folder, model, checkpoint) == read_checkpoint(folder)
    return model.eval()


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / INFO_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def refusal(folder: Path, builder: Callable[..., nn.Module] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, builder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_gives_back_the_model_and_what_is_known_of_it(tmp_path: Path) -> None:
    model = saved(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded, checkpoint = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.randn(2, 3, 64, 64)
    assert not loaded.training
    assert torch.equal(loaded(images), model(images))
    assert checkpoint.class_names == NAMES
    assert checkpoint.preprocessing == ModelFactory(TINY).preprocessing
    assert (checkpoint.name, checkpoint.threshold, checkpoint.metrics["best_epoch"]) == ("student", 0.4, 2)
    assert Config.model_validate(checkpoint.config) == Config()
    assert set(checkpoint.versions) == {"python", "torch", "torchvision", "timm"}


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "csra", "csra": {"temperatures": [1, 2.5, "max"], "weight": 0.3}},
        {"head": "ml-decoder", "ml_decoder": {"width": 32, "feedforward": 16, "groups": 2}},
        {"head": "query2label", "query2label": {"width": 32, "label_attention": True}},
        {"head": "transformer", "transformer": {"width": 32, "layers": 1, "shared_output": False}},
    ],
    ids=lambda settings: str(settings["head"]),
)
def test_a_checkpoint_gives_back_every_head_with_its_options(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    factory = ModelFactory(ModelConfig.model_validate(TINY.model_dump(exclude_unset=True) | settings))
    model = saved(tmp_path, factory)
    loaded, checkpoint = load_model(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))
    (section,) = (value for key, value in settings.items() if key != "head")
    assert checkpoint.architecture["head"] == settings["head"]
    assert section.items() <= checkpoint.architecture["head_options"].items()


def test_a_checkpoint_holds_the_word_vectors_and_is_loaded_without_their_file(tmp_path: Path) -> None:
    words = tmp_path / "words.npz"
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(words, vectors=vectors, class_names=np.array(NAMES))
    settings = {"head": "transformer", "transformer": {"width": 32, "layers": 1}, "word_vectors": words}
    factory = ModelFactory(ModelConfig.model_validate(TINY.model_dump(exclude_unset=True) | settings))
    model = saved(tmp_path / "saved", factory)
    words.unlink()
    loaded, _ = load_model(tmp_path / "saved")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))
    assert loaded.state_dict()["head.label_vectors"].tolist() == vectors.tolist()


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    model, checkpoint = load_model(tmp_path / "a")
    save_checkpoint(tmp_path / "b", model, checkpoint)
    for name in (INFO_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_channels_last_weights_are_saved_as_they_are(tmp_path: Path) -> None:
    factory = ModelFactory(TINY)
    model = saved(tmp_path, factory, factory.build(NAMES).to(memory_format=torch.channels_last))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load_model(tmp_path)[0](images), model(images), rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = own_net(num_classes)
        self.first, self.second = nn.Linear(num_classes, num_classes), nn.Linear(num_classes, num_classes)
        self.second.weight = self.first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.second(self.first(self.net(images)))
        return logits


def test_tied_weights_are_saved_and_stay_tied(tmp_path: Path) -> None:
    model = saved(tmp_path, ModelFactory(ModelConfig(), Tied))
    loaded, _ = load_model(tmp_path, Tied)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))
    assert isinstance(loaded, Tied)
    assert loaded.second.weight is loaded.first.weight


@pytest.mark.parametrize("place", [0, 9, 5000, -1])
def test_one_wrong_bit_in_the_weights_is_seen(tmp_path: Path, place: int) -> None:
    saved(tmp_path)
    content = bytearray((tmp_path / WEIGHTS_FILE).read_bytes())
    content[place] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    assert refusal(tmp_path).endswith(f"are damaged: their hash is not the one in {INFO_FILE}")


def test_weights_that_are_cut_off_or_not_there_are_told(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    assert "are damaged" in refusal(tmp_path)
    path.unlink()
    assert refusal(tmp_path) == f"weights {path} cannot be read: No such file or directory"


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"there is no checkpoint at {tmp_path}: {INFO_FILE} is not there"


@pytest.mark.parametrize("content", ["", '{"schema_version": 1', "\xff"])
def test_a_description_that_is_not_json_is_told(tmp_path: Path, content: str) -> None:
    saved(tmp_path)
    (tmp_path / INFO_FILE).write_bytes(content.encode("latin-1"))
    assert f"checkpoint {tmp_path / INFO_FILE} cannot be read: " in refusal(tmp_path)


@pytest.mark.parametrize("version", [0, 2, 4, "3", None])
def test_another_schema_is_told(tmp_path: Path, version: object) -> None:
    saved(tmp_path)
    change(tmp_path, lambda content: content.update(schema_version=version))
    assert refusal(tmp_path).endswith(
        f"has schema version {version}, and this version of Coterie reads 3: "
        "use the version that wrote it, or train again"
    )


@pytest.mark.parametrize("content", ["[]", "3", "{}"])
def test_json_of_something_else_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / INFO_FILE).write_text(content)
    assert "has schema version None, and this version of Coterie reads 3" in refusal(tmp_path)


def test_thresholds_and_temperature_are_kept(tmp_path: Path) -> None:
    saved(tmp_path)
    untuned = read_checkpoint(tmp_path)
    assert (untuned.thresholds, untuned.temperature) == (None, 1.0)
    assert untuned.class_thresholds() == (0.4, 0.4, 0.4)
    weights = (tmp_path / WEIGHTS_FILE).read_bytes()
    tuned = replace(untuned, thresholds=(0.0, 1 / 3, 1.0), temperature=1.7)
    write_description(tmp_path, tuned)
    assert read_checkpoint(tmp_path) == tuned
    assert tuned.class_thresholds() == (0.0, 1 / 3, 1.0)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == weights


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"thresholds": [0.5, 0.5]}, "is damaged: 2 thresholds for 3 classes"),
        ({"thresholds": []}, "is damaged: 0 thresholds for 3 classes"),
        ({"thresholds": [0.5, 0.5, 1.5]}, "'thresholds.2': Input should be less than or equal to 1"),
        ({"thresholds": [0.5, -0.1, 0.5]}, "'thresholds.1': Input should be greater than or equal to 0"),
        ({"thresholds": [0.5, math.nan, 0.5]}, "'thresholds.1': Input should be a finite number"),
        ({"thresholds": 0.5}, "'thresholds': Input should be a valid tuple"),
        ({"temperature": 0}, "'temperature': Input should be greater than 0"),
        ({"temperature": math.inf}, "'temperature': Input should be a finite number"),
        ({"temperature": None}, "'temperature': Input should be a valid number"),
        ({"threshold": 2}, "'threshold': Input should be less than or equal to 1"),
        ({"theta": 2}, "'theta': Field unknown"),
    ],
)
def test_thresholds_that_are_none_are_told(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    saved(tmp_path)
    change(tmp_path, lambda content: content.update(values))
    assert problem in refusal(tmp_path)


@pytest.mark.parametrize("field", ["thresholds", "temperature", "versions", "weights_sha256"])
def test_no_field_may_be_missing(tmp_path: Path, field: str) -> None:
    saved(tmp_path)
    change(tmp_path, lambda content: content.pop(field))
    assert f"{INFO_FILE} is damaged: '{field}': Field required" in refusal(tmp_path)


@pytest.mark.parametrize(
    "field", ["name", "class_names", "architecture", "preprocessing", "threshold", "metrics", "config"]
)
def test_a_missing_or_wrong_field_is_named(tmp_path: Path, field: str) -> None:
    saved(tmp_path)
    change(tmp_path, lambda content: content.update({field: None}))
    assert f"{INFO_FILE} is damaged: '{field}': Input should be " in refusal(tmp_path)
    change(tmp_path, lambda content: content.pop(field))
    assert f"{INFO_FILE} is damaged: '{field}': Field required" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda content: content["preprocessing"].pop("std"), "'preprocessing.std': Field required"),
        (lambda content: content["preprocessing"].update(mean=[0.5]), "'preprocessing.mean.1': Field"),
        (lambda content: content["preprocessing"].update(image_size="x"), "'preprocessing.image_size': "),
        (lambda content: content.update(class_names="abc"), "'class_names': Input should be a valid tuple"),
        (lambda content: content.update(weights_sha256="0"), "their hash is not the one in"),
        (lambda content: content["architecture"].pop("kind"), "is damaged: its architecture must be "),
        (lambda content: content.update(architecture={"kind": "own"}), "is damaged: its architecture must "),
    ],
)  # fmt: skip
def test_a_damaged_description_is_told(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    saved(tmp_path)
    change(tmp_path, edit)
    assert expected in refusal(tmp_path)


def test_another_number_of_classes_than_the_weights_have_is_told(tmp_path: Path) -> None:
    saved(tmp_path)
    change(tmp_path, lambda content: content.update(class_names=["ant", "bee"]))
    assert refusal(tmp_path).endswith("do not fit the model: 2 tensors differ, 'head.bias', 'head.weight'")


def test_another_architecture_than_the_weights_have_is_told(tmp_path: Path) -> None:
    saved(tmp_path)
    change(tmp_path, lambda content: content["architecture"].update(name="test_vit", options={}))
    assert "do not fit the model: " in refusal(tmp_path)
    change(tmp_path, lambda content: content["architecture"].update(name="resnet5"))
    assert "cannot be built: model.name=resnet5: there is no such model in timm" in refusal(tmp_path)


@pytest.fixture
def nothing_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is made with weights from anywhere."""
    create = timm.create_model

    def plain(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        assert not pretrained
        assert not {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"} & options.keys()
        assert ":" not in name
        model: nn.Module = create(name, False, **options)
        return model

    monkeypatch.setattr(timm, "create_model", plain)


@pytest.mark.usefixtures("nothing_from_elsewhere")
@pytest.mark.parametrize(
    "change_of_architecture",
    [
        {"name": "hf-hub:timm/resnet18"},
        {"name": "hf_hub:timm/resnet18"},
        {"name": "local-dir:/tmp/model"},
        {"name": "os:getcwd"},
        {"pretrained": True},
        {"weights": "/tmp/x.pth"},
        {"kind": "other"},
        {"kind": None},
        {"options": {"pretrained": True}},
        {"options": {"checkpoint_path": "/tmp/x.pth"}},
        {"options": {"pretrained_cfg": {"file": "/tmp/x.pth"}}},
        {"options": {"pretrained_cfg_overlay": {"file": "/tmp/x.pth"}}},
        {"drop_rate": "much"},
        {"head": "other"},
        {"head": []},
        {"head": "csra", "head_options": {"temperature": 1}},
        {"head": "csra", "head_options": None},
        {"word_vectors": "/tmp/x.npz"},
    ],
)
def test_an_architecture_that_reads_or_runs_anything_else_is_refused(
    tmp_path: Path, change_of_architecture: dict[str, object]
) -> None:
    saved(tmp_path)
    change(tmp_path, lambda content: content["architecture"].update(change_of_architecture))
    refusal(tmp_path)


@pytest.mark.usefixtures("nothing_from_elsewhere")
def test_a_model_that_was_trained_from_pretrained_weights_is_loaded_without_them(tmp_path: Path) -> None:
    for start in ({"pretrained": True}, {"weights": tmp_path / "gone.pth"}):
        factory = ModelFactory(TINY.model_copy(update=start))
        saved(tmp_path, factory, ModelFactory(TINY).build(NAMES))
        assert load_model(tmp_path)[1].architecture["name"] == "test_resnet"


def test_an_own_model_is_loaded_by_its_builder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = saved(tmp_path, ModelFactory(ModelConfig(name="own_trap:build"), own_net))
    assert (
        "of your own model own_trap:build, and loading runs no code by itself: give the builder"
        in refusal(tmp_path)
    )
    assert "own_trap" not in sys.modules
    loaded, checkpoint = load_model(tmp_path, own_net)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(images), model(images))
    assert checkpoint.architecture == {"kind": "own", "builder": "own_trap:build"}


def test_a_builder_of_another_model_is_told(tmp_path: Path) -> None:
    saved(tmp_path, ModelFactory(ModelConfig(), own_net))
    assert "do not fit the model" in refusal(tmp_path, lambda num_classes: nn.Linear(3, num_classes))


def test_a_function_without_a_module_name_is_described_by_its_own() -> None:
    architecture = describe_architecture(ModelFactory(ModelConfig(), own_net))
    assert architecture == {"kind": "own", "builder": f"{__name__}:own_net"}


def test_saving_again_takes_new_values_and_keeps_the_old_weights_hash_right(tmp_path: Path) -> None:
    saved(tmp_path)
    model, checkpoint = load_model(tmp_path)
    save_checkpoint(tmp_path, model, replace(checkpoint, threshold=0.7))
    assert load_model(tmp_path)[1] == replace(checkpoint, threshold=0.7)
