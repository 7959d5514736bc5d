"""Pictures made up for benchmarks, smooth as photographs are: as files, and as a dataset in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from coterie.data.dataset import MultiLabelDataset

CLASSES = 80
CLASS_NAMES = tuple(f"label {number:02d}" for number in range(CLASSES))


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files of 640 x 480, as smooth and as noisy as photographs about are: some 60 kB each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + rng.normal(0, 8, smooth.shape).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=85)


def random_dataset(count: int, size: int, validation: bool = False) -> MultiLabelDataset:
    """Smooth pictures of `size` pixels and labels that have companions; with `validation` of every 16th."""
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8)).astype(np.float32))
    smooth = nn.functional.interpolate(small, size=(size, size), mode="bilinear")
    themes = rng.integers(0, 8, count)
    likely = np.where(np.arange(CLASSES) % 8 == themes[:, None], 0.25, 0.02)
    return MultiLabelDataset(
        images=smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy(),
        targets=(rng.random((count, CLASSES)) < likely).astype(np.int8),
        class_names=CLASS_NAMES,
        splits=np.array(["val" if validation and number % 16 == 0 else "train" for number in range(count)]),
        image_ids=tuple(str(number) for number in range(count)),
        name="random pictures",
    )
