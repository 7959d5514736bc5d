"""What a training optimises: the right columns, and the formula of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coterie.config import DistillConfig, TrainConfig
from coterie.losses import asymmetric_loss, bernoulli_kl, binary_cross_entropy, squared_error
from coterie.relations import relation_loss
from coterie.seeding import seed_everything
from coterie.tasks import (
    ClassificationTask,
    DistillationTask,
    Mixture,
    classification_loss,
    distillation_loss,
)
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
        settings,
        num_classes=2,
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


def test_labels_may_count_less_in_a_classification_task() -> None:
    targets = torch.tensor([[1, 0, 1], [0, -1, 1]], dtype=torch.int8)
    logits = torch.tensor([[0.3, -0.7, 1.1]] * 2)
    task = ClassificationTask(
        Constant(logits[0].tolist()), [0, 1, 2], binary_cross_entropy, counts=[1, 0.3, 1]
    )
    likelihood = torch.where(targets == 1, logits, -logits).sigmoid().log() * (targets != -1)
    expected = -(likelihood * torch.tensor([1, 0.3, 1])).sum(dim=1).mean()
    assert task(IMAGES, targets)["loss"].item() == pytest.approx(expected.item())


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


class Pooled(nn.Module):
    """The mean of each colour [B, 3] as logits, and what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return images.mean(dim=(2, 3)) * self.scale


class Weighed(nn.Module):
    """Logits of the mean of each colour, by one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.mean(dim=(2, 3)))
        return logits


COLOURED = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
OF_COLOURED = torch.tensor([[1, 0, 0], [0, 1, -1], [1, 1, 0], [0, 0, 1], [-1, 1, 0]], dtype=torch.int8)


def soft_cross_entropy(logits: Tensor, mixture: Mixture) -> Tensor:
    """Cross-entropy against the mixed targets, without the labels that are unknown in one image."""
    first, second = OF_COLOURED.double(), OF_COLOURED[mixture.order].double()
    soft = mixture.share * first + (1 - mixture.share) * second
    p = logits.double().sigmoid()
    losses = -soft * p.log() - (1 - soft) * (1 - p).log()
    return losses[(first >= 0) & (second >= 0)].sum() / len(logits)


def test_a_mixed_batch_has_the_cross_entropy_of_mixed_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture(0.3, torch.tensor([2, 0, 1, 4, 3]))
    monkeypatch.setattr(Mixture, "drawn", lambda alpha, _: mixture if alpha == 0.2 else None)
    model = Pooled()
    outputs = ClassificationTask(model, [0, 1, 2], binary_cross_entropy, 0.2)(COLOURED, OF_COLOURED)
    torch.testing.assert_close(model.seen[0][0], 0.3 * COLOURED[0] + 0.7 * COLOURED[2])
    torch.testing.assert_close(outputs["logits"], model(model.seen[0]))
    expected = soft_cross_entropy(outputs["logits"], mixture)
    assert outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    columns = ClassificationTask(model, [2], asymmetric_loss, 0.2)(COLOURED, OF_COLOURED)
    first, second = OF_COLOURED[:, [2]].clone(), OF_COLOURED[mixture.order][:, [2]]
    first[2] = second[1] = -1  # the second image is unknown there, and it is mixed into the third
    parts = [asymmetric_loss(columns["logits"], targets) for targets in (first, second)]
    torch.testing.assert_close(columns["loss"], 0.3 * parts[0] + 0.7 * parts[1])


def test_teachers_and_student_see_the_same_mixed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture(0.6, torch.tensor([1, 2, 3, 4, 0]))
    monkeypatch.setattr(Mixture, "drawn", lambda *_: mixture)
    student, teacher = Pooled(), Pooled()
    branch = Branch([(teacher, ("a", "b", "c"))], ("a", "b", "c"))
    settings = DistillConfig(w=0.25)
    task = DistillationTask(
        student,
        Teachers([branch]),
        [1.0],
        binary_cross_entropy,
        settings,
        num_classes=3,
        mixup=1.0,
    )
    outputs = task(COLOURED, OF_COLOURED)
    assert torch.equal(student.seen[0], teacher.seen[0])
    torch.testing.assert_close(student.seen[0], 0.6 * COLOURED + 0.4 * COLOURED.roll(-1, dims=0))
    assert outputs["kd"].item() == pytest.approx(0, abs=1e-6)  # both have the same weights
    expected = 0.75 * soft_cross_entropy(outputs["logits"], mixture)
    assert outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_relations_are_added_to_the_loss() -> None:
    names = ("a", "b", "c")
    torch.manual_seed(0)
    student, all_three, only_c, b_and_a = Weighed(3), Weighed(3), Weighed(1), Weighed(2)
    groups = [(only_c, ("c",)), (b_and_a, ("b", "a"))]
    teachers = Teachers([Branch([(all_three, names)], names), Branch(groups, names)])
    outputs, plain = (
        DistillationTask(student, teachers, [0.3, 0.7], binary_cross_entropy, chosen, num_classes=3)(
            COLOURED, OF_COLOURED
        )
        for chosen in (DistillConfig(w=0.25, relations=3), DistillConfig(w=0.25))
    )
    assert outputs["kd"].item() == pytest.approx(plain["kd"].item(), rel=1e-5)
    rows, labels = (OF_COLOURED == 1).nonzero(as_tuple=True)

    def embeddings(weights: Tensor) -> Tensor:
        return COLOURED.mean(dim=(2, 3))[rows] * weights[labels]

    in_groups = torch.stack([b_and_a.linear.weight[1], b_and_a.linear.weight[0], only_c.linear.weight[0]])
    taught = torch.stack([embeddings(all_three.linear.weight), embeddings(in_groups)])
    owners, weights = torch.tensor([[0, 0, 0], [1, 1, 0]]), torch.tensor([0.3, 0.7])
    own = embeddings(student.linear.weight)
    expected = relation_loss(own, taught, owners, weights, (rows, labels))
    assert outputs["relations"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert outputs["loss"].item() == pytest.approx(plain["loss"].item() + 3 * expected.item(), rel=1e-5)


def test_a_generated_target_is_what_the_student_learns() -> None:
    task = DistillationTask(
        Weighed(3), None, [0.3, 0.7], binary_cross_entropy, DistillConfig(w=0.5, generator=0.1), num_classes=3
    )
    known = torch.randn(2, len(COLOURED), 3)
    task.eval()  # nothing is learned from what is only measured
    outputs = task(COLOURED, OF_COLOURED, False, known)
    mean = torch.logit(0.3 * known[0].sigmoid() + 0.7 * known[1].sigmoid())
    expected = bernoulli_kl(outputs["logits"], mean[None], torch.ones(1))
    assert outputs["kd"].item() == pytest.approx(expected.item(), rel=1e-4)
    before = {name: value.clone() for name, value in task.learned["generator"].named_parameters()}
    task.train()
    for _ in range(2):
        task(COLOURED, OF_COLOURED, False, known)
    after = dict(task.learned["generator"].named_parameters())
    assert not any(torch.equal(value, after[name]) for name, value in before.items())


def test_what_is_mixed_is_images_and_not_what_was_made_of_them() -> None:
    known = torch.tensor([[CO, CO], [DIS, DIS]])
    task = task_of(None, DistillConfig())
    task.mixup = 1.0
    with pytest.raises(ValueError, match="not those of mixed images"):
        task(IMAGES, TARGETS, False, known)
    with pytest.raises(ValueError, match="mixup needs images"):
        task(IMAGES, TARGETS, True)
    assert not ClassificationTask(Pooled(), [0], binary_cross_entropy).needs_images
    assert ClassificationTask(Pooled(), [0], binary_cross_entropy, 0.1).needs_images


def test_the_share_of_a_mixture_is_from_its_distribution_and_the_order_is_one() -> None:
    seed_everything(0)
    drawn = [Mixture.drawn(0.5, COLOURED) for _ in range(2000)]
    shares = torch.tensor([mixture.share for mixture in drawn])
    # of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / 8, abs=0.01)
    assert all(mixture.order.sort().values.tolist() == [0, 1, 2, 3, 4] for mixture in drawn)
    assert len({tuple(mixture.order.tolist()) for mixture in drawn}) == 120


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
