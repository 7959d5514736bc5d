"""Batches: what an epoch goes through, and views that depend on (seed, epoch, image) alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coterie.config import AugmentConfig
from coterie.data.dataset import MultiLabelDataset, UnreadableImage
from coterie.data.loading import (
    Batches,
    EpochSampler,
    ResizedImages,
    View,
    Views,
    plain_batches,
    training_batches,
)
from coterie.data.transforms import Preprocessing, make_augmentation

PREPROCESSING = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
AUGMENTATION = make_augmentation(AugmentConfig(cutout=0.5, randaugment=True, flip=0.5))


def dataset(size: int = 11) -> MultiLabelDataset:
    rng = np.random.default_rng(0)
    return MultiLabelDataset(
        images=rng.integers(0, 256, (size, 10, 12, 3), dtype=np.uint8),
        targets=rng.integers(-1, 2, (size, 3)).astype(np.int8),
        class_names=("ant", "bee", "cat"),
        splits=np.array(["train"] * (size - 3) + ["val"] * 3),
        image_ids=tuple(f"image {number}" for number in range(size)),
    )


def files(folder: Path) -> MultiLabelDataset:
    """The same pictures as PNG files."""
    arrays = dataset()
    paths = [folder / f"{number}.png" for number in range(len(arrays))]
    for number, path in enumerate(paths):
        arrays.load_image(number).save(path)
    return replace(arrays, images=paths)


def views_of(batches: Batches, epoch: int) -> dict[int, torch.Tensor]:
    """{position: pixels} of one epoch."""
    return {
        int(index): pixels
        for batch in batches.epoch(epoch)
        for index, pixels in zip(batch.indices, batch.pixels, strict=True)
    }


def view(number: int, epoch: int = 0) -> View:
    return Views(ResizedImages(dataset(), PREPROCESSING), AUGMENTATION, seed=1)[epoch, number]


def test_plain_batches_keep_the_order_and_the_short_last_batch() -> None:
    indices = np.array([4, 2, 9, 0, 7])
    batches = plain_batches(ResizedImages(dataset(), PREPROCESSING), indices, 2)
    found = list(batches.epoch(0))
    assert [part.indices.tolist() for part in found] == [[4, 2], [9, 0], [7]]
    assert len(batches) == 3
    assert batches.indices is indices
    first = found[0]
    assert first.pixels.shape == (2, 3, 8, 8)
    assert first.pixels.dtype == torch.uint8
    assert first.targets.dtype == torch.int8
    assert first.targets.tolist() == dataset().targets[[4, 2]].tolist()
    resized = PREPROCESSING.resize(dataset().load_image(4))
    assert np.array_equal(first.pixels[0].permute(1, 2, 0).numpy(), np.asarray(resized))


def test_a_training_epoch_takes_images_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(np.arange(20), 5, shuffle=True, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        keys = [key for part in sampler for key in part]
        assert {key[0] for key in keys} == {epoch}
        orders.append([key[1] for key in keys])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    other = EpochSampler(np.arange(20), 5, shuffle=True, seed=4)
    assert [key[1] for part in other for key in part] != orders[0]


def test_a_training_epoch_leaves_a_short_batch_out_but_never_all() -> None:
    sampler = EpochSampler(np.arange(11), 4, shuffle=True)
    assert [len(part) for part in sampler] == [4, 4]
    assert len(sampler) == 2
    small = EpochSampler(np.arange(3), 32, shuffle=True)
    assert [len(part) for part in small] == [3]


def test_training_batches_are_of_their_split() -> None:
    batches = training_batches(ResizedImages(dataset(), PREPROCESSING), "train", 4, None, seed=0)
    assert sorted(views_of(batches, 0)) == list(range(8))


def test_a_view_depends_on_seed_epoch_and_image_alone() -> None:
    pixels = view(3).pixels
    torch.manual_seed(5)
    view(4)
    torch.rand(3)
    assert torch.equal(view(3).pixels, pixels)
    assert not torch.equal(view(3, epoch=1).pixels, pixels)
    other = Views(ResizedImages(dataset(), PREPROCESSING), AUGMENTATION, seed=2)[0, 3]
    assert not torch.equal(other.pixels, pixels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_after_its_check_is_one_clear_error(tmp_path: Path, workers: int) -> None:
    images = ResizedImages(files(tmp_path), PREPROCESSING)
    batches = plain_batches(images, np.arange(11), 4, workers)
    assert len(list(batches.epoch(0))) == 3
    (tmp_path / "5.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage) as caught:
        list(batches.epoch(1))
    assert str(caught.value) == (
        f"image {tmp_path / '5.png'} cannot be read: it is not a picture of a known format"
    )
    assert caught.value.reason == "it is not a picture of a known format"


def test_workers_change_no_pixel() -> None:
    images = ResizedImages(dataset(), PREPROCESSING, memory_gb=1, shared=True)
    alone = training_batches(ResizedImages(dataset(), PREPROCESSING), "train", 3, AUGMENTATION, seed=1)
    helped = training_batches(images, "train", 3, AUGMENTATION, seed=1, workers=2)
    for epoch in (0, 1):
        expected, found = views_of(alone, epoch), views_of(helped, epoch)
        assert list(expected) == list(found)
        assert all(torch.equal(expected[index], found[index]) for index in expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_leaves_torch_s_generator_as_it_was(workers: int) -> None:
    images = ResizedImages(dataset(), PREPROCESSING)
    batches = training_batches(images, "train", 4, AUGMENTATION, seed=1, workers=workers)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for epoch in (0, 1):
        list(batches.epoch(epoch))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shared", [False, True])
def test_the_cache_gives_the_pixels_of_decoding(tmp_path: Path, shared: bool) -> None:
    on_disk = files(tmp_path)
    decoded = ResizedImages(on_disk, PREPROCESSING)
    cached = ResizedImages(on_disk, PREPROCESSING, memory_gb=1, shared=shared)
    expected = [np.asarray(decoded[index]).copy() for index in range(len(on_disk))]
    first = [np.asarray(cached[index]).copy() for index in range(len(on_disk))]
    for path in tmp_path.iterdir():
        path.unlink()
    second = [np.asarray(cached[index]) for index in range(len(on_disk))]
    assert np.array_equal(expected, first)
    assert np.array_equal(expected, second)


def test_changing_a_view_does_not_change_the_cache() -> None:
    cached = ResizedImages(dataset(), PREPROCESSING, memory_gb=1)
    before = np.asarray(cached[0]).copy()
    cached[0].paste((1, 2, 3), (0, 0, 8, 8))
    assert np.array_equal(np.asarray(cached[0]), before)


def test_images_that_do_not_fit_into_memory_are_decoded_each_time(tmp_path: Path) -> None:
    on_disk = files(tmp_path)
    size = len(on_disk) * 8 * 8 * 3 / 1e9
    too_small = ResizedImages(on_disk, PREPROCESSING, memory_gb=size * 0.9)
    before = np.asarray(too_small[0]).copy()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "0.png")
    assert (before != 9).any()
    assert (np.asarray(too_small[0]) == 9).all()
