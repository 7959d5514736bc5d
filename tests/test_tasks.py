"""What a training optimises: the right columns, and the formula of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coterie.config import DistillConfig, TrainConfig
from coterie.losses import asymmetric_loss, bernoulli_kl, binary_cross_entropy, squared_error
from coterie.tasks import ClassificationTask, DistillationTask, classification_loss, distillation_loss
from coterie.teachers import Branch, Teachers


class Constant(nn.Module):
    """The same logits [C] for every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


IMAGES = torch.zeros(2, 3, 4, 4)
TARGETS = torch.tensor([[1, 0], [0, -1]], dtype=torch.int8)
STUDENT, CO, DIS = [0.5, -1.0], [2.0, 0.0], [-1.0, 1.5]


def distillation_task(settings: DistillConfig) -> DistillationTask:
    names = ("cat", "dog")
    teachers = Teachers([Branch([(Constant(logits), names)], names) for logits in (CO, DIS)])
    return task_of(teachers, settings)


def task_of(teachers: Teachers | None, settings: DistillConfig) -> DistillationTask:
    return DistillationTask(
        Constant(STUDENT),
        teachers,
        [settings.a, 1 - settings.a],
        binary_cross_entropy,
        distillation_loss(settings),
        settings.w,
        num_classes=2,
        w_end=settings.w_end,
    )


def hand_made_loss(settings: DistillConfig) -> float:
    """(1 - w) * BCE + w * (a * kd(co) + (1 - a) * kd(dis)), written out."""
    z, u, v = torch.tensor(STUDENT), torch.tensor(CO), torch.tensor(DIS)
    p = z.sigmoid()
    cross_entropy = (-p[0].log() - (1 - p[1]).log() - (1 - p[0]).log()) / 2

    def kd(teacher: Tensor) -> Tensor:
        if settings.loss == "squared-error":
            return ((z - teacher) ** 2).sum()
        t = settings.temperature
        q, r = (teacher / t).sigmoid(), (z / t).sigmoid()
        return (q * (q / r).log() + (1 - q) * ((1 - q) / (1 - r)).log()).sum() * t**2

    a, w = settings.a, settings.w
    return ((1 - w) * cross_entropy + w * (a * kd(u) + (1 - a) * kd(v))).item()


def test_a_classification_task_learns_its_columns_of_the_targets() -> None:
    targets = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 1]], dtype=torch.int8)
    logits = [0.3, -0.7]
    outputs = ClassificationTask(Constant(logits), [3, 1], binary_cross_entropy)(IMAGES, targets)
    expected = binary_cross_entropy(torch.tensor([logits, logits]), targets[:, [3, 1]])
    assert outputs["loss"] == expected
    assert outputs["logits"].tolist() == torch.tensor([logits, logits]).tolist()


def test_the_students_loss_is_the_formula() -> None:
    for settings in (
        DistillConfig(loss="squared-error", w=0.3, a=0.8),
        DistillConfig(loss="bernoulli-kl", w=0.5, a=0.25),
        DistillConfig(loss="bernoulli-kl", w=0.9, a=0.5, temperature=4),
    ):
        outputs = distillation_task(settings)(IMAGES, TARGETS)
        assert outputs["loss"].item() == pytest.approx(hand_made_loss(settings), rel=1e-5)


def test_w_goes_to_its_end_in_equal_parts() -> None:
    task = distillation_task(DistillConfig(w=0.2, w_end=0.8))
    for progress, w in ((0, 0.2), (0.5, 0.5), (0.75, 0.65), (1, 0.8)):
        task.progress = progress
        expected = hand_made_loss(DistillConfig(w=w))
        assert task(IMAGES, TARGETS)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_the_parts_of_the_students_loss_are_named_and_add_up() -> None:
    outputs = distillation_task(DistillConfig(w=0.3, a=0.8))(IMAGES, TARGETS)
    assert set(outputs) == {"loss", "logits", "cls", "kd"}
    torch.testing.assert_close(outputs["loss"], 0.7 * outputs["cls"] + 0.3 * outputs["kd"])


def test_logits_that_come_with_the_batch_give_the_loss_of_the_teachers_that_gave_them() -> None:
    settings = DistillConfig(w=0.3, a=0.8)
    known = torch.tensor([[CO, CO], [DIS, DIS]])
    from_teachers = distillation_task(settings)(IMAGES, TARGETS)
    from_batch = task_of(None, settings)(IMAGES, TARGETS, False, known)
    assert from_batch["loss"] == from_teachers["loss"]
    with pytest.raises(ValueError, match="neither teachers and images, nor the logits"):
        task_of(None, settings)(IMAGES, TARGETS)


def test_only_the_student_gets_a_gradient() -> None:
    task = distillation_task(DistillConfig())
    task(IMAGES, TARGETS)["loss"].backward()
    with_gradient = [name for name, parameter in task.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["model.logits"]


def test_settings_choose_the_losses() -> None:
    logits, targets = torch.randn(4, 3), torch.randint(0, 2, (4, 3))
    asl = classification_loss(TrainConfig(loss="asl", gamma_neg=2, gamma_pos=1, clip=0.1))
    assert asl(logits, targets) == asymmetric_loss(logits, targets, gamma_neg=2, gamma_pos=1, clip=0.1)
    assert classification_loss(TrainConfig(loss="bce")) is binary_cross_entropy
    assert distillation_loss(DistillConfig(loss="squared-error")) is squared_error
    kl, one = distillation_loss(DistillConfig(temperature=3)), torch.ones(1)
    assert kl(logits, logits[None] + 1, one) == bernoulli_kl(logits, logits[None] + 1, one, temperature=3)
