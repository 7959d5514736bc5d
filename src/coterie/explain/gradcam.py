"""Grad-CAM (Selvaraju et al., ICCV 2017), by captum, for models of any kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coterie.errors import ConfigError, did_you_mean, shortened
from coterie.explain.grids import Grid, grid_of
from coterie.explain.hooks import in_this_thread


@dataclass(frozen=True)
class Layer:
    """A layer of a model, by its name in `named_modules`, and how its output is a map."""

    name: str
    grid: Grid


def find_layer(model: nn.Module, images: Tensor, name: str | None = None) -> Layer:
    """The layer `name`, by default the last one that gives a map and that the logits depend on.

    Of a layer with tokens only norms are taken: other outputs in a transformer are no features of positions.
    ConfigError where there is no such layer, or it gives no map.
    """
    modules = dict(model.named_modules())
    if name is not None and (name not in modules or not name):
        hint = did_you_mean(name, modules) or f"; it has {shortened([key for key in modules if key])}"
        raise ConfigError(f"the model has no layer '{name}'{hint}")
    outputs: list[tuple[str, object]] = []  # in the order in which layers are done
    with ExitStack() as hooks, torch.enable_grad():
        for key, module in modules.items():
            if key and (name is None or key == name):
                hook = in_this_thread(_keep(key, outputs))
                hooks.callback(module.register_forward_hook(hook).remove)
        total = model(images.detach().requires_grad_()).sum()
    if name is not None:
        return _named(name, [output for _, output in outputs])
    times = Counter(key for key, _ in outputs)
    found = {
        Layer(key, grid): output
        for key, output in outputs
        if isinstance(output, Tensor)
        and times[key] == 1
        and (grid := _map_of(modules[key], output)) is not None
    }
    if not found or not total.requires_grad:
        raise ConfigError(
            "no layer of the model gives a map of the picture, with more than one position and with "
            "gradients; a larger image may help, or name a layer"
        )
    gradients = torch.autograd.grad(total, list(found.values()), allow_unused=True, materialize_grads=True)
    used = [
        layer
        for layer, gradient in zip(found, gradients, strict=True)
        if bool(layer.grid.to_map(gradient).count_nonzero())
    ]
    return (used or list(found))[-1]


def grad_cam(model: nn.Module, layer: Layer, image: Tensor, columns: Sequence[int]) -> Tensor:
    """Grad-CAM [n, h, w] of an image [1, 3, H, W] for the logits in `columns`, n of them: the sum over
    channels of the layer's map, each weighted by the mean of its gradient. Negative speaks against a class.
    """
    from captum.attr import LayerGradCam

    probe = nn.Identity()  # captum looks here, where the output is a map whatever the layer gives

    def through_probe(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
        # a copy, as a layer behind this one may work in place
        return layer.grid.from_map(probe(layer.grid.to_map(output)), output).clone()

    images = image.detach().repeat(len(columns), 1, 1, 1).requires_grad_()
    with ExitStack() as hooks, torch.enable_grad():
        hook = in_this_thread(through_probe)
        hooks.callback(model.get_submodule(layer.name).register_forward_hook(hook).remove)
        maps: Tensor = LayerGradCam(model, probe).attribute(images, list(columns))
    return maps.detach()[:, 0]


def _keep(name: str, outputs: list[tuple[str, object]]) -> Callable[[nn.Module, object, object], None]:
    def keep(_module: nn.Module, _given: object, output: object) -> None:
        outputs.append((name, output))

    return keep


def _map_of(module: nn.Module, output: Tensor) -> Grid | None:
    """The grid of what a layer gives, where that is features of positions, and has gradients."""
    grid = grid_of(output)
    if grid is None or not output.requires_grad or isinstance(module, nn.Identity | nn.Dropout):
        return None
    return grid if grid.prefix_tokens is None or "norm" in type(module).__name__.lower() else None


def _named(name: str, outputs: Sequence[object]) -> Layer:
    if len(outputs) != 1:
        raise ConfigError(f"layer '{name}' runs {len(outputs)} times for a picture; name one that runs once")
    grid = grid_of(outputs[0])
    if grid is None:
        shape = list(getattr(outputs[0], "shape", ())) or type(outputs[0]).__name__
        raise ConfigError(f"layer '{name}' gives no map of the picture, but {shape}; name another")
    return Layer(name, grid)
