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
# How far a logit may be then, by its size: where it is 0, a score moves by a fourth of it.
OF_LOGITS = 4
CHECK_BATCH = 8
Pixels = npt.NDArray[np.uint8]
# scores, labels and logits [B, C]
Answers = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float32]]
Exported = Callable[[Pixels], Answers]  # of pixels [B, 3, S, S]


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
    `tolerance`, a logit z by more than 4 * `tolerance` * max(1, |z|) (float32 has many of them for a score
    near 1), or a label is not what its score says; DataError for a picture that cannot be read.
    """
    largest = 0.0
    count = 0
    for images in _batches(predictor, pictures):
        expected = predictor.logits(list(images))
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
    expected: npt.NDArray[np.float64],
    tolerance: float,
) -> float:
    """The largest of the scores' differences; `expected`: the logits of the checkpoint."""
    scores, labels, logits = exported(pixels)
    for name, values in (("scores", scores), ("logits", logits)):
        if values.shape != expected.shape:
            raise ExportError(
                f"the exported model gives {name} {list(values.shape)}, not {list(expected.shape)}"
            )
    names = predictor.class_names
    largest = _compare("score", names, scores, predictor.to_scores(expected), tolerance)
    _compare("logit", names, logits, expected, OF_LOGITS * tolerance * np.maximum(1, np.abs(expected)))
    if (labels != (scores > np.asarray(predictor.thresholds, np.float32))).any():
        raise ExportError("the exported model gives labels that its own scores and thresholds do not")
    return largest


def _compare(
    what: str,
    class_names: Sequence[str],
    values: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float64],
    tolerance: float | npt.NDArray[np.float64],
) -> float:
    """The largest difference [B, C]; ExportError where one is beyond its tolerance."""
    differences = np.abs(values - expected)
    differences[~np.isfinite(differences)] = np.inf
    allowed = np.broadcast_to(tolerance, differences.shape)
    row, column = np.unravel_index((differences - allowed).argmax(), differences.shape)
    if differences[row, column] > allowed[row, column]:
        raise ExportError(
            f"the exported model is another: its {what} of '{class_names[column]}' is "
            f"{values[row, column]:.6f}, that of the checkpoint {expected[row, column]:.6f}, and they may "
            f"differ by {allowed[row, column]:g} (--tolerance). Nothing was written"
        )
    return float(differences.max())
