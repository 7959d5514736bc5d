"""One training, a step at a time: what learns, what is kept after every epoch, and what is logged.

Baseline, teachers and student all are trainings of this kind; `lockstep.py` drives them.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.optimizer import Optimizer

from coterie.config import Config, ResumeConfig, TrainConfig
from coterie.data.loading import Batch, Batches
from coterie.data.transforms import Preprocessing
from coterie.devices import device_type
from coterie.errors import ConfigError, Diverged, RunError, shortened, where_memory_may_run_out
from coterie.files import atomic_write
from coterie.metrics import average_precision
from coterie.models.cut import Cut
from coterie.ranks import ALONE, Ranks, RanksEnvironment, gathered, leave_out, summed
from coterie.scalars import ScalarLog
from coterie.seeding import seed_everything
from coterie.states import DIVERGED_FILE, States
from coterie.tasks import Task

# Fabric says which precision it uses and the like, between the lines of a run.
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)

LOG_FILE = "log.jsonl"
# Reading a number from a GPU waits for all that it has to do: not in every step.
STEPS_BETWEEN_READS = 32
LOSSES_SAID = 5
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
    """Batches to train on, batches to choose the epoch by, what turns their pixels into images, and the ids
    of all images by their positions.
    """

    training: Batches
    validation: Batches
    preprocessing: Preprocessing
    image_ids: Sequence[str]


@dataclass
class Progressed:
    """How far a training has come: the finished epochs, what the one under way has summed up so far, and the
    last losses. Saved with the weights it has.
    """

    epoch: int
    best_epoch: int
    best_map: float | None
    best_weights: dict[str, Tensor]
    history: list[dict[str, Any]]
    losses: list[float]
    within: dict[str, Any]

    @property
    def step(self) -> int:
        """The steps of the epoch under way that are done."""
        steps: int = self.within.get("steps", 0)
        return steps


def make_fabric(config: Config, index: int = 0, ranks: Ranks = ALONE) -> Fabric:
    """One device in the precision of the config; ConfigError where the device is not there.

    `index` counts on over the GPUs: trainings side by side each take one in turn, and each of the `ranks`
    that do a training together, which must have joined by then.
    """
    accelerator = "auto" if config.device == "auto" else config.device
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device here; use device=auto or device=cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps, but torch finds no MPS device here; use device=auto or device=cpu")
    on_cpu = device_type(config.device) == "cpu"
    if config.precision == "fp16" and on_cpu:
        raise ConfigError("precision=fp16 needs a GPU; use bf16 or fp32 on the CPU")
    gpus = 0 if on_cpu else torch.cuda.device_count()
    devices = [(index * ranks.size + ranks.local) % gpus] if gpus > 1 else 1
    several: dict[str, Any] = {}
    if ranks.are_several:
        # a head on the feature map may leave parameters of the backbone unused, but always the same ones
        strategy = DDPStrategy(static_graph=True, gradient_as_bucket_view=True)
        several = {"strategy": strategy, "num_nodes": ranks.size, "plugins": [RanksEnvironment(ranks)]}
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
        **several,
    )
    threads = torch.get_num_threads()
    fabric.launch()
    torch.set_num_threads(threads)  # of several processes it would give each as many as there are cores
    return fabric


def uses_cuda(config: Config) -> bool:
    """Whether trainings run on NVIDIA's or AMD's GPUs."""
    return config.device in ("auto", "cuda") and torch.cuda.is_available()


def check_devices(config: Config) -> None:
    """ConfigError where the `processes` that do a training together have not each a device of their own."""
    if config.processes == 1:
        return
    on_cpu = device_type(config.device) == "cpu"
    gpus = torch.cuda.device_count() if uses_cuda(config) else 0
    if not on_cpu and gpus < config.processes:
        raise ConfigError(
            f"processes={config.processes} need as many CUDA devices, and there are {gpus} here; set fewer, "
            "or device=cpu"
        )


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
    """What an epoch sums up; `within` is what it had summed up when it was stopped."""

    def __init__(
        self, watcher: EpochWatcher | None, within: dict[str, Any] | None = None, device: Any = None
    ) -> None:
        self.watcher = watcher
        within = within or {"sums": {}, "steps": 0, "images": 0, "seconds": 0.0, "rate": 0.0}
        self.sums: dict[str, Tensor] = {name: total.to(device) for name, total in within["sums"].items()}
        self.steps: int = within["steps"]
        self.images: int = within["images"]
        self.seconds: float = within["seconds"]
        self.rate: float = within["rate"]
        if watcher is not None and self.images:
            watcher.advance(self.images)

    def within(self) -> dict[str, Any]:
        """What is summed up so far."""
        sums = {name: total.cpu() for name, total in self.sums.items()}
        numbers = {name: getattr(self, name) for name in ("steps", "images", "seconds", "rate")}
        return {"sums": sums, **numbers}

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


class _Recent:
    """Losses and norms of the gradient since they were last read, and whether the state is to be kept: they
    stay on the device until then.
    """

    def __init__(self, device: torch.device) -> None:
        # on the CPU a number is there when it is computed
        size = 1 if device.type == "cpu" else STEPS_BETWEEN_READS
        self._values = torch.zeros(size, 3, device=device)
        self._count = 0

    @property
    def are_full(self) -> bool:
        return self._count == len(self._values)

    def add(self, loss: Tensor, norm: Tensor | None, keep: Tensor | float) -> None:
        self._values[self._count, 0] = loss.detach()
        self._values[self._count, 1] = 0 if norm is None else norm
        self._values[self._count, 2] = keep
        self._count += 1

    def read(self) -> list[list[float]]:
        """[loss, norm, keep] of each step; the norm is 0 where there is none."""
        values: list[list[float]] = self._values[: self._count].tolist()
        self._count = 0
        return values


class Trainer:
    """One training, a step at a time; the best epoch is chosen on validation.

    After each epoch, and within it as `resume` says, the whole state is kept in `folder`; one with the same
    `key` is taken up again, so that the result does not depend on when and how often it was stopped. `note`
    is told of a state that is damaged.

    Where `fabric` is one of several processes, each takes the same step on its part of the batch, and the
    first alone has files: all hold the same weights, averages and numbers.
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
        resume: ResumeConfig | None = None,
        note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.task = task
        self.data = data
        self.settings = settings
        self.fabric = fabric
        self.folder = folder
        self.seed = seed
        self.ranks = Ranks(fabric.global_rank, fabric.world_size)
        self.resume = resume or ResumeConfig()
        self.memory_format = memory_layout(channels_last)
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
        if self.ranks.are_several:
            task.shares_batches = True
            leave_out(task, "teachers")
        self.wrapped, self.optimizer = fabric.setup(task, make_optimizer(task.model, settings, fused))
        if self.averaged is not None:
            self.averaged.to(fabric.device)
        if settings.frozen is not None:  # the models are where they stay now
            task.cut = Cut(task.model, settings.frozen, learns=True)
        self._evaluated_cut = None if settings.frozen is None else Cut(self.evaluated, settings.frozen)
        self.scheduler = make_scheduler(self.optimizer, settings, len(data.training) * settings.epochs)
        self._states = States(folder, key, note)
        self._recent = _Recent(fabric.device)
        self.state = self._take_up()
        self._losses = deque(self.state.losses, LOSSES_SAID)
        self._remember_when_kept()

    @property
    def evaluated(self) -> nn.Module:
        """The model that is measured and kept: the averaged one, where there is one."""
        return self.task.model if self.averaged is None else self.averaged.module

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or so many without a better one that patience has run out."""
        return self.state.epoch >= self.settings.epochs_done(self.state.best_epoch)

    def start_epoch(self, watcher: EpochWatcher | None = None) -> None:
        """Begin the next epoch, or go on in it from the state's step; `watcher` is told of every step."""
        self._epoch = _Epoch(watcher, self.state.within, self.fabric.device)
        self.task.train()
        if self.task.cut is not None:
            self.task.cut.freeze()

    def step(self, batch: Prepared, number: int, loading: float = 0.0) -> None:
        """One step of the optimiser, the `number`th of the epoch, on a batch that took `loading` seconds to
        come. RunError where the device's memory is too small, or the loss is no longer finite: on a GPU, that
        is seen some steps later.
        """
        start = time.monotonic()
        epoch, steps = self.state.epoch, len(self.data.training)
        done = epoch * steps + number
        # from the step alone, so that a training that was stopped goes on as it would have
        self.task.progress = done / max(1, steps * self.settings.epochs - 1)
        images = self.data.training.sampler.batch_size
        # dropout and the like: from the step, not from what ran before it; of other images, others
        own = () if self.ranks.is_first else ("rank", self.ranks.rank)
        seed_everything(self.seed, "training", epoch, number, *own)
        self._epoch.rate = self.optimizer.param_groups[0]["lr"]
        with self._fitting():
            outputs, norm = optimize(
                self.wrapped, self.optimizer, self.fabric, batch.inputs, self.settings, images
            )
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update(self.task.model, done + 1)
        losses, keep = self._of_all(outputs, len(batch) / images)
        self._epoch.add(losses, images, time.monotonic() - start + loading)
        # a scaler of gradients skips the steps whose gradient is not finite
        self._recent.add(losses["loss"], None if self._scales else norm, keep)
        is_time = self._recent.are_full and self._check()
        if is_time or self._are_steps_to_keep():
            self._check()
            self._check_weights()
            self._keep()

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

    def finish_epoch(self, logits: Tensor, targets: Tensor, scalars: ScalarLog | None) -> dict[str, Any]:
        """Measure the epoch by the validation's logits [N, C] and targets, those of this process where there
        are several, and keep the state: the epoch's line of the log.

        Raises RunError when the loss or the logits are no longer finite; the last sound state is kept then.
        """
        self._check()
        self._check_weights()
        line = self.fabric.broadcast(self._line(self._in_order(logits), self._in_order(targets)))
        if line is None:
            raise self._diverged("validation of {} gives logits that are not finite", self._epoch.steps - 1)
        self._take_if_best(line)
        self.state.history.append(line)
        self.state.epoch += 1
        self._epoch = _Epoch(None)
        if self.ranks.is_first:
            # before the state: a training that is over when it is taken up logs no more
            lines = [json.dumps(line) + "\n" for line in self.state.history]
            atomic_write(self.folder / LOG_FILE, "".join(lines))
        self._keep()
        numbers = {name: value for name, value in line.items() if name != "epoch" and value is not None}
        if scalars is not None:
            scalars.add(line["epoch"], numbers)
        return line

    def _of_all(self, outputs: dict[str, Tensor], share: float) -> tuple[dict[str, Tensor], Tensor | float]:
        """The parts of the loss, means over the images of all processes, of which this one has a `share`; and
        whether it is time to keep the state, by the clock of the first.
        """
        losses = {name: value.detach() for name, value in outputs.items() if value.ndim == 0}
        keep = float(self._are_minutes_to_keep())
        if not self.ranks.are_several:
            return losses, keep
        own = [value * share for value in losses.values()]
        flag = own[0].new_tensor(keep if self.ranks.is_first else 0.0)
        *means, asked = summed(torch.stack([*own, flag]), self.ranks)
        return dict(zip(losses, means, strict=True)), asked

    def _in_order(self, rows: Tensor) -> Tensor:
        """What the processes have of the validation images, `rows` [n, ...] here, together in their order, on
        the first of them.
        """
        if not self.ranks.are_several:
            return rows
        sampler = self.data.validation.sampler
        shares = sampler.shares()
        joined = gathered(rows, [len(share) for share in shares], self.ranks)
        if self.ranks.is_first:
            order = sampler.rows(torch.from_numpy(np.concatenate(shares)))
            joined = joined[np.argsort(order)]
        return joined

    def _line(self, logits: Tensor, targets: Tensor) -> dict[str, Any] | None:
        """The epoch's line of the log, by the first of the processes; None where a logit is not finite."""
        if not self.ranks.is_first or not logits.isfinite().all():
            return None
        map_ = mean_average_precision(logits, targets[:, self.task.columns], self.task.counts)
        return {"epoch": self.state.epoch + 1, **self._epoch.means(), "val_mAP": map_}

    def _fitting(self) -> AbstractContextManager[None]:
        return where_memory_may_run_out(
            f"{self.folder.name} does not fit into the memory of {self.fabric.device}; set a smaller "
            f"train.batch_size (now {self.settings.batch_size}), model.image_size or together"
        )

    def _check(self) -> bool:
        """Read the losses since the last check; Diverged where one is not finite. Whether it has become time
        to keep the state.
        """
        values = self._recent.read()
        first = self._epoch.steps - len(values)
        for number, (loss, norm, _) in enumerate(values, first):
            if not math.isfinite(loss):
                raise self._diverged(f"loss of {{}} is {loss}", number)
            self._losses.append(loss)
            if not math.isfinite(norm):
                raise self._diverged(f"gradient of {{}} is {norm}", number)
        return any(keep for _, _, keep in values)

    def _check_weights(self) -> None:
        """Diverged where weights are not finite; one wait for the device."""
        finite = [parameter.isfinite().all() for parameter in self.task.model.parameters()]
        if not torch.stack(finite).all():
            raise self._diverged("weights of {} are not finite", self._epoch.steps - 1)

    def _diverged(self, what: str, number: int) -> Diverged:
        """What to say of a training that is lost since step `number` of the epoch; all of it in a file."""
        state, settings, path = self.state, self.settings, self.folder / DIVERGED_FILE
        sampler = self.data.training.sampler
        images = [self.data.image_ids[position] for position in next(sampler.batches(state.epoch, number))]
        what, losses = what.format(self.folder.name), list(self._losses)
        place = {"epoch": state.epoch + 1, "step": number + 1, "lr": self._epoch.rate}
        content = {"what": what, **place, "last finite losses": losses, "images": images}
        if self.ranks.is_first:
            atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False))
        before = f"the last finite losses are {', '.join(f'{loss:.4g}' for loss in losses)}" if losses else ""
        kept = f"epoch {state.epoch + 1}, step {state.step}" if state.step else f"epoch {state.epoch}"
        kept = f"{kept} is kept in {self.folder}" if state.epoch or state.step else "no step before is kept"
        return Diverged(
            f"the {what} in epoch {state.epoch + 1} of {settings.epochs}, at step {number + 1} of "
            f"{len(sampler)}, with the images {shortened(images, 3)} ({path} has all); "
            f"{f'{before}; ' if before else ''}{kept}. {self._remedy()}, and start again with --update"
        )

    def _remedy(self) -> str:
        settings = self.settings
        choices = [f"Lower the learning rate (lr={settings.lr})"]
        if self.fabric.strategy.precision.precision != PRECISIONS["fp32"]:
            choices.append("use precision=fp32")
        clip = settings.grad_clip
        choices.append("set grad_clip=1" if clip is None else f"lower grad_clip (now {clip:g})")
        if settings.reduction == "sum":
            choices.append("set reduction=mean")
        return " or ".join([", ".join(choices[:-1]), choices[-1]])

    @property
    def _scales(self) -> bool:
        return getattr(self.fabric.strategy.precision, "scaler", None) is not None

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
            **self.task.learned,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _are_steps_to_keep(self) -> bool:
        return self.resume.steps is not None and self._epoch.steps - self._kept_at_step >= self.resume.steps

    def _are_minutes_to_keep(self) -> bool:
        minutes = self.resume.minutes
        return minutes is not None and time.monotonic() - self._kept_at >= 60 * minutes

    def _remember_when_kept(self) -> None:
        self._kept_at, self._kept_at_step = time.monotonic(), self.state.step

    def _keep(self) -> None:
        state = self.state
        state.losses, state.within = list(self._losses), self._epoch.within()
        if self.ranks.is_first:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            done = state.epoch * len(self.data.training) + state.step
            self._states.keep(done, {"parts": parts, "progress": vars(state)})
        self._remember_when_kept()

    def _take_up(self) -> Progressed:
        """The state kept in the folder, a fresh one where there is none for this key; RunError where it is of
        another model or optimiser than the key says.
        """
        content = self.fabric.broadcast(self._states.newest() if self.ranks.is_first else None)
        if content is None:
            return Progressed(0, 0, None, best_weights={}, history=[], losses=[], within={})
        parts = self._parts()
        try:
            if parts.keys() != content["parts"].keys():
                raise ValueError(f"it has {', '.join(content['parts'])} and should have {', '.join(parts)}")
            for name, part in parts.items():
                part.load_state_dict(content["parts"][name])
            return Progressed(**content["progress"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RunError(
                f"the state in {self.folder} does not fit {self.folder.name}: {reason}; delete its "
                "state-*.pt to train it anew"
            ) from None


def optimize(
    task: Callable[..., dict[str, Tensor]],
    optimizer: Optimizer,
    fabric: Fabric,
    inputs: Sequence[Any],
    settings: TrainConfig,
    images: int | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """One step of `optimizer` on the loss of `task`, both set up by `fabric`: what the task gave for the
    batch `inputs`, images first, and the norm of the gradient where it is clipped.

    `images`: of the batch in all processes that `fabric` is one of; by default those in `inputs`.
    """
    outputs = task(*inputs)
    optimizer.zero_grad(set_to_none=True)
    # every loss is a mean over images; the log has it so either way. Of several processes, the mean of their
    # gradients is taken, whatever their parts of the batch are.
    all_images = len(inputs[0]) if images is None else images
    scale = fabric.world_size * len(inputs[0]) / (1 if settings.reduction == "sum" else all_images)
    fabric.backward(outputs["loss"] * scale)
    norm = None
    if settings.grad_clip is not None:
        # under fp16 the scaler skips a step whose gradients are not finite
        norm = fabric.clip_gradients(
            task,  # type: ignore[arg-type]  # what fabric wrapped, which is a module too
            optimizer,
            max_norm=settings.grad_clip,
            error_if_nonfinite=False,
        )
    optimizer.step()
    return outputs, norm


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


def memory_layout(channels_last: bool) -> torch.memory_format:
    """Where a model and its images are in memory, by the setting `channels_last`."""
    return torch.channels_last if channels_last else torch.contiguous_format


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


def mean_average_precision(logits: Tensor, targets: Tensor, counts: Tensor | None = None) -> float | None:
    """mAP in percent over the classes with positives, None where there is none. `counts` [C]: what each class
    counts in the mean.
    """
    per_class = average_precision(logits, targets)
    known = ~per_class.isnan()
    if not known.any():
        return None
    if counts is None:
        return 100 * per_class[known].mean().item()
    return 100 * ((per_class * counts)[known].sum() / counts[known].sum()).item()


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
