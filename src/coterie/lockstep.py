"""The one training loop: one training, or several that share every batch, epoch by epoch.

Each has its own seed and state, so that its weights do not depend on which others run beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.data.loading import Batch
from coterie.errors import Diverged, RunError
from coterie.scalars import ScalarLog
from coterie.trainer import EpochWatcher, Prepared, Progressed, Trainer, prepare


@dataclass(eq=False, frozen=True)
class Member:
    """A training among those of a group, and who is told how far it has come."""

    trainer: Trainer
    watcher: EpochWatcher | None = None

    @property
    def is_over(self) -> bool:
        return self.trainer.is_over


def train(trainer: Trainer, watcher: EpochWatcher | None = None) -> Progressed:
    """Train the epochs that are left: the state with the best weights.

    Raises RunError where the loss is no longer finite, or the memory too small; the last state is kept.
    """
    ((_, error),) = train_together([Member(trainer, watcher)])
    if error is not None:
        raise error
    return trainer.state


def train_together(members: Sequence[Member]) -> Iterator[tuple[Member, RunError | None]]:
    """Train all on the same batches; each comes back as soon as its epochs are over, or with what stopped it,
    and then the others go on.

    Their `data` are one object. One that is behind, as it was stopped before, goes on alone until it is as
    far as the others.
    """
    active = list(members)
    # also for one alone: features that a wrapped task is given are rounded to the precision of the run
    shares_frozen = len(parts := {_frozen_part(member) for member in active}) == 1 and None not in parts
    with ExitStack() as stack:
        logs = {
            member: stack.enter_context(closing(_scalars(member.trainer)))
            for member in active
            if member.trainer.ranks.is_first
        }
        while active:
            epoch = min(member.trainer.state.epoch for member in active)
            group = [member for member in active if member.trainer.state.epoch == epoch]
            stopped = _train_epoch([member for member in group if not member.is_over], shares_frozen, logs)
            for member in group:
                if member in stopped or member.is_over:
                    active.remove(member)
                    yield member, stopped.get(member)


def _train_epoch(
    members: Sequence[Member], shares_frozen: bool, logs: dict[Member, ScalarLog]
) -> dict[Member, RunError]:
    """One pass over the training images and one over those of validation; what stopped whom.

    One that was stopped in the middle of the epoch takes its part from the step where it was.
    """
    stopped: dict[Member, RunError] = {}
    left = list(members)
    if not left:
        return stopped
    data, epoch = left[0].trainer.data, left[0].trainer.state.epoch

    def without_stopped() -> list[Member]:
        return [member for member in members if member not in stopped]

    done = {member: member.trainer.state.step for member in left}
    for member in left:
        member.trainer.start_epoch(member.watcher)
    first = min(done.values())
    asked = time.monotonic()
    for number, batch in enumerate(data.training.epoch(epoch, first), first):
        prepared = _prepared(left[0].trainer, batch, shares_frozen)
        loading = (time.monotonic() - asked) / len(left)
        for member in left:
            if number < done[member]:
                continue
            try:
                member.trainer.step(prepared, number, loading)
            except RunError as error:
                stopped[member] = _seen_by_all(error, member)
        if not (left := without_stopped()):
            return stopped
        asked = time.monotonic()
    logits, targets = _validated(left, stopped)
    for member in without_stopped():
        try:
            line = member.trainer.finish_epoch(torch.cat(logits[member]), targets, logs.get(member))
        except RunError as error:
            stopped[member] = _seen_by_all(error, member)
        else:
            if member.watcher is not None:
                member.watcher.epoch_done(line)
    return stopped


def _validated(
    members: Sequence[Member], stopped: dict[Member, RunError]
) -> tuple[dict[Member, list[Tensor]], Tensor]:
    """The logits of all members on the validation images, batch by batch, and their targets [N, C]."""
    logits: dict[Member, list[Tensor]] = {member: [] for member in members}
    targets = []
    trainer = members[0].trainer
    for member in members:
        member.trainer.evaluated.eval()
    for batch in trainer.data.validation.epoch(0):
        prepared = _prepared(trainer, batch)
        targets.append(batch.targets)
        for member in members:
            if member not in stopped:
                try:
                    logits[member].append(member.trainer.validate(prepared))
                except RunError as error:
                    stopped[member] = _seen_by_all(error, member)
    return logits, torch.cat(targets)


def _seen_by_all(error: RunError, member: Member) -> RunError:
    """The error; raised where other processes of the training do not see it, and would wait for this one."""
    if member.trainer.ranks.are_several and not isinstance(error, Diverged):
        raise error
    return error


def _prepared(trainer: Trainer, batch: Batch, shares_frozen: bool = False) -> Prepared:
    """The batch on the device; where all share a frozen part, with what that makes of it, computed once."""
    prepared = prepare(batch, trainer.data.preprocessing, trainer.fabric, trainer.memory_format)
    if not shares_frozen or prepared.are_features:
        return prepared
    assert trainer.task.cut is not None
    images, targets, _, *known = prepared.inputs
    with trainer.fabric.autocast():
        features = trainer.task.cut.lower(images)
    return Prepared((features, targets, True, *known))


def _frozen_part(member: Member) -> str | None:
    """A hash of the frozen part whose features are all that the training needs of an image."""
    task = member.trainer.task
    return None if task.cut is None or task.needs_images else task.cut.sha256()


def _scalars(trainer: Trainer) -> ScalarLog:
    return ScalarLog(trainer.folder / "tensorboard", trainer.state.epoch + 1)
