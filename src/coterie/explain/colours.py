"""The colours of maps, the same on sheets, in reports and on the page of the server."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt


def heat_colours(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Colours [H, W, 3] in 0..1 of a map [H, W] in 0..1, from dark red over orange to yellow."""
    return _table()[(heat * 255).round().astype(np.uint8)]


@functools.cache
def _table() -> npt.NDArray[np.float32]:
    """[256, 3]: inferno without its black."""
    from matplotlib import colormaps

    rgb: npt.NDArray[np.float32] = colormaps["inferno"](np.linspace(0.4, 1, 256))[:, :3].astype(np.float32)
    return rgb
