from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from coterie.generator import TargetGenerator
from coterie.losses import bernoulli_kl, binary_cross_entropy, squared_error
from coterie.models.heads.grouped_linear import GroupedLinear
from coterie.models.output_layer import OutputLayer

IMAGES, WIDTH, CLASSES = 8, 6, 3
WEIGHTS = torch.tensor([0.25, 0.75])


def seen_by(layer: nn.Module, features: Tensor) -> tuple[OutputLayer, Tensor]:
    """The output layer, having seen features, and its logits."""
    output_layer = OutputLayer(layer, CLASSES, "")
    with output_layer.watched():
        return output_layer, layer(features)


def test_at_first_a_target_is_the_weighted_mean_of_the_teachers() -> None:
    teacher_logits = 3 * torch.randn(2, IMAGES, CLASSES)
    target = TargetGenerator(WEIGHTS, CLASSES, 0.1)(teacher_logits)
    mean = 0.25 * teacher_logits[0].sigmoid() + 0.75 * teacher_logits[1].sigmoid()
    torch.testing.assert_close(target.sigmoid(), mean)
    by_label = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    target = TargetGenerator(by_label, CLASSES, 0.1)(teacher_logits)
    torch.testing.assert_close(target[:, 2], teacher_logits[1, :, 2], atol=1e-4, rtol=1e-4)


def test_probabilities_of_0_and_1_have_finite_logits() -> None:
    target = TargetGenerator(WEIGHTS, CLASSES, 0.1)(torch.full((2, 1, CLASSES), 1e4))
    assert target.isfinite().all()


@pytest.mark.parametrize("layer", [nn.Linear(WIDTH, CLASSES), GroupedLinear(2, WIDTH, CLASSES)])
@pytest.mark.parametrize("loss", [bernoulli_kl, squared_error])
def test_the_step_is_one_of_gradient_descent_on_the_output_layer(layer: nn.Module, loss: object) -> None:
    assert callable(loss)
    shape = (IMAGES, WIDTH) if isinstance(layer, nn.Linear) else (IMAGES, 2, WIDTH)
    features, others = torch.randn(shape), torch.randn(shape)
    output_layer, logits = seen_by(layer, features)
    teacher_logits = torch.randn(2, IMAGES, CLASSES)
    generator = TargetGenerator(WEIGHTS, CLASSES, 0.1)
    target, one = generator(teacher_logits)[None], torch.ones(1)
    slope = torch.autograd.grad(loss(logits, target, one), logits, retain_graph=True)[0]
    after = generator._stepped(output_layer, features, others, slope)

    gradients = torch.autograd.grad(loss(logits, target, one), list(layer.parameters()))
    norms = features.square().sum(dim=-1).mean(dim=0) + 1
    length = IMAGES / norms.mean() if norms.ndim == 0 else IMAGES / norms[[0, 0, 1]].mean()
    with torch.no_grad():
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter.sub_(length * gradient)
    torch.testing.assert_close(after, layer(others), atol=1e-4, rtol=1e-4)


def learned(teacher: int, rate: float = 0.05, steps: int = 60) -> TargetGenerator:
    """A generator whose teacher of that number knows the labels, and the other says the opposite."""
    torch.manual_seed(0)
    true = torch.randn(WIDTH, CLASSES)
    layer = nn.Linear(WIDTH, CLASSES)
    generator = TargetGenerator(torch.tensor([0.5, 0.5]), CLASSES, rate)
    for _ in range(steps):
        features = torch.randn(IMAGES, WIDTH)
        output_layer, logits = seen_by(layer, features)
        right = 2 * features @ true
        answers = torch.stack([right, -right] if teacher == 0 else [-right, right])
        generator.learn(output_layer, logits, answers, (right > 0).to(torch.int8), bernoulli_kl)
    return generator


@pytest.mark.parametrize("teacher", [0, 1])
def test_it_learns_to_listen_to_the_teacher_who_helps(teacher: int) -> None:
    shares = learned(teacher).log_shares.softmax(dim=0)
    assert (shares[teacher] > 0.9).all()


def test_it_learns_the_other_way_round_where_the_labels_are() -> None:
    """A teacher that says no where it should say yes, of one label."""
    torch.manual_seed(0)
    true = torch.randn(WIDTH, CLASSES)
    layer, generator = nn.Linear(WIDTH, CLASSES), TargetGenerator(torch.ones(1), CLASSES, 0.05)
    for _ in range(100):
        features = torch.randn(IMAGES, WIDTH)
        output_layer, logits = seen_by(layer, features)
        right = features @ true
        shifted = right - torch.tensor([3.0, 0.0, -3.0])  # the teacher of label 0 says no too often
        generator.learn(output_layer, logits, shifted[None], (right > 0).to(torch.int8), bernoulli_kl)
    assert generator.shift[0] > 1 > generator.shift[1] > -1 > generator.shift[2]


def test_the_first_batch_has_none_before_it_and_the_student_keeps_its_gradients() -> None:
    layer = nn.Linear(WIDTH, CLASSES)
    generator = TargetGenerator(WEIGHTS, CLASSES, 0.1)
    before = [parameter.detach().clone() for parameter in generator.parameters()]
    for step in range(2):
        output_layer, logits = seen_by(layer, torch.randn(IMAGES, WIDTH))
        targets = torch.randint(0, 2, (IMAGES, CLASSES), dtype=torch.int8)
        generator.learn(output_layer, logits, torch.randn(2, IMAGES, CLASSES), targets, bernoulli_kl)
        moved = [not torch.equal(*pair) for pair in zip(before, generator.parameters(), strict=True)]
        assert moved == [step == 1] * len(before)
        assert all(parameter.grad is None for parameter in (*layer.parameters(), *generator.parameters()))
        binary_cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]  # its graph is still there
        layer.zero_grad(set_to_none=True)


def test_it_goes_on_from_its_state_exactly() -> None:
    saved, all_at_once = learned(0, steps=10), learned(0, steps=10)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    taken_up = TargetGenerator(torch.tensor([0.5, 0.5]), CLASSES, 0.05)
    taken_up.load_state_dict(torch.load(file, weights_only=True))
    layer = nn.Linear(WIDTH, CLASSES)
    for seed in range(3):
        torch.manual_seed(seed)
        features, answers = torch.randn(IMAGES, WIDTH), torch.randn(2, IMAGES, CLASSES)
        targets = torch.randint(0, 2, (IMAGES, CLASSES), dtype=torch.int8)
        for generator in (taken_up, all_at_once):
            output_layer, logits = seen_by(layer, features)
            generator.learn(output_layer, logits, answers, targets, bernoulli_kl)
    for parameter, other in zip(taken_up.parameters(), all_at_once.parameters(), strict=True):
        assert torch.equal(parameter, other)
