"""A checkpoint explains itself: weights as safetensors, and beside them all that is needed to use them, as
JSON.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from coterie.config import HEAD_SECTIONS, ModelConfig
from coterie.data.transforms import Preprocessing
from coterie.errors import CheckpointError, ConfigError, counted, shortened
from coterie.files import atomic_write
from coterie.models.factory import ModelBuilder, ModelFactory, builder_name
from coterie.untrusted import parse_json

SCHEMA_VERSION = 3
WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "checkpoint.json"
# The settings of a model that a checkpoint holds; none of them brings weights from elsewhere.
ARCHITECTURE = ("name", "image_size", "drop_rate", "options", "head")
FURTHER = ("head_options", "shrink")


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class Checkpoint:
    """What is known about trained weights; `weights_sha256` is of the file beside it.

    Scores are sigmoid(logits / `temperature`). `thresholds`, one for each class, were chosen for them after
    the training; without them `threshold` holds for all.
    """

    name: str
    class_names: tuple[str, ...]
    architecture: dict[str, Any]
    preprocessing: Preprocessing
    threshold: Share
    metrics: dict[str, Any]
    config: dict[str, Any]
    weights_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    thresholds: tuple[Share, ...] | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def class_thresholds(self) -> tuple[float, ...]:
        """For each class the score above which it is a label."""
        return (self.threshold,) * len(self.class_names) if self.thresholds is None else self.thresholds


def describe_architecture(factory: ModelFactory) -> dict[str, Any]:
    """What `load_model` needs to build the model again. A user's own model is named, never imported by
    itself.
    """
    settings = factory.settings
    if factory.builder is not None:
        name = settings.name if ":" in settings.name else builder_name(factory.builder)
        return {"kind": "own", "builder": name}
    architecture = {key: getattr(settings, key) for key in ARCHITECTURE}
    further = {"head_options": factory.head_options, "shrink": factory.shrink}
    return {"kind": "coterie", **architecture, **further}


def save_checkpoint(folder: Path, model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """Write both files, weights first, each in one step; the checkpoint with hash and versions."""
    # cloned, since safetensors refuses tensors that share memory, as tied weights do
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.state_dict().items()}
    weights = save(tensors)
    written = Checkpoint(
        **{
            key: value for key, value in vars(checkpoint).items() if key not in ("weights_sha256", "versions")
        },
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "timm") if _is_installed(name)},
        },
    )
    atomic_write(folder / WEIGHTS_FILE, weights)
    write_description(folder, written)
    return written


def write_description(folder: Path, checkpoint: Checkpoint) -> None:
    """Write what is known about the weights in `folder`, as it stands, and leave the weights alone."""
    content = {"schema_version": SCHEMA_VERSION, **asdict(checkpoint)}
    atomic_write(folder / INFO_FILE, json.dumps(content, indent=1))


def read_checkpoint(folder: Path) -> Checkpoint:
    """What `folder` says of its weights; CheckpointError where it is none, or from another schema."""
    path = folder / INFO_FILE
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {folder}: {INFO_FILE} is not there") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None
    found = content.pop("schema_version", None) if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has schema version {found}, and this version of Coterie reads "
            f"{SCHEMA_VERSION}: use the version that wrote it, or train again"
        )
    for key in sorted({one.name for one in fields(Checkpoint)} ^ content.keys()):
        wrong = "Field unknown" if key in content else "Field required"
        raise CheckpointError(f"checkpoint {path} is damaged: '{key}': {wrong}")
    try:
        checkpoint = TypeAdapter(Checkpoint).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"checkpoint {path} is damaged: '{key}': {problem['msg']}") from None
    if checkpoint.thresholds is not None and len(checkpoint.thresholds) != len(checkpoint.class_names):
        raise CheckpointError(
            f"checkpoint {path} is damaged: {counted(len(checkpoint.thresholds), 'threshold')} for "
            f"{counted(len(checkpoint.class_names), 'class', 'classes')}"
        )
    architecture = checkpoint.architecture
    is_own = architecture.get("kind") == "own" and isinstance(architecture.get("builder"), str)
    is_ours = architecture.get("kind") == "coterie" and set(architecture) == {"kind", *ARCHITECTURE, *FURTHER}
    if not is_own and not is_ours:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: its architecture must be "
            f"{shortened((*ARCHITECTURE, *FURTHER), 7)} of a model of coterie, and is {architecture}"
        )
    return checkpoint


def load_model(folder: Path, builder: ModelBuilder | None = None) -> tuple[nn.Module, Checkpoint]:
    """The model in `folder`, in evaluation mode, and its description.

    `builder` is needed for a user's own model, as loading runs no code that a file names. Raises
    CheckpointError where files are missing, damaged, or do not fit the model key by key.
    """
    checkpoint = read_checkpoint(folder)
    path = folder / WEIGHTS_FILE
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"weights {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(weights).hexdigest() != checkpoint.weights_sha256:
        raise CheckpointError(f"weights {path} are damaged: their hash is not the one in {INFO_FILE}")
    model = _build(checkpoint, folder, builder)
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise CheckpointError(f"weights {path} cannot be read: {error}") from None
    own = model.state_dict()
    wrong = [key for key in own.keys() | tensors.keys() if _shape(own, key) != _shape(tensors, key)]
    if wrong:
        raise CheckpointError(
            f"weights {path} do not fit the model: {len(wrong)} tensors differ, {shortened(sorted(wrong))}"
        )
    model.load_state_dict(tensors)
    return model.eval(), checkpoint


def _build(checkpoint: Checkpoint, folder: Path, builder: ModelBuilder | None) -> nn.Module:
    architecture = checkpoint.architecture
    is_own = architecture["kind"] == "own"
    if is_own and builder is None:
        raise CheckpointError(
            f"checkpoint {folder} is of your own model {architecture['builder']}, and loading runs no "
            "code by itself: give the builder, in Python as model=BUILDER, on the command line as "
            "--model module:function"
        )
    try:
        if is_own:
            return ModelFactory(ModelConfig(), builder).build(checkpoint.class_names)
        values = {key: architecture[key] for key in ARCHITECTURE}
        if (section := HEAD_SECTIONS.get(str(values["head"]))) is not None:
            values[section] = architecture["head_options"]
        factory = ModelFactory(ModelConfig(**values), shrink=architecture["shrink"])
        return factory.build(checkpoint.class_names)
    except (ConfigError, ValidationError) as error:
        raise CheckpointError(f"the model of checkpoint {folder} cannot be built: {error}") from None


def _shape(tensors: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True
