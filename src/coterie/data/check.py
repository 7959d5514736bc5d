"""Every picture decoded once, before a training starts rather than in the middle of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from coterie.data.dataset import MultiLabelDataset, UnreadableImage
from coterie.errors import DataError, listed, shortened
from coterie.threads import in_threads

IMAGES_A_TASK = 32


def check_images(
    dataset: MultiLabelDataset,
    on_corrupt: Literal["error", "skip"] = "error",
    progress: Callable[[int, int], None] | None = None,
    most: int | None = None,
) -> tuple[MultiLabelDataset, list[tuple[str, str]]]:
    """Decode every image, or `most` of them from all over the data; the dataset without the unreadable ones,
    and (image id, reason) of each of those.

    "error" raises one DataError about all unreadable images; "skip" drops them with a note, and raises
    DataError only where none is left, or where one may be sound. `progress` is called with images done and
    images in all. Datasets of arrays hold decoded images and pass at once.
    """
    if isinstance(dataset.images, np.ndarray):
        return dataset, []
    n = len(dataset)
    positions = range(n) if most is None or most >= n else [n * number // most for number in range(most)]
    reasons = _decode_all(dataset, positions, progress)
    if not reasons:
        return dataset, []
    reports = [(dataset.image_ids[index], reason) for index, reason in reasons.items()]
    if on_corrupt == "error" or len(reports) == len(dataset):
        remedy = (
            "check that the files are pictures"
            if len(reports) == len(dataset)
            else "replace them, or leave them out with data.on_corrupt=skip"
        )
        shown = listed([f"'{image_id}' ({reason})" for image_id, reason in reports])
        raise DataError(
            f"{len(reports)} of {len(dataset)} images of {dataset.name} cannot be read: {shown}; {remedy}"
        )
    return without_images(dataset, [image_id for image_id, _ in reports]), reports


def without_images(dataset: MultiLabelDataset, unreadable: Collection[str]) -> MultiLabelDataset:
    """The dataset without the images whose ids are `unreadable`, with a note that names them."""
    unreadable = set(unreadable)
    if not unreadable:
        return dataset
    readable = np.fromiter((name not in unreadable for name in dataset.image_ids), np.bool_, len(dataset))
    left_out = [dataset.image_ids[index] for index in np.flatnonzero(~readable).tolist()]
    if not left_out:
        return dataset
    kept = dataset.subset(readable)
    note = f"{len(left_out)} of {len(dataset)} images cannot be read and are left out: {shortened(left_out)}"
    return replace(kept, notes=(*kept.notes, note))


def _decode_all(
    dataset: MultiLabelDataset, positions: Sequence[int], progress: Callable[[int, int], None] | None
) -> dict[int, str]:
    """The reason by position for every image of those that cannot be read."""

    def decode(start: int) -> dict[int, str]:
        reasons = {}
        for index in positions[start : start + IMAGES_A_TASK]:
            try:
                dataset.load_image(index)
            except UnreadableImage as error:
                if not error.is_broken:
                    raise  # as many may follow, none of which is to be left out
                reasons[index] = error.reason
        return reasons

    reasons: dict[int, str] = {}
    tasks = range(0, len(positions), IMAGES_A_TASK)
    for number, found in enumerate(in_threads(decode, tasks), start=1):
        reasons.update(found)
        if progress is not None:
            progress(min(number * IMAGES_A_TASK, len(positions)), len(positions))
    return reasons
