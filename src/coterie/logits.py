"""What the models of a run said of every measured image, kept so that nobody needs to run them again.

For each split a folder of `.npy` files, which can be mapped into memory, and an index that is written last.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
from torch import Tensor

from coterie.data.dataset import MultiLabelDataset
from coterie.errors import RunError
from coterie.files import atomic_write
from coterie.runfolder import read_keyed
from coterie.untrusted import parse_json

LOGITS_FOLDER = "logits"
INDEX_FILE = "index.json"
TARGETS_FILE = "targets.npy"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SplitLogits:
    """The logits float32 [N, C] of every model on one split, and its targets int8 [N, C].

    `key`: what they were made from, as `runfolder.measurement_key` gives it.
    """

    split: str
    key: str
    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    targets: npt.NDArray[np.int8]
    models: Mapping[str, npt.NDArray[np.float32]]


@dataclass
class LogitsWriter:
    """Writes the logits of a run, model by model; `key` says what they were made from."""

    run: Path
    key: str
    dataset: MultiLabelDataset
    _models: dict[str, dict[str, str]] = field(default_factory=dict)

    def put(self, split: str, model: str, logits: Tensor, targets: Tensor) -> None:
        """Logits [N, C] and targets [N, C] of the images of `split`, in the order of the dataset."""
        folder = _folder(self.run, split)
        models = self._models.setdefault(split, {})
        if not models:  # the first: what is there is of other models from here on
            (folder / INDEX_FILE).unlink(missing_ok=True)
            _save(folder / TARGETS_FILE, targets.numpy())
        models[model] = f"{model.replace(' ', '-')}.npy"
        _save(folder / models[model], logits.numpy().astype(np.float32, copy=False))

    def finish(self) -> None:
        """Write the index of every split: from now on the logits are there."""
        for split, models in self._models.items():
            positions = self.dataset.indices(split)
            index = {
                "schema_version": SCHEMA_VERSION,
                "key": self.key,
                "class_names": self.dataset.class_names,
                "image_ids": [self.dataset.image_ids[position] for position in positions],
                "models": models,
            }
            atomic_write(_folder(self.run, split) / INDEX_FILE, json.dumps(index, ensure_ascii=False))


def are_written(run: Path, splits: list[str], key: str) -> bool:
    """Whether the logits of all `splits` are there, made from what `key` stands for."""
    return all(read_keyed(_folder(run, split) / INDEX_FILE, key) is not None for split in splits)


def written_splits(run: Path) -> list[str]:
    """The splits whose logits a run holds, "val" first."""
    found = [unquote(path.parent.name) for path in (run / LOGITS_FOLDER).glob(f"*/{INDEX_FILE}")]
    return sorted(found, key=lambda split: (split != "val", split))


def read_logits(run: Path, split: str) -> SplitLogits:
    """The logits of a split, mapped from their files; RunError where a run has none, or they are damaged."""
    folder = _folder(run, split)
    remedy = "the `coterie run` command of the run, given again, measures its models and trains nothing anew"
    try:
        index: dict[str, Any] = parse_json((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = written_splits(run)
        known = f"; it has those of {', '.join(there)}" if there else ""
        raise RunError(f"{run} holds no logits of split '{split}'{known}: {remedy}") from None
    try:
        key, names, ids = index["key"], tuple(index["class_names"]), tuple(index["image_ids"])
        models = {name: _load(folder, file) for name, file in index["models"].items()}
        targets = np.array(_load(folder, TARGETS_FILE))
        shapes = {array.shape for array in (targets, *models.values())}
        if index["schema_version"] != SCHEMA_VERSION or not models or shapes != {(len(ids), len(names))}:
            raise ValueError(f"arrays of {sorted(shapes)} for {len(ids)} images of {len(names)} classes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"the logits in {folder} are damaged ({error}); remove that folder: {remedy}"
        ) from None
    return SplitLogits(split, key, names, ids, targets, models)


def _folder(run: Path, split: str) -> Path:
    """Where the logits of a split are; its name comes from the data, and may hold anything."""
    return run / LOGITS_FOLDER / quote(split, safe="")


def _load(folder: Path, name: str) -> npt.NDArray[Any]:
    """The array in a file of `folder`, mapped; ValueError where it is no array, or the name is a path."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a file beside it")
    # mapped, so that an array that says it is larger than its file takes no memory
    try:
        array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # on a damaged header numpy raises nearly anything
        raise ValueError(f"{name} cannot be read: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "if":
        raise ValueError(f"{name} holds no array of numbers")
    return array


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    atomic_write(path, buffer.getvalue())
