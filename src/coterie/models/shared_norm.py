"""Batch norm over the parts of a batch that several processes have: as if one had all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class SharedBatchNorm(TorchFunctionMode):
    """In this block, batch norm in training normalises by the statistics of all processes' images.

    It takes the place of `torch.nn.functional.batch_norm`, which every layer of that kind calls, also those
    of timm, whose modules stay as they are. torch's own SyncBatchNorm does not run on a CPU.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        called = _batch_norm if func is functional.batch_norm else func
        return called(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,  # torch calls it so
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm`, of the batches of all processes where it is `training`."""
    if not training:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, count = _statistics(input.detach())
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    output: Tensor = _Normalised.apply(input, weight, bias, mean, var, count, eps)
    return output


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and biased variance [C] of the values [B, C, ...] of all processes, and how many values of a
    channel they have [] (Chan, Golub and LeVeque, 1979).
    """
    if values.dtype in (torch.bfloat16, torch.float16):  # in which the mean would be rounded
        values = values.float()
    mean, var = torch.batch_norm_update_stats(values, None, None, 0.0)
    own = torch.cat([mean, var, mean.new_tensor([values.numel() // values.shape[1]])])
    everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, own)
    table = torch.stack(everyone).double()
    means, variances, counts = table[:, : len(mean)], table[:, len(mean) : -1], table[:, -1:]
    count = counts.sum()
    shares = counts / count
    common = (shares * means).sum(dim=0)
    spread = (shares * (variances + (means - common) ** 2)).sum(dim=0)
    return common.to(mean.dtype), spread.to(mean.dtype), count


class _Normalised(torch.autograd.Function):
    """Normalised by a mean and variance that are those of all processes' inputs, gradients as well."""

    @staticmethod
    def forward(
        context: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        context.save_for_backward(values, weight, mean, var, count)
        context.eps = eps
        return functional.batch_norm(values, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With x' the normalised input, N all its values of a channel and sums over these (Ioffe and Szegedy,
        2015): weight / std * (g - sum(g) / N - x' * sum(g x') / N).
        """
        values, weight, mean, var, count = context.saved_tensors
        needs_input, needs_weight, needs_bias = context.needs_input_grad[:3]
        scale = torch.rsqrt(var + context.eps)
        # as if mean and variance were constants: the first term, and this process's part of both sums
        first, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            *(gradient, values, torch.ones_like(mean) if weight is None else weight, mean, var, None, None),
            *(False, context.eps, [True, True, True]),
        )
        if needs_input:
            sums = torch.stack([by_weight, by_bias])
            distributed.all_reduce(sums)
            factor = scale if weight is None else scale * weight
            slope = factor * scale * sums[0] / count
            shape = (1, -1, *(1 for _ in values.shape[2:]))
            offset = factor * sums[1] / count - slope * mean
            # in place: on a CPU new memory costs more than the arithmetic
            first.addcmul_(values, slope.view(shape), value=-1).sub_(offset.view(shape))
        return (
            first if needs_input else None,
            by_weight if needs_weight else None,
            by_bias if needs_bias else None,
            *(None, None, None, None),
        )
