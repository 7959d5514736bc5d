"""NUS-WIDE: the official lists of images and of labels for 81 concepts, and the CSV in circulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import MultiLabelDataset
from coterie.data.presence import likeliest_folder
from coterie.data.table import read_table
from coterie.errors import DataError, counted, repeated, shortened

CSV_COLUMNS = ("filepath", "label", "split_name")
# Where the files lie, as they are unpacked in one folder or one beside the other.
CONCEPTS = ("Concepts81.txt", "ConceptsList/Concepts81.txt")
LABELS = ("Groundtruth/TrainTestLabels", "TrainTestLabels")
LISTS = {
    "train": ("ImageList/TrainImagelist.txt", "TrainImagelist.txt"),
    "test": ("ImageList/TestImagelist.txt", "TestImagelist.txt"),
}


def read_nuswide(path: str | Path, *, image_root: str | Path | None = None) -> MultiLabelDataset:
    """The dataset of a folder of the official lists, or of a CSV of filepath, label and split_name.

    Official: Concepts81.txt, ImageList/{Train,Test}Imagelist.txt and, in Groundtruth/TrainTestLabels, a file
    of 0 and 1 for each concept and split; classes are in the order of Concepts81.txt, images in Flickr/ or
    images/. CSV: a table whose label is a list of names, classes in the order of a Concepts81.txt beside it,
    else sorted. Splits are the published ones. Raises DataError that names the file.
    """
    path = Path(path)
    if has_official_lists(path):
        return _read_lists(path, None if image_root is None else Path(image_root))
    table = path if path.is_file() else csv_in(path)
    if table is None:
        raise DataError(
            f"{path} holds neither NUS-WIDE's official lists (ImageList/TrainImagelist.txt and the rest) nor "
            f"a CSV with the columns {', '.join(CSV_COLUMNS)}"
        )
    image_column, labels_column, split_column = CSV_COLUMNS
    concepts = _first_there(table.parent, CONCEPTS)
    return read_table(
        table,
        image_root=image_root,
        image_column=image_column,
        labels_column=labels_column,
        split_column=split_column,
        class_names=None if concepts is None else _lines(concepts),
    )


def has_official_lists(folder: Path) -> bool:
    return _first_there(folder, LISTS["train"]) is not None


def csv_in(folder: Path) -> Path | None:
    """The CSV in `folder` that has the columns of the one in circulation."""
    tables = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    return next((table for table in tables if is_nuswide_csv(table)), None)


def is_nuswide_csv(path: Path) -> bool:
    """Whether the file begins with the header of the CSV in circulation."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline(200)
    except (OSError, UnicodeDecodeError):
        return False
    return tuple(name.strip().strip('"') for name in header.split(",")) == CSV_COLUMNS


def _read_lists(folder: Path, image_root: Path | None) -> MultiLabelDataset:
    class_names = _lines(_needed(folder, CONCEPTS))
    labels_folder = _needed(folder, LABELS)
    names: list[str] = []
    splits: list[str] = []
    targets = []
    for split, places in LISTS.items():
        image_list = _needed(folder, places)
        images = [line.replace("\\", "/") for line in _lines(image_list)]
        targets.append(_read_labels(labels_folder, split, class_names, image_list, len(images)))
        names += images
        splits += [split] * len(images)
    twice = repeated(names)
    if twice:
        raise DataError(f"images of {folder} stand twice in its lists: {shortened(twice)}; list each once")
    base = folder if image_root is None else image_root
    place = likeliest_folder([base / "Flickr", base / "images", base], names)
    return MultiLabelDataset(
        images=[place / name for name in names],
        targets=np.concatenate(targets),
        class_names=tuple(class_names),
        splits=np.array(splits, dtype=np.str_),
        image_ids=tuple(names),
        name=f"NUS-WIDE {len(class_names)}",
        notes=tuple(_same_photographs(names, splits)),
    )


def _read_labels(
    folder: Path, split: str, class_names: Sequence[str], image_list: Path, images: int
) -> npt.NDArray[np.int8]:
    """The targets [N, C] of a split, from one file of 0 and 1 for each class."""
    targets = np.empty((images, len(class_names)), dtype=np.int8)
    for column, name in enumerate(class_names):
        path = folder / f"Labels_{name}_{split.title()}.txt"
        try:
            content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        except (OSError, ValueError) as error:  # a name may hold a NUL
            reason = getattr(error, "strerror", error)
            raise DataError(
                f"{shortened([path])} cannot be read ({reason}); {folder} needs one for each of the "
                f"{len(class_names)} concepts"
            ) from None
        digits = content[(content != ord("\n")) & (content != ord("\r")) & (content != ord(" "))]
        if not np.isin(digits, (ord("0"), ord("1"))).all():
            raise DataError(f"{path} must hold 0 or 1 for each image, one in a line; unpack it again")
        if len(digits) != images:
            raise DataError(
                f"{path} has {counted(len(digits), 'label')}, but {image_list} lists "
                f"{counted(images, 'image')}; they are not of the same version"
            )
        targets[:, column] = digits - ord("0")
    return targets


def _same_photographs(names: Sequence[str], splits: Sequence[str]) -> list[str]:
    """A note on photographs (the number of Flickr that ends a name) that are in train and in test."""
    photographs = np.array([name.rpartition("_")[2] for name in names])
    in_split = [photographs[np.array(splits) == split] for split in LISTS]
    both = np.intersect1d(*in_split)
    if not len(both):
        return []
    what = counted(len(both), "photograph is", "photographs are")
    return [f"{what} in train and in test, under two names: {shortened(both)}"]


def _first_there(folder: Path, places: Sequence[str]) -> Path | None:
    return next((folder / place for place in places if (folder / place).exists()), None)


def _needed(folder: Path, places: Sequence[str]) -> Path:
    found = _first_there(folder, places)
    if found is None:
        raise DataError(f"{folder} holds lists of NUS-WIDE, but neither of {' and '.join(places)}; add it")
    return found


def _lines(path: Path) -> list[str]:
    """The lines that hold something, without space around them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; unpack it again") from None
    kept = [stripped for line in lines if (stripped := line.strip())]
    if not kept:
        raise DataError(f"{path} is empty; unpack it again")
    return kept
