"""Pictures with the same bytes, and those that are in training and among the measured ones."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import ImageSource, MultiLabelDataset, content_of, size_in_bytes
from coterie.errors import DataError, counted, listed, shortened

Images = Sequence[ImageSource] | npt.NDArray[np.uint8]
Source = ImageSource | npt.NDArray[np.uint8]

IMAGES_A_TASK = 256
END = 4096  # bytes at the end of a file: where pictures differ, as their beginnings do not


@dataclass(frozen=True)
class Twin:
    """The ids of a training image and of a measured one with the same bytes, and the split of that."""

    trained: str
    measured: str
    split: str


def same_bytes(images: Images, side: npt.NDArray[np.bool_] | None = None) -> list[list[int]]:
    """The groups of positions whose pictures have the same bytes, in order; those that cannot be read have
    none. `side` [N]: only groups with pictures of both sides are looked for.

    Sizes are compared first, then the ends of files, and whole pictures last: few are read whole.
    """
    groups = [list(range(len(images)))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # waiting for the disk lets go of the lock
        for key in (_size, _end, _digest):
            groups = [
                part
                for group in groups
                for part in _divided(images, group, key, pool)
                if len(part) > 1 and (side is None or len(set(side[part].tolist())) == 2)
            ]
    return sorted(groups)


def find_twins(dataset: MultiLabelDataset) -> list[Twin]:
    """The measured images (val and test) that have the bytes of a training image."""
    measured = [split for split in dataset.split_names if split == "val" or split.startswith("test")]
    chosen = np.flatnonzero(np.isin(dataset.splits, ["train", *measured]))
    part = dataset.subset(chosen)
    trained = part.splits == "train"
    twins = []
    for group in same_bytes(part.images, trained):
        first = next(position for position in group if trained[position])
        twins += [
            Twin(part.image_ids[first], part.image_ids[position], str(part.splits[position]))
            for position in group
            if not trained[position]
        ]
    return twins


def check_twins(dataset: MultiLabelDataset, on_overlap: Literal["error", "skip", "keep"]) -> tuple[str, ...]:
    """The ids of the training images that are measured too; DataError that names them, unless they are to be
    left out or kept. With them, metrics say how well a model remembers.
    """
    twins = find_twins(dataset)
    if twins and on_overlap == "error":
        shown = listed([f"'{twin.measured}' ({twin.split}) is '{twin.trained}' (train)" for twin in twins], 3)
        raise DataError(
            f"{counted(len(twins), 'measured image')} of {dataset.name} "
            f"{'is a training image' if len(twins) == 1 else 'are training images'} byte by byte: {shown}; "
            "metrics on them say nothing about other images. Remove one of each, or leave them out of the "
            "training with data.on_overlap=skip; data.on_overlap=keep measures all the same"
        )
    return tuple(dict.fromkeys(twin.trained for twin in twins))


def settle_twins(
    dataset: MultiLabelDataset, trained: Collection[str], on_overlap: Literal["error", "skip", "keep"]
) -> MultiLabelDataset:
    """The dataset without the training images `trained` that are measured too, or with all of them where
    they are kept; a note says so either way.
    """
    if not trained:
        return dataset
    what = counted(len(trained), "training image is", "training images are")
    if on_overlap == "keep":
        note = f"{what} measured too, byte by byte: {shortened(list(trained))}; the results say too much"
    else:
        kept = [name not in set(trained) for name in dataset.image_ids]
        dataset = dataset.subset(np.array(kept, dtype=np.bool_))
        note = f"{what} among the measured, byte by byte, and left out: {shortened(list(trained))}"
    return replace(dataset, notes=(*dataset.notes, note))


def _divided(
    images: Images, group: list[int], key: Callable[[Source], Hashable], pool: ThreadPoolExecutor
) -> list[list[int]]:
    """The positions of `group` by their key, without those that have none."""

    def keys_of(positions: list[int]) -> list[Hashable]:
        return [_key_or_none(key, images[position]) for position in positions]

    parts: dict[Hashable, list[int]] = defaultdict(list)
    tasks = [group[start : start + IMAGES_A_TASK] for start in range(0, len(group), IMAGES_A_TASK)]
    for positions, keys in zip(tasks, pool.map(keys_of, tasks), strict=True):
        for position, found in zip(positions, keys, strict=True):
            if found is not None:
                parts[found].append(position)
    return list(parts.values())


def _key_or_none(key: Callable[[Source], Hashable], source: Source) -> Hashable:
    try:
        return key(source)
    except (OSError, DataError):
        return None


def _size(source: Source) -> int | None:
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        return None  # a pipe would be waited for, and a device has no end
    return size_in_bytes(source)


def _end(source: Source) -> bytes:
    if not isinstance(source, Path):
        return content_of(source)[-END:]
    with source.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - END))
        return file.read(END)


def _digest(source: Source) -> bytes:
    if not isinstance(source, Path):
        return hashlib.sha256(content_of(source)).digest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
