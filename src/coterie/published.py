"""Checkpoints of the public PSD release (Xu et al., IJCAI 2022) made into ours.

The release saves bare state dicts: `module.` before each key, twice where the weights are averaged ones.
It feeds images scaled to 0..1 and nothing else, so mean is 0 and std 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.checkpoint import INFO_FILE, Checkpoint, describe_architecture, save_checkpoint
from coterie.config import Config, ModelConfig
from coterie.errors import CheckpointError, DataError, did_you_mean, either, listed, repeated, shortened
from coterie.models.factory import ModelFactory
from coterie.models.heads.query2label import sine_positions
from coterie.models.weights import read_state_dict
from coterie.models.word_vectors import WordVectors

State = dict[str, Tensor]

WRAPPER = "module."
TRAINED_SIZE = 448
# Pixels for each place of the feature map.
STRIDE = 32
POSITIONS = "backbone.1.pe"
LABEL_VECTORS = "head.label_vectors"
# The score above which the release takes a label for its CF1 and OF1.
THRESHOLD = 0.8
ABN_EPS = 1e-5

# Lists of class names in `class_names/`, in the release's order, which is alphabetical. That of the COCO
# annotation files is another.
DATASETS = ("coco", "nuswide")


# Patterns of keys and what they become.
Names = Mapping[str, str]

RESNET = {
    r"features\.0\.": "backbone.conv1.",
    r"features\.1\.": "backbone.bn1.",
    r"features\.4\.": "backbone.layer1.",
    r"features\.5\.": "backbone.layer2.",
    r"features\.6\.": "backbone.layer3.",
    r"features\.7\.": "backbone.layer4.",
}
LINEAR = RESNET | {r"classify\.": "head."}
# A convolution and its norm are 0 and 1 of a sequence; where a blur follows, that sequence is 0 of another.
PAIR = r"(body\..*?(?:conv\d|downsample\.\d))(?:\.0)?"
TRESNET = {
    PAIR + r"\.0\.(?=weight$)": r"backbone.\1.conv.",
    PAIR + r"\.1\.(?=\w+$)": r"backbone.\1.bn.",
    r"body\.(?=.*\.se\.)": "backbone.body.",
    r"head\.fc\.": "head.",
}
ATTENTION = r"transformer\.layers\.(\d+)\.0\.fn\."
FEEDFORWARD = r"transformer\.layers\.(\d+)\.1\.fn\."
TRANSFORMER = RESNET | {
    r"fc\.0\.": "head.project.",
    r"label_emb\.0\.": "head.project_labels.0.",
    ATTENTION + r"norm\.": r"head.layers.\1.attention_norm.",
    ATTENTION + r"fn\.to_qkv\.": r"head.layers.\1.attention.project.",
    ATTENTION + r"fn\.to_out\.0\.": r"head.layers.\1.attention.output.",
    FEEDFORWARD + r"norm\.": r"head.layers.\1.feedforward_norm.",
    FEEDFORWARD + r"fn\.net\.": r"head.layers.\1.feedforward.",
    r"classify\.0\.": "head.classify.",
}
ENCODER = r"transformer\.encoder\.layers\.(\d+)\."
DECODER = r"transformer\.decoder\.layers\.(\d+)\."
QUERY2LABEL = {
    r"backbone\.0\.body\.": "backbone.",
    r"input_proj\.": "head.project.",
    r"query_embed\.weight$": "head.queries",
    ENCODER + r"self_attn\.": r"head.encoder.\1.attention.",
    ENCODER + r"norm1\.": r"head.encoder.\1.attention_norm.",
    ENCODER + r"linear1\.": r"head.encoder.\1.feedforward.0.",
    ENCODER + r"linear2\.": r"head.encoder.\1.feedforward.3.",
    ENCODER + r"norm2\.": r"head.encoder.\1.output_norm.",
    DECODER + r"multihead_attn\.": r"head.decoder.\1.attention.",
    DECODER + r"norm2\.": r"head.decoder.\1.attention_norm.",
    DECODER + r"linear1\.": r"head.decoder.\1.feedforward.0.",
    DECODER + r"linear2\.": r"head.decoder.\1.feedforward.3.",
    DECODER + r"norm3\.": r"head.decoder.\1.output_norm.",
    r"transformer\.decoder\.norm\.": "head.norm.",
    r"fc\.W$": "head.classify.weight",
    r"fc\.b$": "head.classify.bias",
}


@dataclass(frozen=True)
class ReleasedModel:
    """One architecture of the release: our settings of it, and where its tensors go.

    `mark`: keys that tell it from the models after it in MODELS, with their shapes where these tell it.
    `bias`: the key with one number for each class. `computed`: keys of constants that our model computes.
    `value`: our tensor from our name and the release's tensor.
    """

    mark: Mapping[str, tuple[int, ...] | None]
    settings: Mapping[str, Any]
    names: Names
    bias: str | None = None
    computed: str | None = None
    value: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor

    def is_shown_by(self, state: State) -> bool:
        return all(
            key in state and shape in (None, tuple(state[key].shape)) for key, shape in self.mark.items()
        )

    def our_name(self, key: str) -> str | None:
        """The name in our model of a key of the release; None where it has no place there."""
        for pattern, ours in self.names.items():
            if match := re.match(pattern, key):
                return match.expand(ours) + key[match.end() :]
        return None


def _abn_to_batch_norm(name: str, tensor: Tensor) -> Tensor:
    """In-place ABN scales by |weight| + eps, batch norm by weight."""
    return tensor.abs() + ABN_EPS if name.endswith("bn.weight") else tensor


def _grouped(name: str, tensor: Tensor) -> Tensor:
    """Query2Label's last layer: weight [1, C, D] -> [C, D, 1], bias [1, C] -> [C]."""
    if name == "head.classify.weight":
        return tensor.squeeze(0).unsqueeze(-1)
    return tensor.squeeze(0) if name == "head.classify.bias" else tensor


# The shape of this convolution tells a ResNet from a ResNeXt.
BLOCK = "features.4.0.conv2.weight"
MODELS = {
    "resnet101-tf": ReleasedModel(
        mark={"label_emb.0.weight": None},
        settings={
            "name": "resnet101",
            "head": "transformer",
            "transformer": {"width": 1024, "layers": 3, "heads": 4, "head_width": 1024, "feedforward": 1024},
        },
        names=TRANSFORMER,
    ),
    "q2l-resnet101": ReleasedModel(
        mark={"query_embed.weight": None},
        settings={
            "name": "resnet101",
            "head": "query2label",
            "query2label": {
                "width": 2048, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 8192
            },
        },
        names=QUERY2LABEL,
        bias="fc.b",
        computed=r"backbone\.1\.pe$",
        value=_grouped,
    ),
    "tresnet_l": ReleasedModel(
        mark={"body.conv1.0.weight": None},
        settings={"name": "tresnet_l"},
        names=TRESNET,
        bias="head.fc.bias",
        computed=r"body\..*\.filt$",
        value=_abn_to_batch_norm,
    ),
    "resnet101": ReleasedModel(
        mark={"classify.bias": None, BLOCK: (64, 64, 3, 3)},
        settings={"name": "resnet101"},
        names=LINEAR,
        bias="classify.bias",
    ),
    "resnext50": ReleasedModel(
        mark={"classify.bias": None, BLOCK: (128, 4, 3, 3)},
        settings={"name": "resnext50_32x4d"},
        names=LINEAR,
        bias="classify.bias",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """What became of a file of the release; `left_out`: keys of constants that our model computes itself."""

    folder: Path
    model: str
    class_names: tuple[str, ...]
    image_size: int
    loaded: int
    left_out: tuple[str, ...]
    word_vectors: WordVectors | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.model}, {len(self.class_names)} classes, images of {self.image_size} px",
            f"{self.loaded} tensors loaded, all that the model has",
        ]
        if self.left_out:
            lines.append(f"left out, since the model computes them: {shortened(self.left_out)}")
        if self.word_vectors is not None:
            lines.append(str(self.word_vectors))
        return "\n".join(lines)


def import_cpsd(
    path: str | Path,
    out: str | Path,
    class_names: Sequence[str],
    *,
    model: str | None = None,
    image_size: int | None = None,
    word_vectors: str | Path | None = None,
) -> Imported:
    """Write the state dict `path` of the public PSD release as our checkpoint into the folder `out`.

    `class_names`: in the file's order, that of `released_classes` in the published files. `model`: by default
    what the keys show. `image_size`: by default 448, or what the file tells. `word_vectors`: a file of those
    that R101+TF was trained with. Raises CheckpointError where the file is of another model, or a key is
    missing or left over. No code in the file is run.
    """
    path, folder = Path(path), Path(out)
    if (folder / INFO_FILE).exists():
        raise CheckpointError(f"there is a checkpoint in {folder} already; choose another folder")
    state = _unwrapped(read_state_dict(path), path)
    name = _find_model(state, path, model)
    released = MODELS[name]
    _check_classes(class_names, None if released.bias is None else state.get(released.bias), path)
    _check_word_vectors(name, word_vectors, path)
    computed = {key: state.pop(key) for key in list(state) if re.match(released.computed or r"(?!)", key)}
    trained_size = _trained_size(computed, path)
    settings = ModelConfig(
        **released.settings,
        image_size=image_size or trained_size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        word_vectors=None if word_vectors is None else Path(word_vectors),
    )
    factory = ModelFactory(settings)
    network = factory.build(class_names)
    words = factory.read_word_vectors(class_names)
    own = {} if words is None else {LABEL_VECTORS: words.vectors.half().float()}  # the release halves them
    matched = _matched(state, released, network.state_dict(), path, given=own)
    network.load_state_dict(matched, strict=False)
    values = Config(model=settings, threshold=THRESHOLD).to_values()
    checkpoint = Checkpoint(
        name=name,
        class_names=tuple(class_names),
        architecture=describe_architecture(factory),
        preprocessing=factory.preprocessing,
        threshold=THRESHOLD,
        metrics={},
        config={key: value for key, value in values.items() if key != "data"},  # it has none of its own here
    )
    save_checkpoint(folder, network, checkpoint)
    size = factory.preprocessing.image_size
    return Imported(folder, name, checkpoint.class_names, size, len(state), tuple(computed), words)


def released_classes(dataset: str) -> tuple[str, ...]:
    """The class names of the release for "coco" or "nuswide", in its order."""
    if dataset not in DATASETS:
        hint = did_you_mean(dataset, DATASETS)
        raise DataError(f"the release has no dataset '{dataset}'; choose {either(DATASETS)}{hint}")
    with resources.as_file(resources.files("coterie") / "class_names" / f"{dataset}.txt") as path:
        return read_class_names(path)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a text file, one on each line; DataError where there is none, or one twice."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class names {path} cannot be read: {error}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or (twice := repeated(names)):
        problem = f"names {shortened(twice)} twice" if names else "names no class"
        raise DataError(f"class names {path}: it {problem}; write each class on a line of its own")
    return names


def _unwrapped(state: Mapping[str, Tensor], path: Path) -> State:
    """The keys without the wrappers' prefix; CheckpointError where two become one."""
    bare = {key: re.sub(rf"^(?:{re.escape(WRAPPER)})+", "", key) for key in state}
    if twice := repeated(bare.values()):
        raise CheckpointError(
            f"checkpoint {path} holds more than one model: {shortened(twice)} is in it with and without "
            f"'{WRAPPER}'"
        )
    return {bare[key]: tensor for key, tensor in state.items()}


def _find_model(state: State, path: Path, asked: str | None) -> str:
    """The name in MODELS whose keys the state dict has; CheckpointError where it is none, or not `asked`."""
    models = shortened(list(MODELS))
    if asked is not None and asked not in MODELS:
        raise CheckpointError(
            f"the release has no model '{asked}'; its models are {models}{did_you_mean(asked, MODELS)}"
        )
    found = next((name for name, released in MODELS.items() if released.is_shown_by(state)), None)
    if found is None:
        raise CheckpointError(
            f"checkpoint {path} is of none of the models of the public PSD release, {models}; its keys are "
            f"{shortened(list(state))}"
        )
    if asked not in (None, found):
        raise CheckpointError(f"checkpoint {path} is of {found}, not of {asked}")
    return found


def _check_classes(class_names: Sequence[str], bias: Tensor | None, path: Path) -> None:
    if twice := repeated(class_names):
        raise CheckpointError(f"classes are named more than once: {shortened(twice)}")
    if bias is not None and len(class_names) != bias.numel():
        raise CheckpointError(
            f"checkpoint {path} is of {bias.numel()} classes, and {len(class_names)} are named; name its "
            "own, in its order"
        )


def _check_word_vectors(name: str, word_vectors: str | Path | None, path: Path) -> None:
    needed = MODELS[name].settings.get("head") == "transformer"
    if needed and word_vectors is None:
        raise CheckpointError(
            f"checkpoint {path} is of {name}, which takes word vectors of the classes, and has none; name "
            "the file that it was trained with, GloVe of 300 numbers"
        )
    if word_vectors is not None and not needed:
        raise CheckpointError(f"checkpoint {path} is of {name}, which takes no word vectors; leave them out")


def _trained_size(computed: State, path: Path) -> int:
    """The side in pixels: 448, or what the position encoding tells, one place for 32 pixels.

    CheckpointError where that encoding is not the one that our model computes.
    """
    positions = computed.get(POSITIONS)
    if positions is None:
        return TRAINED_SIZE
    if positions.ndim == 4:
        _, channels, height, width = positions.shape
        ours = sine_positions(height, width, channels).T.reshape(1, channels, height, width)
        # of an averaged model they are averages too, and off by what rounding adds up to
        if height == width and torch.allclose(positions.float(), ours, rtol=0, atol=1e-3):
            return STRIDE * height
    raise CheckpointError(
        f"checkpoint {path}: its positions {POSITIONS} {list(positions.shape)} are not the sine encoding of "
        "Query2Label"
    )


def _matched(
    state: State, released: ReleasedModel, wanted: Mapping[str, Tensor], path: Path, given: State
) -> State:
    """The tensors of `state` by our names, with those `given`.

    CheckpointError where one that is wanted is missing or of another shape, or a key is left over.
    """
    matched = dict(given)
    left: list[str] = []
    shapes: list[str] = []
    for key, tensor in state.items():
        name = released.our_name(key)
        if name is None or name not in wanted or name in matched:
            left.append(key)
            continue
        matched[name] = released.value(name, tensor)
        if matched[name].shape != wanted[name].shape:
            shapes.append(f"{key} {list(tensor.shape)}, for {list(wanted[name].shape)} in the model")
    # not every norm of the release counts its batches, and no result depends on the count
    missing = [key for key in wanted if key not in matched and not key.endswith("num_batches_tracked")]
    problems = [
        f"{len(left)} of its keys have no place there: {shortened(left)}" if left else "",
        f"{len(missing)} tensors are missing: {shortened(missing)}" if missing else "",
        f"{len(shapes)} have another shape: {listed(shapes, 2)}" if shapes else "",
    ]
    if any(problems):
        found = "; ".join(problem for problem in problems if problem)
        raise CheckpointError(f"checkpoint {path} does not fit the model, and nothing was written: {found}")
    return matched
