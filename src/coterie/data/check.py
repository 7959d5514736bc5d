"""Every picture decoded once, before a training starts rather than in the middle of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np

from coterie.data.dataset import MultiLabelDataset, UnreadableImage
from coterie.errors import DataError, shortened

IMAGES_A_TASK = 32


def check_images(
    dataset: MultiLabelDataset,
    on_corrupt: Literal["error", "skip"] = "error",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MultiLabelDataset, list[tuple[str, str]]]:
    """Decode every image; the dataset without the unreadable ones, and (image id, reason) of each of those.

    "error" raises one DataError about all unreadable images; "skip" drops them with a note, and raises
    DataError only where none is left. `progress` is called with images done and images in all.
    Datasets of arrays hold decoded images and pass at once.
    """
    if isinstance(dataset.images, np.ndarray):
        return dataset, []
    reasons = _decode_all(dataset, progress)
    if not reasons:
        return dataset, []
    reports = [(dataset.image_ids[index], reason) for index, reason in reasons.items()]
    if on_corrupt == "error" or len(reports) == len(dataset):
        remedy = (
            "check that the files are pictures"
            if len(reports) == len(dataset)
            else "replace them, or leave them out with data.on_corrupt=skip"
        )
        raise DataError(
            f"{len(reports)} of {len(dataset)} images of {dataset.name} cannot be read: "
            f"{_first(reports)}; {remedy}"
        )
    readable = np.ones(len(dataset), dtype=np.bool_)
    readable[list(reasons)] = False
    note = (
        f"{len(reports)} of {len(dataset)} images cannot be read and are left out: "
        f"{shortened([image_id for image_id, _ in reports])}"
    )
    kept = dataset.subset(readable)
    return replace(kept, notes=(*kept.notes, note)), reports


def _decode_all(dataset: MultiLabelDataset, progress: Callable[[int, int], None] | None) -> dict[int, str]:
    """The reason by index for every image that cannot be read."""

    def decode(start: int) -> dict[int, str]:
        reasons = {}
        for index in range(start, min(start + IMAGES_A_TASK, len(dataset))):
            try:
                dataset.load_image(index)
            except UnreadableImage as error:
                reasons[index] = error.reason
        return reasons

    reasons: dict[int, str] = {}
    # Threads, since Pillow decodes without the interpreter's lock.
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for number, found in enumerate(pool.map(decode, range(0, len(dataset), IMAGES_A_TASK)), start=1):
            reasons.update(found)
            if progress is not None:
                progress(min(number * IMAGES_A_TASK, len(dataset)), len(dataset))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, not after all that is queued
    return reasons


def _first(reports: list[tuple[str, str]], most: int = 5) -> str:
    rest = len(reports) - most
    shown = ", ".join(f"'{image_id}' ({reason})" for image_id, reason in reports[:most])
    return shown + (f" and {rest:,} more" if rest > 0 else "")
