"""A trained classifier at work: from pictures to labels with scores."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.special import expit
from torch import Tensor, nn

from coterie.checkpoint import INFO_FILE, Checkpoint, load_model
from coterie.data.dataset import StoredImage, UnreadableImage, open_image, upright_rgb
from coterie.data.transforms import to_pixels
from coterie.errors import CheckpointError, ConfigError, DataError, did_you_mean, repeated, shortened
from coterie.models.factory import ModelBuilder
from coterie.runfolder import MANIFEST_FILE
from coterie.sources import find_pictures

Picture = str | Path | StoredImage | Image.Image | npt.NDArray[np.uint8]
# A model on the Hugging Face Hub, hf://user/model or hf://user/model@revision: a path has one slash after hf:
HUB_NAME = r"[\w.-]+/[\w.-]+"
ON_HUB = re.compile(rf"hf:/{{1,2}}({HUB_NAME}(@[\w./-]+)?)")
Pictures = Iterable[Picture] | npt.NDArray[np.uint8]
BATCHES_AHEAD = 3  # of decoded pictures in memory, the one that is computed among them
DECODING_THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Prediction:
    """The scores in 0..1 of one picture, in class order; `labels` are those above the threshold, best first.

    `error` says why a picture could not be read; it has no scores then.
    """

    image: str
    scores: dict[str, float]
    labels: tuple[str, ...]
    error: str | None = None

    def ranked(self) -> list[str]:
        """All classes, the one of the greatest score first; equals in class order."""
        return sorted(self.scores, key=lambda label: -self.scores[label])


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

    def scores(self, pictures: Pictures, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """Scores [N, C] in 0..1 of paths, PIL images, arrays uint8 [H, W, 3] or one array [N, H, W, 3].

        DataError for a picture that cannot be read.
        """
        return self.to_scores(self.logits(pictures, batch_size)).astype(np.float32)

    def logits(self, pictures: Pictures, batch_size: int = 32) -> npt.NDArray[np.float64]:
        """What the model itself gives, [N, C], for pictures as `scores` takes them."""
        parts = [
            self._logits([future.result() for _, future in batch])
            for batch in self._decoded(pictures, batch_size)
        ]
        return np.concatenate([np.empty((0, len(self.class_names))), *parts])

    def to_scores(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Scores in 0..1 of logits, by the checkpoint's temperature."""
        scores: npt.NDArray[np.float64] = expit(logits / self.checkpoint.temperature)
        return scores

    def predict(
        self, pictures: Pictures, *, threshold: float | None = None, batch_size: int = 32
    ) -> list[Prediction]:
        """A prediction for each picture; DataError for one that cannot be read."""
        predictions = []
        for prediction in self.stream(pictures, threshold=threshold, batch_size=batch_size):
            if prediction.error is not None:
                raise DataError(f"image {prediction.image} cannot be read: {prediction.error}")
            predictions.append(prediction)
        return predictions

    def stream(
        self, pictures: Pictures, *, threshold: float | None = None, batch_size: int = 32
    ) -> Generator[Prediction, None, None]:
        """Predictions one by one, in the order of the pictures, in the memory of a few batches.

        Threads decode the next pictures while the model computes. A picture that cannot be read gives a
        prediction with its `error`. `threshold`: for all classes; by default the checkpoint's for each.
        """
        limits = self.thresholds if threshold is None else (threshold,) * len(self.class_names)
        for batch in self._decoded(pictures, batch_size):
            yield from self._predictions(batch, limits)

    def _decoded(self, pictures: Pictures, batch_size: int) -> Iterator[list[tuple[str, Future[Tensor]]]]:
        """(name, pixels uint8 [3, H, W] to come) of the pictures, batch by batch, as threads decode them."""
        numbered = enumerate(pictures)
        waiting: deque[tuple[str, Future[Tensor]]] = deque()
        pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
        try:
            while True:
                for number, picture in islice(numbered, BATCHES_AHEAD * batch_size - len(waiting)):
                    is_named = isinstance(picture, str | Path | StoredImage)
                    name = str(picture) if is_named else f"image {number}"
                    waiting.append((name, pool.submit(self._pixels, picture)))
                if not waiting:
                    return
                yield [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        finally:
            pool.shutdown(cancel_futures=True)

    def _predictions(
        self, batch: list[tuple[str, Future[Tensor]]], limits: tuple[float, ...]
    ) -> list[Prediction]:
        pixels: list[Tensor] = []
        errors: dict[int, str] = {}
        for position, (_, future) in enumerate(batch):
            try:
                pixels.append(future.result())
            except UnreadableImage as error:
                errors[position] = error.reason
        rows = iter(self._forward(pixels) if pixels else ())
        return [
            Prediction(name, {}, (), errors[position])
            if position in errors
            else self._prediction(name, next(rows), limits)
            for position, (name, _) in enumerate(batch)
        ]

    def _prediction(self, name: str, row: npt.NDArray[np.float64], limits: tuple[float, ...]) -> Prediction:
        scores = dict(zip(self.class_names, row.tolist(), strict=True))
        above = [label for label, limit in zip(scores, limits, strict=True) if scores[label] > limit]
        return Prediction(name, scores, tuple(sorted(above, key=lambda label: -scores[label])))

    def _pixels(self, picture: Picture) -> Tensor:
        return to_pixels(self.checkpoint.preprocessing.resize(as_image(picture)))

    def _forward(self, pixels: list[Tensor]) -> npt.NDArray[np.float64]:
        return self.to_scores(self._logits(pixels))

    @torch.no_grad()
    def _logits(self, pixels: list[Tensor]) -> npt.NDArray[np.float64]:
        images = self.checkpoint.preprocessing.normalize(torch.stack(pixels).to(self.device))
        # in float32, every score near 1 is 1
        logits: npt.NDArray[np.float64] = self.model(images).float().cpu().double().numpy()
        return logits


def as_image(picture: Picture) -> Image.Image:
    """A picture, however it comes, upright in RGB and in its own size; DataError where it cannot be read."""
    if isinstance(picture, str | Path | StoredImage):
        return open_image(Path(picture) if isinstance(picture, str) else picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise DataError(
                f"an array must be uint8 [H, W, 3] (RGB), got {picture.dtype} {list(picture.shape)}"
            )
        return Image.fromarray(picture)
    return upright_rgb(picture)


def load_classifier(
    path: str | Path, model: ModelBuilder | None = None, device: str | torch.device = "cpu"
) -> Predictor:
    """The classifier in a checkpoint folder, the student of a run folder, or "hf://user/model" of the Hub.

    `model`: the builder, for a model of your own. No code named in the files is run. Raises CheckpointError
    where there is no checkpoint, or it is damaged; ConfigError where there is no such device. `device`:
    "auto" is a GPU where there is one.
    """
    return Predictor(*load_model(find_checkpoint(Path(path)), model), device=_checked_device(device))


def find_checkpoint(path: Path, training: str = "student") -> Path:
    """`path` where it is a checkpoint folder, the folder of `training` where it is a run; hf://user/model is
    downloaded. CheckpointError where it is none of these, or the run is not that far.
    """
    path = fetched(path)
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


def fetched(path: Path) -> Path:
    """`path`; of hf://user/model the folder that it was downloaded to."""
    found = ON_HUB.fullmatch(str(path))
    if found is None:
        return path
    from coterie.export.hub import download  # it imports this module

    return download(found[1])


def class_columns(known: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The positions of `classes` in `known`; ConfigError where there are none, or one is not there."""
    if not any(name.strip() for name in classes):
        raise ConfigError(f"name at least one class; the model knows {shortened(known)}")
    if twice := repeated(classes):
        raise ConfigError(f"classes are named more than once: {shortened(twice)}")
    position = {name: column for column, name in enumerate(known)}
    for name in classes:
        if name not in position:
            hint = did_you_mean(name, known) or f"; it knows {shortened(known)}"
            raise ConfigError(f"the model has no class '{name}'{hint}")
    return [position[name] for name in classes]


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files as given, and the pictures below folders and of patterns, as `find_pictures` finds them."""
    return [Path(str(source)) for source in find_pictures(paths)]


def _checked_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device} cannot be used: {reason}; cpu always works") from None
