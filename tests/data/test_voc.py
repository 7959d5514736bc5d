"""PASCAL VOC as it is distributed: XML objects to targets, difficult ones by the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.config import load_config
from coterie.data.reading import read_dataset
from coterie.data.voc import read_voc
from coterie.errors import ConfigError, DataError
from tests.layouts import write_voc

TRAIN = {"000005": [("chair", False), ("chair", True)], "000007": [("car", True)]}
VAL = {"000009": [("horse", False), ("person", True)]}
TEST = {"000001": [("person", False), ("car", False)]}


def error(path: Path, **settings: int) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read_voc(path, **settings)  # type: ignore[arg-type]
    return str(caught.value)


def test_objects_become_targets_with_classes_sorted_by_name(tmp_path: Path) -> None:
    data = read_voc(write_voc(tmp_path, {"train": TRAIN, "val": VAL, "test": TEST}))
    assert data.class_names == ("car", "chair", "horse", "person")
    assert data.targets.tolist() == [[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, -1], [1, 0, 0, 1]]
    assert data.splits.tolist() == ["train", "train", "val", "test"]
    assert data.image_ids == ("000005.jpg", "000007.jpg", "000009.jpg", "000001.jpg")
    assert data.images[0] == tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000005.jpg"
    assert data.load_image(0).size == (8, 8)
    assert (data.name, data.notes) == ("VOC2007", ())


@pytest.mark.parametrize(("difficult", "target"), [("positive", 1), ("ignore", -1), ("negative", 0)])
def test_a_class_of_difficult_objects_alone_is_what_the_setting_says(
    tmp_path: Path, difficult: str, target: int
) -> None:
    write_voc(tmp_path, {"train": TRAIN})
    data = read_voc(tmp_path, difficult=difficult)  # type: ignore[arg-type]
    assert data.class_names == ("car", "chair")
    assert data.targets.tolist() == [[0, 1], [target, 0]]  # an object that is not difficult decides


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_devkit_what_holds_it_and_one_year_of_it_are_known(tmp_path: Path, place: str) -> None:
    write_voc(tmp_path, {"train": TRAIN})
    assert len(read_dataset(load_config([f"data={tmp_path / place}"]).data)) == 2


def test_two_years_need_a_choice(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": TRAIN}, year=2007)
    write_voc(tmp_path, {"train": VAL}, year=2012)
    assert "holds 'VOC2007' or 'VOC2012': choose, for instance data.voc.year=2007" in error(tmp_path)
    assert read_voc(tmp_path, year=2012).image_ids == ("000009.jpg",)
    assert "data.voc.year is 2008, but" in error(tmp_path, year=2008)


def test_a_test_list_without_annotations_is_not_read(tmp_path: Path) -> None:
    data = read_voc(
        write_voc(tmp_path, {"train": TRAIN, "val": VAL, "test": {"x": None, "y": None}}, year=2012)
    )
    assert data.splits.tolist() == ["train", "train", "val"]
    assert data.notes == ("test.txt lists 2 images without annotations: it is not read",)


@pytest.mark.parametrize(
    ("splits", "words", "expected"),
    [
        ("train val test", (), ["train", "train", "train", "test"]),
        ("train val test", ("data.official_val=val",), ["train", "train", "val", "test"]),
        ("train val", (), ["train", "train", "test"]),
        ("train val", ("data.official_val=train",), ["train", "train", "train"]),
    ],
)
def test_val_is_a_part_of_train_where_test_is_published_and_else_the_test(
    tmp_path: Path, splits: str, words: tuple[str, ...], expected: list[str]
) -> None:
    parts = {"train": TRAIN, "val": VAL, "test": TEST}
    write_voc(tmp_path, {split: parts[split] for split in splits.split()})
    assert read_dataset(load_config([f"data={tmp_path}", *words]).data).splits.tolist() == expected


def test_an_image_without_annotation_a_repeated_one_and_damaged_xml_are_named(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": {**TRAIN, "x": None}})
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    assert f"1 of 3 images of {folder / 'ImageSets' / 'Main' / 'train.txt'} have no XML" in error(tmp_path)
    (folder / "Annotations" / "x.xml").write_text("<annotation><object>")
    assert f"annotation {folder / 'Annotations' / 'x.xml'} cannot be read" in error(tmp_path)
    (folder / "Annotations" / "x.xml").write_text("<annotation><object/></annotation>")
    assert f"an object in {folder / 'Annotations' / 'x.xml'} has no name" in error(tmp_path)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("000005\n")
    assert "images stand twice in the lists" in error(tmp_path)


def test_a_folder_that_is_none_of_vocs_says_what_was_expected(tmp_path: Path) -> None:
    assert "is no VOCdevkit: VOC's folders hold Annotations, ImageSets/Main and JPEGImages" in error(tmp_path)
    (tmp_path / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    assert "holds no train.txt, val.txt or test.txt" in error(tmp_path)
    write_voc(tmp_path / "empty", {"train": {"a": []}})
    assert "has an object" in error(tmp_path / "empty")
