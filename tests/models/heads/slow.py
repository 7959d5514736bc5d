"""Plain slow versions of what heads are made of: NumPy in float64, one number after the other."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float64]


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def linear(x: Array, layer: nn.Linear | nn.Conv2d) -> Array:
    """x [D] -> [D']."""
    weight = array(layer.weight).reshape(layer.weight.shape[0], -1)
    result: Array = np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight])
    return result if layer.bias is None else result + array(layer.bias)


def layer_norm(x: Array, layer: nn.LayerNorm) -> Array:
    """x [D] -> [D]."""
    normal: Array = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + layer.eps)
    return normal * array(layer.weight) + array(layer.bias)


def softmax(x: Array) -> Array:
    exponents = np.exp(x - x.max())
    result: Array = exponents / exponents.sum()
    return result


def attend(query: Array, keys: Array, values: Array) -> Array:
    """One head, one query: [d], [N, d], [N, d] -> [d]."""
    weights = softmax(np.array([query @ key / math.sqrt(len(query)) for key in keys]))
    result: Array = np.array([weight * value for weight, value in zip(weights, values, strict=True)])
    return np.array([column.sum() for column in result.T])


def attention(layer: nn.MultiheadAttention, queries: Array, keys: Array, values: Array) -> Array:
    """torch's multi-head attention, head by head and query by query: [Q, D], [N, D], [N, D] -> [Q, D]."""
    assert layer.in_proj_weight is not None
    width = layer.embed_dim
    weights, biases = array(layer.in_proj_weight), array(layer.in_proj_bias)
    projected = [
        given @ weights[part * width : (part + 1) * width].T + biases[part * width : (part + 1) * width]
        for part, given in enumerate((queries, keys, values))
    ]
    each = width // layer.num_heads
    answers = []
    for query in projected[0]:
        heads = []
        for head in range(layer.num_heads):
            place = slice(head * each, (head + 1) * each)
            heads.append(attend(query[place], projected[1][:, place], projected[2][:, place]))
        answers.append(linear(np.concatenate(heads), layer.out_proj))
    return np.array(answers)


def feedforward(x: Array, block: nn.Sequential) -> Array:
    """Linear, activation, dropout that is off, linear: [D] -> [D]."""
    first, activation, _, second = block
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    inner = linear(x, first)
    if isinstance(activation, nn.ReLU):
        return linear(np.maximum(inner, 0), second)
    assert isinstance(activation, nn.GELU)
    return linear(np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in inner]), second)


def positions(features: Array) -> Array:
    """A map [D, H, W] -> its positions [H * W, D], row by row."""
    depth, height, width = features.shape
    return np.array([features[:, row, column] for row in range(height) for column in range(width)]).reshape(
        -1, depth
    )


def randomized(head: nn.Module, seed: int = 0) -> nn.Module:
    """`head` in evaluation mode with all parameters random, biases and norms too, so that each one counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0.1, 0.5, generator=generator)
    return head.eval()


def random_map(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
