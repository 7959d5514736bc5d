"""A model that starts where another one, of more classes, has come to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError, shortened


@torch.no_grad()
def inherit_weights(
    model: nn.Module, parent: nn.Module, class_names: Sequence[str], of_parent: Sequence[str]
) -> None:
    """Give `model`, of the classes `class_names`, the weights of `parent`, of the classes `of_parent`.

    A tensor that has a place for each class gives those of the model's classes, by name; one that fits
    neither way stays as it is, as in a head with another number of queries. CheckpointError where nothing
    fits, where the parent lacks a class, and for all of its classes in another order: shapes do not show
    which axis is that of the classes then.
    """
    if missing := [name for name in class_names if name not in of_parent]:
        raise CheckpointError(f"the model cannot start from the baseline, which has no {shortened(missing)}")
    columns, num_classes = [of_parent.index(name) for name in class_names], len(of_parent)
    if len(columns) == num_classes and columns != sorted(columns):
        raise CheckpointError(
            "the model cannot start from the baseline, which has its classes in another order: "
            f"{shortened(of_parent)}, not {shortened(class_names)}"
        )
    before, after = parent.state_dict(), model.state_dict()
    taken = {
        name: inherited
        for name, tensor in after.items()
        if name in before
        and (inherited := _inherited(before[name], tensor, columns, num_classes)) is not None
    }
    if not taken:
        raise CheckpointError("the model cannot start from the baseline: they have no weights in common")
    model.load_state_dict(after | taken)


def _inherited(before: Tensor, after: Tensor, columns: Sequence[int], num_classes: int) -> Tensor | None:
    if before.shape == after.shape and len(columns) == num_classes:
        return before  # all classes, in the same order
    if before.ndim != after.ndim:
        return None
    differing = [axis for axis in range(after.ndim) if before.shape[axis] != after.shape[axis]]
    if not differing:
        return before
    (axis, *further) = differing
    if further or (before.shape[axis], after.shape[axis]) != (num_classes, len(columns)):
        return None
    return before.index_select(axis, torch.tensor(columns))
