"""Trainings on the same batches: each is what it would be alone, whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.config import ResumeConfig, TrainConfig
from coterie.data.transforms import Preprocessing
from coterie.errors import RunError
from coterie.lockstep import Member, train, train_together
from coterie.losses import binary_cross_entropy
from coterie.tasks import ClassificationTask
from coterie.trainer import Data, Trainer
from tests.tiny import cpu_fabric, equal_weights, make_data, make_dataset, tiny_net


class Dropping(nn.Module):
    """A net with dropout, whose masks come from torch's generator."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = tiny_net(seed)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.drop(images))
        return logits


@pytest.fixture
def data() -> Data:
    return make_data(make_dataset())


def trainer(data: Data, folder: Path, seed: int, **settings: Any) -> Trainer:
    chosen = TrainConfig(**{"epochs": 2, "batch_size": 8, "lr": 0.01, "ema": 0.9} | settings)
    task = ClassificationTask(Dropping(seed), [0, 1, 2, 3], binary_cross_entropy)
    return Trainer(task, data, chosen, cpu_fabric(), folder, key="key", seed=seed)


def results(members: list[Member]) -> dict[str, RunError | None]:
    return {member.trainer.folder.name: error for member, error in train_together(members)}


def test_a_training_does_not_depend_on_those_beside_it(data: Data, tmp_path: Path) -> None:
    seeds, epochs = (1, 2, 3), (2, 3, 2)
    alone = [
        train(trainer(data, tmp_path / f"alone-{seed}", seed, epochs=number))
        for seed, number in zip(seeds, epochs, strict=True)
    ]
    members = [
        Member(trainer(data, tmp_path / f"{seed}", seed, epochs=number))
        for seed, number in zip(seeds, epochs, strict=True)
    ]
    assert results(members) == {"1": None, "3": None, "2": None}  # in the order they are over
    for member, expected in zip(members, alone, strict=True):
        state = member.trainer.state
        assert equal_weights(state.best_weights, expected.best_weights)
        assert [line["loss"] for line in state.history] == [line["loss"] for line in expected.history]
    assert not equal_weights(alone[0].best_weights, alone[2].best_weights)


def test_every_image_is_loaded_once_for_all(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []

    def normalize(_: Preprocessing, pixels: Tensor) -> Tensor:
        loaded.append(len(pixels))
        return pixels / 255

    monkeypatch.setattr(Preprocessing, "normalize", normalize)
    assert len(results([Member(trainer(data, tmp_path / str(seed), seed)) for seed in range(3)])) == 3
    # two epochs of 24 training images and the validation images
    assert sum(loaded) == 2 * (24 + len(data.validation.indices))


def test_one_that_fails_does_not_stop_the_others(data: Data, tmp_path: Path) -> None:
    expected = train(trainer(data, tmp_path / "alone", 2))
    members = [
        Member(trainer(data, tmp_path / "diverging", 1, lr=1e30, grad_clip=None, ema=None)),
        Member(trainer(data, tmp_path / "sound", 2)),
    ]
    ended = results(members)
    assert ended["sound"] is None
    assert "the loss of diverging is" in str(ended["diverging"])
    assert equal_weights(members[1].trainer.state.best_weights, expected.best_weights)


def test_members_stopped_at_different_steps_of_an_epoch_go_on_together(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, every = (1, 2, 3), {1: 1, 2: 2, 3: None}
    expected = {seed: train(trainer(data, tmp_path / f"alone-{seed}", seed)) for seed in seeds}

    def members() -> list[Member]:
        made = [Member(trainer(data, tmp_path / str(seed), seed)) for seed in seeds]
        for member, steps in zip(made, every.values(), strict=True):
            member.trainer.resume = ResumeConfig(steps=steps)
        return made

    calls = 0
    step = Trainer.step
    steps: list[tuple[str, int]] = []

    def stopping(self: Trainer, batch: Any, number: int, *rest: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 17:  # the third step of the second epoch, when one of three has done it
            raise KeyboardInterrupt
        steps.append((self.folder.name, number))
        step(self, batch, number, *rest)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        results(members())
    again = members()
    assert [(member.trainer.state.epoch, member.trainer.state.step) for member in again] == [
        (1, 3),
        (1, 2),
        (1, 0),
    ]
    steps.clear()
    assert results(again) == {"1": None, "2": None, "3": None}
    assert steps == [("3", 0), ("3", 1), ("2", 2), ("3", 2)]
    for member, seed in zip(again, seeds, strict=True):
        assert equal_weights(member.trainer.state.best_weights, expected[seed].best_weights)
        losses = [line["loss"] for line in member.trainer.state.history]
        assert losses == [line["loss"] for line in expected[seed].history]


def test_when_all_have_failed_it_is_over(data: Data, tmp_path: Path) -> None:
    def too_large(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("many lines")

    members = []
    for seed in (1, 2):
        member = Member(trainer(data, tmp_path / str(seed), seed))
        member.trainer.task.loss = too_large  # type: ignore[assignment]
        members.append(member)
    for error in results(members).values():
        assert "does not fit into the memory of cpu; set a smaller" in str(error)
        assert "together" in str(error)


def test_one_that_is_behind_goes_on_alone_until_it_is_as_far(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {seed: train(trainer(data, tmp_path / f"alone-{seed}", seed, epochs=4)) for seed in (1, 2)}
    steps: list[tuple[str, int]] = []
    step = Trainer.step

    def recorded(self: Trainer, *arguments: Any) -> None:
        steps.append((self.folder.name, self.state.epoch))
        if len(steps) == 4:
            raise KeyboardInterrupt
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", recorded)
    with pytest.raises(KeyboardInterrupt):  # in the second epoch of the first
        train(trainer(data, tmp_path / "1", 1, epochs=4))
    members = [Member(trainer(data, tmp_path / str(seed), seed, epochs=4)) for seed in (1, 2)]
    assert [member.trainer.state.epoch for member in members] == [1, 0]
    assert results(members) == {"1": None, "2": None}
    assert steps[4:9] == [("2", 0)] * 3 + [("1", 1), ("2", 1)]
    for seed, member in zip((1, 2), members, strict=True):
        assert equal_weights(member.trainer.state.best_weights, expected[seed].best_weights)
