"""Pictures with the same bytes, and those that are in training and among the measured ones."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import (
    TAUGHT,
    ImageSource,
    MultiLabelDataset,
    StoredImages,
    content_of,
    hash_of_end,
    size_in_bytes,
)
from coterie.errors import DataError, counted, listed, shortened
from coterie.threads import in_threads

Images = Sequence[ImageSource] | npt.NDArray[np.uint8]
Source = ImageSource | npt.NDArray[np.uint8]

IMAGES_A_TASK = 256
MIXING = 0x9E3779B97F4A7C15  # odd: different sizes stay different
END = 4096  # bytes at the end of a file: where pictures differ, as their beginnings do not


@dataclass(frozen=True)
class Twin:
    """The ids of a training image and of a measured one with the same bytes, and the splits of both;
    `others`: further training images with these bytes.
    """

    trained: str
    measured: str
    split: str
    trained_split: str = "train"
    others: tuple[str, ...] = ()


def same_bytes(images: Images, side: npt.NDArray[np.bool_] | None = None) -> list[list[int]]:
    """The groups of positions whose pictures have the same bytes, in order; those that cannot be read have
    none. `side` [N]: only groups with pictures of both sides are looked for.

    Sizes are compared first, then the ends of files, and whole pictures last: few are read whole.
    """
    keys: list[Callable[[Source], Hashable]] = [_size, _end, _digest]
    groups = [list(range(len(images)))] if not isinstance(images, StoredImages) else _alike(images, side)
    for key in keys if not isinstance(images, StoredImages) else keys[-1:]:
        groups = [
            part
            for part in _divided(images, groups, key)
            if len(part) > 1 and (side is None or len(set(side[part].tolist())) == 2)
        ]
    return sorted(groups)


def perhaps_same_bytes(images: StoredImages, others: Images) -> npt.NDArray[np.int64]:
    """Positions of the indexed `images` that may have the bytes of one of `others`: of those alone, the ends
    are read.
    """

    def number_of(source: Source) -> int | None:
        size = _size(source)
        return None if size is None else hash_of_end(_end(source)) ^ (size * MIXING) % 2**64

    found = in_threads(lambda position: _key_or_none(number_of, others[position]), range(len(others)))
    wanted = np.array([number for number in found if number is not None], np.uint64)
    return np.concatenate([np.zeros(0, np.int64), *_matching(images, wanted)])


def find_twins(dataset: MultiLabelDataset) -> list[Twin]:
    """The measured images (val and test) that have the bytes of a training image, labelled or not."""
    measured = [split for split in dataset.split_names if split == "val" or split.startswith("test")]
    chosen = np.flatnonzero(np.isin(dataset.splits, [*TAUGHT, *measured]))
    part = dataset if len(chosen) == len(dataset) else dataset.subset(chosen)
    trained = np.isin(part.splits, TAUGHT)
    twins = []
    for group in same_bytes(part.images, trained):
        first, *others = (position for position in group if trained[position])
        again = tuple(part.image_ids[position] for position in others)
        twins += [
            Twin(
                part.image_ids[first],
                part.image_ids[position],
                str(part.splits[position]),
                str(part.splits[first]),
                again,
            )
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
        shown = listed(
            [
                f"'{twin.measured}' ({twin.split}) is '{twin.trained}' ({twin.trained_split})"
                for twin in twins
            ],
            3,
        )
        raise DataError(
            f"{counted(len(twins), 'measured image')} of {dataset.name} "
            f"{'is a training image' if len(twins) == 1 else 'are training images'} byte by byte: {shown}; "
            "metrics on them say nothing about other images. Remove one of each, or leave them out of the "
            "training with data.on_overlap=skip; data.on_overlap=keep measures all the same"
        )
    return tuple(dict.fromkeys(name for twin in twins for name in (twin.trained, *twin.others)))


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
        left_out = set(trained)
        kept = np.fromiter((name not in left_out for name in dataset.image_ids), np.bool_, len(dataset))
        dataset = dataset.subset(kept)
        note = f"{what} among the measured, byte by byte, and left out: {shortened(list(trained))}"
    return replace(dataset, notes=(*dataset.notes, note))


def _alike(images: StoredImages, side: npt.NDArray[np.bool_] | None) -> list[list[int]]:
    """Positions that agree in what the index knows, the size and a hash of the end: nothing is read.

    Takes 8 bytes an image where all are compared, else those of the smaller side, and a block.
    """
    none = np.zeros(0, np.uint64)
    if side is None:
        known = np.sort(np.concatenate([none, *_index_numbers(images)]))
        wanted = known[1:][known[1:] == known[:-1]]
    else:
        fewer = side if 2 * side.sum() < len(side) else ~side
        wanted = np.unique(np.concatenate([none, *_of_mask(_index_numbers(images), fewer)]))
        shared = (part[np.isin(part, wanted)] for part in _of_mask(_index_numbers(images), ~fewer))
        wanted = np.unique(np.concatenate([none, *map(np.unique, shared)]))
    positions = np.concatenate([np.zeros(0, np.int64), *_matching(images, wanted)])
    if not len(positions):
        return []
    numbers = np.concatenate([*_index_numbers(images.take(positions))])
    order = np.argsort(numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    return [group.tolist() for group in np.split(positions[order], bounds)]


def _matching(images: StoredImages, wanted: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of the images whose number is `wanted`, some at a time."""
    start = 0
    for part in _index_numbers(images):
        yield start + np.flatnonzero(np.isin(part, wanted))
        start += len(part)


def _index_numbers(images: StoredImages) -> Iterator[npt.NDArray[np.uint64]]:
    """A number of each image from its size and its end, some at a time."""
    for sizes, ends in zip(images.sizes(), images.ends(), strict=True):
        yield ends ^ (sizes.astype(np.uint64) * np.uint64(MIXING))


def _of_mask(
    parts: Iterator[npt.NDArray[np.uint64]], mask: npt.NDArray[np.bool_]
) -> Iterator[npt.NDArray[np.uint64]]:
    """Of parts that follow each other, what the mask [N] chooses."""
    start = 0
    for part in parts:
        yield part[mask[start : start + len(part)]]
        start += len(part)


def _divided(
    images: Images, groups: Sequence[list[int]], key: Callable[[Source], Hashable]
) -> list[list[int]]:
    """The positions of each group by their key, without those that have none."""

    def keys_of(members: list[tuple[int, int]]) -> list[Hashable]:
        return [_key_or_none(key, images[position]) for _, position in members]

    parts: dict[Hashable, list[int]] = defaultdict(list)
    members = [(number, position) for number, group in enumerate(groups) for position in group]
    tasks = [members[start : start + IMAGES_A_TASK] for start in range(0, len(members), IMAGES_A_TASK)]
    for task, keys in zip(tasks, in_threads(keys_of, tasks), strict=True):
        for (number, position), found in zip(task, keys, strict=True):
            if found is not None:
                parts[number, found].append(position)
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
