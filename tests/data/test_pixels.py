"""Resized images on the disk: the pixels of decoding, whole or not there."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import coterie.data.pixels
from coterie.config import load_config
from coterie.data.dataset import MultiLabelDataset, UnreadableImage
from coterie.data.loading import ResizedImages, plain_batches
from coterie.data.pixels import PIXELS_FOLDER, PixelStore
from coterie.data.reading import read_dataset
from coterie.data.transforms import Preprocessing
from coterie.errors import RunError
from coterie.files import file_sha256
from coterie.pipeline import run
from tests.tiny import RUN_WORDS, make_dataset, write_table

SIDE = 12
PREPROCESSING = Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGES = 60


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coterie.data.pixels, "IMAGES_A_FILE", 25)


@pytest.fixture
def dataset(tmp_path: Path) -> MultiLabelDataset:
    table = write_table(tmp_path / "photos")
    return read_dataset(load_config([f"data={table}"]).data)


def resized(dataset: MultiLabelDataset, folder: Path, fingerprint: str = "data") -> ResizedImages:
    stored = PixelStore(folder, fingerprint, len(dataset), SIDE)
    return ResizedImages(dataset, PREPROCESSING, stored=stored)


def filled(dataset: MultiLabelDataset, folder: Path) -> tuple[ResizedImages, int]:
    """The images with their files written, and how many images that took."""
    images = resized(dataset, folder)
    done: list[int] = []
    images.fill(done.append)
    return images, sum(done)


def no_decoding(*_: object) -> None:
    raise AssertionError("an image was decoded")


def test_the_pixels_are_those_of_decoding(
    dataset: MultiLabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(dataset) == IMAGES
    decoded = ResizedImages(dataset, PREPROCESSING)
    expected = [np.array(decoded[index]) for index in range(IMAGES)]
    images, done = filled(dataset, tmp_path / "pixels")
    assert done >= IMAGES
    assert len(list((tmp_path / "pixels").rglob("*.bin"))) == 3
    monkeypatch.setattr(ResizedImages, "_decode", no_decoding)
    sent: ResizedImages = pickle.loads(pickle.dumps(images))  # as to a loading process
    for index in (0, 24, 25, 59):
        assert np.array_equal(np.array(images[index]), expected[index])
        assert np.array_equal(np.array(sent[index]), expected[index])
    assert filled(dataset, tmp_path / "pixels")[1] == 0


def test_a_damaged_file_is_mended_and_never_read(dataset: MultiLabelDataset, tmp_path: Path) -> None:
    images, _ = filled(dataset, tmp_path)
    expected = np.array(images[30])
    (path,) = tmp_path.rglob("0001.bin")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"0001\.bin are damaged; start the run again"):
        resized(dataset, tmp_path)[30]
    again, done = filled(dataset, tmp_path)
    assert done == 25
    assert np.array_equal(np.array(again[30]), expected)


def test_other_images_have_other_files(dataset: MultiLabelDataset, tmp_path: Path) -> None:
    filled(dataset, tmp_path)
    with pytest.raises(RunError, match="are damaged"):
        resized(dataset, tmp_path, "other data")[0]
    with pytest.raises(RunError, match="are damaged"):
        PixelStore(tmp_path, "data", IMAGES, SIDE + 1)[0]


def test_many_images_are_in_no_more_files_than_a_process_may_open(
    dataset: MultiLabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coterie.data.pixels, "MOST_FILES", 2)
    images, _ = filled(dataset, tmp_path)
    assert len(list(tmp_path.rglob("*.bin"))) == 2
    decoded = ResizedImages(dataset, PREPROCESSING)
    for index in (0, 29, 30, 59):
        assert np.array_equal(np.array(images[index]), np.array(decoded[index]))


def test_a_damaged_file_is_told_by_loading_processes_too(dataset: MultiLabelDataset, tmp_path: Path) -> None:
    images, _ = filled(dataset, tmp_path)
    next(tmp_path.rglob("0001.bin")).unlink()
    with pytest.raises(RunError) as caught:
        list(plain_batches(images, np.arange(30), 10, workers=1).epoch(0))
    assert str(caught.value).endswith("0001.bin are damaged; start the run again, it mends them")
    assert "Traceback" not in str(caught.value)


def test_a_finished_run_whose_files_are_gone_is_measured_anew(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos", make_dataset())
    words = [
        *RUN_WORDS,
        f"data={table}",
        f"out={tmp_path / 'run'}",
        "data.cache_gb=0",
        "data.disk_cache_gb=1",
    ]
    before = run(load_config(words), only=("baseline",))
    shutil.rmtree(before.folder / PIXELS_FOLDER)
    after = run(load_config([*words, "threshold=0.4"]), only=("baseline",), update=True)
    assert after.metrics["val"]["baseline"]["mAP"] == before.metrics["val"]["baseline"]["mAP"]


def test_an_image_that_broke_is_named_and_the_files_before_are_kept(
    dataset: MultiLabelDataset, tmp_path: Path
) -> None:
    (tmp_path / "photos" / dataset.image_ids[40]).write_bytes(b"no picture")
    images = resized(dataset, tmp_path / "pixels")
    with pytest.raises(UnreadableImage, match=dataset.image_ids[40]):
        images.fill(lambda _: None)
    assert [path.name for path in (tmp_path / "pixels").rglob("*.bin")] == ["0000.bin"]
    assert not list((tmp_path / "pixels").rglob("*.part"))


def test_too_small_a_disk_is_said(
    dataset: MultiLabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 8000))
    with pytest.raises(RunError, match=r"the resized images need .* GB in .* Choose another place"):
        filled(dataset, tmp_path)


def test_a_run_from_the_disk_has_the_weights_of_one_from_memory(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos", make_dataset())
    made = {}
    for name, words in (
        ("memory", ()),
        ("decoded", ("data.cache_gb=0",)),
        ("disk", ("data.cache_gb=0", "data.disk_cache_gb=1", f"cache_dir={tmp_path}")),
    ):
        config = load_config([*RUN_WORDS, f"data={table}", f"out={tmp_path / name}", *words])
        made[name] = run(config, only=("baseline",)).folder
    hashes = {file_sha256(folder / "baseline" / "model.safetensors") for folder in made.values()}
    assert len(hashes) == 1
    assert list((tmp_path / PIXELS_FOLDER).rglob("*.bin"))
    assert not (made["memory"] / PIXELS_FOLDER).exists()
