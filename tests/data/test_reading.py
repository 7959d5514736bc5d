"""From settings to a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coterie.config import Config, load_config
from coterie.data.reading import read_dataset, read_split
from coterie.data.scenes import SceneSizes, make_scenes
from coterie.errors import DataError


def table(folder: Path, splits: list[str], damaged: int | None = None) -> Config:
    """A table of small pictures, with columns and delimiter of its own."""
    (folder / "photos").mkdir()
    rows = ["file|tags|part"]
    for number, split in enumerate(splits):
        path = folder / "photos" / f"{number}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        if number == damaged:
            path.write_bytes(path.read_bytes()[:40])
        rows.append(f"{number}.png|{'ant,bee' if number % 2 else 'ant' if number % 4 else 'bee'}|{split}")
    (folder / "labels.csv").write_text("\n".join(rows).replace("|", "\t"))
    (folder / "labels.csv").rename(folder / "labels.tsv")
    return load_config(
        [
            f"data={folder / 'labels.tsv'}", f"data.image_root={folder / 'photos'}", "data.delimiter=,",
            "data.image_column=file", "data.labels_column=tags", "data.split_column=part",
        ]
    )  # fmt: skip


def test_scenes_are_made_from_their_settings_and_the_seed() -> None:
    words = ("train=3", "val=2", "test=2", "test_shifted=1", "size=32", "theme_share=.5")
    config = load_config(f"data.scenes.{word}" for word in words)
    made = make_scenes(SceneSizes(3, 2, 2, 1), image_size=32, theme_share=0.5, seed=7)
    assert read_dataset(config.data, seed=7).fingerprint() == made.fingerprint()
    assert read_dataset(config.data, seed=8).fingerprint() != made.fingerprint()


def test_a_table_is_read_by_the_columns_root_and_delimiter_of_the_settings(tmp_path: Path) -> None:
    dataset = read_dataset(table(tmp_path, ["train", "val", "test"]).data)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.targets.tolist() == [[0, 1], [1, 1], [1, 0]]
    assert dataset.splits.tolist() == ["train", "val", "test"]
    assert [dataset.load_image(index).getpixel((0, 0)) for index in range(3)] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
    ]


def test_one_split_is_read_alone(tmp_path: Path) -> None:
    config = table(tmp_path, ["train", "val", "test", "test"])
    dataset = read_split(config, "test")
    assert dataset.split_names == ("test",)
    assert len(dataset) == 2


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    config = table(tmp_path, ["train", "val", "test"])
    with pytest.raises(DataError, match="has no split 'tset'; it has 'train', 'val', 'test'"):
        read_split(config, "tset")


def test_a_table_without_splits_gets_those_that_a_run_makes(tmp_path: Path) -> None:
    config = table(tmp_path, [""] * 40)
    parts = [read_split(config, split) for split in ("train", "val", "test")]
    ids = [name for part in parts for name in part.image_ids]
    assert sorted(ids) == sorted(read_dataset(config.data).image_ids)
    assert read_split(config, "val").image_ids == parts[1].image_ids


def test_the_train_images_that_a_run_takes_for_val_are_not_in_train(tmp_path: Path) -> None:
    config = table(tmp_path, ["train"] * 40 + ["test"] * 4)
    train, val = (set(read_split(config, split).image_ids) for split in ("train", "val"))
    assert train.isdisjoint(val)
    assert len(train | val) == 40


def test_a_table_without_splits_is_of_one_split_where_none_are_drawn(tmp_path: Path) -> None:
    dataset = read_split(table(tmp_path, [""] * 5), "exam", drawn=False)
    assert dataset.splits.tolist() == ["exam"] * 5
    assert "no splits given: all 5 images are measured" in dataset.notes


def test_splits_that_a_table_has_are_kept_where_none_are_drawn(tmp_path: Path) -> None:
    config = table(tmp_path, ["train", "val", "test", "test"])
    assert read_split(config, "test", drawn=False).image_ids == ("2.png", "3.png")


def test_a_damaged_picture_of_the_split_is_told_or_skipped(tmp_path: Path) -> None:
    config = table(tmp_path, ["train", "val", "test", "test"], damaged=3)
    with pytest.raises(DataError, match=r"1 of 2 images of .* cannot be read: '3.png'"):
        read_split(config, "test")
    values = config.model_dump()
    values["data"]["on_corrupt"] = "skip"
    kept = read_split(load_config(settings=values), "test")
    assert kept.image_ids == ("2.png",)
    assert np.asarray(kept.load_image(0)).shape == (4, 4, 3)
