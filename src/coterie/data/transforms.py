"""From a picture to the network's input: squash resize, augmentation, normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from coterie.config import AugmentConfig


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects: RGB pictures squashed to a square, scaled to 0..1, less `mean`, over `std`."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def resize(self, image: Image.Image) -> Image.Image:
        """The whole picture in image_size x image_size pixels; its aspect ratio is not kept."""
        size = (self.image_size, self.image_size)
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, 3, H, W], on the device of `pixels`."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1) * 255
        return (pixels.float() - mean) / std


class Cutout:
    """Paint a square of a random colour over the picture (DeVries and Taylor, 2017).

    Its centre is anywhere in the picture and its side is `factor` of the picture's, so it may reach outside.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        x, y = (int(torch.randint(extent, ())) for extent in (width, height))
        half_width, half_height = int(width * self.factor / 2), int(height * self.factor / 2)
        colour = tuple(torch.randint(256, (3,)).tolist())
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        image = image.copy()
        image.paste(colour, box)
        return image


class Shift:
    """Move the picture by up to `share` of its side along each axis; the edges come in mirrored."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, image: Image.Image) -> Image.Image:
        columns, rows = (self._mirrored(extent) for extent in image.size)
        return Image.fromarray(np.asarray(image)[rows][:, columns])

    def _mirrored(self, extent: int) -> npt.NDArray[np.int64]:
        """The positions 0..extent-1 after a random move, those outside mirrored at the edge."""
        margin = int(extent * self.share)
        positions = np.abs(np.arange(extent) + int(torch.randint(2 * margin + 1, ())) - margin)
        mirrored: npt.NDArray[np.int64] = np.minimum(positions, 2 * (extent - 1) - positions)
        return mirrored


def make_augmentation(settings: AugmentConfig) -> v2.Transform | None:
    """Flip, Shift, Cutout and RandAugment, as far as they are on: PIL -> PIL, by torch's generator."""
    steps: list[object] = []
    if settings.flip > 0:
        steps.append(v2.RandomHorizontalFlip(settings.flip))
    if settings.shift > 0:
        steps.append(Shift(settings.shift))
    if settings.cutout > 0:
        steps.append(Cutout(settings.cutout))
    if settings.randaugment:
        steps.append(v2.RandAugment(settings.randaugment_ops, settings.randaugment_magnitude))
    return v2.Compose(steps) if steps else None


def to_pixels(image: Image.Image) -> Tensor:
    """PIL image -> uint8 [3, H, W]."""
    pixels: Tensor = functional.pil_to_tensor(image)
    return pixels
