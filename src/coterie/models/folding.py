"""Batch norm folded into the convolutions before it: the same logits in fewer passes over the memory."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Exactly these types: a subclass may do anything else with its weights.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
# Relative, in float64: rounding stays far below, and another function far above.
LARGEST_ERROR = 1e-9


def fold_batch_norm(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a trained `model` in evaluation mode, each batch norm behind a convolution folded into it.

    Which ones those are, a forward pass over `images` [B, 3, H, W] shows; a second one proves the copy. Where
    its logits are others in float64, or the model does not run in float64, nothing is folded.
    """
    plain = copy.deepcopy(model).eval()
    tensors = [*plain.parameters(), *plain.buffers()]
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        return plain
    folded = copy.deepcopy(plain).double()
    images = images.double()
    try:
        with torch.no_grad():
            expected, pairs = _followers(folded, images)
            for convolution, norm in pairs:
                _fold(folded, convolution, norm)
            error = relative_error(folded(images), expected)
    except Exception:  # what a user's own model raises in float64 can be anything
        return plain
    return folded.float() if pairs and error <= LARGEST_ERROR else plain


def relative_error(logits: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of `expected`; NaN where a logit is not finite."""
    logits, expected = logits.detach().double(), expected.detach().double()
    return float((logits - expected).norm() / expected.norm())


def _followers(model: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """Logits, and each convolution whose output went into a batch norm as it was, both of them used once."""
    calls: Counter[nn.Module] = Counter()
    # the outputs are kept, or another tensor could get the identity of one that is gone
    outputs: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = (module, output, output._version)
        elif isinstance(module, nn.BatchNorm2d) and inputs and id(inputs[0]) in outputs:
            convolution, given, version = outputs[id(inputs[0])]
            if given._version == version:  # nothing was written over it in between
                pairs.append((convolution, module))

    watched = [module for module in model.modules() if type(module) in (*CONVOLUTIONS, *BATCH_NORMS)]
    hooks = [module.register_forward_hook(note) for module in watched]
    try:
        logits: Tensor = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    once = [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]
    return logits, [(conv, norm) for conv, norm in once if norm.running_mean is not None]


def _fold(model: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Put `norm` into the weights of `convolution`; of a norm with an activation the activation stays."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is norm:
            model.set_submodule(name, rest)
