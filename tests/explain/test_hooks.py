"""A model that another thread uses meanwhile gives the same maps, and that thread the same logits."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coterie.explain import make_explainer
from coterie.models.classifier import Classifier
from tests.explain.models import built, noise, predictor_of


class Disturbed(nn.Module):
    """A backbone that, while it runs in the main thread, runs the whole model in another one."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.elsewhere: list[Tensor] = []
        self.whole: list[nn.Module] = []  # in a list, or the model would be a part of itself
        self.images = noise(1)

    def forward(self, images: Tensor) -> Tensor:
        if self.whole and threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: self.elsewhere.append(self.whole[0](self.images)))
            thread.start()
            thread.join()
        features: Tensor = self.backbone(images)
        return features


class Late(nn.Module):
    """What `Disturbed` does, behind the layer that is looked at."""

    def __init__(self, disturbed: Disturbed) -> None:
        super().__init__()
        self.disturbed = disturbed

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.disturbed(features)
        return result


@pytest.mark.parametrize("name", ["ml-decoder", "query2label", "transformer"])
def test_attention_is_that_of_the_own_call(name: str) -> None:
    model = built("squeezenet1_1", name)
    assert isinstance(model, Classifier)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    expected = make_explainer(predictor_of(model)).maps(picture, ["bee"])["bee"]
    head = model.head
    inner: Any = head.project
    disturbed = Disturbed(inner)  # inside the head, where the attention is watched
    head.project = Late(disturbed)
    explainer = make_explainer(predictor_of(model))
    disturbed.whole.append(model)
    found = explainer.maps(picture, ["bee"])["bee"]
    assert disturbed.elsewhere
    np.testing.assert_array_equal(found.values, expected.values)


def test_grad_cam_is_that_of_the_own_call() -> None:
    model = built("test_convnext")
    assert isinstance(model, Classifier)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    expected = make_explainer(predictor_of(model)).maps(picture, ["bee"])["bee"]
    with torch.no_grad():
        logits = model(noise(1))
    disturbed = Disturbed(model.head)
    model.head = Late(disturbed)
    explainer = make_explainer(predictor_of(model), "backbone.stages")
    disturbed.whole.append(model)
    found = explainer.maps(picture, ["bee"])["bee"]
    assert disturbed.elsewhere
    np.testing.assert_array_equal(found.values, expected.values)
    for others in disturbed.elsewhere:
        torch.testing.assert_close(others, logits)
