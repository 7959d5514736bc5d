"""Pictures on their way into the network: resize, normalisation, Cutout, augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from coterie.config import AugmentConfig
from coterie.data.transforms import Cutout, Preprocessing, Shift, make_augmentation, to_pixels
from coterie.seeding import seeded

IMAGENET = Preprocessing(8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_resize_squashes_the_whole_picture_into_a_square() -> None:
    values = np.zeros((10, 40, 3), np.uint8)
    values[:, :20] = (200, 0, 0)
    values[:, 20:] = (0, 0, 100)
    small = np.asarray(IMAGENET.resize(Image.fromarray(values)))
    assert small.shape == (8, 8, 3)
    assert (small[:, :3] == (200, 0, 0)).all()
    assert (small[:, 5:] == (0, 0, 100)).all()


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    image = picture(8, 8)
    assert np.array_equal(np.asarray(IMAGENET.resize(image)), np.asarray(image))


def test_normalisation_is_less_mean_over_deviation_of_values_in_0_to_1() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    images = IMAGENET.normalize(pixels)
    assert images.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(IMAGENET.mean, IMAGENET.std, strict=True)):
        expected = (pixels[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(images[:, channel].double(), expected, rtol=1e-5, atol=1e-5)


def test_pixels_are_channels_first() -> None:
    image = picture(6, 4)
    pixels = to_pixels(image)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.75])
def test_cutout_paints_one_rectangle_of_one_colour(factor: float) -> None:
    areas, colours = [], set()
    with seeded(0):
        for _ in range(60):
            before = np.full((32, 32, 3), 77, np.uint8)
            after = np.asarray(Cutout(factor)(Image.fromarray(before)))
            changed = (after != before).any(axis=2)
            assert (before == 77).all()
            rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            assert changed[box].all()
            inside = {tuple(colour) for colour in after[box].reshape(-1, 3).tolist()}
            assert len(inside) == 1
            colours |= inside
            areas.append(int(changed.sum()))
    side = 32 * factor
    assert max(areas) == side**2
    assert min(areas) >= (side / 2) ** 2  # the centre is inside the picture, so a quarter at least is too
    assert len(colours) > 50


def test_cutout_depends_on_the_generator_alone_and_leaves_its_input() -> None:
    image = picture(16, 16)
    before = np.asarray(image).copy()
    results = []
    for seed in (3, 3, 4):
        with seeded(seed):
            results.append(np.asarray(Cutout(0.5)(image)))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert np.array_equal(np.asarray(image), before)


def test_an_augmentation_with_everything_off_is_none() -> None:
    assert make_augmentation(AugmentConfig(cutout=0, randaugment=False, flip=0)) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (AugmentConfig(cutout=0.5, randaugment=False), ["Cutout"]),
        (AugmentConfig(cutout=0, randaugment=True), ["RandAugment"]),
        (AugmentConfig(cutout=0.5, flip=0.5), ["RandomHorizontalFlip", "Cutout", "RandAugment"]),
    ],
)
def test_an_augmentation_is_made_of_the_parts_that_are_on(
    settings: AugmentConfig, expected: list[str]
) -> None:
    augmentation = make_augmentation(settings)
    assert augmentation is not None
    assert [type(step).__name__ for step in augmentation.transforms] == expected


def test_randaugment_takes_its_strength_from_the_settings() -> None:
    augmentation = make_augmentation(AugmentConfig(cutout=0, randaugment_ops=3, randaugment_magnitude=30))
    assert augmentation is not None
    (step,) = augmentation.transforms
    assert (step.num_ops, step.magnitude) == (3, 30)
    image = picture(16, 16)
    with seeded(0):
        changed = [np.asarray(augmentation(image)) for _ in range(5)]
    assert all(view.shape == (16, 16, 3) for view in changed)
    assert not all(np.array_equal(view, np.asarray(image)) for view in changed)


def test_a_flip_of_probability_one_mirrors_the_picture() -> None:
    augmentation = make_augmentation(AugmentConfig(cutout=0, randaugment=False, flip=1))
    assert augmentation is not None
    image = picture(6, 4)
    assert np.array_equal(np.asarray(augmentation(image)), np.asarray(image)[:, ::-1])


def test_shift_moves_the_picture_and_mirrors_its_edge() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    shown = Image.fromarray(np.stack([pixels] * 3, axis=-1))
    seen = set()
    for seed in range(60):
        with seeded(seed):
            moved = np.asarray(Shift(0.25)(shown))[..., 0]
        padded = np.pad(pixels, 2, mode="reflect")
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(moved, padded[top : top + 8, left : left + 8])
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 15


def test_shift_is_off_by_default_and_on_by_its_setting() -> None:
    off = make_augmentation(AugmentConfig(cutout=0, randaugment=False))
    on = make_augmentation(AugmentConfig(cutout=0, randaugment=False, shift=0.125))
    assert off is None
    assert isinstance(on, v2.Compose)
    assert [type(step) for step in on.transforms] == [Shift]
