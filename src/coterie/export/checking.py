"""An exported file must say what the checkpoint says: compared before the file is left in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coterie.data.dataset import open_image
from coterie.errors import ExportError
from coterie.predictor import Predictor

# How far a score may be from that of the checkpoint. Float32 in another order of additions moves it by 1e-6.
TOLERANCE = 1e-4
CHECK_BATCH = 8
Pixels = npt.NDArray[np.uint8]
# pixels [B, 3, S, S] -> scores [B, C], labels [B, C]
Exported = Callable[[Pixels], tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]


@dataclass(frozen=True)
class Agreement:
    """On how many pictures scores were compared, and the largest difference found."""

    pictures: int
    largest_difference: float


def check(
    exported: Exported, predictor: Predictor, pictures: Sequence[Path] = (), tolerance: float = TOLERANCE
) -> Agreement:
    """How far `exported` is from the predictor on `pictures`, without any on synthetic ones.

    Batches of 1 and of 3 are among those compared. ExportError where a score differs by more than
    `tolerance`, or a label is not what its score says; DataError for a picture that cannot be read.
    """
    largest = 0.0
    count = 0
    for images in _batches(predictor, pictures):
        expected = predictor.scores(list(images))
        count += len(images)
        pixels = images.transpose(0, 3, 1, 2)
        chosen = [np.arange(len(images))]
        if count == len(images):  # the first batch
            chosen += [np.arange(1), np.arange(3) % len(images)]
        for rows in chosen:
            difference = _difference(exported, predictor, pixels[rows], expected[rows], tolerance)
            largest = max(largest, difference)
    return Agreement(count, largest)


def synthetic_pictures(side: int) -> Pixels:
    """Four pictures uint8 [4, side, side, 3], of one colour to noise."""
    rng = np.random.default_rng(0)
    position = np.arange(side)
    drawn = []
    for cells in (1, 2, 8, side):
        grid = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        place = position * cells // side
        drawn.append(grid[place][:, place])
    return np.stack(drawn)


def _batches(predictor: Predictor, pictures: Sequence[Path]) -> Iterator[Pixels]:
    """Pictures as the network sees them, uint8 [B, S, S, 3]."""
    preprocessing = predictor.checkpoint.preprocessing
    if not pictures:
        yield synthetic_pictures(preprocessing.image_size)
    for start in range(0, len(pictures), CHECK_BATCH):
        batch = pictures[start : start + CHECK_BATCH]
        yield np.stack([np.asarray(preprocessing.resize(open_image(path))) for path in batch])


def _difference(
    exported: Exported,
    predictor: Predictor,
    pixels: Pixels,
    expected: npt.NDArray[np.float32],
    tolerance: float,
) -> float:
    scores, labels = exported(pixels)
    if scores.shape != expected.shape:
        raise ExportError(f"the exported model gives scores {list(scores.shape)}, not {list(expected.shape)}")
    differences = np.abs(scores - expected)
    differences[~np.isfinite(differences)] = np.inf
    row, column = np.unravel_index(differences.argmax(), differences.shape)
    largest = float(differences[row, column])
    if largest > tolerance:
        raise ExportError(
            f"the exported model is another: its score of '{predictor.class_names[column]}' is "
            f"{scores[row, column]:.6f}, that of the checkpoint {expected[row, column]:.6f}, and they may "
            f"differ by {tolerance:g} (--tolerance). Nothing was written"
        )
    if (labels != (scores > np.asarray(predictor.thresholds, np.float32))).any():
        raise ExportError("the exported model gives labels that its own scores and thresholds do not")
    return largest
