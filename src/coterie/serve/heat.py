"""A map of a class as a picture to lay over the photograph."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from coterie.explain.colours import heat_colours

# The longer side in pixels: pages show photographs no larger, and maps are coarse.
MOST_SIDE = 800
# How much of the photograph the greatest value hides.
STRENGTH = 0.75


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) that a map of a picture of `size` is sent in."""
    scale = min(1, MOST_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def heat_png(heat: npt.NDArray[np.float32]) -> bytes:
    """A map [H, W] in 0..1 as PNG with transparency: from nothing at 0 over red to yellow at 1."""
    shares = np.nan_to_num(heat).clip(0, 1)
    colours = np.dstack([heat_colours(shares), STRENGTH * shares])
    written = io.BytesIO()
    Image.fromarray((colours * 255).round().astype(np.uint8)).save(written, "PNG")
    return written.getvalue()
