"""The models of the public PSD release, written plainly: random state dicts with its key names, and the
logits that they stand for.

Key names, shapes and the order of operations are facts of that project; nothing here is its code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

State = dict[str, Tensor]

# Where most models of the release have the parts of a torchvision ResNet: at places of a sequence.
IN_SEQUENCE = {
    "conv1": "features.0.",
    "bn1": "features.1.",
    "layer1": "features.4.",
    "layer2": "features.5.",
    "layer3": "features.6.",
    "layer4": "features.7.",
}
EPS = 1e-5


def varied(model: nn.Module, images: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms with statistics of `images`, random scales and shifts."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.normal_(norm.weight, 0.5, 0.2)
        nn.init.normal_(norm.bias, 0, 0.3)
    with torch.no_grad():
        model.train()(images)
    return model.eval()


class Trunk:
    """A torchvision ResNet, whose parts the release keeps under other names."""

    def __init__(self, blocks: Sequence[int], images: Tensor, num_classes: int = 1, **groups: int) -> None:
        self.model = varied(ResNet(Bottleneck, list(blocks), num_classes, **groups), images)

    def state(self, names: Mapping[str, str]) -> State:
        return {
            names[part] + rest: tensor
            for key, tensor in self.model.state_dict().items()
            for part, _, rest in [key.partition(".")]
            if part in names
        }

    def feature_map(self, images: Tensor) -> Tensor:
        features: Tensor = nn.Sequential(*list(self.model.children())[:-2])(images)
        return features


class ReleasedLinear:
    """ResNet-101 or ResNeXt50-32x4d: torchvision's own, with its last layer under another name."""

    KINDS: ClassVar[dict[str, tuple[list[int], dict[str, int]]]] = {
        "resnet101": ([3, 4, 23, 3], {}),
        "resnext50": ([3, 4, 6, 3], {"groups": 32, "width_per_group": 4}),
    }

    def __init__(
        self, kind: str, num_classes: int, images: Tensor, blocks: Sequence[int] | None = None
    ) -> None:
        published, groups = self.KINDS[kind]
        self.trunk = Trunk(blocks or published, images, num_classes, **groups)
        self.state = self.trunk.state(IN_SEQUENCE | {"fc": "classify."})

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.trunk.model(images)
        return logits


def add_linear(state: State, name: str, inside: int, outside: int, *kernel: int, bias: bool = True) -> None:
    state[f"{name}.weight"] = torch.randn(outside, inside, *kernel) * inside**-0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(outside) * 0.5


def add_norm(state: State, name: str, width: int) -> None:
    state[f"{name}.weight"] = 1 + 0.3 * torch.randn(width)
    state[f"{name}.bias"] = 0.3 * torch.randn(width)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + EPS).rsqrt()
    return centred * scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(projected: Sequence[Tensor], heads: int) -> Tensor:
    """Queries [B, N, heads * E], keys and values [B, M, heads * E] -> [B, N, heads * E], head by head."""
    outputs = []
    for query, key, value in zip(*(tensor.chunk(heads, dim=-1) for tensor in projected), strict=True):
        weights = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        outputs.append(weights @ value)
    return torch.cat(outputs, dim=-1)


class ReleasedTransformer:
    """R101+TF: pre-norm layers over patch tokens, then label tokens; word vectors are an input, in fp16."""

    HEADS = 4

    def __init__(
        self,
        images: Tensor,
        blocks: Sequence[int],
        *,
        width: int,
        layers: int,
        head_width: int,
        feedforward: int,
    ) -> None:
        self.trunk = Trunk(blocks, images)
        self.layers = layers
        self.state = self.trunk.state(IN_SEQUENCE)
        add_linear(self.state, "fc.0", 2048, width)
        add_linear(self.state, "label_emb.0", 300, width)
        for name in map("transformer.layers.{}".format, range(layers)):
            inner = self.HEADS * head_width
            add_norm(self.state, f"{name}.0.fn.norm", width)
            add_linear(self.state, f"{name}.0.fn.fn.to_qkv", width, 3 * inner, bias=False)
            add_linear(self.state, f"{name}.0.fn.fn.to_out.0", inner, width)
            add_norm(self.state, f"{name}.1.fn.norm", width)
            add_linear(self.state, f"{name}.1.fn.fn.net.0", width, feedforward)
            add_linear(self.state, f"{name}.1.fn.fn.net.3", feedforward, width)
        add_linear(self.state, "classify.0", width, 1)

    def logits(self, images: Tensor, word_vectors: Tensor) -> Tensor:
        state = self.state
        patches = linear(state, "fc.0", self.trunk.feature_map(images).flatten(2).transpose(1, 2))
        labels = linear(state, "label_emb.0", word_vectors.half().float()).relu()
        x = torch.cat([patches, labels.expand(len(images), -1, -1)], dim=1)
        for name in map("transformer.layers.{}".format, range(self.layers)):
            normed = layer_norm(state, f"{name}.0.fn.norm", x)
            projected = linear(state, f"{name}.0.fn.fn.to_qkv", normed).chunk(3, dim=-1)
            x = x + linear(state, f"{name}.0.fn.fn.to_out.0", attention(projected, self.HEADS))
            normed = layer_norm(state, f"{name}.1.fn.norm", x)
            inner = linear(state, f"{name}.1.fn.fn.net.0", normed)
            inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2  # GELU
            x = x + linear(state, f"{name}.1.fn.fn.net.3", inner)
        return linear(state, "classify.0", x[:, -len(word_vectors) :])[:, :, 0]


class ReleasedQuery2Label:
    """Query2Label on ResNet-101 with frozen norms; its decoder layers have no self-attention."""

    HEADS = 4

    def __init__(
        self,
        images: Tensor,
        blocks: Sequence[int],
        num_classes: int,
        *,
        width: int,
        encoder_layers: int,
        decoder_layers: int,
        feedforward: int,
    ) -> None:
        self.trunk = Trunk(blocks, images)
        side = images.shape[-1] // 32
        self.encoder = [f"transformer.encoder.layers.{index}" for index in range(encoder_layers)]
        self.decoder = [f"transformer.decoder.layers.{index}" for index in range(decoder_layers)]
        trunk = self.trunk.state({part: f"backbone.0.body.{part}." for part in IN_SEQUENCE})
        self.state = {key: tensor for key, tensor in trunk.items() if "num_batches_tracked" not in key}
        self.state["backbone.1.pe"] = self.positions(side, width)
        add_linear(self.state, "input_proj", 2048, width, 1, 1)
        self.state["query_embed.weight"] = torch.randn(num_classes, width)
        for name in self.encoder + self.decoder:
            kind, *norms = ("self_attn", 1, 2) if name in self.encoder else ("multihead_attn", 2, 3)
            add_linear(self.state, f"{name}.{kind}.in_proj", width, 3 * width)
            self.state[f"{name}.{kind}.in_proj_weight"] = self.state.pop(f"{name}.{kind}.in_proj.weight")
            self.state[f"{name}.{kind}.in_proj_bias"] = self.state.pop(f"{name}.{kind}.in_proj.bias")
            add_linear(self.state, f"{name}.{kind}.out_proj", width, width)
            add_linear(self.state, f"{name}.linear1", width, feedforward)
            add_linear(self.state, f"{name}.linear2", feedforward, width)
            for norm in norms:
                add_norm(self.state, f"{name}.norm{norm}", width)
        add_norm(self.state, "transformer.decoder.norm", width)
        self.state["fc.W"] = torch.randn(1, num_classes, width) * width**-0.5
        self.state["fc.b"] = torch.randn(1, num_classes)

    @staticmethod
    def positions(side: int, width: int) -> Tensor:
        """[1, width, side, side]: sines and cosines by turns, the first half of the channels of the row."""
        encoding = torch.zeros(1, width, side, side)
        half = width // 2
        for row, column, channel in itertools.product(range(side), range(side), range(width)):
            place = row if channel < half else column
            angle = (place + 1) / (side + 1e-6) * 2 * math.pi
            angle /= 10_000 ** (2 * (channel % half // 2) / half)
            encoding[0, channel, row, column] = math.cos(angle) if channel % 2 else math.sin(angle)
        return encoding

    def logits(self, images: Tensor) -> Tensor:
        state = self.state
        projected = F.conv2d(
            self.trunk.feature_map(images), state["input_proj.weight"], state["input_proj.bias"]
        )
        memory = projected.flatten(2).transpose(1, 2)
        places = state["backbone.1.pe"].flatten(2).transpose(1, 2)
        for name in self.encoder:
            placed = memory + places
            memory = memory + self._attended(f"{name}.self_attn", placed, placed, memory)
            memory = layer_norm(state, f"{name}.norm1", memory)
            memory = layer_norm(state, f"{name}.norm2", memory + self._fed_forward(name, memory))
        queries = state["query_embed.weight"].expand(len(images), -1, -1)
        x = torch.zeros_like(queries)
        for name in self.decoder:
            x = x + self._attended(f"{name}.multihead_attn", x + queries, memory + places, memory)
            x = layer_norm(state, f"{name}.norm2", x)
            x = layer_norm(state, f"{name}.norm3", x + self._fed_forward(name, x))
        x = layer_norm(state, "transformer.decoder.norm", x)
        return (x * state["fc.W"]).sum(dim=-1) + state["fc.b"]

    def _attended(self, name: str, *inputs: Tensor) -> Tensor:
        weights = self.state[f"{name}.in_proj_weight"].chunk(3)
        biases = self.state[f"{name}.in_proj_bias"].chunk(3)
        projected = [
            F.linear(x, weight, bias) for x, weight, bias in zip(inputs, weights, biases, strict=True)
        ]
        return linear(self.state, f"{name}.out_proj", attention(projected, self.HEADS))

    def _fed_forward(self, name: str, x: Tensor) -> Tensor:
        return linear(self.state, f"{name}.linear2", linear(self.state, f"{name}.linear1", x).relu())


class ReleasedTResNet:
    """TResNet-L with in-place ABN (Ridnik et al., 2021; Rota Bulò et al., 2018), a function at a time."""

    # blocks, channels, bottlenecks or basic blocks, stride of the first, squeeze and excitation
    STAGES: ClassVar[tuple[tuple[int, int, bool, int, bool], ...]] = (
        (4, 76, False, 1, True),
        (5, 152, False, 2, True),
        (18, 304, True, 2, True),
        (3, 608, True, 2, False),
    )

    def __init__(self, num_classes: int, images: Tensor) -> None:
        """Norms with statistics of `images`, so that logits depend on the picture."""
        self.state: State = {}
        self._conv_abn("body.conv1", 48, 76, 3)
        inside = 76
        for name, planes, bottleneck, stride, se in self._blocks():
            outside = planes * (4 if bottleneck else 1)
            blurred = ".0" if stride == 2 else ""
            if bottleneck:
                self._conv_abn(f"{name}.conv1", inside, planes, 1)
                self._conv_abn(f"{name}.conv2{blurred}", planes, planes, 3)
                self._conv_abn(f"{name}.conv3", planes, outside, 1)
            else:
                self._conv_abn(f"{name}.conv1{blurred}", inside, planes, 3)
                self._conv_abn(f"{name}.conv2", planes, planes, 3)
            if se:
                reduced = max(planes // 2, 64) if bottleneck else max(planes // 4, 64)
                add_linear(self.state, f"{name}.se.fc1", planes, reduced, 1, 1)
                add_linear(self.state, f"{name}.se.fc2", reduced, planes, 1, 1)
            if stride == 2 or inside != outside:
                self._conv_abn(f"{name}.downsample.{int(stride == 2)}", inside, outside, 1)
            inside = outside
        add_linear(self.state, "head.fc", inside, num_classes)
        self.measured = False
        self.logits(images)
        self.measured = True

    def _blocks(self) -> Iterator[tuple[str, int, bool, int, bool]]:
        for stage, (count, planes, bottleneck, stride, se) in enumerate(self.STAGES, start=1):
            for index in range(count):
                yield f"body.layer{stage}.{index}", planes, bottleneck, 1 if index else stride, se

    def _conv_abn(self, name: str, inside: int, outside: int, side: int) -> None:
        self.state |= {
            f"{name}.0.weight": torch.randn(outside, inside, side, side) * (2 / inside / side**2) ** 0.5,
            f"{name}.1.weight": torch.randn(outside) * 0.4,  # of both signs: in-place ABN takes |weight|
            f"{name}.1.bias": torch.randn(outside) * 0.2,
        }

    def logits(self, images: Tensor) -> Tensor:
        x = torch.cat([images[:, :, i::4, j::4] for i in range(4) for j in range(4)], dim=1)
        x = self._convolved("body.conv1", x, 0.01)
        for name, _, bottleneck, stride, se in self._blocks():
            shortcut = x
            if f"{name}.downsample.{int(stride == 2)}.0.weight" in self.state:
                if stride == 2:
                    shortcut = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
                shortcut = self._convolved(f"{name}.downsample.{int(stride == 2)}", shortcut, 1)
            if bottleneck:
                x = self._convolved(f"{name}.conv1", x, 1e-3)
                x = self._blurred(f"{name}.conv2", x, stride)
                x = self._excited(f"{name}.se", x) if se else x
                x = self._convolved(f"{name}.conv3", x, 1)
            else:
                x = self._blurred(f"{name}.conv1", x, stride)
                x = self._convolved(f"{name}.conv2", x, 1)
                x = self._excited(f"{name}.se", x) if se else x
            x = (x + shortcut).relu()
        return linear(self.state, "head.fc", x.mean(dim=(2, 3)))

    def _convolved(self, name: str, x: Tensor, slope: float) -> Tensor:
        """Convolution, norm by the running statistics, leaky ReLU; a slope of 1 is none."""
        kernel = self.state[f"{name}.0.weight"]
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        if not self.measured:
            self.state[f"{name}.1.running_mean"] = x.mean(dim=(0, 2, 3))
            self.state[f"{name}.1.running_var"] = x.var(dim=(0, 2, 3))
        scale, shift, mean, variance = (
            self.state[f"{name}.1.{part}"].view(-1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        x = (x - mean) / (variance + EPS).sqrt() * (scale.abs() + EPS) + shift
        return torch.where(x > 0, x, slope * x)

    def _blurred(self, name: str, x: Tensor, stride: int) -> Tensor:
        """Convolution with stride 1; where the block has stride 2, a binomial blur takes every second."""
        if stride == 1:
            return self._convolved(name, x, 1e-3)
        x = F.pad(self._convolved(f"{name}.0", x, 1e-3), (1, 1, 1, 1), mode="reflect")
        binomial = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(binomial, binomial) / 16
        return F.conv2d(x, kernel.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])

    def _excited(self, name: str, x: Tensor) -> Tensor:
        gate = x.mean(dim=(2, 3), keepdim=True)
        gate = F.conv2d(gate, self.state[f"{name}.fc1.weight"], self.state[f"{name}.fc1.bias"]).relu()
        gate = F.conv2d(gate, self.state[f"{name}.fc2.weight"], self.state[f"{name}.fc2.bias"])
        return x * gate.sigmoid()
