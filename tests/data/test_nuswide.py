"""NUS-WIDE: the official lists as distributed, the CSV in circulation, and the published counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from coterie.config import load_config
from coterie.data.nuswide import read_nuswide
from coterie.data.reading import read_dataset
from coterie.errors import DataError
from tests.conftest import shared_data
from tests.layouts import save_picture, write_nuswide

CLASS_NAMES = ("sky", "animal", "clouds")
TRAIN: Mapping[str, Sequence[int]] = {"actor/0001_11.jpg": (1, 0, 1), "zoo/0001_12.jpg": (0, 0, 0)}
TEST: Mapping[str, Sequence[int]] = {"actor/0002_13.jpg": (0, 1, 0)}


def small(folder: Path, pictures: Sequence[str] = ()) -> Path:
    return write_nuswide(folder, {"train": TRAIN, "test": TEST}, CLASS_NAMES, pictures)


def error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_nuswide(path)
    return str(caught.value)


def test_the_official_lists_give_targets_in_the_order_of_the_concepts(tmp_path: Path) -> None:
    data = read_nuswide(small(tmp_path, ["zoo/0001_12.jpg"]))
    assert data.class_names == CLASS_NAMES
    assert data.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert data.splits.tolist() == ["train", "train", "test"]
    assert data.image_ids == ("actor/0001_11.jpg", "zoo/0001_12.jpg", "actor/0002_13.jpg")
    assert data.images[1] == tmp_path / "Flickr" / "zoo" / "0001_12.jpg"
    assert data.name == "NUS-WIDE 3"
    assert data.notes == ()


def test_images_without_a_label_are_dropped_as_in_the_papers(tmp_path: Path) -> None:
    words = (f"data={small(tmp_path)}",)
    dropped = read_dataset(load_config(words).data)
    assert dropped.image_ids == ("actor/0001_11.jpg", "actor/0002_13.jpg")
    assert len(read_dataset(load_config([*words, "data.unlabelled=keep"]).data)) == 3


def test_the_parts_may_be_unpacked_in_folders_of_their_own(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "ConceptsList").mkdir()
    (tmp_path / "Concepts81.txt").rename(tmp_path / "ConceptsList" / "Concepts81.txt")
    (tmp_path / "Groundtruth" / "TrainTestLabels").rename(tmp_path / "TrainTestLabels")
    save_picture(tmp_path / "images" / "actor" / "0001_11.jpg")
    data = read_nuswide(tmp_path)
    assert data.targets.sum() == 3
    assert data.images[0] == tmp_path / "images" / "actor" / "0001_11.jpg"


def test_a_photograph_in_train_and_in_test_is_noted_by_its_number(tmp_path: Path) -> None:
    test = {"zoo/0007_11.jpg": (1, 0, 0), **TEST}
    data = read_nuswide(write_nuswide(tmp_path, {"train": TRAIN, "test": test}, CLASS_NAMES))
    assert data.notes == ("1 photograph is in train and in test, under two names: '11.jpg'",)


def test_a_list_of_another_length_than_its_labels_is_refused(tmp_path: Path) -> None:
    small(tmp_path)
    labels = tmp_path / "Groundtruth" / "TrainTestLabels" / "Labels_animal_Train.txt"
    labels.write_text("0\n")
    images = tmp_path / "ImageList" / "TrainImagelist.txt"
    assert f"{labels} has 1 label, but {images} lists 2 images; they are not of the" in error(tmp_path)
    labels.write_text("0\n2\n")
    assert error(tmp_path) == f"{labels} must hold 0 or 1 for each image, one in a line; unpack it again"
    labels.unlink()
    assert "Labels_animal_Train.txt' cannot be read (No such file or directory);" in error(tmp_path)
    assert "needs one for each of the 3 concepts" in error(tmp_path)


@pytest.mark.parametrize("name", ["Concepts81.txt", "ImageList/TestImagelist.txt"])
def test_a_list_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    small(tmp_path)
    (tmp_path / name).unlink()
    assert f"holds lists of NUS-WIDE, but neither of {name} and" in error(tmp_path)


def test_an_empty_list_and_one_with_repetitions_are_refused(tmp_path: Path) -> None:
    small(tmp_path)
    path = tmp_path / "ImageList" / "TestImagelist.txt"
    path.write_text("actor\\0001_11.jpg\n")
    assert "stand twice in its lists: 'actor/0001_11.jpg'" in error(tmp_path)
    path.write_text(" \n")
    assert error(tmp_path) == f"{path} is empty; unpack it again"


def test_the_csv_in_circulation_is_read_with_its_lists_of_labels(tmp_path: Path) -> None:
    table = tmp_path / "nus_wid_data.csv"
    table.write_text(
        "filepath,label,split_name\n"
        "images/0_1.jpg,\"['clouds', 'sky']\",train\n"
        "images/0_2.jpg,['sky'],val\n"
        'images/0_3.jpg,"[""animal""]",train\n'
    )
    for path in (table, tmp_path):
        data = read_nuswide(path)
        assert data.class_names == ("animal", "clouds", "sky")
        assert data.targets.tolist() == [[0, 1, 1], [0, 0, 1], [1, 0, 0]]
        assert data.splits.tolist() == ["train", "val", "train"]
        assert data.images[0] == tmp_path / "images" / "0_1.jpg"
    (tmp_path / "Concepts81.txt").write_text("sky\nclouds\nanimal\n")
    assert read_nuswide(table).class_names == ("sky", "clouds", "animal")


def test_its_val_is_the_test_split_of_the_papers(tmp_path: Path) -> None:
    (tmp_path / "nus_wid_data.csv").write_text(
        "filepath,label,split_name\na.jpg,['sky'],train\nb.jpg,['sky'],val\n"
    )
    data = read_dataset(load_config([f"data={tmp_path}"]).data)
    assert data.splits.tolist() == ["train", "test"]
    assert data.notes == ("the published val is the test split (data.official_val=test)",)


def test_a_folder_of_neither_kind_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("image,labels\n")
    message = error(tmp_path)
    assert "neither NUS-WIDE's official lists" in message
    assert "nor a CSV with the columns filepath, label, split_name" in message


def test_the_full_lists_give_the_published_counts(tmp_path: Path) -> None:
    file = shared_data() / "labels" / "nuswide81_targets.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    with np.load(file) as content:
        targets = np.unpackbits(content["targets_packed"], axis=1)[:, :81]
        is_test, names = content["is_test"], content["class_names"].tolist()
    rows = {split: np.flatnonzero(is_test == (split == "test")) for split in ("train", "test")}
    lists = {split: {f"c/{row:04d}_{row}.jpg": () for row in found} for split, found in rows.items()}
    write_nuswide(tmp_path, lists, ())  # the labels by column, as 269,648 short tuples take long
    for split, found in rows.items():
        for column, name in enumerate(names):
            digits = np.full((len(found), 2), ord("\n"), np.uint8)
            digits[:, 0] = targets[found, column] + ord("0")
            path = tmp_path / "Groundtruth" / "TrainTestLabels" / f"Labels_{name}_{split.title()}.txt"
            path.write_bytes(digits.tobytes())
    (tmp_path / "Concepts81.txt").write_text("\n".join(names))

    whole = read_dataset(load_config([f"data={tmp_path}", "data.unlabelled=keep"]).data)
    labelled = read_dataset(load_config([f"data={tmp_path}"]).data)

    # Published: 161,789 and 107,859, with labels 125,449 and 83,898. In the file nine test images, all of
    # them labelled, count as train.
    assert (len(whole.indices("train")), len(whole.indices("test"))) == (161_789 + 9, 107_859 - 9)
    assert (len(labelled.indices("train")), len(labelled.indices("test"))) == (125_449 + 9, 83_898 - 9)
    assert whole.class_names == tuple(names)
    assert np.array_equal(whole.targets, targets[np.concatenate(list(rows.values()))].astype(np.int8))
    assert "60,301 of 269,648 images have no label and are dropped" in labelled.notes[-1]
