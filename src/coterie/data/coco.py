"""MS-COCO as it is distributed, and other data in its format: instances JSON, read directly."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.config import Doubtful
from coterie.data.dataset import MultiLabelDataset
from coterie.data.presence import likeliest_folder
from coterie.data.targets import targets_of_objects
from coterie.errors import ConfigError, DataError, counted, either, repeated, shortened

FILE_NAME = re.compile(r"instances_(train|val|test)(\d*)\.json")
EXPECTED = (
    "COCO's labels are in instances_train2014.json and instances_val2014.json (or 2017): images, categories, "
    "and annotations with a category_id"
)
KEYS = ("images", "annotations", "categories")
# What the other files of COCO hold in their annotations, and instances do not.
OTHER_KINDS = {"caption": "captions", "segments_info": "panoptic segments"}


def read_coco(
    path: str | Path,
    *,
    image_root: str | Path | None = None,
    year: int | None = None,
    crowd: Doubtful = "positive",
) -> MultiLabelDataset:
    """The dataset of a folder with annotations/instances_{train,val}{year}.json, or of one such file.

    A class is present where it has an object; `crowd` says what a class is of which an image has crowd
    regions only. Classes are in the order of the file's categories. Splits are the published ones. Images lie
    in `image_root`, by default beside the annotations: train2014/, images/train2014/ or images/. Raises
    DataError that names the file where something is wrong.
    """
    files, root, suffix = _annotation_files(Path(path), year)
    parts = {split: _read_instances(file) for split, file in files.items()}
    class_names = _common_classes(parts)
    images: list[Path] = []
    image_ids: list[str] = []
    splits: list[str] = []
    targets = []
    crowds_alone = 0
    for split, part in parts.items():
        folder = f"{split}{suffix}"
        base = Path(image_root) if image_root is not None else root
        candidates = [base / folder, base / "images" / folder, base / "images", base]
        place = likeliest_folder(candidates, part.file_names)
        images += [place / name for name in part.file_names]
        image_ids += [f"{folder}/{name}" if folder else name for name in part.file_names]
        splits += [split] * len(part.file_names)
        columns = [class_names.index(name) for name in part.class_names]
        targets.append(part.targets(columns, crowd))
        crowds_alone += int((part.targets(columns, "positive") != part.targets(columns, "negative")).sum())
    notes = []
    if crowds_alone:
        read_as = {"positive": "present", "ignore": "unknown", "negative": "absent"}[crowd]
        what = counted(crowds_alone, "label comes", "labels come")
        notes.append(f"{what} from crowd regions alone, read as {read_as}")
    return MultiLabelDataset(
        images=images,
        targets=np.concatenate(targets),
        class_names=class_names,
        splits=np.array(splits, dtype=np.str_),
        image_ids=tuple(image_ids),
        name=f"COCO {suffix}" if suffix in ("2014", "2017") else Path(path).resolve().name,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Instances:
    """What one annotation file says; for each object the position of its image and class, and iscrowd."""

    path: Path
    file_names: list[str]
    class_names: list[str]
    image_of: npt.NDArray[np.int64]
    class_of: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]

    def targets(self, columns: list[int], crowd: Doubtful) -> npt.NDArray[np.int8]:
        """Targets [N, C] with the class at position i of this file in column `columns[i]`."""
        shape = (len(self.file_names), len(self.class_names))
        return targets_of_objects(
            shape, self.image_of, np.array(columns)[self.class_of], self.is_crowd, crowd
        )


def _annotation_files(path: Path, year: int | None) -> tuple[dict[str, Path], Path, str]:
    """The annotation file of each split (train first), the folder that images lie below, and the year."""
    if path.is_file():
        match = FILE_NAME.fullmatch(path.name)
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return {match[1] if match else "": path}, root, match[2] if match else ""
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    root = folder.parent if folder.name == "annotations" else folder
    here = sorted(file.name for file in folder.glob("*.json")) if folder.is_dir() else []
    found = {(match[1], match[2]): folder / name for name in here if (match := FILE_NAME.fullmatch(name))}
    if not found:
        holds = f"holds {shortened(here)}" if here else "holds no JSON"
        raise DataError(f"{folder} {holds}, but no instances file. {EXPECTED}")
    years = sorted({suffix for _, suffix in found})
    if year is not None and str(year) not in years:
        raise ConfigError(f"data.coco.year is {year}, but {folder} holds instances of {either(years)}")
    if year is None and len(years) > 1:
        raise ConfigError(
            f"{folder} holds instances of {either(years)}: choose, for instance data.coco.year={years[-1]}"
        )
    suffix = years[0] if year is None else str(year)
    files = {split: found[split, suffix] for split in ("train", "val", "test") if (split, suffix) in found}
    return files, root, suffix


def _read_instances(path: Path) -> _Instances:
    content = _read_json(path)
    _check_kind(path, content)
    categories, annotations = content["categories"], content["annotations"]
    try:
        class_names = [str(category["name"]) for category in categories]
        class_at = {category["id"]: position for position, category in enumerate(categories)}
        image_at = {image["id"]: position for position, image in enumerate(content["images"])}
        file_names = [str(image["file_name"]) for image in content["images"]]
        of_image = [annotation["image_id"] for annotation in annotations]
        of_class = [annotation["category_id"] for annotation in annotations]
        crowds = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
    except KeyError as error:
        raise DataError(f"{path} is damaged: an entry lacks {error}. {EXPECTED}") from None
    except (TypeError, AttributeError):
        raise DataError(
            f"{path} is damaged: an entry is no object, or its id no number. {EXPECTED}"
        ) from None
    for what, names, known in (("categories", class_names, class_at), ("images", file_names, image_at)):
        if twice := repeated(names):
            raise DataError(f"{what} of {path} stand twice: {shortened(twice)}; keep one of each")
        if len(known) < len(names):
            raise DataError(
                f"{len(names) - len(known)} {what} of {path} have the id of another; give each its own"
            )
    _check_known(path, "image_id", of_image, image_at)
    _check_known(path, "category_id", of_class, class_at)
    return _Instances(
        path,
        file_names,
        class_names,
        np.array([image_at[number] for number in of_image], dtype=np.int64),
        np.array([class_at[number] for number in of_class], dtype=np.int64),
        np.array(crowds, dtype=np.bool_),
    )


def _read_json(path: Path) -> Any:
    try:
        # Outlines are most of the file: dropped while it is read, they take no memory.
        with path.open(encoding="utf-8") as file:
            return json.load(file, object_hook=_without_outlines)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; download or export it again") from None


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _check_kind(path: Path, content: Any) -> None:
    """DataError that says what the file is, where it is another one of COCO's or none of them."""
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a list, as files of detection results do. {EXPECTED}")
    missing = [key for key in KEYS if key not in content]
    kind = next((kind for key, kind in OTHER_KINDS.items() if key in _first(content, "annotations")), None)
    if kind is None and "keypoints" in _first(content, "categories") and len(content["categories"]) == 1:
        kind = "keypoints of one class"
    if kind is not None:
        raise DataError(f"{path} holds {kind}, not instances. {EXPECTED}")
    if missing:
        raise DataError(
            f"{path} has no {' and no '.join(missing)}; its keys are {shortened(list(content))}. {EXPECTED}"
        )
    for key in KEYS:
        if not isinstance(content[key], list) or not content[key]:
            raise DataError(f"{path} has no entries in '{key}'. {EXPECTED}")


def _first(content: dict[str, Any], key: str) -> Collection[str]:
    """The keys of the first entry in `key`."""
    entries = content.get(key)
    entry = entries[0] if isinstance(entries, list) and entries else {}
    return entry.keys() if isinstance(entry, dict) else ()


def _check_known(path: Path, key: str, used: Collection[Any], known: Mapping[Any, int]) -> None:
    try:
        unknown = sorted(set(used).difference(known), key=str)
    except TypeError:
        raise DataError(f"{path} is damaged: a {key} is no number") from None
    if unknown:
        where = "images" if key == "image_id" else "categories"
        raise DataError(
            f"annotations of {path} have a {key} that is not among its {where}: {shortened(unknown)}; the "
            "file is damaged, or was filtered in one place only"
        )


def _common_classes(parts: Mapping[str, _Instances]) -> tuple[str, ...]:
    """The classes of the first file, in its order; DataError where another file has other ones."""
    first, *others = parts.values()
    for other in others:
        different = sorted(set(first.class_names) ^ set(other.class_names))
        if different:
            raise DataError(
                f"{other.path} has {len(other.class_names)} categories and {first.path} "
                f"{len(first.class_names)}; only one of them has {shortened(different)}. All splits need the "
                "same categories"
            )
    return tuple(first.class_names)
