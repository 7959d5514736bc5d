"""Weights that a model takes from one of more classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coterie.config import ModelConfig
from coterie.errors import CheckpointError
from coterie.models.factory import ModelFactory
from coterie.models.inherit import inherit_weights

CLASSES = ("cat", "dog", "mouse", "horse", "sheep")
COLUMNS = [3, 1]
CHOSEN = ("horse", "dog")
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(classes: tuple[str, ...], seed: int, **settings: Any) -> nn.Module:
    chosen = ModelConfig.model_validate({"name": "squeezenet1_1", "image_size": 64, **settings})
    return ModelFactory(chosen).build(classes, seed).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "linear"},
        {"head": "csra"},
        {"head": "query2label", "query2label": {"width": 16}},
    ],
    ids=lambda settings: settings["head"],
)
def test_the_model_answers_as_the_other_for_its_classes(settings: dict[str, Any]) -> None:
    parent = build(CLASSES, 0, **settings)
    model = build(CHOSEN, 1, **settings)
    inherit_weights(model, parent, CHOSEN, CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), parent(IMAGES)[:, COLUMNS])


def test_all_classes_are_taken_over_whole() -> None:
    parent, model = build(CLASSES, 0), build(CLASSES, 1)
    inherit_weights(model, parent, CLASSES, CLASSES)
    assert all(torch.equal(tensor, parent.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_what_fits_neither_way_stays_as_it_is() -> None:
    parent, model = (
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 7)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
    )
    own = model.state_dict()["1.weight"].clone()
    inherit_weights(model, parent, CLASSES[:2], CLASSES)
    assert torch.equal(model.state_dict()["0.weight"], parent.state_dict()["0.weight"])
    assert torch.equal(model.state_dict()["1.weight"], own)


def test_a_model_with_nothing_in_common_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no weights in common"):
        inherit_weights(nn.Linear(2, 2), nn.Linear(3, 3), CLASSES[:2], CLASSES)


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (CLASSES[::-1], "classes in another order: 'cat', .*, not 'sheep', "),
        ((*CLASSES[:4], "goat"), "which has no 'goat'"),
        (("goat",), "which has no 'goat'"),
    ],
)
def test_classes_are_compared_by_name(class_names: tuple[str, ...], message: str) -> None:
    parent, model = build(CLASSES, 0), build(class_names, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        inherit_weights(model, parent, class_names, CLASSES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
