"""A training that several processes do together is the one that a single process does, but for rounding.

All that needs two processes is done by one pair of them, which the tests share.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

import coterie.trainer
from coterie.config import DistillConfig, ResumeConfig, TrainConfig, load_config
from coterie.data.loading import EpochSampler, ImageBatches, ResizedImages, Views, plain_batches
from coterie.data.transforms import Preprocessing
from coterie.errors import ConfigError, Diverged, RunError
from coterie.lockstep import Member, train, train_together
from coterie.losses import asymmetric_loss
from coterie.models.shared_norm import SharedBatchNorm
from coterie.ranks import ALONE, Meeting, Ranks, joined, ranks_in
from coterie.tasks import ClassificationTask, DistillationTask, Task
from coterie.teachers import Branch, Teachers
from coterie.trainer import Data, Trainer, make_fabric
from tests.tiny import CLASS_NAMES, SIDE, Steady, equal_weights, make_dataset

SIZE = 2
BATCH = 5  # of which one process has three images and the other two
VALIDATION_BATCH = 7  # of the 12 images, so that the last batch is of five
COLUMNS = list(range(len(CLASS_NAMES)))


class Net(Steady):
    """A net with a layer without use, and with dropout where that is asked for."""

    def __init__(self, seed: int, classes: int = len(CLASS_NAMES), drop: float = 0.0) -> None:
        torch.manual_seed(seed)
        super().__init__(classes)
        self.unused = nn.Linear(2, 2)
        self.drop = nn.Dropout(drop)
        self.dropped: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.dropped.append(self.drop(torch.ones(8)))
        return super().forward(images)


def make_data(ranks: Ranks) -> Data:
    """Of the tiny dataset, a fifth of whose targets are unknown."""
    dataset = make_dataset(unknown=0.2)
    images = ResizedImages(dataset, Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    sampler = EpochSampler(dataset.indices("train"), BATCH, shuffle=True, seed=1, ranks=ranks)
    validation = plain_batches(images, dataset.indices("val"), VALIDATION_BATCH, ranks=ranks)
    return Data(ImageBatches(Views(images), sampler), validation, images.preprocessing, dataset.image_ids)


def make_trainer(
    ranks: Ranks,
    folder: Path,
    *,
    task: Task | None = None,
    data: Data | None = None,
    resume: ResumeConfig | None = None,
    **settings: Any,
) -> Trainer:
    chosen = TrainConfig(**{"epochs": 2, "batch_size": BATCH, "lr": 0.01, "ema": 0.9} | settings)
    task = task or ClassificationTask(Net(0), COLUMNS, asymmetric_loss)
    fabric = make_fabric(load_config(["device=cpu"]), ranks=ranks)
    data = data or make_data(ranks)
    return Trainer(task, data, chosen, fabric, folder, key="key", seed=0, resume=resume)


def outcome(trainer: Trainer) -> dict[str, Any]:
    """What a training has made, in this process."""
    assert trainer.averaged is not None
    return {
        "model": dict(trainer.task.model.state_dict()),
        "averaged": dict(trainer.averaged.module.state_dict()),
        "best": trainer.state.best_weights,
        "numbers": [
            [line["loss"], line.get("cls"), line.get("kd"), line["val_mAP"]] for line in trainer.state.history
        ],
        "files": sorted(str(path.relative_to(trainer.folder)) for path in trainer.folder.rglob("*")),
    }


def normalises(ranks: Ranks, _: Path) -> dict[str, Any]:
    """A batch norm of each kind on five images, its gradients and its statistics."""
    found: dict[str, Any] = {}
    for norm, shape in (
        (nn.BatchNorm1d(3), (BATCH, 3)),
        (nn.BatchNorm2d(3, momentum=0.3, eps=0.1), (BATCH, 3, 4, 4)),
        (nn.BatchNorm3d(3, affine=False), (BATCH, 3, 2, 2, 2)),
    ):
        torch.manual_seed(0)
        # a mean that is far from 0: sums of squares would lose the variance
        images, weights = torch.randn(shape) * 3 + 100, torch.randn(shape)
        if norm.affine:
            nn.init.normal_(norm.weight)
        part = np.array_split(np.arange(BATCH), ranks.size)[ranks.rank]
        own = images[part].requires_grad_()
        with SharedBatchNorm() if ranks.are_several else nullcontext():
            output = norm(own)
        (output * weights[part]).sum().backward()
        sums = [parameter.grad for parameter in norm.parameters() if parameter.grad is not None]
        for gradient in sums if ranks.are_several else ():
            distributed.all_reduce(gradient)
        assert own.grad is not None
        statistics = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
        found[type(norm).__name__] = {
            "rows": torch.stack([output.detach(), own.grad], dim=1),
            "sums": [*sums, *statistics],
        }
    return found


def trains(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A training with each reduction of the loss; what is measured after its epochs."""
    measured: list[tuple[Tensor, Tensor]] = []
    measure = coterie.trainer.mean_average_precision

    def seen(logits: Tensor, targets: Tensor, counts: Tensor | None = None) -> float | None:
        measured.append((logits, targets))
        return measure(logits, targets, counts)

    coterie.trainer.mean_average_precision = seen
    try:
        made: dict[str, Any] = {}
        # Adam alone takes the same steps of a gradient that is twice as large: not so with weight decay
        settings: dict[str, Any] = {"optimizer": "adam", "weight_decay": 0.1}
        for reduction, clip in (("mean", 0.5), ("sum", None)):
            trainer = make_trainer(ranks, folder / reduction, reduction=reduction, grad_clip=clip, **settings)
            train(trainer)
            made[reduction] = outcome(trainer)
    finally:
        coterie.trainer.mean_average_precision = measure
    return made | {"measured": measured}


def distils(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A student of live teachers with batch norm of their own."""
    groups = CLASS_NAMES[:3], CLASS_NAMES[3:]
    branch = Branch([(Net(1, 3), groups[0]), (Net(2, 1), groups[1])], CLASS_NAMES)
    other = Branch([(Net(3), CLASS_NAMES)], CLASS_NAMES)
    teachers = Teachers([branch, other])
    before = {name: tensor.clone() for name, tensor in teachers.state_dict().items()}
    task = DistillationTask(Net(0), teachers, [0.3, 0.7], asymmetric_loss, SQUARED, len(COLUMNS))
    trainer = make_trainer(ranks, folder / "student", task=task)
    train(trainer)
    modes = [module.training for branch in teachers.branches for module in branch.modules()]
    return outcome(trainer) | {
        "teachers moved": not equal_weights(before, dict(teachers.state_dict())) or any(modes)
    }


SQUARED = DistillConfig(loss="squared-error", w=0.5)


def diverges(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Two trainings on the same batches, one of which is lost."""
    data = make_data(ranks)
    lost = make_trainer(ranks, folder / "lost", data=data, lr=1e30, grad_clip=None, ema=None)
    sound = make_trainer(ranks, folder / "sound", data=data)
    ended = {member.trainer: error for member, error in train_together([Member(lost), Member(sound)])}
    assert isinstance(ended[lost], Diverged)
    assert ended[sound] is None
    return outcome(sound) | {"error": str(ended[lost]).replace(str(folder), "")}


def resumes(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A training with dropout, and the same again: stopped in the second epoch, and taken up."""

    def trainer(name: str) -> Trainer:
        task = ClassificationTask(Net(0, drop=0.5), COLUMNS, asymmetric_loss)
        # 24 images are four batches of five
        return make_trainer(ranks, folder / name, task=task, resume=ResumeConfig(minutes=None, steps=3))

    whole = trainer("whole")
    train(whole)
    stopped = trainer("stopped")
    step = Trainer.step

    def stopping(self: Trainer, batch: Any, number: int, *rest: Any) -> None:
        if (self.state.epoch, number) == (1, 3):
            raise KeyboardInterrupt
        step(self, batch, number, *rest)

    Trainer.step = stopping  # type: ignore[method-assign, assignment]
    try:
        train(stopped)
    except KeyboardInterrupt:
        pass
    finally:
        Trainer.step = step  # type: ignore[method-assign]
    again = trainer("stopped")
    taken_up = again.state.epoch, again.state.step
    train(again)
    net: Any = whole.task.model
    return outcome(whole) | {
        "again": outcome(again),
        "taken up": taken_up,
        "masks": torch.stack(net.dropped),
    }


def meets_trouble(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """An error that this process alone sees."""
    trainer = make_trainer(ranks, folder / "trouble")

    def too_large(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("many lines")

    trainer.task.loss = too_large  # type: ignore[assignment]
    raised = None
    try:
        list(train_together([Member(trainer)]))
    except RunError as error:
        raised = str(error)
    return {"raised": raised}


def keeps_its_threads(ranks: Ranks, _: Path) -> dict[str, Any]:
    """The threads of a process before and after it has a fabric; Lightning gives it all there are."""
    threads, variables = torch.get_num_threads(), dict(os.environ)
    os.environ.pop("OMP_NUM_THREADS", None)
    torch.set_num_threads(3)
    make_fabric(load_config(["device=cpu"]), ranks=ranks)
    after = torch.get_num_threads()
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(variables)
    return {"after": after}


SCENARIOS = (normalises, trains, distils, diverges, resumes, meets_trouble, keeps_its_threads)


def play(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What each scenario has made, in this process."""
    return {scenario.__name__: scenario(ranks, folder / scenario.__name__) for scenario in SCENARIOS}


def be_one(environment: dict[str, str], folder: Path) -> None:
    """One of the processes: what it has made is in a file named by its rank."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    ranks = ranks_in(os.environ)
    with joined(ranks, on_gpu=False):
        torch.save(play(ranks, folder / f"{ranks.rank}"), folder / f"{ranks.rank}.pt")


@dataclass(frozen=True)
class Played:
    """What one process has made of each scenario, and what two have together."""

    alone: dict[str, Any]
    shared: list[dict[str, Any]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    meeting = Meeting(SIZE)
    multiprocessing.set_forkserver_preload(["coterie.sidebyside"])
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=be_one, args=(meeting.environment(rank, rank), together))
        for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    made = play(ALONE, alone)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * SIZE
    return Played(made, [torch.load(together / f"{rank}.pt") for rank in range(SIZE)])


def close(one: Any, other: Any) -> bool:
    """Whether two tensors, or the tensors of two dicts or lists, are the same but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, Tensor):
        return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)
    return one == other or bool(one == pytest.approx(other, rel=1e-5))


@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(played: Played, kind: str) -> None:
    expected = played.alone["normalises"][kind]
    parts = [made["normalises"][kind] for made in played.shared]
    assert [len(part["rows"]) for part in parts] == [3, 2]
    assert torch.allclose(torch.cat([part["rows"] for part in parts]), expected["rows"], atol=2e-5)
    for part in parts:
        assert close(part["sums"], expected["sums"])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_processes_with_parts_of_a_batch_take_the_steps_of_one_with_all_of_it(
    played: Played, reduction: str
) -> None:
    expected = played.alone["trains"][reduction]
    for made in played.shared:
        for part in ("model", "averaged", "best", "numbers"):
            assert close(made["trains"][reduction][part], expected[part])


def test_a_process_keeps_the_threads_that_it_was_given(played: Played) -> None:
    assert [made["keeps_its_threads"]["after"] for made in (played.alone, *played.shared)] == [3, 3, 3]


def test_both_processes_hold_the_same_to_the_bit(played: Played) -> None:
    for one, other in (
        [made["trains"]["mean"] for made in played.shared],
        [made["distils"] for made in played.shared],
        [made["resumes"] for made in played.shared],
    ):
        for part in ("model", "averaged", "best"):
            assert equal_weights(one[part], other[part])
        assert one["numbers"] == other["numbers"]


def test_every_validation_image_is_measured_once_and_in_order(played: Played) -> None:
    dataset = make_dataset(unknown=0.2)
    first, second = (made["trains"]["measured"] for made in played.shared)
    assert second == []
    assert len(first) == 4
    for (logits, targets), (expected, _) in zip(first, played.alone["trains"]["measured"], strict=True):
        assert torch.equal(targets, torch.from_numpy(dataset.targets[dataset.indices("val")]))
        assert torch.allclose(logits, expected, atol=1e-5)


def test_the_first_process_alone_has_files(played: Played) -> None:
    first, second = (made["trains"]["mean"]["files"] for made in played.shared)
    assert first == played.alone["trains"]["mean"]["files"]
    assert second == []


def test_a_student_learns_from_frozen_teachers_in_every_process(played: Played) -> None:
    expected = played.alone["distils"]
    for made in played.shared:
        assert not made["distils"]["teachers moved"]
        assert close(made["distils"]["model"], expected["model"])
        assert close(made["distils"]["numbers"], expected["numbers"])


def test_a_training_that_diverges_is_left_by_all_and_the_other_goes_on(played: Played) -> None:
    for made in played.shared:
        assert close(made["diverges"]["model"], played.alone["diverges"]["model"])
        assert made["diverges"]["error"] == played.shared[0]["diverges"]["error"]


def test_a_training_that_was_stopped_ends_in_the_same_weights(played: Played) -> None:
    for made in played.shared:
        found = made["resumes"]
        assert found["taken up"] == (1, 3)
        for part in ("model", "averaged", "best"):
            assert equal_weights(found["again"][part], found[part])


def test_dropout_is_another_in_each_process(played: Played) -> None:
    first, second = (made["resumes"]["masks"] for made in played.shared)
    assert not torch.equal(first, second)
    assert torch.equal(first, played.alone["resumes"]["masks"])


def test_an_error_that_one_process_sees_ends_what_they_do_together(played: Played) -> None:
    for made in played.shared:
        assert "does not fit into the memory" in made["meets_trouble"]["raised"]
    assert played.alone["meets_trouble"]["raised"] is None  # the others of its group would go on


def test_the_place_of_a_process_is_in_its_environment() -> None:
    assert ranks_in({}) == ALONE
    assert ranks_in({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE
    variables = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert ranks_in(variables) == Ranks(3, 4, 1)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4, so LOCAL_RANK must be set too; use torchrun"):
        ranks_in(variables | {"LOCAL_RANK": ""})
