from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.relations import relation_loss

# images 0, 1 and 2 have label 0; image 0 has the labels 1 and 2 too
POSITIVES = (torch.tensor([0, 1, 2, 0, 0]), torch.tensor([0, 0, 0, 1, 2]))
STUDENT = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0]])
TEACHER = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 6.0], [1.0, 0.0], [4.0, 4.0]])
ONE = torch.ones(1)
TOGETHER = torch.zeros(1, 3, dtype=torch.int64)  # one teacher for all labels
APART = torch.tensor([[0, 0, 1]])  # another for label 2


def huber(one: float, other: float) -> float:
    difference = abs(one - other)
    return difference**2 / 2 if difference < 1 else difference - 0.5


def compared(student: list[float], teacher: list[float]) -> float:
    """The mean of Huber's losses, of distances as parts of their means."""
    parts = [[value * len(values) / sum(values) for value in values] for values in (student, teacher)]
    return sum(map(huber, *parts)) / len(student)


def test_the_loss_is_the_formula() -> None:
    # pairs (0, 1), (0, 2), (1, 2) of label 0, by hand
    of_label = compared([5, 1, 18**0.5], [2, 6, 4])
    # pairs (0, 3), (0, 4), (3, 4) of image 0
    of_image = compared([10, 2, 72**0.5], [1, 32**0.5, 5])
    loss = relation_loss(STUDENT, TEACHER[None], TOGETHER, ONE, POSITIVES)
    assert loss.item() == pytest.approx(of_label + of_image, rel=1e-5)


def test_labels_of_two_teachers_are_not_compared() -> None:
    # of image 0 only labels 0 and 1 share a teacher: one distance, which is its own mean
    loss = relation_loss(STUDENT, TEACHER[None], APART, ONE, POSITIVES)
    assert loss.item() == pytest.approx(compared([5, 1, 18**0.5], [2, 6, 4]), rel=1e-5)


def test_branches_are_weighed() -> None:
    def of(teachers: Tensor, weights: Tensor) -> float:
        owners = TOGETHER.expand(len(teachers), -1)
        return relation_loss(STUDENT, teachers, owners, weights, POSITIVES).item()

    one, other = of(TEACHER[None], ONE), of(TEACHER.flip(0)[None], ONE)
    both = torch.stack([TEACHER, TEACHER.flip(0)])
    assert of(both, torch.tensor([0.3, 0.7])) == pytest.approx(0.3 * one + 0.7 * other, rel=1e-5)
    by_label = torch.tensor([[0.3] * 3, [0.7] * 3])
    assert of(both, by_label) == pytest.approx(0.3 * one + 0.7 * other, rel=1e-5)
    # a pair has the mean of its labels' weights: 1 of label 0, half of it with another, 0 of labels 1 and 2
    student, teacher = torch.tensor([10, 2, 72**0.5]), torch.tensor([1, 32**0.5, 5])
    pairs = zip((3 * student / student.sum()).tolist(), (3 * teacher / teacher.sum()).tolist(), strict=True)
    of_image = sum(weight * huber(*pair) for weight, pair in zip((0.5, 0.5, 0), pairs, strict=True)) / 3
    of_label = compared([5, 1, 18**0.5], [2, 6, 4])
    assert of(TEACHER[None], torch.tensor([[1.0, 0.0, 0.0]])) == pytest.approx(of_label + of_image, rel=1e-5)


def test_distances_of_the_same_shape_are_no_loss_whatever_their_size_and_place() -> None:
    turned = 3 * TEACHER.flip(1) + 5
    loss = relation_loss(turned, TEACHER[None], TOGETHER, ONE, POSITIVES)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_takes_the_student_to_its_teachers_distances() -> None:
    student = STUDENT.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(400):
        loss = relation_loss(student, TEACHER[None], TOGETHER, ONE, POSITIVES)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 1e-3
    assert relation_loss(STUDENT, TEACHER[None], TOGETHER, ONE, POSITIVES).item() > 0.3


@pytest.mark.parametrize("positives", [([], []), ([0], [2]), ([0, 1], [1, 2])])
def test_without_pairs_there_is_no_loss(positives: tuple[list[int], list[int]]) -> None:
    images, labels = (torch.tensor(part, dtype=torch.int64) for part in positives)
    student = torch.randn(len(images), 4, requires_grad=True)
    loss = relation_loss(student, torch.randn(1, len(images), 4), TOGETHER, ONE, (images, labels))
    assert loss.item() == 0


def test_the_same_image_twice_has_a_finite_gradient() -> None:
    student = torch.ones(3, 4, requires_grad=True)
    positives = (torch.arange(3), torch.zeros(3, dtype=torch.int64))
    relation_loss(student, torch.randn(1, 3, 4), TOGETHER, ONE, positives).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_half_precision_around_it_changes_nothing() -> None:
    plain = relation_loss(STUDENT, TEACHER[None], TOGETHER, ONE, POSITIVES)
    with torch.autocast("cpu", torch.bfloat16):
        assert relation_loss(STUDENT, TEACHER[None], TOGETHER, ONE, POSITIVES) == plain
