"""Which images of a dataset are there, and which are listed twice: by listing folders, without decoding."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import MultiLabelDataset, StoredImages
from coterie.errors import DataError, counted, listed, shortened

# of an image in two splits
APART = (
    "keep each in one split: to learn from an image and to measure on it, or to know its labels and not to, "
    "cannot both be meant"
)


def missing_images(dataset: MultiLabelDataset) -> npt.NDArray[np.int64]:
    """Positions of the images whose file is not there; arrays and stored images are always there."""
    listings: dict[str, frozenset[str]] = {}
    missing = []
    for position, path in _paths(dataset):
        folder, name = _divided(path)
        if folder not in listings:
            listings[folder] = _files(folder)
        # A name that is not listed may yet be a link, or be there in another case or Unicode form.
        if name not in listings[folder] and not _exists(path):
            missing.append(position)
    return np.array(missing, dtype=np.int64)


def check_presence(
    dataset: MultiLabelDataset, missing: npt.NDArray[np.int64], on_missing: Literal["error", "skip"]
) -> None:
    """DataError where images are `missing`, unless they are to be skipped and some are left."""
    if not len(missing) or (on_missing == "skip" and len(missing) < len(dataset)):
        return
    names = [dataset.image_ids[position] for position in missing]
    remedy = "data.image_root names the folder that their paths start from"
    if len(missing) < len(dataset):
        remedy += ", and data.on_missing=skip leaves them out"
    raise DataError(
        f"{len(missing):,} of {counted(len(dataset), 'image')} of {dataset.name} are not there: "
        f"{shortened(names)}; the first is looked for at {dataset.images[missing[0]]}. {remedy}"
    )


def without_missing(dataset: MultiLabelDataset, missing: npt.NDArray[np.int64]) -> MultiLabelDataset:
    """The dataset without the images at the positions `missing`, with a note that counts and names them."""
    if not len(missing):
        return dataset
    names = [dataset.image_ids[position] for position in missing]
    kept = dataset.subset(np.delete(np.arange(len(dataset)), missing))
    note = (
        f"{len(missing):,} of {len(dataset):,} images are not there and left out: {shortened(names)}; "
        "`coterie inspect --out FILE` lists all of them"
    )
    return replace(kept, notes=(*kept.notes, note))


def repeated_images(dataset: MultiLabelDataset) -> list[tuple[int, int]]:
    """Pairs of positions (first, again) that are the same file; links to files are not followed."""
    positions_and_paths = list(_paths(dataset))
    places = places_of([path for _, path in positions_and_paths])
    first: dict[str, int] = {}
    pairs = []
    for (position, _), place in zip(positions_and_paths, places, strict=True):
        earlier = first.setdefault(place, position)
        if earlier != position:
            pairs.append((earlier, position))
    return pairs


def check_apart(dataset: MultiLabelDataset) -> None:
    """DataError where one file is in two splits."""
    shown = [
        f"'{dataset.image_ids[one]}' ({dataset.splits[one]}) and '{dataset.image_ids[other]}' "
        f"({dataset.splits[other]})"
        for one, other in repeated_images(dataset)
        if dataset.splits[one] != dataset.splits[other]
    ]
    if shown:
        raise DataError(
            f"{counted(len(shown), 'image')} of {dataset.name} in two splits: {listed(shown, 3)}; {APART}"
        )


def places_of(paths: Sequence[Path]) -> list[str]:
    """Texts that are equal for `a.jpg`, `./a.jpg` and `folder/../a.jpg`; links to a file are not followed."""
    folders: dict[str, str] = {}
    places = []
    for path in paths:
        folder, name = _divided(path)
        if folder not in folders:
            folders[folder] = _resolved(folder)
        places.append(f"{folders[folder]}/{name}")
    return places


def likeliest_folder(candidates: Sequence[Path], names: Sequence[str]) -> Path:
    """The folder that most of the first `names` are in; the first of `candidates` where none is in any."""
    tried = names[:100]
    return max(candidates, key=lambda folder: sum(_exists(folder / name) for name in tried))


def _paths(dataset: MultiLabelDataset) -> Iterator[tuple[int, Path]]:
    if isinstance(dataset.images, np.ndarray | StoredImages):
        return
    for position, image in enumerate(dataset.images):
        if isinstance(image, Path):
            yield position, image


def _divided(path: Path) -> tuple[str, str]:
    """The folder and the name; as texts, since there are hundreds of thousands."""
    head, separator, name = str(path).rpartition("/")
    return head + separator or ".", name


def _files(folder: str) -> frozenset[str]:
    # One listing for each folder: on a network disk a look at each of 100,000 files takes minutes.
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_symlink())
    except (OSError, ValueError):  # as in _exists
        return frozenset()


def _resolved(folder: str) -> str:
    try:
        return str(Path(folder).resolve())
    except (OSError, ValueError):
        return folder


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text too long to be a path, or with a NUL
        return False
