"""The one training loop: what it reads, what it keeps, and that a stop leaves no trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from coterie.config import TrainConfig, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import ConfigError, RunError
from coterie.losses import binary_cross_entropy
from coterie.tasks import ClassificationTask
from coterie.trainer import STATE_FILE, make_fabric, make_optimizer, make_scheduler, prepare
from tests.tiny import RunnableTrainer, cpu_fabric, equal_weights, make_dataset, make_trainer, tiny_net

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


def kept_epoch(folder: Path) -> int:
    epoch: int = torch.load(folder / STATE_FILE, weights_only=True)["state"]["epoch"]
    return epoch


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


def test_a_loss_that_is_not_a_number_ends_the_training_and_keeps_the_epoch_before(tmp_path: Path) -> None:
    loss = failing_loss(STEPS_IN_AN_EPOCH + 1, lambda value: value * float("nan"))
    with pytest.raises(RunError, match=r"is nan in epoch 2 of 3.*Lower the learning rate \(lr=0.01\)"):
        make_trainer(tmp_path, epochs=3, loss=loss).run()
    assert kept_epoch(tmp_path) == 1


def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(tmp_path: Path) -> None:
    # the loss is finite, its gradient is not: only validation shows it
    class Breaking(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:
            return gradient * float("nan")

    loss = failing_loss(2 * STEPS_IN_AN_EPOCH, lambda value: Breaking.apply(value))
    with pytest.raises(RunError, match="logits that are not finite in epoch 2 of 3"):
        make_trainer(tmp_path, epochs=3, loss=loss).run()
    assert kept_epoch(tmp_path) == 1


def test_too_small_a_memory_is_said_with_what_to_change(tmp_path: Path) -> None:
    loss = failing_loss(1, raising(torch.OutOfMemoryError("CUDA out of memory")))
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


@pytest.mark.parametrize(
    "stopped_at_step",
    [1, STEPS_IN_AN_EPOCH + 1, 2 * STEPS_IN_AN_EPOCH, 3 * STEPS_IN_AN_EPOCH - 1],
    ids=["before the first step", "between epochs", "in an epoch", "in the last epoch"],
)
def test_a_stopped_training_ends_as_one_never_stopped(tmp_path: Path, stopped_at_step: int) -> None:
    undisturbed = make_trainer(tmp_path / "undisturbed", epochs=3)
    expected = undisturbed.run()
    loss = failing_loss(stopped_at_step, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "stopped", epochs=3, loss=loss).run()
    torch.manual_seed(99)  # another process has another state of the generator
    trainer = make_trainer(tmp_path / "stopped", epochs=3)
    assert trainer.state.epoch == (stopped_at_step - 1) // STEPS_IN_AN_EPOCH
    state = trainer.run()
    assert equal_weights(trainer.task.model.state_dict(), undisturbed.task.model.state_dict())
    assert equal_weights(trainer.evaluated.state_dict(), undisturbed.evaluated.state_dict())
    assert equal_weights(state.best_weights, expected.best_weights)
    assert (state.best_epoch, state.best_map) == (expected.best_epoch, expected.best_map)


def test_a_finished_training_is_taken_up_without_a_step(tmp_path: Path) -> None:
    expected = make_trainer(tmp_path).run()
    state = make_trainer(tmp_path, loss=failing_loss(1, raising(AssertionError("a step")))).run()
    assert equal_weights(state.best_weights, expected.best_weights)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "another object"])
def test_a_state_that_cannot_be_read_is_ignored(tmp_path: Path, damage: str) -> None:
    make_trainer(tmp_path, epochs=1).run()
    path = tmp_path / STATE_FILE
    if damage == "another object":
        torch.save([1, 2, 3], path)
    else:
        new = {"truncated": path.read_bytes()[:-500], "text": b"not a state", "empty": b""}
        path.write_bytes(new[damage])
    assert make_trainer(tmp_path, epochs=1).state.epoch == 0


def test_a_state_of_another_key_is_ignored(tmp_path: Path) -> None:
    make_trainer(tmp_path, key="one").run()
    trainer = make_trainer(tmp_path, key="two")
    assert trainer.state.epoch == 0
    assert equal_weights(trainer.task.model.state_dict(), tiny_net(0).state_dict())


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
