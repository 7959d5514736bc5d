"""One training, a step at a time: what learns, what is kept after every epoch, and what is logged.

Baseline, teachers and student all are trainings of this kind; `lockstep.py` drives them.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.optimizer import Optimizer
from torch.utils.tensorboard import SummaryWriter

from coterie.config import Config, TrainConfig
from coterie.data.loading import Batch, Batches
from coterie.data.transforms import Preprocessing
from coterie.errors import ConfigError, RunError
from coterie.files import atomic_write
from coterie.metrics import average_precision
from coterie.models.cut import Cut
from coterie.seeding import derive_seed
from coterie.tasks import Task

# Fabric says which precision it uses and the like, between the lines of a run.
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)

STATE_FILE = "last.pt"
STATE_SCHEMA = 1
LOG_FILE = "log.jsonl"
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class EpochWatcher(Protocol):
    """Whoever is told how far a training has come."""

    def advance(self, images: int) -> None: ...

    def epoch_done(self, line: dict[str, Any]) -> None: ...


class Reporter(Protocol):
    """Whoever is told what is going on."""

    def note(self, text: str) -> None: ...

    def watch(
        self, name: str, epochs: int, images: int, done: int = 0
    ) -> AbstractContextManager[EpochWatcher]:
        """The watcher of something that takes `epochs` of `images` each, `done` of which lie behind."""


@dataclass(frozen=True)
class Data:
    """Batches to train on, batches to choose the epoch by, and what turns their pixels into images."""

    training: Batches
    validation: Batches
    preprocessing: Preprocessing


@dataclass
class Progressed:
    """How far a training has come; saved after every epoch, with the weights it has."""

    epoch: int
    best_epoch: int
    best_map: float | None
    best_weights: dict[str, Tensor]
    history: list[dict[str, Any]]


def make_fabric(config: Config, index: int = 0) -> Fabric:
    """One device in the precision of the config; ConfigError where the device is not there.

    `index` counts on over the GPUs: trainings side by side each take one in turn.
    """
    accelerator = "auto" if config.device == "auto" else config.device
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device here; use device=auto or device=cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps, but torch finds no MPS device here; use device=auto or device=cpu")
    on_cpu = accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if config.precision == "fp16" and on_cpu:
        raise ConfigError("precision=fp16 needs a GPU; use bf16 or fp32 on the CPU")
    gpus = 0 if on_cpu else torch.cuda.device_count()
    devices = [index % gpus] if gpus > 1 else 1
    return Fabric(accelerator=accelerator, devices=devices, precision=PRECISIONS[config.precision])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Prepared:
    """A batch on the device, as a task takes it: images or features, targets, whether they are features, and
    the logits of teachers where they are known.
    """

    inputs: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.inputs[1])

    @property
    def are_features(self) -> bool:
        return bool(self.inputs[2])


class _Epoch:
    """What an epoch sums up."""

    def __init__(self, watcher: EpochWatcher | None) -> None:
        self.watcher = watcher
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.images = 0
        self.seconds = 0.0
        self.rate = 0.0

    def add(self, outputs: dict[str, Tensor], images: int, seconds: float) -> None:
        for name, value in outputs.items():
            if value.ndim == 0:
                self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.steps += 1
        self.images += images
        self.seconds += seconds
        if self.watcher is not None:
            self.watcher.advance(images)

    def means(self) -> dict[str, float]:
        """The mean of every part of the loss, the rate of the last step, and the speed."""
        losses = {name: float(total) / self.steps for name, total in self.sums.items()}
        speed = self.images / self.seconds
        return losses | {"lr": self.rate, "images_per_second": speed, "seconds": self.seconds}


class Trainer:
    """One training, a step at a time; the best epoch is chosen on validation.

    After each epoch the whole state goes to `folder/last.pt`; a state with the same `key` is taken up
    again, so that the result does not depend on how often it was stopped.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        settings: TrainConfig,
        fabric: Fabric,
        folder: Path,
        *,
        key: str,
        seed: int,
        channels_last: bool = True,
    ) -> None:
        self.task = task
        self.data = data
        self.settings = settings
        self.fabric = fabric
        self.folder = folder
        self.key = key
        self.seed = seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        task.to(memory_format=self.memory_format)
        # starts as a copy of the model, and follows it closely at first: a short training must not keep
        # random weights
        self.averaged = (
            ModelEmaV3(task.model, settings.ema, use_warmup=True, warmup_power=0.75)
            if settings.ema is not None
            else None
        )
        if settings.frozen is not None:
            Cut(task.model, settings.frozen).freeze()
        # a scaler of gradients (fp16) and their clipping do not go together with a fused step
        fused = getattr(fabric.strategy.precision, "scaler", None) is None
        self.wrapped, self.optimizer = fabric.setup(task, make_optimizer(task.model, settings, fused))
        if self.averaged is not None:
            self.averaged.to(fabric.device)
        if settings.frozen is not None:  # the models are where they stay now
            task.cut = Cut(task.model, settings.frozen, learns=True)
        self._evaluated_cut = None if settings.frozen is None else Cut(self.evaluated, settings.frozen)
        self.scheduler = make_scheduler(self.optimizer, settings, len(data.training) * settings.epochs)
        self.state = self._take_up()

    @property
    def evaluated(self) -> nn.Module:
        """The model that is measured and kept: the averaged one, where there is one."""
        return self.task.model if self.averaged is None else self.averaged.module

    def start_epoch(self, watcher: EpochWatcher | None = None) -> None:
        """Begin the next epoch; `watcher` is told of every step."""
        self._epoch = _Epoch(watcher)
        self.task.train()
        if self.task.cut is not None:
            self.task.cut.freeze()

    def step(self, batch: Prepared, number: int, loading: float = 0.0) -> None:
        """One step of the optimiser, the `number`th of the epoch, on a batch that took `loading` seconds to
        come. RunError where the device's memory is too small.
        """
        start = time.monotonic()
        epoch = self.state.epoch
        # dropout and the like: from the step, not from what ran before it
        torch.manual_seed(derive_seed(self.seed, "training", epoch, number))
        self._epoch.rate = self.optimizer.param_groups[0]["lr"]
        with self._fitting():
            outputs = optimize(self.wrapped, self.optimizer, self.fabric, batch.inputs, self.settings)
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update(self.task.model, epoch * len(self.data.training) + number + 1)
        self._epoch.add(outputs, len(batch), time.monotonic() - start + loading)

    @torch.no_grad()
    def validate(self, batch: Prepared) -> Tensor:
        """The logits float32 [B, C] of a validation batch, in full precision."""
        images = batch.inputs[0]
        with self._fitting():
            if self._evaluated_cut is None:
                logits: Tensor = self.evaluated(images)
            else:
                cut = self._evaluated_cut
                logits = cut.upper(images if batch.are_features else cut.lower(images))
        return logits.float().cpu()

    def finish_epoch(self, logits: Tensor, targets: Tensor, writer: SummaryWriter) -> dict[str, Any]:
        """Measure the epoch by the validation's logits [N, C] and targets, and keep the state: the epoch's
        line of the log.

        Raises RunError when the loss or the logits are no longer finite; the epochs before are kept then.
        """
        trained = self._epoch.means()
        if not math.isfinite(trained["loss"]):
            raise self._diverged(f"loss of {self.folder.name} is {trained['loss']}")
        if not logits.isfinite().all():
            raise self._diverged(f"validation of {self.folder.name} gives logits that are not finite")
        map_ = mean_average_precision(logits, targets[:, self.task.columns])
        line = {"epoch": self.state.epoch + 1, **trained, "val_mAP": map_}
        self._take_if_best(line)
        self.state.history.append(line)
        self.state.epoch += 1
        self._log(writer)
        self._keep()
        return line

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise RunError(
                f"{self.folder.name} does not fit into the memory of {self.fabric.device}; set a smaller "
                f"train.batch_size (now {self.settings.batch_size}), model.image_size or together"
            ) from None

    def _diverged(self, what: str) -> RunError:
        return RunError(
            f"the {what} in epoch {self.state.epoch + 1} of {self.settings.epochs}; the epochs before are "
            f"kept in {self.folder}. Lower the learning rate (lr={self.settings.lr}), or use precision=fp32"
        )

    def _take_if_best(self, line: dict[str, Any]) -> None:
        state, map_ = self.state, line["val_mAP"]
        # without a positive in validation there is nothing to choose by: the last epoch then
        if map_ is None or state.best_map is None or map_ > state.best_map:
            state.best_epoch, state.best_map = line["epoch"], map_
            weights = self.evaluated.state_dict()
            state.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self.task.model,
            "averaged": self.averaged,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.fabric.strategy.precision,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _keep(self) -> None:
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        buffer = io.BytesIO()
        torch.save(
            {"schema_version": STATE_SCHEMA, "key": self.key, "parts": parts, "state": vars(self.state)},
            buffer,
        )
        atomic_write(self.folder / STATE_FILE, buffer.getvalue())

    def _take_up(self) -> Progressed:
        """The state kept in the folder; a fresh one where there is none for this key."""
        fresh = Progressed(epoch=0, best_epoch=0, best_map=None, best_weights={}, history=[])
        path = self.folder / STATE_FILE
        if not path.exists():
            return fresh
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # on bytes that are no state, torch raises nearly anything
            return fresh
        if not isinstance(content, dict) or content.get("schema_version") != STATE_SCHEMA:
            return fresh
        if content.get("key") != self.key:
            return fresh
        for name, part in self._parts().items():
            part.load_state_dict(content["parts"][name])
        return Progressed(**content["state"])

    def _log(self, writer: SummaryWriter) -> None:
        """The history as JSON lines, whole, so that no line is there twice; its end to TensorBoard."""
        history = self.state.history
        atomic_write(self.folder / LOG_FILE, "".join(json.dumps(line) + "\n" for line in history))
        for name, value in history[-1].items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, history[-1]["epoch"])


def optimize(
    task: Callable[..., dict[str, Tensor]],
    optimizer: Optimizer,
    fabric: Fabric,
    inputs: Sequence[Any],
    settings: TrainConfig,
) -> dict[str, Tensor]:
    """One step of `optimizer` on the loss of `task`, both set up by `fabric`: what the task gave for the
    batch `inputs`, images first.
    """
    outputs = task(*inputs)
    optimizer.zero_grad(set_to_none=True)
    # every loss is a mean over images; the log has it so either way
    scale = len(inputs[0]) if settings.reduction == "sum" else 1
    fabric.backward(outputs["loss"] * scale)
    if settings.grad_clip is not None:
        # under fp16 the scaler skips a step whose gradients are not finite
        fabric.clip_gradients(
            task,  # type: ignore[arg-type]  # what fabric wrapped, which is a module too
            optimizer,
            max_norm=settings.grad_clip,
            error_if_nonfinite=False,
        )
    optimizer.step()
    return outputs


def make_optimizer(model: nn.Module, settings: TrainConfig, fused: bool = True) -> Optimizer:
    """AdamW or Adam; weight decay on weights (two dimensions or more), not on biases and norms.

    `fused`: one pass over all parameters instead of one for each, which counts with small models.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind([group for group in groups if group["params"]], lr=settings.lr, fused=fused)


def make_scheduler(optimizer: Optimizer, settings: TrainConfig, steps: int) -> OneCycleLR:
    """One cycle of the learning rate over `steps`: up to `lr` in the share `warmup`, and down to nearly 0."""
    # OneCycleLR divides by zero where a phase has no length: a step up and a step down at the least
    steps = max(steps, 3)
    return OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=max(settings.warmup, 2 / steps))


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    batches: Batches,
    preprocessing: Preprocessing,
    fabric: Fabric,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, C] of `model` in evaluation mode, and targets int8 [N, C], in the batches' order.

    Always in full precision: half-precision logits tie, and ties change the average precision.
    """
    was_training = model.training
    model.eval()
    logits, targets = [], []
    for batch in batches.epoch(0):
        output = model(to_images(batch.pixels, preprocessing, fabric, memory_format))
        logits.append(output.float().cpu())
        targets.append(batch.targets)
    model.train(was_training)
    return torch.cat(logits), torch.cat(targets)


def mean_average_precision(logits: Tensor, targets: Tensor) -> float | None:
    """mAP in percent over the classes with positives, None where there is none."""
    per_class = average_precision(logits, targets)
    known = per_class[~per_class.isnan()]
    return 100 * known.mean().item() if len(known) else None


def prepare(
    batch: Batch, preprocessing: Preprocessing, fabric: Fabric, memory_format: torch.memory_format
) -> Prepared:
    """A batch on the device, its pixels as images, or its features in float32."""
    if batch.are_features:
        images = batch.pixels.to(fabric.device, non_blocking=True).float()
    else:
        images = to_images(batch.pixels, preprocessing, fabric, memory_format)
    known = (
        () if batch.teacher_logits is None else (batch.teacher_logits.to(fabric.device, non_blocking=True),)
    )
    targets = batch.targets.to(fabric.device, non_blocking=True)
    return Prepared((images, targets, batch.are_features, *known))


def to_images(
    pixels: Tensor, preprocessing: Preprocessing, fabric: Fabric, memory_format: torch.memory_format
) -> Tensor:
    """uint8 [B, 3, H, W] -> normalised images on the device: bytes travel, not floats."""
    moved = pixels.to(fabric.device, non_blocking=True)
    return preprocessing.normalize(moved).contiguous(memory_format=memory_format)
