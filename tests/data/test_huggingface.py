"""Datasets of the library `datasets`, saved in folders made here: class order, splits, lazy pictures."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.config import load_config
from coterie.data.check import check_images
from coterie.data.huggingface import RowImage, read_huggingface
from coterie.data.reading import format_of, read_dataset
from coterie.errors import ConfigError, DataError
from tests.layouts import picture_bytes, pixels_of, save_picture

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

CLASS_NAMES = ["zebra", "ant", "cat"]


@pytest.fixture(autouse=True)
def _no_cache_outside_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(labels: list[Any], first: int = 0, kind: Any = None, **columns: Any) -> Any:
    """A dataset of generated pictures; by default labels are numbers of CLASS_NAMES."""
    kind = datasets.ClassLabel(names=CLASS_NAMES) if kind is None else kind
    features = {"image": datasets.Image(), "labels": datasets.List(kind)}
    values = {
        "image": [
            {"bytes": picture_bytes(number), "path": None} for number in range(first, first + len(labels))
        ],
        "labels": labels,
    }
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


def error(source: Path | str, **settings: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read_huggingface(str(source), **settings)
    return str(caught.value)


def test_class_labels_bring_their_names_and_order(tmp_path: Path) -> None:
    parts = datasets.DatasetDict(train=rows([[2, 0], [], [1, 1]]), validation=rows([[2]], first=3))
    parts.save_to_disk(tmp_path / "saved")
    data = read_huggingface(str(tmp_path / "saved"))
    assert data.class_names == ("zebra", "ant", "cat")
    assert data.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert data.splits.tolist() == ["train", "train", "train", "val"]
    assert data.image_ids == ("train/0", "train/1", "train/2", "validation/0")
    assert data.notes == ("split 'validation' is read as 'val'",)
    assert data.name == "saved"
    for index in range(4):
        assert np.array_equal(np.asarray(data.load_image(index)), pixels_of(index))


def test_lists_of_names_are_sorted_and_closed_by_given_classes(tmp_path: Path) -> None:
    rows([["dog", "ant"], None, ["dog", ""]], kind=datasets.Value("string")).save_to_disk(tmp_path)
    data = read_huggingface(str(tmp_path))
    assert data.class_names == ("ant", "dog")
    assert data.targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert read_huggingface(str(tmp_path), class_names=["dog", "emu", "ant"]).targets[0].tolist() == [1, 0, 1]
    assert "label 'ant' of image" in error(tmp_path, class_names=["dog", "emu"])


def test_numbers_without_names_need_the_setting(tmp_path: Path) -> None:
    rows([[1], [0]], kind=datasets.Value("int64")).save_to_disk(tmp_path)
    assert "holds numbers without names; give the names in data.class_names" in error(tmp_path)
    assert read_huggingface(str(tmp_path), class_names=["b", "a"]).targets.tolist() == [[0, 1], [1, 0]]
    assert "label 1 of row 0 of" in error(tmp_path, class_names=["b"])


def test_a_dataset_without_splits_and_one_of_train_alone_have_none(tmp_path: Path) -> None:
    rows([[0], [1]]).save_to_disk(tmp_path / "one")
    assert read_huggingface(str(tmp_path / "one")).splits.tolist() == ["", ""]
    datasets.DatasetDict(train=rows([[0], [1]])).save_to_disk(tmp_path / "train")
    data = read_huggingface(str(tmp_path / "train"))
    assert data.splits.tolist() == ["", ""]
    assert data.notes == ("its only split, train, counts as no split",)
    assert data.image_ids == ("0", "1")


def test_a_column_may_name_the_splits(tmp_path: Path) -> None:
    rows([[0], [1]], fold=["test", "train"]).save_to_disk(tmp_path)
    assert read_huggingface(str(tmp_path), split_column="fold").splits.tolist() == ["test", "train"]


def test_a_folder_of_parquet_and_a_file_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "data"
    folder.mkdir(parents=True)
    rows([[0], [1, 2]]).to_parquet(folder / "train-00000-of-00001.parquet")
    rows([[1]], first=2).to_parquet(folder / "test-00000-of-00001.parquet")
    data = read_dataset(load_config([f"data={tmp_path / 'photos'}"]).data)
    assert data.class_names == ("zebra", "ant", "cat")
    assert data.targets.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]
    assert data.splits.tolist() == ["train", "train", "test"]
    assert np.array_equal(np.asarray(data.load_image(2)), pixels_of(2))
    config = load_config([f"data={folder / 'train-00000-of-00001.parquet'}"]).data
    assert format_of(config) == "huggingface"
    assert len(read_dataset(config)) == 2


def test_rows_that_hold_paths_are_images_at_these(tmp_path: Path) -> None:
    save_picture(tmp_path / "photos" / "a.png", 5)
    kinds = datasets.Features(image=datasets.Value("string"), labels=datasets.List(datasets.Value("string")))
    made = datasets.Dataset.from_dict(
        {"image": ["a.png", "b.png"], "labels": [["cat"], ["ant"]]}, features=kinds
    )
    made.save_to_disk(tmp_path / "saved")
    data = read_huggingface(str(tmp_path / "saved"), image_root=tmp_path / "photos")
    assert list(data.images) == [tmp_path / "photos" / "a.png", tmp_path / "photos" / "b.png"]
    assert np.array_equal(np.asarray(data.load_image(0)), pixels_of(5))


def test_pictures_are_not_decoded_before_they_are_used(tmp_path: Path) -> None:
    kinds = datasets.Features(image=datasets.Image(), labels=datasets.List(datasets.Value("string")))
    content = [{"bytes": picture_bytes(0), "path": None}, {"bytes": b"no picture", "path": None}]
    made = datasets.Dataset.from_dict({"image": content, "labels": [["cat"], ["cat"]]}, features=kinds)
    made.save_to_disk(tmp_path / "saved")
    data = read_huggingface(str(tmp_path / "saved"))
    assert [image.size for image in data.images if isinstance(image, RowImage)] == [len(picture_bytes(0)), 10]
    kept, reports = check_images(data, "skip")
    assert reports == [("1", "it is not a picture of a known format")]
    assert kept.image_ids == ("0",)
    assert data.fingerprint() == read_huggingface(str(tmp_path / "saved")).fingerprint()


def test_columns_that_are_not_there_or_of_another_kind_are_named(tmp_path: Path) -> None:
    rows([[0]], label=["cat"]).save_to_disk(tmp_path)
    message = error(tmp_path, labels_column="lables")
    assert message.endswith("; did you mean 'labels'?")
    assert "has no column 'lables'; its columns are 'image', 'labels', 'label', and data.labels_" in message
    assert "holds Value('string'), not lists of class labels" in error(tmp_path, labels_column="label")
    assert "not pictures; data.image_column names" in error(tmp_path, image_column="labels")


def test_a_row_without_picture_and_a_label_out_of_range_are_named(tmp_path: Path) -> None:
    kinds = datasets.Features(image=datasets.Image(), labels=datasets.List(datasets.Value("int64")))
    made = datasets.Dataset.from_dict({"image": [None], "labels": [[0]]}, features=kinds)
    made.save_to_disk(tmp_path / "none")
    assert "row 0 of none has no picture in column 'image'" in error(tmp_path / "none", class_names=["a"])
    rows([[0], [-1]]).save_to_disk(tmp_path / "hidden")
    assert "label -1 of row 1 of hidden is no class: there are 3" in error(tmp_path / "hidden")


def test_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    other = rows([[0]], kind=datasets.ClassLabel(names=["x", "y"]))
    datasets.DatasetDict(train=rows([[0]]), test=other).save_to_disk(tmp_path)
    assert "have different classes in 'labels'" in error(tmp_path)


def test_what_cannot_be_loaded_is_an_error_about_data(tmp_path: Path) -> None:
    assert f"dataset {tmp_path} cannot be loaded" in error(tmp_path)
    message = error("somebody/nothing")
    assert "so it was looked for on the Hub" in message
    with pytest.raises(DataError, match=r"needs data\.format=huggingface"):
        format_of(load_config(["data=somebody/nothing"]).data)


def test_without_the_library_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs the package `datasets`: pip install 'datasets>=4'" in error(tmp_path)


def test_a_library_that_runs_the_code_of_datasets_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    assert "needs a newer `datasets` than 3.6.0, which runs code" in error(tmp_path)


def test_a_dataset_goes_to_other_processes(tmp_path: Path) -> None:
    rows([[0], [1]]).save_to_disk(tmp_path)
    data = pickle.loads(pickle.dumps(read_huggingface(str(tmp_path))))
    assert np.array_equal(np.asarray(data.load_image(1)), pixels_of(1))
