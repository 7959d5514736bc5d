"""A model that starts where another one, of more classes, has come to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError


@torch.no_grad()
def inherit_weights(model: nn.Module, parent: nn.Module, columns: Sequence[int], num_classes: int) -> None:
    """Give `model`, of the classes at `columns`, the weights of `parent`, of all `num_classes`.

    A tensor that has a place for each class gives those of the model's classes; one that fits neither way
    stays as it is, as in a head with another number of queries. CheckpointError where nothing fits.
    """
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
