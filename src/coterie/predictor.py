"""A trained classifier at work: from pictures to labels with scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from coterie.checkpoint import INFO_FILE, Checkpoint, load_model
from coterie.data.dataset import StoredImage, UnreadableImage, open_image
from coterie.data.transforms import to_pixels
from coterie.errors import CheckpointError, ConfigError, DataError
from coterie.models.factory import ModelBuilder
from coterie.runfolder import MANIFEST_FILE

Picture = str | Path | StoredImage | Image.Image | npt.NDArray[np.uint8]
# Pillow writes the first two only, and knows films by their name alone.
IMAGE_SUFFIXES = frozenset(Image.registered_extensions()) - {".palm", ".pdf", ".mpeg", ".mpg"}


@dataclass(frozen=True)
class Prediction:
    """The scores in 0..1 of one picture, in class order; `labels` are those above the threshold, best first.

    `error` says why a picture could not be read; it has no scores then.
    """

    image: str
    scores: dict[str, float]
    labels: tuple[str, ...]
    error: str | None = None


class Predictor:
    """A model in evaluation mode with the preprocessing and classes it was trained with, and the thresholds
    and temperature of its checkpoint.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> None:
        self.model = model.eval().to(device)
        self.checkpoint = checkpoint
        self.device = torch.device(device)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.checkpoint.class_names

    @property
    def thresholds(self) -> tuple[float, ...]:
        """For each class the score above which it is a label."""
        return self.checkpoint.class_thresholds()

    def scores(self, pictures: Sequence[Picture], batch_size: int = 32) -> npt.NDArray[np.float32]:
        """Scores [N, C] in 0..1 of paths, PIL images or uint8 arrays [H, W, 3]; DataError for an unreadable
        one.
        """
        parts = [np.empty((0, len(self.class_names)), np.float32)]
        for start in range(0, len(pictures), batch_size):
            pixels = [self._pixels(picture) for picture in pictures[start : start + batch_size]]
            parts.append(self._forward(torch.stack(pixels)).astype(np.float32))
        return np.concatenate(parts)

    def predict(
        self, pictures: Iterable[Picture], *, threshold: float | None = None, batch_size: int = 32
    ) -> list[Prediction]:
        """A prediction for each picture; DataError for one that cannot be read."""
        predictions = []
        for prediction in self.stream(pictures, threshold=threshold, batch_size=batch_size):
            if prediction.error is not None:
                raise DataError(f"image {prediction.image} cannot be read: {prediction.error}")
            predictions.append(prediction)
        return predictions

    def stream(
        self, pictures: Iterable[Picture], *, threshold: float | None = None, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Predictions one by one, in the order of the pictures, in the memory of one batch.

        A picture that cannot be read gives a prediction with its `error`.
        """
        limits = self.thresholds if threshold is None else (threshold,) * len(self.class_names)
        numbered = enumerate(pictures)
        while batch := list(islice(numbered, batch_size)):
            yield from self._predict_batch(batch, limits)

    def _predict_batch(self, batch: list[tuple[int, Picture]], limits: tuple[float, ...]) -> list[Prediction]:
        names = [
            str(p) if isinstance(p, str | Path | StoredImage) else f"image {number}" for number, p in batch
        ]
        pixels: list[Tensor] = []
        errors: dict[int, str] = {}
        for position, (_, picture) in enumerate(batch):
            try:
                pixels.append(self._pixels(picture))
            except UnreadableImage as error:
                errors[position] = error.reason
        rows = iter(self._forward(torch.stack(pixels)) if pixels else ())
        return [
            Prediction(name, {}, (), errors[position])
            if position in errors
            else self._prediction(name, next(rows), limits)
            for position, name in enumerate(names)
        ]

    def _prediction(self, name: str, row: npt.NDArray[np.float64], limits: tuple[float, ...]) -> Prediction:
        scores = dict(zip(self.class_names, row.tolist(), strict=True))
        above = [label for label, limit in zip(scores, limits, strict=True) if scores[label] > limit]
        return Prediction(name, scores, tuple(sorted(above, key=lambda label: -scores[label])))

    def _pixels(self, picture: Picture) -> Tensor:
        return to_pixels(self.checkpoint.preprocessing.resize(as_image(picture)))

    @torch.no_grad()
    def _forward(self, pixels: Tensor) -> npt.NDArray[np.float64]:
        images = self.checkpoint.preprocessing.normalize(pixels.to(self.device))
        logits = self.model(images).double().cpu()  # in float32, every score near 1 is 1
        scores: npt.NDArray[np.float64] = (logits / self.checkpoint.temperature).sigmoid().numpy()
        return scores


def as_image(picture: Picture) -> Image.Image:
    """A picture, however it comes, in RGB and in its own size; DataError where it cannot be read."""
    if isinstance(picture, str | Path | StoredImage):
        return open_image(Path(picture) if isinstance(picture, str) else picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise DataError(
                f"an array must be uint8 [H, W, 3] (RGB), got {picture.dtype} {list(picture.shape)}"
            )
        return Image.fromarray(picture)
    return picture.convert("RGB")


def load_classifier(
    path: str | Path, model: ModelBuilder | None = None, device: str | torch.device = "cpu"
) -> Predictor:
    """The classifier in a checkpoint folder, or the student of a run folder.

    `model`: the builder, for a model of your own. No code named in the files is run. Raises CheckpointError
    where there is no checkpoint, or it is damaged; ConfigError where there is no such device.
    """
    return Predictor(*load_model(find_checkpoint(Path(path)), model), device=_checked_device(device))


def find_checkpoint(path: Path, training: str = "student") -> Path:
    """`path` where it is a checkpoint folder, the folder of `training` where it is a run.

    CheckpointError where it is neither, or the run is not that far.
    """
    if (path / INFO_FILE).exists():
        return path
    if (path / training / INFO_FILE).exists():
        return path / training
    if (path / MANIFEST_FILE).exists():
        raise CheckpointError(
            f"the run in {path} is not finished, it has no {training} yet; the same `coterie run` command, "
            "given again, goes on with it"
        )
    raise CheckpointError(f"there is no run or checkpoint at {path}")


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files as given, and the pictures below folders, by name.

    DataError for a path that is not there, and for a folder without pictures.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"there is no picture or folder {path}")
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"folder {path} holds no picture (.jpg, .png, …)")
            found += inside
        else:
            found.append(path)
    return found


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device} cannot be used: {reason}; cpu always works") from None
