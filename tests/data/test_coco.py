"""COCO's instances JSON in the folders as distributed: targets in the file's order, wrong files named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coterie.config import load_config
from coterie.data.coco import read_coco
from coterie.data.reading import read_dataset
from coterie.errors import ConfigError, DataError
from tests.conftest import shared_data
from tests.layouts import instances, save_picture, write_coco, write_json

TRAIN = {"a.jpg": [("cat", False), ("zebra", False), ("cat", False)], "b.jpg": [("ant", False)]}
VAL = {"c.jpg": [("cat", False)], "d.jpg": []}


def small(folder: Path, **settings: str | None) -> Path:
    return write_coco(folder, {"train": TRAIN, "val": VAL}, **settings)  # type: ignore[arg-type]


def error(path: Path, **settings: object) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read_coco(path, **settings)  # type: ignore[arg-type]
    return str(caught.value)


def test_targets_are_in_the_order_of_the_files_categories(tmp_path: Path) -> None:
    data = read_coco(small(tmp_path))
    assert data.class_names == ("zebra", "ant", "cat")
    assert data.targets.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert data.splits.tolist() == ["train", "train", "val", "val"]
    assert data.image_ids == ("train2014/a.jpg", "train2014/b.jpg", "val2014/c.jpg", "val2014/d.jpg")
    assert data.name == "COCO 2014"


@pytest.mark.parametrize("images", ["", "images"])
def test_images_lie_beside_the_annotations_or_in_images(tmp_path: Path, images: str) -> None:
    small(tmp_path, images=images)
    data = read_coco(tmp_path / "annotations")
    assert list(data.images) == list(read_coco(tmp_path).images)
    assert list(data.images) == [
        tmp_path / images / name
        for name in ("train2014/a.jpg", "train2014/b.jpg", "val2014/c.jpg", "val2014/d.jpg")
    ]


def test_images_of_all_splits_may_lie_in_one_folder(tmp_path: Path) -> None:
    small(tmp_path, images=None)
    for name in "abcd":
        save_picture(tmp_path / "images" / f"{name}.jpg")
    assert [str(path) for path in read_coco(tmp_path).images] == [
        f"{tmp_path}/images/{name}.jpg" for name in "abcd"
    ]


def test_an_image_root_takes_the_place_of_the_annotations_folder(tmp_path: Path) -> None:
    small(tmp_path / "labels", images=None)
    small(tmp_path / "pictures")
    data = read_coco(tmp_path / "labels", image_root=tmp_path / "pictures")
    assert data.images[3] == tmp_path / "pictures" / "val2014" / "d.jpg"


def test_images_that_are_nowhere_are_looked_for_where_coco_has_them(tmp_path: Path) -> None:
    assert read_coco(small(tmp_path, images=None)).images[0] == tmp_path / "train2014" / "a.jpg"


@pytest.mark.parametrize(("crowd", "target"), [("positive", 1), ("ignore", -1), ("negative", 0)])
def test_a_class_of_crowd_regions_alone_is_what_the_setting_says(
    tmp_path: Path, crowd: str, target: int
) -> None:
    content = {"a.jpg": [("cat", True)], "b.jpg": [("cat", True), ("cat", False)], "c.jpg": [("ant", False)]}
    data = read_coco(write_coco(tmp_path, {"train": content}), crowd=crowd)  # type: ignore[arg-type]
    assert data.targets.tolist() == [[0, 0, target], [0, 0, 1], [0, 1, 0]]
    words = {1: "present", -1: "unknown", 0: "absent"}
    assert data.notes == (f"1 label comes from crowd regions alone, read as {words[target]}",)


def test_the_year_is_told_from_the_files_and_chosen_where_there_are_two(tmp_path: Path) -> None:
    small(tmp_path, year="2014")
    small(tmp_path, year="2017")
    assert "holds instances of '2014' or '2017': choose, for instance data.coco.year=2017" in error(tmp_path)
    assert read_coco(tmp_path, year=2017).image_ids[0] == "train2017/a.jpg"
    assert read_coco(tmp_path, year=2014).image_ids[0] == "train2014/a.jpg"
    assert "data.coco.year is 2015, but" in error(tmp_path, year=2015)


def test_other_data_in_the_format_need_no_year_and_may_have_a_test_file(tmp_path: Path) -> None:
    write_coco(tmp_path / "own", {"train": TRAIN, "test": {"e.jpg": [("ant", False)]}}, year="")
    data = read_coco(tmp_path / "own")
    assert data.splits.tolist() == ["train", "train", "test"]
    assert data.image_ids == ("train/a.jpg", "train/b.jpg", "test/e.jpg")
    assert data.name == "own"


def test_one_file_alone_is_of_the_split_in_its_name(tmp_path: Path) -> None:
    small(tmp_path)
    data = read_coco(tmp_path / "annotations" / "instances_val2014.json")
    assert data.splits.tolist() == ["val", "val"]
    assert data.images[0] == tmp_path / "val2014" / "c.jpg"


def test_one_file_of_another_name_has_no_split_and_images_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "mine.json", instances(TRAIN, ("ant", "cat", "zebra")))
    save_picture(tmp_path / "a.jpg")
    data = read_coco(tmp_path / "mine.json")
    assert data.splits.tolist() == ["", ""]
    assert data.images[0] == tmp_path / "a.jpg"
    assert data.image_ids == ("a.jpg", "b.jpg")


def test_a_second_file_in_another_order_is_put_in_the_order_of_the_first(tmp_path: Path) -> None:
    small(tmp_path)
    write_json(tmp_path / "annotations" / "instances_val2014.json", instances(VAL, ("cat", "zebra", "ant")))
    data = read_coco(tmp_path)
    assert data.class_names == ("zebra", "ant", "cat")
    assert data.targets[2].tolist() == [0, 0, 1]


def test_files_of_different_categories_are_refused(tmp_path: Path) -> None:
    small(tmp_path)
    write_json(tmp_path / "annotations" / "instances_val2014.json", instances(VAL, ("cat", "dog", "ant")))
    message = error(tmp_path)
    assert "instances_val2014.json has 3 categories" in message
    assert "only one of them has 'dog', 'zebra'" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]},
            "holds captions, not",
        ),
        (
            {"images": [{"id": 1}], "annotations": [{"segments_info": []}], "categories": [{"id": 1}]},
            "holds panoptic segments, not instances",
        ),
        (
            {
                "images": [{"id": 1}],
                "annotations": [{"category_id": 1}],
                "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}],
            },
            "holds keypoints of one class, not instances",
        ),
        ([{"image_id": 1, "category_id": 1, "score": 0.5}], "holds a list, as files of detection results do"),
        (
            {"images": [{"id": 1}], "categories": [{"id": 1}]},
            "has no annotations; its keys are 'images', 'cat",
        ),
        ({"labels": []}, "has no images and no annotations and no categories; its keys are 'labels'"),
        (
            {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]},
            "no entries in 'annotations'",
        ),
    ],
)
def test_another_file_says_what_it_holds_and_what_was_expected(
    tmp_path: Path, content: object, part: str
) -> None:
    path = write_json(tmp_path / "annotations" / "instances_train2014.json", content)
    message = error(tmp_path)
    assert str(path) in message
    assert part in message
    assert "COCO's labels are in instances_train2014.json" in message


def test_a_folder_without_instances_names_what_it_holds(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations" / "captions_train2014.json", {})
    message = error(tmp_path)
    assert f"{tmp_path / 'annotations'} holds 'captions_train2014.json', but no instances file" in message


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("image_id", 99, "have a image_id that is not among its images: '99'"),
        ("category_id", 99, "have a category_id that is not among its categories: '99'"),
        ("category_id", [1], "a category_id is no number"),
    ],
)
def test_annotations_of_unknown_images_or_classes_are_damage(
    tmp_path: Path, key: str, value: object, part: str
) -> None:
    content = instances(TRAIN, ("ant", "cat", "zebra"))
    content["annotations"][1][key] = value
    write_json(tmp_path / "instances_train2014.json", content)
    assert part in error(tmp_path)


def test_entries_that_lack_something_or_stand_twice_are_told(tmp_path: Path) -> None:
    content = instances(TRAIN, ("ant", "cat", "zebra"))
    path = tmp_path / "instances_train2014.json"
    write_json(path, content | {"images": [{"id": 1}]})
    assert "an entry lacks 'file_name'" in error(tmp_path)
    write_json(path, content | {"images": content["images"] + content["images"][:1]})
    assert "images of" in error(tmp_path)
    for key in ("images", "categories"):
        twice = [entry | {"id": 1} for entry in content[key]]
        write_json(path, content | {key: twice})
        assert f"{len(twice) - 1} {key} of {path} have the id of another" in error(tmp_path)
    write_json(path, content | {"images": ["a.jpg"]})
    assert "an entry is no object, or its id no number" in error(tmp_path)
    write_json(path, content | {"images": content["images"] + content["images"][:1]})
    assert "stand twice: 'a.jpg'" in error(tmp_path)


@pytest.mark.parametrize("text", ["{", "", '{"images": [', "\u00ff"])
def test_a_damaged_file_is_no_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "instances_train2014.json").write_bytes(text.encode("latin-1"))
    assert "cannot be read as JSON" in error(tmp_path)


def test_the_full_validation_set_gives_its_published_counts_and_targets(tmp_path: Path) -> None:
    file = shared_data() / "labels" / "coco2014_val_targets.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    with np.load(file) as content:
        published = np.unpackbits(content["targets_packed"], axis=1)[:, :80]
        numbers, names = content["image_ids"].tolist(), content["class_names"].tolist()
    order = np.random.default_rng(0).permutation(80)  # not alphabetical, as COCO's own is not
    unlabelled = range(10_000_000, 10_000_000 + 40_504 - 40_137)
    rows, columns = np.nonzero(published)
    annotations = [
        {"image_id": numbers[row], "category_id": column + 1}
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    values = {
        "images": [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in [*numbers, *unlabelled]],
        "annotations": annotations,
        "categories": [{"id": int(c) + 1, "name": names[c]} for c in order],
    }
    write_json(tmp_path / "annotations" / "instances_val2014.json", values)
    config = load_config([f"data={tmp_path}"])

    data = read_dataset(config.data)

    assert len(data) == 40_137
    assert data.split_names == ("test",)
    assert data.class_names == tuple(names[c] for c in order)
    assert np.array_equal(data.targets, published[:, order].astype(np.int8))
    assert any("367 of 40,504 images have no label and are dropped (367 test)" in note for note in data.notes)
    kept = read_dataset(load_config([f"data={tmp_path}", "data.unlabelled=keep"]).data)
    assert len(kept) == 40_504
    assert not kept.targets[40_137:].any()
