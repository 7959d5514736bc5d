"""Datasets of the Hugging Face library `datasets`: saved ones, Parquet, folders, names on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coterie.data.dataset import ImageSource, MultiLabelDataset, StoredImage
from coterie.data.targets import split_notes, targets_of_names, usual_split
from coterie.errors import LONGEST_REASON, ConfigError, DataError, cut, did_you_mean, shortened

# From this version on the library runs no code of a dataset.
OLDEST = 4
INSTALL = f"pip install 'datasets>={OLDEST}'"
# What `save_to_disk` writes: for several splits, for one.
SAVED = ("dataset_dict.json", "state.json")


class RowImage(StoredImage):
    """A picture in a row of a dataset, as bytes."""

    __slots__ = ("_size", "column", "place", "row", "rows")

    def __init__(self, rows: Any, column: str, row: int, size: int, place: str) -> None:
        self.rows = rows
        self.column = column
        self.row = row
        self._size = size
        self.place = place

    @property
    def size(self) -> int:
        return self._size

    def read(self) -> bytes:
        return bytes(self.rows[self.row][self.column]["bytes"])

    def __str__(self) -> str:
        return self.place


def read_huggingface(
    source: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    image_root: str | Path | None = None,
    image_column: str = "image",
    labels_column: str = "labels",
    split_column: str = "split",
    class_names: Sequence[str] | None = None,
) -> MultiLabelDataset:
    """The dataset saved in a folder, of a folder or file that `datasets` can load, or of a name on the Hub.

    `labels_column` holds lists of class labels, whose names and order it brings, or of texts, sorted by name;
    `class_names` closes the list and sets the order. Pictures are decoded when they are used. A dataset whose
    only split is train counts as one without splits. Raises ConfigError where `datasets` is not installed,
    DataError that names the row where something is wrong. No code of the dataset is run.
    """
    parts, notes = _load(source, configuration, revision)
    name = Path(source).resolve().name if Path(source).exists() else source
    root = Path(image_root) if image_root is not None else Path(source)
    images: list[ImageSource] = []
    image_ids: list[str] = []
    labels: list[list[str]] = []
    splits: list[str] = []
    for split, rows in parts.items():
        _check_columns(rows, name, (image_column, labels_column))
        where = f"{name}/{split}" if split else name
        images += _images(rows, image_column, root, where)
        image_ids += [f"{split}/{row}" if split else str(row) for row in range(len(rows))]
        labels += _labels(rows, labels_column, class_names, where)
        own = list(rows[split_column]) if split_column in rows.column_names else [split] * len(rows)
        splits += [str(cell or "") for cell in own]
    own_names = {_class_label_names(rows, labels_column) for rows in parts.values()}
    if len(own_names) > 1:
        raise DataError(
            f"the splits of {name} have different classes in '{labels_column}'; give them the same"
        )
    names = class_names if class_names is not None else next(iter(own_names))
    targets, classes = targets_of_names(labels, names, lambda row: f"{name}/{image_ids[row]}")
    return MultiLabelDataset(
        images=images,
        targets=targets,
        class_names=tuple(classes),
        splits=np.array([usual_split(split) for split in splits], dtype=np.str_),
        image_ids=tuple(image_ids),
        name=name,
        notes=(*notes, *split_notes(splits)),
    )


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in SAVED)


def _load(source: str, configuration: str | None, revision: str | None) -> tuple[dict[str, Any], list[str]]:
    """The rows of each split, "" where the dataset has none, and notes on what is not taken for a split."""
    datasets = _library(source)
    path = Path(source)
    try:
        if is_saved(path):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_file():
            loaded = datasets.load_dataset("parquet", data_files=str(path))
        else:
            loaded = datasets.load_dataset(source, configuration, revision=revision)
        parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        for rows in parts.values():
            _check_offsets(rows)
    except Exception as error:  # by what is wrong the library raises nearly anything
        where = "" if path.exists() else " (there is no such file or folder, so it was looked for on the Hub)"
        reason = cut(str(error).strip(), LONGEST_REASON) or type(error).__name__
        raise DataError(f"dataset {source} cannot be loaded{where}: {reason}") from None
    if not isinstance(loaded, datasets.DatasetDict):
        return {"": loaded}, []
    if list(loaded) == ["train"]:
        return {"": loaded["train"]}, ["its only split, train, counts as no split"]
    return dict(loaded), []


def _check_offsets(rows: Any) -> None:
    """Raises where a part of a file points outside it: Arrow would follow it, and end the process."""
    for table in (rows.data, rows._indices):
        if table is not None:
            table.validate(full=True)


def _library(source: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError(f"reading {source} needs the package `datasets`: {INSTALL}") from None
    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise ConfigError(
            f"reading {source} needs a newer `datasets` than {datasets.__version__}, which runs code that a "
            f"dataset brings: {INSTALL}"
        )
    return datasets


def _check_columns(rows: Any, name: str, columns: Sequence[str]) -> None:
    for setting, column in zip(("image_column", "labels_column"), columns, strict=True):
        if column not in rows.column_names:
            raise DataError(
                f"dataset {name} has no column '{column}'; its columns are "
                f"{shortened(rows.column_names, 10)}, and data.{setting} names one of them"
                f"{did_you_mean(column, rows.column_names)}"
            )
    if not len(rows):
        raise DataError(f"dataset {name} has a split without rows")


def _images(rows: Any, column: str, root: Path, where: str) -> list[ImageSource]:
    """A picture for each row: a path where the dataset holds only that, else bytes, read when used."""
    import datasets
    import pyarrow.compute

    kind = getattr(rows.features[column], "dtype", "")
    if not isinstance(rows.features[column], datasets.Image) and kind not in ("string", "binary"):
        raise DataError(
            f"column '{column}' of {where} holds {rows.features[column]}, not pictures; data.image_column "
            "names the column that does"
        )
    # Not decoded: the bytes go the way of every other file.
    stored = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    images: list[ImageSource] = []
    for table in stored.with_format("arrow").iter(batch_size=1000):
        pictures = table.column(column)
        # The lengths lie beside the bytes, which are not touched.
        sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(pictures, "bytes")).to_pylist()
        paths = pyarrow.compute.struct_field(pictures, "path").to_pylist()
        for size, path in zip(sizes, paths, strict=True):
            row = len(images)
            if size is not None:
                images.append(RowImage(stored, column, row, size, f"{where}/{row}"))
            elif path is not None:
                images.append(root / path)
            else:
                raise DataError(f"row {row} of {where} has no picture in column '{column}'")
    return images


def _class_label_names(rows: Any, column: str) -> tuple[str, ...] | None:
    """The names that the column's ClassLabel brings, None where it holds texts or numbers."""
    names = getattr(getattr(rows.features[column], "feature", None), "names", None)
    if names is not None and not all(isinstance(name, str) for name in names):
        raise DataError(f"the classes of column '{column}' are no names: {shortened(names)}")
    return None if names is None else tuple(names)


def _labels(rows: Any, column: str, class_names: Sequence[str] | None, where: str) -> list[list[str]]:
    """The label names of each row."""
    item = getattr(rows.features[column], "feature", None)
    kind = getattr(item, "dtype", "")
    if "int" not in kind and "string" not in kind:
        raise DataError(
            f"column '{column}' of {where} holds {rows.features[column]}, not lists of class labels or of "
            "names; data.labels_column names the column that does"
        )
    cells = rows.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    if "string" in kind:
        return [[name for name in dict.fromkeys(cell or ()) if name] for cell in cells]
    names = _class_label_names(rows, column) or class_names
    if names is None:
        raise DataError(
            f"column '{column}' of {where} holds numbers without names; give the names in data.class_names, "
            "in their order"
        )
    for row, cell in enumerate(cells):
        wrong = [number for number in cell or () if number is None or not 0 <= number < len(names)]
        if wrong:
            raise DataError(
                f"label {wrong[0]} of row {row} of {where} is no class: there are {len(names)}, from 0 on"
            )
    return [[names[number] for number in dict.fromkeys(cell or ())] for cell in cells]
