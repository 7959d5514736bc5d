"""Which classes of a dataset stand for which of a model, where the two do not name them alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN, MultiLabelDataset
from coterie.errors import ConfigError, DataError, did_you_mean, repeated, shortened
from coterie.untrusted import parse_json, parse_yaml

SAME = "same"  # in the place of a file


@dataclass(frozen=True)
class Measured:
    """A class as it is measured: present where any of the `dataset` classes is, with the greatest score of
    the `model` classes.
    """

    name: str
    dataset: tuple[str, ...]
    model: tuple[str, ...]


@dataclass(frozen=True)
class ClassMapping:
    """The measured classes, and the classes of both sides that none of them has."""

    measured: tuple[Measured, ...]
    unmapped_dataset: tuple[str, ...]
    unmapped_model: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.measured)

    def dataset_of(self, dataset: MultiLabelDataset) -> MultiLabelDataset:
        """The dataset with the measured classes: present where any of theirs is, unknown where any may be."""
        column = {name: place for place, name in enumerate(dataset.class_names)}
        dense = np.asarray(dataset.targets)
        targets = np.empty((len(dataset), len(self.measured)), np.int8)
        for place, one in enumerate(self.measured):
            parts = dense[:, [column[name] for name in one.dataset]]
            unknown = np.where((parts == UNKNOWN).any(axis=1), UNKNOWN, ABSENT)
            targets[:, place] = np.where((parts == PRESENT).any(axis=1), PRESENT, unknown)
        return replace(dataset, targets=targets, class_names=self.names)

    def scores_of(
        self, scores: npt.NDArray[np.float64], class_names: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """The scores [N, measured] from those of a model [N, C] with `class_names`."""
        column = {name: place for place, name in enumerate(class_names)}
        parts = [scores[:, [column[name] for name in one.model]].max(axis=1) for one in self.measured]
        return np.stack(parts, axis=1)

    def thresholds_of(self, thresholds: Sequence[float], class_names: Sequence[str]) -> tuple[float, ...]:
        """The thresholds of the measured classes from those of the model; ConfigError where the classes that
        one of them is scored by have different ones.
        """
        of = dict(zip(class_names, thresholds, strict=True))
        for one in self.measured:
            if len({of[name] for name in one.model}) > 1:
                raise ConfigError(
                    f"'{one.name}' is scored by {shortened(one.model)}, which have thresholds of their own; "
                    "give one for all: threshold=0.5"
                )
        return tuple(of[one.model[0]] for one in self.measured)


def same_classes(dataset: Sequence[str], model: Sequence[str]) -> ClassMapping:
    """Classes of the same name, in the order of the model; DataError where there is none."""
    common = [name for name in model if name in dataset]
    if not common:
        raise DataError(
            f"the data and the model have no class of the same name: {shortened(dataset)} in the data, "
            f"{shortened(model)} in the model; --class-map FILE says which stands for which"
        )
    return _mapping([Measured(name, (name,), (name,)) for name in common], dataset, model)


def map_classes(
    pairs: Mapping[str, str | Sequence[str]], dataset: Sequence[str], model: Sequence[str]
) -> ClassMapping:
    """From {class of the data: class of the model}, or several classes of the model.

    Classes of the data with the same class of the model are measured as one, under its name; one with several
    under its own. What `pairs` do not name is not measured. ConfigError where a name is unknown, or a class
    of the model stands alone and with others.
    """
    lists = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in pairs.items()}
    if not lists:
        raise ConfigError(
            "the mapping of classes is empty; it needs a class of the data and one of the model"
        )
    for kind, used, known in (
        ("data", list(lists), dataset),
        ("model", [name for names in lists.values() for name in names], model),
    ):
        for name in used:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(
                    f"the mapping names {shortened([name])}, which is no class of the {kind}{hint}"
                )
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, names in lists.items():
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the mapping gives {shortened([name])} no class of the model, or one twice")
        groups.setdefault(names, []).append(name)
    shared = repeated(name for names in groups for name in names)
    if shared:
        raise ConfigError(
            f"the mapping uses {shortened(shared)} of the model alone and together with others; "
            "use each in one way"
        )
    measured = [
        Measured(names[0] if len(names) == 1 else " or ".join(own), tuple(own), names)
        for names, own in groups.items()
    ]
    return _mapping(measured, dataset, model)


def read_mapping(path: Path) -> dict[str, str | list[str]]:
    """{class of the data: class or classes of the model} from JSON, YAML, or CSV with columns data and model.

    In CSV a class of the data may stand in several lines. ConfigError where the file is not so.
    """
    readers = {".json": _read_json, ".yaml": _read_yaml, ".yml": _read_yaml, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"classes are mapped by a .csv, .json or .yaml file, or by 'same', not by {path}")
    try:
        content = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no mapping of classes at {path}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"the mapping of classes {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not all(map(_is_entry, content.items())):
        raise ConfigError(
            f"the mapping of classes {path} must have a class of the data and one of the model, or a list of "
            "them, in each entry"
        )
    return content


def _mapping(measured: Sequence[Measured], dataset: Sequence[str], model: Sequence[str]) -> ClassMapping:
    used = [{name for one in measured for name in getattr(one, side)} for side in ("dataset", "model")]
    return ClassMapping(
        tuple(measured),
        tuple(name for name in dataset if name not in used[0]),
        tuple(name for name in model if name not in used[1]),
    )


def _is_entry(entry: tuple[Any, Any]) -> bool:
    name, value = entry
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, str) for one in (name, *values))


def _read_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := repeated(name for name, _ in pairs):
            raise ValueError(f"{shortened(twice)} stand twice")
        return dict(pairs)

    return parse_json(text, once)


def _read_yaml(text: str) -> Any:
    return parse_yaml(text, unique=True)


def _read_csv(text: str) -> dict[str, list[str]]:
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    if not rows or [cell.strip() for cell in rows[0]] != ["data", "model"]:
        raise ValueError("its first line must be data,model")
    content: dict[str, list[str]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != 2:
            raise ValueError(f"row {number} has {len(row)} cells, not 2")
        content.setdefault(row[0].strip(), []).append(row[1].strip())
    return content
