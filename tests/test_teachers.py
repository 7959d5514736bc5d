"""Frozen teachers: their logits meet the right labels, and nothing about them moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from coterie.config import DistillConfig
from coterie.errors import CheckpointError
from coterie.losses import binary_cross_entropy
from coterie.models.frozen import FrozenModel
from coterie.tasks import DistillationTask
from coterie.teachers import Branch, Ensemble, Teachers
from tests.tiny import CLASS_NAMES, equal_weights, make_trainer, tiny_net

IMAGES = torch.zeros(2, 3, 4, 4)


class Answers(nn.Module):
    """For each class the number in its name: "class 7" -> 7."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([float(name.split()[1]) for name in names]))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def student_task(model: nn.Module, branch: Branch) -> DistillationTask:
    return DistillationTask(
        model,
        Teachers([branch]),
        [1.0],
        binary_cross_entropy,
        DistillConfig(loss="squared-error", w=0.5),
        branch.num_classes,
    )


@pytest.mark.parametrize("seed", range(5))
def test_logits_meet_their_labels_whatever_the_order_of_teachers_and_classes(seed: int) -> None:
    shuffled = random.Random(seed)
    names = [f"class {number}" for number in range(13)]
    in_groups = shuffled.sample(names, k=13)
    groups = [in_groups[:2], in_groups[2:3], in_groups[3:9], in_groups[9:]]
    wanted = shuffled.sample(names, k=13)
    branch = Branch([(Answers(group), group) for group in groups], wanted)
    assert branch(IMAGES).tolist() == [[float(name.split()[1]) for name in wanted]] * 2


def test_teachers_that_know_all_classes_answer_together() -> None:
    names = ["class 1", "class 2", "class 3"]
    models = [Answers(["class 1", "class 2", "class 3"]), Answers(["class 4", "class 8", "class 9"])]
    groups = [["class 3", "class 1"], ["class 2"]]
    branch = Branch([*zip(models, groups, strict=True)], names, outside=0.25)
    # of each class, its own teacher counts 1 and the other 1/4
    expected = [(1 + 4 / 4) / 1.25, (2 / 4 + 8) / 1.25, (3 + 9 / 4) / 1.25]
    assert branch(IMAGES)[0].tolist() == pytest.approx(expected)
    assert branch.owners.tolist() == [0, 1, 0]
    assert branch.places.tolist() == [0, 1, 2]
    alike = Branch([*zip(models, groups, strict=True)], names, outside=1.0)
    assert alike(IMAGES)[0].tolist() == pytest.approx([2.5, 5.0, 6.0])


def test_embeddings_are_of_the_teacher_of_the_labels_group() -> None:
    one, other = tiny_net(0), tiny_net(1)
    groups = [[CLASS_NAMES[2], CLASS_NAMES[0]], [CLASS_NAMES[1], CLASS_NAMES[3]]]
    branch = Branch([(one, groups[0]), (other, groups[1])], CLASS_NAMES, outside=0.5)
    images = torch.rand(2, 3, 8, 8)
    rows, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])
    logits, embeddings = branch.with_embeddings(images, (rows, labels))
    assert torch.equal(logits, branch(images))
    for row, label, embedding, owner in zip(rows, labels, embeddings, (one, other, one, other), strict=True):
        own = owner(images)[row, label] - owner.head.bias[label]
        assert embedding.sum().item() == pytest.approx(own.item(), abs=1e-5)


def test_more_than_ten_teachers_keep_their_order() -> None:
    names = [f"class {number}" for number in range(12)]
    branch = Branch([(Answers([name]), [name]) for name in names], names)
    assert branch(IMAGES)[0].tolist() == [float(number) for number in range(12)]


def test_missing_double_and_unknown_classes_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"no teacher for 'class 3'$"):
        Branch([(nn.Identity(), ["class 1", "class 2"])], ["class 1", "class 2", "class 3"])
    with pytest.raises(CheckpointError, match=r"once: more than one for 'class 1'$"):
        Branch(
            [(nn.Identity(), ["class 1", "class 2"]), (nn.Identity(), ["class 1"])], ["class 1", "class 2"]
        )
    with pytest.raises(CheckpointError, match=r"no teacher for 'class 2'; not a class: 'klass 2'$"):
        Branch([(nn.Identity(), ["class 1", "klass 2"])], ["class 1", "class 2"])


def test_teachers_stay_in_evaluation_mode() -> None:
    branch = Branch([(tiny_net(), CLASS_NAMES)], CLASS_NAMES)
    task = student_task(tiny_net(1), branch)
    task.train()
    assert task.model.training
    assert not any(module.training for module in branch.modules())
    assert not any(parameter.requires_grad for parameter in branch.parameters())


def test_an_epoch_of_the_student_leaves_every_bit_of_the_teachers(tmp_path: Path) -> None:
    branch = Branch([(tiny_net(), CLASS_NAMES)], CLASS_NAMES)
    before = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    assert any("running_mean" in name for name in before)
    student = tiny_net(1)
    untrained = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    make_trainer(tmp_path, task=student_task(student, branch), epochs=1).run()
    assert equal_weights(branch.state_dict(), before)
    assert not any(parameter.grad is not None for parameter in branch.parameters())
    assert not equal_weights(student.state_dict(), untrained)


def test_teachers_stack_their_branches_and_may_be_part_of_a_loss() -> None:
    names = ["class 1", "class 4"]
    branches = [Branch([(Answers(group), group)], names) for group in (names, names[::-1])]
    logits = Teachers(branches)(IMAGES)
    assert logits.tolist() == [[[1.0, 4.0]] * 2] * 2
    student = torch.zeros(2, 2, requires_grad=True)
    (student * logits).sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[2.0, 8.0]] * 2


def test_compiled_teachers_give_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compile_without_a_compiler(function: Callable[[Tensor], Tensor], **options: object) -> object:
        compiled.append(options)
        return torch._dynamo.optimize("eager")(function)

    monkeypatch.setattr(torch, "compile", compile_without_a_compiler)
    branch = Branch([(FrozenModel(tiny_net()), CLASS_NAMES)], CLASS_NAMES)
    images = torch.randn(3, 3, 8, 8)
    expected = Teachers([branch])(images)
    assert compiled == []
    assert torch.equal(Teachers([branch], compiled=True)(images), expected)
    assert compiled == [{"dynamic": False, "options": {"freezing": True}}]


def test_an_ensemble_is_the_mean_of_the_branches_logits() -> None:
    names = ["class 1", "class 4"]
    one = Branch([(Answers(names), names)], names)
    other = Branch([(Answers(["class 7", "class 0"]), names)], names)
    assert Ensemble([one, other])(IMAGES)[0].tolist() == [4.0, 2.0]
