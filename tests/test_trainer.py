"""The one training loop: what it reads, what it keeps, and that a stop leaves no trace."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from PIL import Image
from torch import Tensor, nn

from coterie.config import DistillConfig, ResumeConfig, TrainConfig, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import ConfigError, RunError
from coterie.lockstep import train
from coterie.losses import ClassificationLoss, binary_cross_entropy
from coterie.states import DIVERGED_FILE, PATTERN, States, read_state
from coterie.tasks import ClassificationTask, DistillationTask
from coterie.teachers import Branch, Teachers
from coterie.trainer import (
    Progressed,
    _Recent,
    check_devices,
    make_fabric,
    make_optimizer,
    make_scheduler,
    prepare,
)
from tests.tiny import (
    CLASS_NAMES,
    RunnableTrainer,
    cpu_fabric,
    equal_weights,
    make_dataset,
    make_trainer,
    tiny_net,
)

STEPS_IN_AN_EPOCH = 3  # 24 training images in batches of 8


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def failing_loss(at_call: int, failure: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Binary cross-entropy, but `failure(loss)` at one of its calls."""
    calls = 0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        value = binary_cross_entropy(logits, targets)
        return failure(value) if calls == at_call else value

    return loss


def raising(error: BaseException) -> Callable[[Tensor], Tensor]:
    def fail(_: Tensor) -> Tensor:
        raise error

    return fail


def kept(folder: Path) -> tuple[int, int]:
    """The epochs and the steps of the next one after which the newest state was kept."""
    content = read_state(max(folder.glob(PATTERN)))
    assert content is not None
    return content["progress"]["epoch"], content["progress"]["within"]["steps"]


def test_a_training_reads_train_and_val_images_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    read: list[int] = []
    load_image = MultiLabelDataset.load_image

    def recorded(self: MultiLabelDataset, index: int) -> Image.Image:
        read.append(index)
        return load_image(self, index)

    monkeypatch.setattr(MultiLabelDataset, "load_image", recorded)
    make_trainer(tmp_path, dataset=dataset).run()
    assert {str(dataset.splits[index]) for index in read} == {"train", "val"}
    assert len(set(read)) == 24 + 12


def test_the_epoch_with_the_best_validation_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[dict[str, Tensor]] = []

    trainer = make_trainer(tmp_path, epochs=3)

    def measured(*_: Any) -> float:
        weights.append(copied(trainer.evaluated.state_dict()))
        return (50.0, 70.0, 60.0)[trainer.state.epoch]

    monkeypatch.setattr("coterie.trainer.mean_average_precision", measured)
    state = trainer.run()
    assert (state.best_epoch, state.best_map) == (2, 70.0)
    assert equal_weights(state.best_weights, weights[1])
    assert not equal_weights(state.best_weights, weights[2])


def test_a_training_stops_when_its_patience_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = (50.0, 70.0, 60.0, 71.0, 65.0, 66.0, 80.0)

    def trained(folder: Path, epochs: int, patience: int | None) -> Progressed:
        trainer = make_trainer(folder, epochs=epochs, patience=patience)
        monkeypatch.setattr("coterie.trainer.mean_average_precision", lambda *_: maps[trainer.state.epoch])
        return trainer.run()

    state = trained(tmp_path / "patient", 7, 2)
    assert (state.best_epoch, state.best_map, state.epoch) == (4, 71.0, 6)
    rates = [line["lr"] for line in state.history]
    whole = trained(tmp_path / "endless", 7, None)
    assert (whole.best_epoch, whole.epoch) == (7, 7)
    assert rates == [line["lr"] for line in whole.history][:6]
    assert trained(tmp_path / "hasty", 7, 1).epoch == 3
    # one that is over does not begin again
    assert trained(tmp_path / "patient", 7, 2).epoch == 6


def test_without_positives_in_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    dataset = make_dataset()
    targets = dataset.targets.copy()
    targets[dataset.indices("val")] = 0
    trainer = make_trainer(tmp_path, dataset=replace(dataset, targets=targets))
    state = trainer.run()
    assert (state.best_epoch, state.best_map) == (2, None)
    assert equal_weights(state.best_weights, copied(trainer.evaluated.state_dict()))


def test_validation_is_measured_on_the_columns_of_the_task(tmp_path: Path) -> None:
    dataset = make_dataset()
    dataset.targets[dataset.indices("val"), 2] = 0
    task = ClassificationTask(tiny_net(num_classes=1), [2], binary_cross_entropy)
    assert make_trainer(tmp_path, dataset=dataset, task=task).run().best_map is None


def test_a_loss_summed_over_the_batch_has_the_gradient_of_the_mean_times_its_images(tmp_path: Path) -> None:
    gradients, losses = {}, {}
    for reduction in ("mean", "sum"):
        trainer = make_trainer(tmp_path / reduction, reduction=reduction, grad_clip=None)
        batch = next(iter(trainer.data.training.epoch(0)))
        trainer.start_epoch()
        trainer.step(
            prepare(batch, trainer.data.preprocessing, trainer.fabric, trainer.memory_format), number=0
        )
        losses[reduction] = trainer._epoch.means()["loss"]
        gradients[reduction] = [parameter.grad for parameter in trainer.task.model.parameters()]
    for mean, summed in zip(gradients["mean"], gradients["sum"], strict=True):
        assert mean is not None
        torch.testing.assert_close(summed, 8 * mean)
    assert losses["mean"] == losses["sum"]


def test_the_averaged_weights_start_as_a_copy_and_follow(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema=0.9)
    start = copied(trainer.task.model.state_dict())
    assert trainer.averaged is not None
    assert equal_weights(trainer.averaged.module.state_dict(), start)
    trainer.run()
    averaged = trainer.evaluated.state_dict()
    assert not equal_weights(averaged, start)
    assert not equal_weights(averaged, trainer.task.model.state_dict())
    assert not any("_orig_mod" in name for name in averaged)


def test_without_averaging_the_model_itself_is_measured(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema=None, epochs=1)
    state = trainer.run()
    assert trainer.evaluated is trainer.task.model
    assert equal_weights(state.best_weights, trainer.task.model.state_dict())


def test_weight_decay_is_not_on_biases_and_norms() -> None:
    model = tiny_net()
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {
        "convolution.weight": 0.3,
        "convolution.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "head.weight": 0.3,
        "head.bias": 0.0,
    }


def test_the_settings_choose_the_optimizer() -> None:
    assert type(make_optimizer(tiny_net(), TrainConfig(optimizer="adam"))) is torch.optim.Adam
    assert type(make_optimizer(tiny_net(), TrainConfig(optimizer="adamw"))) is torch.optim.AdamW


# 10 steps and a warm-up of 0.1 put the peak of torch's OneCycleLR on step 0, where it divides by zero.
@pytest.mark.parametrize("steps", [3, 10, 25, 400])
def test_the_learning_rate_rises_to_its_peak_and_falls(steps: int) -> None:
    optimizer = make_optimizer(tiny_net(), TrainConfig())
    scheduler = make_scheduler(optimizer, TrainConfig(lr=0.02, warmup=0.1), steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.02, rel=0.02)
    assert rates[0] == pytest.approx(0.02 / 25)
    assert rates[-1] < 1e-6
    assert rates.index(max(rates)) == pytest.approx(max(1, 0.1 * steps - 1), abs=1)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_of_a_step_or_two_has_a_learning_rate_too(steps: int) -> None:
    optimizer = make_optimizer(tiny_net(), TrainConfig())
    scheduler = make_scheduler(optimizer, TrainConfig(lr=0.02), steps)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()


def test_gradients_are_clipped(tmp_path: Path) -> None:
    def norm_of_last_gradient(grad_clip: float | None) -> float:
        trainer = make_trainer(tmp_path / str(grad_clip), epochs=1, grad_clip=grad_clip)
        trainer.run()
        gradients = [p.grad for p in trainer.task.model.parameters() if p.grad is not None]
        return float(torch.stack([gradient.norm() for gradient in gradients]).norm())

    assert norm_of_last_gradient(0.001) == pytest.approx(0.001, rel=1e-3)
    assert norm_of_last_gradient(None) > 0.01


class Breaking(torch.autograd.Function):
    """A value whose gradient is not a number."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def diverging(folder: Path, at_step: int, **settings: Any) -> str:
    """What a training of three epochs says whose loss is not a number at a step, counted from 1."""
    loss = failing_loss(at_step, lambda value: value * float("nan"))
    with pytest.raises(RunError) as caught:
        make_trainer(folder, epochs=3, loss=loss, **settings).run()
    return str(caught.value)


def test_a_loss_that_is_not_a_number_is_told_with_its_step_its_images_and_the_losses_before(
    tmp_path: Path,
) -> None:
    losses: list[float] = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        value = binary_cross_entropy(logits, targets)
        losses.append(value.item())
        return value * float("nan") if len(losses) == STEPS_IN_AN_EPOCH + 2 else value

    dataset = make_dataset()
    trainer = make_trainer(tmp_path, epochs=3, loss=loss, dataset=dataset)
    batch = list(make_trainer(tmp_path / "other", dataset=dataset).data.training.epoch(1))[1]
    images = [dataset.image_ids[index] for index in batch.indices]
    with pytest.raises(RunError) as caught:
        trainer.run()
    said = f"'{images[0]}', '{images[1]}', '{images[2]}' and 5 more ({tmp_path / DIVERGED_FILE} has all)"
    before = ", ".join(f"{loss:.4g}" for loss in losses[:-1])
    assert str(caught.value) == (
        f"the loss of {tmp_path.name} is nan in epoch 2 of 3, at step 2 of 3, with the images {said}; "
        f"the last finite losses are {before}; epoch 1 is kept in {tmp_path}. Lower the learning rate "
        "(lr=0.01) or lower grad_clip (now 1), and start again with --update"
    )
    written = json.loads((tmp_path / DIVERGED_FILE).read_text())
    assert (written["epoch"], written["step"], written["images"]) == (2, 2, images)
    assert written["last finite losses"] == pytest.approx(losses[:-1])
    assert kept(tmp_path) == (1, 0)


def test_what_to_change_depends_on_what_is_set(tmp_path: Path) -> None:
    said = diverging(tmp_path, 1, grad_clip=None, precision="bf16", reduction="sum")
    assert "at step 1 of 3" in said
    assert "finite losses" not in said
    assert (
        "no step before is kept. Lower the learning rate (lr=0.01), use precision=fp32, set grad_clip=1 or "
        "set reduction=mean, and start again with --update" in said
    )


def test_the_state_before_the_divergence_is_kept_and_the_same_is_said_again(tmp_path: Path) -> None:
    said = diverging(tmp_path, 6, resume=ResumeConfig(steps=1))
    assert "at step 3 of 3" in said
    assert f"epoch 2, step 2 is kept in {tmp_path}" in said
    assert kept(tmp_path) == (1, 2)
    assert diverging(tmp_path, 1, resume=ResumeConfig(steps=1)) == said


@pytest.mark.parametrize("every", [1, 2, 100])
def test_losses_are_read_every_so_many_steps_and_the_step_is_still_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    reads: list[int] = []

    class Seldom(_Recent):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            self._values = torch.zeros(every, 3)

        def read(self) -> list[list[float]]:
            reads.append(self._count)
            return super().read()

    monkeypatch.setattr("coterie.trainer._Recent", Seldom)
    assert "is nan in epoch 2 of 3, at step 1 of 3" in diverging(tmp_path, STEPS_IN_AN_EPOCH + 1)
    assert kept(tmp_path) == (1, 0)
    ends = {1: [1, 1, 1, 0, 1], 2: [2, 1, 2], 100: [3, 3]}
    assert reads == ends[every]


@pytest.mark.parametrize(
    ("grad_clip", "what"), [(1.0, "gradient of .* is nan"), (None, "weights of .* are not")]
)
def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(
    tmp_path: Path, grad_clip: float | None, what: str
) -> None:
    # the loss is finite, its gradient is not
    loss = failing_loss(2 * STEPS_IN_AN_EPOCH, lambda value: Breaking.apply(value))
    with pytest.raises(RunError, match=f"the {what}.* in epoch 2 of 3, at step 3 of 3"):
        make_trainer(tmp_path, epochs=3, loss=loss, grad_clip=grad_clip).run()
    assert kept(tmp_path) == (1, 0)


def test_weights_that_break_are_not_kept_within_an_epoch(tmp_path: Path) -> None:
    loss = failing_loss(STEPS_IN_AN_EPOCH + 2, lambda value: Breaking.apply(value))
    with pytest.raises(RunError, match=r"weights of .* are not finite in epoch 2 of 3, at step 2 of 3"):
        make_trainer(tmp_path, epochs=3, loss=loss, grad_clip=None, resume=ResumeConfig(steps=1)).run()
    assert kept(tmp_path) == (1, 1)


def test_logits_that_are_not_finite_on_validation_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer, "validate", lambda batch: torch.full((len(batch), 4), float("inf")))
    with pytest.raises(RunError, match=r"validation of .* gives logits that are not finite in epoch 1 of 2"):
        trainer.run()


@pytest.mark.parametrize(
    "failure",
    [
        raising(torch.OutOfMemoryError("CUDA out of memory")),
        lambda _: torch.empty(2**60),  # more than any machine has
        lambda _: torch.from_numpy(np.empty(2**60, np.uint8)),
    ],
    ids=["gpu", "cpu", "numpy"],
)
def test_too_small_a_memory_is_said_with_what_to_change(
    tmp_path: Path, failure: Callable[[Tensor], Tensor]
) -> None:
    loss = failing_loss(1, failure)
    with pytest.raises(RunError, match=r"train.batch_size \(now 8\)"):
        make_trainer(tmp_path, loss=loss).run()


def test_the_log_has_a_line_an_epoch_also_after_a_stop(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(
            tmp_path, epochs=3, loss=failing_loss(2 * STEPS_IN_AN_EPOCH + 2, raising(KeyboardInterrupt()))
        ).run()
    make_trainer(tmp_path, epochs=3).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert set(lines[0]) == {"epoch", "loss", "lr", "images_per_second", "seconds", "val_mAP"}


def test_the_logged_rate_is_that_of_the_last_step_of_the_epoch(tmp_path: Path) -> None:
    rates: list[float] = []

    class Recorded(RunnableTrainer):
        def step(self, *arguments: Any) -> None:
            rates.append(self.optimizer.param_groups[0]["lr"])
            super().step(*arguments)

    trainer = make_trainer(tmp_path, epochs=3)
    trainer.__class__ = Recorded
    history = trainer.run().history
    assert [line["lr"] for line in history] == rates[STEPS_IN_AN_EPOCH - 1 :: STEPS_IN_AN_EPOCH]
    assert len(set(rates)) == 3 * STEPS_IN_AN_EPOCH


def test_fabric_says_nothing_between_the_lines_of_a_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cpu_fabric("bf16")
    assert caplog.records == []


def test_one_seed_gives_one_result_and_another_seed_another(tmp_path: Path) -> None:
    one, again, other = (
        make_trainer(tmp_path / name, seed=seed).run().best_weights
        for name, seed in (("one", 3), ("again", 3), ("other", 4))
    )
    assert equal_weights(one, again)
    assert not equal_weights(one, other)


class Drawing(nn.Module):
    """A net that draws from every global generator in each step."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = tiny_net(seed)

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.rand(()) + random.random() + float(np.random.rand()) if self.training else 0  # noqa: NPY002
        logits: Tensor = self.net(images) * (1 + noise)
        return logits


def drawing(folder: Path, loss: ClassificationLoss = binary_cross_entropy, **named: Any) -> RunnableTrainer:
    task = ClassificationTask(Drawing(), list(range(4)), loss)
    return make_trainer(folder, task=task, epochs=3, **named)


def disturb_generators() -> None:
    """As in another process."""
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002


@pytest.mark.parametrize("stopped_at_step", range(1, 3 * STEPS_IN_AN_EPOCH + 1))
@pytest.mark.parametrize("every", [None, 1, 2])
def test_a_training_stopped_at_any_step_ends_as_one_never_stopped(
    tmp_path: Path, stopped_at_step: int, every: int | None
) -> None:
    undisturbed = drawing(tmp_path / "undisturbed")
    expected = undisturbed.run()
    loss = failing_loss(stopped_at_step, raising(KeyboardInterrupt()))
    resume = ResumeConfig(steps=every)
    with pytest.raises(KeyboardInterrupt):
        drawing(tmp_path / "stopped", loss, resume=resume).run()
    disturb_generators()
    trainer = drawing(tmp_path / "stopped", resume=resume)
    epoch, step = divmod(stopped_at_step - 1, STEPS_IN_AN_EPOCH)
    assert (trainer.state.epoch, trainer.state.step) == (epoch, step - step % every if every else 0)
    state = trainer.run()
    assert equal_weights(trainer.task.model.state_dict(), undisturbed.task.model.state_dict())
    assert equal_weights(trainer.evaluated.state_dict(), undisturbed.evaluated.state_dict())
    assert equal_weights(state.best_weights, expected.best_weights)
    assert (state.best_epoch, state.best_map) == (expected.best_epoch, expected.best_map)
    timeless = [
        [{name: line[name] for name in ("epoch", "loss", "lr", "val_mAP")} for line in history]
        for history in (state.history, expected.history)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("stopped_at_step", [2, 3, 5, 8])
def test_a_scaler_of_gradients_goes_on_as_it_was_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at_step: int
) -> None:
    def scaling(_: str) -> Fabric:
        # too large at first, so that steps are skipped, and soon raised again
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=2)
        return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])

    monkeypatch.setattr("tests.tiny.cpu_fabric", scaling)
    undisturbed = drawing(tmp_path / "undisturbed")
    undisturbed.run()
    loss = failing_loss(stopped_at_step, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        drawing(tmp_path / "stopped", loss, resume=ResumeConfig(steps=1)).run()
    disturb_generators()
    trainer = drawing(tmp_path / "stopped")
    trainer.run()
    scales = [one.fabric.strategy.precision.state_dict() for one in (trainer, undisturbed)]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] != 2.0**18
    assert equal_weights(trainer.task.model.state_dict(), undisturbed.task.model.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stopped_at_step", [2, 6])
def test_on_a_gpu_a_training_that_was_stopped_ends_within_the_documented_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stopped_at_step: int
) -> None:
    monkeypatch.setattr(
        "tests.tiny.cpu_fabric",
        lambda chosen: make_fabric(load_config(["device=cuda", f"precision={chosen}"])),
    )
    undisturbed = drawing(tmp_path / "undisturbed", precision=precision)
    undisturbed.run()
    loss = failing_loss(stopped_at_step, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        drawing(tmp_path / "stopped", loss, precision=precision, resume=ResumeConfig(steps=1)).run()
    disturb_generators()
    trainer = drawing(tmp_path / "stopped", precision=precision)
    trainer.run()
    torch.testing.assert_close(
        trainer.evaluated.state_dict(), undisturbed.evaluated.state_dict(), rtol=1e-3, atol=1e-4
    )


class Watched(ClassificationTask):
    """Remembers its progress in each step; stopped at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(tiny_net(), list(range(4)), binary_cross_entropy)
        self.seen: list[float] = []
        self.stop_at = stop_at

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        self.seen.append(self.progress)
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        return super().forward(*inputs)


def test_a_task_is_told_how_far_its_training_is_also_after_a_stop(tmp_path: Path) -> None:
    task = Watched()
    make_trainer(tmp_path / "undisturbed", task=task, epochs=2).run()
    assert task.seen == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "stopped", task=Watched(5), epochs=2, resume=ResumeConfig(steps=1)).run()
    rest = Watched()
    make_trainer(tmp_path / "stopped", task=rest, epochs=2).run()
    assert rest.seen == task.seen[4:]


def test_a_training_of_one_step_is_at_its_start(tmp_path: Path) -> None:
    task = Watched()
    make_trainer(tmp_path, task=task, epochs=1, batch_size=24).run()
    assert task.seen == [0]


def test_images_are_mixed_as_they_were_also_after_a_stop(tmp_path: Path) -> None:
    def mixing(
        folder: str, loss: ClassificationLoss = binary_cross_entropy, mixup: float = 0.4
    ) -> RunnableTrainer:
        task = ClassificationTask(tiny_net(), list(range(4)), loss, mixup)
        return make_trainer(tmp_path / folder, task=task, epochs=2, resume=ResumeConfig(steps=1))

    undisturbed, plain = mixing("undisturbed"), mixing("plain", mixup=0)
    undisturbed.run()
    plain.run()
    assert not equal_weights(undisturbed.task.model.state_dict(), plain.task.model.state_dict())
    # two losses in each step: stopped in the third
    with pytest.raises(KeyboardInterrupt):
        mixing("stopped", failing_loss(5, raising(KeyboardInterrupt()))).run()
    disturb_generators()
    trainer = mixing("stopped")
    assert trainer.state.step == 2
    trainer.run()
    assert equal_weights(trainer.task.model.state_dict(), undisturbed.task.model.state_dict())


def test_a_generator_of_targets_goes_on_as_it_was_after_a_stop(tmp_path: Path) -> None:
    def taught(
        folder: str, loss: ClassificationLoss = binary_cross_entropy, rate: float = 0.1
    ) -> RunnableTrainer:
        branch = Branch([(tiny_net(5), CLASS_NAMES)], CLASS_NAMES)
        settings = DistillConfig(generator=rate)
        task = DistillationTask(tiny_net(), Teachers([branch]), [1.0], loss, settings, len(CLASS_NAMES))
        return make_trainer(tmp_path / folder, task=task, epochs=2, resume=ResumeConfig(steps=1))

    undisturbed, plain = taught("undisturbed"), taught("plain", rate=0)
    undisturbed.run()
    plain.run()
    assert not equal_weights(undisturbed.task.model.state_dict(), plain.task.model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        taught("stopped", failing_loss(3, raising(KeyboardInterrupt()))).run()
    trainer = taught("stopped")
    assert trainer.state.step == 2
    trainer.run()
    assert equal_weights(trainer.task.model.state_dict(), undisturbed.task.model.state_dict())
    learned, other = (one.task.learned["generator"] for one in (trainer, undisturbed))
    assert all(torch.equal(*pair) for pair in zip(learned.parameters(), other.parameters(), strict=True))


def test_what_was_done_of_an_epoch_is_not_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = failing_loss(3, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, epochs=1, loss=loss, resume=ResumeConfig(steps=1)).run()
    dataset = make_dataset()
    trainer = make_trainer(tmp_path, epochs=1, dataset=dataset)
    third = list(trainer.data.training.sampler.batches(0))[2]
    read: list[int] = []
    load_image = MultiLabelDataset.load_image

    def recorded(self: MultiLabelDataset, index: int) -> Image.Image:
        read.append(index)
        return load_image(self, index)

    monkeypatch.setattr(MultiLabelDataset, "load_image", recorded)
    trainer.run()
    assert read == [*third, *dataset.indices("val")]


def test_the_bar_of_a_training_that_goes_on_starts_where_it_was(tmp_path: Path) -> None:
    advanced: list[int] = []

    class Watcher:
        def advance(self, images: int) -> None:
            advanced.append(images)

        def epoch_done(self, _: dict[str, Any]) -> None: ...

    loss = failing_loss(3, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, epochs=1, loss=loss, resume=ResumeConfig(steps=1)).run()
    train(make_trainer(tmp_path, epochs=1), Watcher())
    assert advanced == [16, 8]


def test_by_default_a_short_training_keeps_its_state_after_epochs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_at(tmp_path, monkeypatch, ResumeConfig()) == [3, 6]


def test_a_state_is_kept_when_so_much_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal now
        now += 60
        return binary_cross_entropy(logits, targets)

    monkeypatch.setattr("coterie.trainer.time", SimpleNamespace(monotonic=lambda: now))
    assert kept_at(tmp_path / "2", monkeypatch, ResumeConfig(minutes=2), loss=loss) == [2, 3, 5, 6]
    assert kept_at(tmp_path / "none", monkeypatch, ResumeConfig(minutes=None), loss=loss) == [3, 6]


def kept_at(folder: Path, monkeypatch: pytest.MonkeyPatch, resume: ResumeConfig, **named: Any) -> list[int]:
    """The steps after which a training of two epochs keeps its state."""
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(States, "keep", lambda _, step, __: steps.append(step))
        make_trainer(folder, resume=resume, **named).run()
    return steps


def test_a_finished_training_is_taken_up_without_a_step(tmp_path: Path) -> None:
    expected = make_trainer(tmp_path).run()
    state = make_trainer(tmp_path, loss=failing_loss(1, raising(AssertionError("a step")))).run()
    assert equal_weights(state.best_weights, expected.best_weights)


def test_a_damaged_state_is_told_and_the_one_before_leads_to_the_same_weights(tmp_path: Path) -> None:
    expected = make_trainer(tmp_path, epochs=3).run()
    newest = max(tmp_path.glob(PATTERN))
    newest.write_bytes(newest.read_bytes()[:-500])
    notes: list[str] = []
    trainer = make_trainer(tmp_path, epochs=3, notes=notes)
    assert notes == [
        f"{tmp_path.name}: state-00000009.pt damaged and left out; it goes on from state-00000006.pt"
    ]
    assert trainer.state.epoch == 2
    assert equal_weights(trainer.run().best_weights, expected.best_weights)


def test_a_state_of_another_key_is_ignored(tmp_path: Path) -> None:
    make_trainer(tmp_path, key="one").run()
    notes: list[str] = []
    trainer = make_trainer(tmp_path, key="two", notes=notes)
    assert trainer.state.epoch == 0
    assert equal_weights(trainer.task.model.state_dict(), tiny_net(0).state_dict())
    assert notes == []


def test_a_state_that_fits_in_part_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).run()
    other = ClassificationTask(tiny_net(num_classes=3), [0, 1, 2], binary_cross_entropy)
    with pytest.raises(
        RunError, match=r"the state in .* does not fit .*: .*; delete its state-\*\.pt to train"
    ):
        make_trainer(tmp_path, task=other)
    with pytest.raises(RunError, match=r"does not fit .*: it has model, averaged, optimizer, scheduler"):
        make_trainer(tmp_path, ema=None)


def test_in_bfloat16_the_loss_and_the_weights_stay_float32(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        value = binary_cross_entropy(logits, targets)
        seen.extend((logits.dtype, value.dtype))
        return value

    state = make_trainer(tmp_path, loss=loss, precision="bf16", epochs=1).run()
    assert set(seen[::2]) == {torch.bfloat16}
    assert set(seen[1::2]) == {torch.float32}
    assert state.best_weights["head.weight"].dtype == torch.float32


def test_a_device_that_is_not_there_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device=cpu"):
            make_fabric(load_config(["device=cuda"]))
    with pytest.raises(ConfigError, match="use bf16 or fp32"):
        make_fabric(load_config(["device=cpu", "precision=fp16"]))


def test_processes_that_do_a_training_together_need_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(load_config(["processes=2"]))
    check_devices(load_config(["processes=3", "device=cpu"]))
    with pytest.raises(ConfigError, match="processes=3 need as many CUDA devices, and there are 2 here"):
        check_devices(load_config(["processes=3"]))
