"""The built-in scenes: pictures composed from handwritten digits, with known co-occurrence.

A class is a digit in an ink ("red 3"). Classes belong to themes; a picture has a theme and takes most of its
labels from it, so labels of one theme are companions. In the split "test_shifted" labels are drawn about
as often but without themes: a model that leans on companions loses there.
"""

from __future__ import annotations

import colorsys
import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from coterie.data.dataset import MultiLabelDataset

INK_HUES = {"red": 0.0, "blue": 0.6}
CLASS_NAMES = tuple(f"{ink} {digit}" for digit in range(10) for ink in INK_HUES)
# Each theme mixes digits and inks, so that a theme cannot be told from a colour or a shape alone.
THEMES = (
    ("red 0", "blue 3", "red 6", "blue 8", "red 9"),
    ("blue 0", "red 1", "blue 4", "red 7", "blue 9"),
    ("red 2", "blue 1", "red 5", "blue 6", "red 8"),
    ("blue 2", "red 3", "red 4", "blue 5", "blue 7"),
)
# How often a class is drawn, against the others of its theme: a mild long tail.
FREQUENCIES = (1.0, 0.8, 0.6, 0.45, 0.35)
DIGIT_SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
LABELS_IN_A_PICTURE = (1, 2, 3, 4, 5)
CLUTTER = 4
# Sides of a digit, as shares of the picture's.
DIGIT_SIDES = (0.32, 0.45)
HUE_SPREAD = 0.03
NOISE = 0.04

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SceneSizes:
    """Number of pictures in each split."""

    train: int
    val: int
    test: int
    test_shifted: int


def make_scenes(
    sizes: SceneSizes, *, image_size: int = 64, theme_share: float = 0.85, seed: int = 0
) -> MultiLabelDataset:
    """Compose the scenes: images uint8 [N, image_size, image_size, 3], targets [N, 20].

    `theme_share` is the probability that a label comes from the picture's theme. Train, val and test use
    different digit images. The pictures of a split depend on `seed` and the split, not on the other sizes.
    """
    images, targets, splits = [], [], []
    for number, (split, size) in enumerate(vars(sizes).items()):
        rng = np.random.default_rng([seed, number])
        digits = _digits_of(split.removesuffix("_shifted"))
        for _ in range(size):
            labels = _draw_labels(rng, 0.0 if split.endswith("_shifted") else theme_share)
            images.append(_compose(rng, labels, digits, image_size))
            targets.append(np.isin(CLASS_NAMES, labels))
            splits.append(split)
    return MultiLabelDataset(
        images=np.stack(images),
        targets=np.stack(targets).astype(np.int8),
        class_names=CLASS_NAMES,
        splits=np.array(splits),
        image_ids=tuple(f"scene-{split}-{number:05d}" for number, split in enumerate(splits)),
        name="scenes",
    )


@functools.cache
def _digits_of(split: str) -> dict[int, list[Pixels]]:
    """The digit images [8, 8] in 0..1 of a split, by digit: always the same, disjoint between splits."""
    data = load_digits()
    rng = np.random.default_rng(0)
    first = sum(DIGIT_SHARES[name] for name in list(DIGIT_SHARES)[: list(DIGIT_SHARES).index(split)])
    chosen: dict[int, list[Pixels]] = {}
    for digit in range(10):
        images = data.images[rng.permutation(np.flatnonzero(data.target == digit))].astype(np.float32) / 16
        start, stop = (round(share * len(images)) for share in (first, first + DIGIT_SHARES[split]))
        chosen[digit] = list(images[start:stop])
    return chosen


def _draw_labels(rng: np.random.Generator, theme_share: float) -> list[str]:
    """One to five different class names, each from the picture's theme with probability `theme_share`."""
    weights = np.array(FREQUENCIES) / sum(FREQUENCIES)
    home = rng.integers(len(THEMES))
    labels: list[str] = []
    count = rng.choice(LABELS_IN_A_PICTURE)
    while len(labels) < count:
        theme = home if rng.random() < theme_share else rng.integers(len(THEMES))
        label = THEMES[theme][rng.choice(len(weights), p=weights)]
        if label not in labels:
            labels.append(label)
    return labels


def _compose(
    rng: np.random.Generator, labels: list[str], digits: dict[int, list[Pixels]], size: int
) -> npt.NDArray[np.uint8]:
    """A cluttered picture uint8 [size, size, 3] that shows one digit for each label."""
    canvas = _resize(rng.random((4, 4, 3), dtype=np.float32) * 0.6, size, size)
    for _ in range(CLUTTER):
        fragment = _random_digit(rng, digits)[1:5, 1:5]
        side = int(rng.integers(size // 8, size // 5))
        top, left = rng.integers(0, size - side, 2)
        _paint(rng, canvas, fragment, hue=rng.random(), side=side, top=top, left=left)
    cell = size // 3
    for label, place in zip(labels, rng.permutation(9), strict=False):
        ink, digit = label.split()
        pool = digits[int(digit)]
        side = int(rng.integers(int(size * DIGIT_SIDES[0]), int(size * DIGIT_SIDES[1])))
        corner = np.array(divmod(place, 3)) * cell + rng.integers(-cell // 3, cell // 3 + 1, 2)
        top, left = corner.clip(0, size - side)
        hue = INK_HUES[ink] + rng.normal(0, HUE_SPREAD)
        _paint(rng, canvas, pool[rng.integers(len(pool))], hue=hue, side=side, top=top, left=left)
    canvas += rng.normal(0, NOISE, canvas.shape).astype(np.float32)
    return (canvas.clip(0, 1) * 255).astype(np.uint8)


def _random_digit(rng: np.random.Generator, digits: dict[int, list[Pixels]]) -> Pixels:
    pool = digits[int(rng.integers(10))]
    return pool[rng.integers(len(pool))]


def _paint(
    rng: np.random.Generator, canvas: Pixels, stroke: Pixels, *, hue: float, side: int, top: int, left: int
) -> None:
    """Blend `stroke`, resized to [side, side], into the canvas, in a colour of the given hue."""
    colour = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1), rng.uniform(0.7, 1))
    alpha = _resize(stroke[..., None], side, side) * rng.uniform(0.7, 1)
    window = canvas[top : top + side, left : left + side]
    window += alpha * (np.array(colour, np.float32) - window)


def _resize(values: Pixels, height: int, width: int) -> Pixels:
    """Values [h, w, channels] in 0..1, resized bicubically."""
    channels = [
        np.asarray(Image.fromarray(values[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(values.shape[-1])
    ]
    return np.stack(channels, axis=-1).clip(0, 1)
