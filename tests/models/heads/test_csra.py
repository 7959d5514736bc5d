"""Residual attention against its definition, class by class and position by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from coterie.config import CsraConfig
from coterie.models.heads.csra import CsraHead
from tests.models.heads.slow import array, positions, random_map, randomized, softmax


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("temperatures", [(1.0,), ("max",), (2.5,), (1.0, "max"), (1.0, 2.0, 4.0, "max")])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_a_logit_is_the_mean_score_plus_the_attended_one(
    num_classes: int, temperatures: tuple[Any, ...], normalize: bool
) -> None:
    settings = CsraConfig(temperatures=temperatures, weight=0.3, normalize=normalize)
    head = randomized(CsraHead(5, num_classes, settings))
    assert isinstance(head, CsraHead)
    features = random_map(2, 5, 3, 4)
    weights = array(head.scores.weight).reshape(len(temperatures), num_classes, 5)

    expected = np.zeros((2, num_classes))
    for image in range(2):
        for number, temperature in enumerate(temperatures):
            for label in range(num_classes):
                weight = weights[number, label]
                if normalize:
                    weight = weight / np.linalg.norm(weight)
                scores = np.array([weight @ x for x in positions(array(features[image]))])
                attended = scores.max() if temperature == "max" else softmax(temperature * scores) @ scores
                expected[image, label] += scores.mean() + 0.3 * attended

    np.testing.assert_allclose(array(head(features)), expected, rtol=1e-4, atol=1e-5)


def test_a_high_temperature_is_close_to_the_maximum() -> None:
    hot = randomized(CsraHead(5, 3, CsraConfig(temperatures=(1000.0,))))
    best = randomized(CsraHead(5, 3, CsraConfig(temperatures=("max",))))
    features = random_map(2, 5, 3, 3)
    torch.testing.assert_close(hot(features), best(features), rtol=1e-3, atol=1e-3)


def test_without_weight_it_is_a_linear_head_on_the_mean() -> None:
    head = randomized(CsraHead(5, 3, CsraConfig(weight=0)))
    assert isinstance(head, CsraHead)
    features = random_map(2, 5, 3, 3)
    expected = features.mean(dim=(2, 3)) @ head.scores.weight.flatten(1).T
    torch.testing.assert_close(head(features), expected)
