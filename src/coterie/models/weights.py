"""Backbone weights from a file: every key is accounted for, and a file of another architecture is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coterie.errors import CheckpointError, shortened

# What training scripts and wrappers put before the names of a model.
WRAPPERS = ("_orig_mod", "module", "model", "backbone", "encoder")
# Where files keep the state dict, when it is not at the top.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class LoadReport:
    """Which keys of a weights file went into the backbone, and which belong to the file's own classifier."""

    path: Path
    loaded: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        rest = (
            f"; left out, as they are of its own classifier: {shortened(self.left_out)}"
            if self.left_out
            else ""
        )
        return f"{self.path.name}: all {self.loaded} tensors of the backbone loaded{rest}"


def load_backbone_weights(backbone: nn.Module, path: Path, classifier: tuple[str, ...] = ()) -> LoadReport:
    """Load a state dict or safetensors file into `backbone`, whole.

    `classifier`: prefixes of the keys in such files that belong to their own head, and are left out.
    Raises CheckpointError where a tensor is missing or has another shape, or the file has others.
    """
    wanted = backbone.state_dict()
    content = read_state_dict(path)
    if all(key.startswith(("backbone.", "head.")) for key in content):
        classifier = ("head",)  # the file is of a Classifier, as trained by coterie
    given = _without_wrappers(content, wanted)
    # A file from a version of torch or a converter that does not write this counter is whole all the same.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    shapes = [
        f"{key} is {list(given[key].shape)} in the file and {list(wanted[key].shape)} in the model"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    others = [key for key in given if key not in wanted]
    heads = tuple(f"{prefix}." for prefix in classifier)
    left_out = tuple(sorted(key for key in others if key.startswith(heads)))
    unexpected = [key for key in others if key not in left_out]
    problems = [
        f"{len(missing)} tensors are missing from it ({shortened(missing)})" if missing else "",
        f"{len(shapes)} have another shape ({'; '.join(shapes[:2])})" if shapes else "",
        f"{len(unexpected)} are of no part of the model ({shortened(unexpected)})" if unexpected else "",
    ]
    if any(problems):
        raise CheckpointError(
            f"weights file {path} is not of this backbone: of its {len(wanted)} tensors "
            f"{'; '.join(problem for problem in problems if problem)}. Choose the "
            "model.name that the file was made for, or another file"
        )
    found = {key: tensor for key, tensor in given.items() if key in wanted}
    backbone.load_state_dict(found, strict=False)
    return LoadReport(path, len(found), left_out)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict saved by torch; no code in it is run."""
    if not path.is_file():
        raise CheckpointError(f"weights file {path} is not there")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except Exception as error:
            raise CheckpointError(f"weights file {path} cannot be read: {error}") from None
    try:
        _check_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # On a damaged file torch raises nearly anything, and on code in it advice to run that code.
    except Exception:
        raise CheckpointError(
            f"weights file {path} cannot be read: it is damaged, is no file of torch, or holds objects other "
            "than tensors; those are never loaded. Save the model's state_dict(), best as safetensors"
        ) from None
    return _state_dict_in(content, path)


def _check_stored(path: Path) -> None:
    """ValueError where a zip file is compressed: torch writes none, and it may unfold to any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed")


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise CheckpointError(f"weights file {path} holds no state dict")


def _without_wrappers(given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefix of wrappers that finds most of the backbone's keys, the shortest of those."""
    prefixes = {"".join(f"{part}." for part in parts) for key in given for parts in _leading_wrappers(key)}
    best = given
    for prefix in sorted(prefixes, key=len):
        stripped = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
        if len(stripped) == len(given) and len(stripped.keys() & wanted) > len(best.keys() & wanted):
            best = stripped
    return best


def _leading_wrappers(key: str) -> list[list[str]]:
    """'module.model.conv.weight' -> [['module'], ['module', 'model']]."""
    parts = key.split(".")
    count = next((number for number, part in enumerate(parts) if part not in WRAPPERS), len(parts))
    return [parts[:number] for number in range(1, count + 1)]
