"""What holds for every head: its name, the shape of its logits, a gradient for every parameter."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from coterie.config import HEAD_SECTIONS, ModelConfig
from coterie.models.heads import HEADS, POOLED, build_head
from tests.models.heads.slow import random_map

SMALL: dict[str, dict[str, Any]] = {
    "csra": {"temperatures": (1.0, "max")},
    "ml-decoder": {"width": 16, "heads": 4, "feedforward": 8, "groups": 3},
    "query2label": {"width": 16, "label_attention": True},
    "transformer": {"width": 16, "layers": 2},
}


def small(name: str, num_classes: int) -> nn.Module:
    settings: dict[str, Any] = {"head": name}
    if name in SMALL:
        settings[HEAD_SECTIONS[name]] = SMALL[name]
    return build_head(ModelConfig.model_validate(settings), 8, num_classes)


def features(name: str, batch: int = 2) -> torch.Tensor:
    return random_map(batch, 8) if name in POOLED else random_map(batch, 8, 3, 3)


def test_every_name_of_the_setting_has_a_head_and_the_sections_are_theirs() -> None:
    names = get_args(ModelConfig.model_fields["head"].annotation)
    assert set(names) == set(HEADS)
    assert set(HEAD_SECTIONS) == set(HEADS) - POOLED == set(SMALL)


@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_gives_a_logit_for_each_class_and_trains_all_it_has(name: str, num_classes: int) -> None:
    torch.manual_seed(0)
    head = small(name, num_classes)
    given = features(name).requires_grad_()
    logits = head(given)
    assert logits.shape == (2, num_classes)
    (logits * torch.randn(logits.shape)).sum().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", HEADS)
def test_the_images_of_a_batch_do_not_see_each_other(name: str) -> None:
    head = small(name, 5).eval()
    given = features(name, batch=3)
    torch.testing.assert_close(head(given)[1:2], head(given[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_works_in_half_precision(name: str) -> None:
    head = small(name, 5).eval()
    given = features(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(given)
    torch.testing.assert_close(logits.float(), head(given), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", sorted(set(HEADS) - POOLED))
def test_a_head_takes_maps_of_any_size(name: str) -> None:
    head = small(name, 5).eval()
    for height, width in ((1, 1), (2, 5), (4, 4)):
        assert head(random_map(2, 8, height, width)).shape == (2, 5)
