"""Which images are there, and which are listed twice."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from coterie.data.dataset import MultiLabelDataset
from coterie.data.presence import (
    check_apart,
    check_presence,
    likeliest_folder,
    missing_images,
    repeated_images,
    without_missing,
)
from coterie.errors import DataError
from tests.tiny import make_dataset


def dataset(paths: list[Path], splits: list[str] | None = None) -> MultiLabelDataset:
    return MultiLabelDataset(
        images=paths,
        targets=np.ones((len(paths), 1), np.int8),
        class_names=("cat",),
        splits=np.array(splits or ["train"] * len(paths), dtype=np.str_),
        image_ids=tuple(str(number) for number in range(len(paths))),
        name="toy",
    )


def folder_with(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_missing_images_are_found_in_folders_that_are_there_and_in_others(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg x/b.jpg")
    names = ("a.jpg", "b.jpg", "x/b.jpg", "y/b.jpg", "x" * 5000)
    assert missing_images(dataset([tmp_path / name for name in names])).tolist() == [1, 3, 4]


def test_paths_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_with(tmp_path, "a.jpg x/b.jpg"))
    assert missing_images(dataset([Path("a.jpg"), Path("x/b.jpg"), Path("c.jpg")])).tolist() == [2]


def test_a_file_at_the_root_is_not_the_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_with(tmp_path, "a.jpg"))
    assert missing_images(dataset([Path("/a.jpg"), Path("a.jpg")])).tolist() == [0]
    assert repeated_images(dataset([Path("/a.jpg"), Path("a.jpg")])) == []


def test_links_are_followed_and_broken_ones_missing(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "b.jpg")
    assert missing_images(dataset([tmp_path / "link.jpg", tmp_path / "broken.jpg"])).tolist() == [1]


def test_images_in_memory_are_always_there() -> None:
    assert not len(missing_images(make_dataset()))
    assert repeated_images(make_dataset()) == []


def test_missing_images_are_counted_and_named_with_the_settings_that_help(tmp_path: Path) -> None:
    data = dataset([folder_with(tmp_path, "7.jpg") / f"{number}.jpg" for number in range(8)])
    with pytest.raises(DataError) as caught:
        check_presence(data, missing_images(data), "error")
    assert str(caught.value) == (
        "7 of 8 images of toy are not there: '0', '1', '2', '3', '4' and 2 more; the first is looked for at "
        f"{tmp_path / '0.jpg'}. data.image_root names the folder that their paths start from, and "
        "data.on_missing=skip leaves them out"
    )


def test_missing_images_may_be_left_out_but_not_all_of_them(tmp_path: Path) -> None:
    data = dataset([folder_with(tmp_path, "b.jpg") / name for name in ("a.jpg", "b.jpg", "c.jpg")])
    missing = missing_images(data)
    check_presence(data, missing, "skip")
    kept = without_missing(data, missing)
    assert kept.image_ids == ("1",)
    assert kept.notes == (
        "2 of 3 images are not there and left out: '0', '2'; `coterie inspect --out FILE` lists all of them",
    )
    none = data.subset(missing)
    with pytest.raises(DataError, match=r"2 of 2 images of toy are not there.*start from$"):
        check_presence(none, missing_images(none), "skip")


def test_one_file_under_two_names_is_found(tmp_path: Path) -> None:
    folder_with(tmp_path, "x/a.jpg x/b.jpg")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    paths = [tmp_path / name for name in ("x/a.jpg", "x/b.jpg", "y/a.jpg", "x/../x/b.jpg")]
    data = dataset(paths, ["train", "train", "test", "train"])
    assert repeated_images(data) == [(0, 2), (1, 3)]
    with pytest.raises(DataError) as caught:
        check_apart(data)
    assert str(caught.value) == (
        "1 image of toy in two splits: '0' (train) and '2' (test); keep each in one split: to learn "
        "from an image and to measure on it, or to know its labels and not to, cannot both be meant"
    )
    check_apart(data.subset(np.array([0, 1, 3])))


def test_the_folder_that_holds_most_is_the_likeliest(tmp_path: Path) -> None:
    folder_with(tmp_path, "x/a.jpg y/a.jpg y/b.jpg")
    places = [tmp_path / "none", tmp_path / "x", tmp_path / "y"]
    assert likeliest_folder(places, ["a.jpg", "b.jpg", "c.jpg"]) == tmp_path / "y"
    assert likeliest_folder(places, ["c.jpg"]) == tmp_path / "none"


def test_forty_thousand_missing_images_are_found_in_seconds(tmp_path: Path) -> None:
    data = dataset([tmp_path / f"folder{number % 10}" / f"{number}.jpg" for number in range(40_000)])
    start = time.process_time()
    assert len(missing_images(data)) == 40_000
    assert repeated_images(data) == []
    assert time.process_time() - start < 10
