"""A model in two parts: the lower one frozen, its features computed once, and the upper one that learns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from coterie.errors import ConfigError, did_you_mean
from coterie.models.classifier import Classifier

BACKBONE = "backbone."


class Cut:
    """`model` cut behind its module `name`: images -> `lower` -> features -> `upper` -> logits.

    Both parts share the weights of the model, and are no modules of it. What a forward pass decides by
    `self.training`, such as a dropout that is no module, is fixed by the cut: in the upper part as in
    training where it `learns`, else as in evaluation, which the lower part always is in. ConfigError where
    there is no such module, or where what follows it also looks at what is before.
    """

    def __init__(self, model: nn.Module, name: str, learns: bool = False) -> None:
        names = [found for found, _ in model.named_modules() if found]
        if name not in names:
            raise ConfigError(
                f"frozen={name}: the model has no module of that name{did_you_mean(name, names)}"
            )
        if isinstance(model, Classifier) and name.startswith(BACKBONE):
            # what comes behind the backbone need not be traced
            lower, rest = _split(model.backbone, name.removeprefix(BACKBONE), name, learns)
            upper: nn.Module = Classifier(rest, model.head, feature_map=model.feature_map)
            upper.drop = model.drop
        else:
            lower, upper = _split(model, name, name, learns)
        self.lower_part = lower
        self.upper_part = upper

    def lower(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features float32 [B, ...], also under autocast, without gradients."""
        with torch.no_grad():
            features: Tensor = self.lower_part(images)
        return features.float()

    def upper(self, features: Tensor) -> Tensor:
        """Features as `lower` gives them -> logits [B, C]."""
        logits: Tensor = self.upper_part(features)
        return logits

    def freeze(self) -> None:
        """Keep the lower part from learning, and its norms from moving."""
        for parameter in self.lower_part.parameters():
            parameter.requires_grad_(False)
        self.lower_part.eval()

    def sha256(self) -> str:
        """A hash of the lower part: of what it computes, and of its weights."""
        digest = hashlib.sha256(str(self.lower_part.graph).encode())
        for name, tensor in sorted(self.lower_part.state_dict().items()):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class _Tracer(fx.Tracer):
    """Sees through the modules that `name` is in, and takes every other as one step."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return not self.name.startswith(f"{module_qualified_name}.")

    def create_arg(self, a: Any) -> Any:
        """The classifiers of `transformers` return an object that holds the logits."""
        own = not isinstance(a, fx.Proxy | fx.Node | Tensor) and hasattr(a, "logits")
        return super().create_arg(a.logits if own else a)


def _split(root: nn.Module, name: str, shown: str, learns: bool) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The steps of `root` up to its module `name`, and those behind it."""
    with _as_in(root, training=False):
        lower, upper = _halves(root, name, shown)
    if learns:
        with _as_in(root, training=True):
            _, upper = _halves(root, name, shown)
    return fx.GraphModule(root, lower), fx.GraphModule(root, upper)


@contextmanager
def _as_in(root: nn.Module, training: bool) -> Iterator[None]:
    """The mode of all modules inside the block; then each has its own again."""
    before = {module: module.training for module in root.modules()}
    for module in before:
        module.training = training
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _halves(root: nn.Module, name: str, shown: str) -> tuple[fx.Graph, fx.Graph]:
    """The graph of `root` up to its module `name`, and the one behind it."""
    try:
        graph = _Tracer(name).trace(root)
    except Exception as error:  # a model's forward may do anything with what is not a tensor
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"frozen={shown}: the steps of the model cannot be followed there: {reason}"
        ) from None
    found = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if len(found) != 1:
        times = "is not used" if not found else f"is used {len(found)} times"
        raise ConfigError(f"frozen={shown}: the model cannot be cut there, that module {times}")
    nodes = list(graph.nodes)
    position = nodes.index(found[0])
    before, after = nodes[: position + 1], nodes[position + 1 :]
    lower, upper = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in before:
        copies[node] = lower.node_copy(node, copies.__getitem__)
    lower.output(copies[found[0]])
    # a copy: several models answer from the same features, and an activation may write in its place
    behind: dict[fx.Node, fx.Node] = {found[0]: upper.call_method("clone", (upper.placeholder("features"),))}
    try:
        for node in after:
            behind[node] = upper.node_copy(node, behind.__getitem__)
    except KeyError as error:
        raise ConfigError(
            f"frozen={shown}: the model cannot be cut there, what follows also uses {error.args[0]}"
        ) from None
    for part in (lower, upper):
        part.lint()
    return lower, upper
