"""From settings to a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coterie.config import Config, load_config
from coterie.data.reading import format_of, read_dataset, read_split, with_splits
from coterie.data.scenes import SceneSizes, make_scenes
from coterie.errors import ConfigError, DataError
from tests.layouts import write_coco, write_nuswide, write_tar, write_voc


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


OBJECTS = {"a.png": [("cat", False)], "b.png": []}


def test_the_format_is_told_from_what_lies_there(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", {"train": OBJECTS})
    write_nuswide(tmp_path / "nuswide", {"train": {"a.jpg": (1,)}, "test": {"b.jpg": (1,)}}, ("sky",))
    write_voc(tmp_path / "voc", {"train": {"a": [("cat", False)]}})
    write_tar(tmp_path / "webdataset" / "train.tar", [])
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "nus.csv").write_text("filepath,label,split_name\n")
    (tmp_path / "labels.csv").write_text("image,labels\n")
    for name in ("saved/dataset_dict.json", "one/state.json", "files/data/train.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    pq.write_table(pa.table({"image": ["a.jpg"], "labels": ["cat"]}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a"}]}), tmp_path / "rows.parquet")
    expected = {
        "coco": "coco",
        "coco/annotations": "coco",
        "coco/annotations/instances_train2014.json": "coco",
        "nuswide": "nuswide",
        "csv": "nuswide",
        "csv/nus.csv": "nuswide",
        "voc": "voc",
        "voc/VOCdevkit": "voc",
        "webdataset": "webdataset",
        "webdataset/train.tar": "webdataset",
        "webdataset/{train,val}.tar": "webdataset",
        "saved": "huggingface",
        "one": "huggingface",
        "files": "huggingface",
        "rows.parquet": "huggingface",
        "paths.parquet": "table",
        "labels.csv": "table",
        "none.csv": "table",
    }
    found = {name: format_of(load_config([f"data={tmp_path / name}"]).data) for name in expected}
    assert found == expected
    assert format_of(load_config().data) == "scenes"
    assert format_of(load_config([f"data={tmp_path / 'coco'}", "data.format=voc"]).data) == "voc"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (
            "cocoo",
            "there is nothing at {folder}/cocoo: data.source is 'scenes', a table",
        ),
        ("empty", "folder {folder}/empty holds nothing; expected is a table, or one of annotations/"),
        ("coco/train2014", "folder {folder}/coco/train2014 holds 'a.png', 'b.png'; expected is"),
        (
            "tables",
            "{folder}/tables is a folder with 'labels.csv'; name a table: data={folder}/tables/labels.csv",
        ),
        ("shard.tar.gz", "{folder}/shard.tar.gz is no file that is known: a table ends in .csv"),
    ],
)
def test_a_source_of_no_known_format_says_what_is_expected(tmp_path: Path, name: str, part: str) -> None:
    write_coco(tmp_path / "coco", {"train": OBJECTS})
    (tmp_path / "empty").mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "labels.csv").touch()
    (tmp_path / "shard.tar.gz").touch()
    with pytest.raises(DataError) as caught:
        read_dataset(load_config([f"data={tmp_path / name}"]).data)
    assert part.format(folder=tmp_path) in str(caught.value)


def test_a_named_format_needs_something_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing at"):
        read_dataset(load_config([f"data={tmp_path / 'none'}", "data.format=coco"]).data)


def test_an_image_root_must_be_a_folder(tmp_path: Path) -> None:
    config = load_config([f"data={tmp_path / 'labels.csv'}", f"data.image_root={tmp_path / 'none'}"])
    with pytest.raises(DataError, match=r"data\.image_root .*none is not a folder"):
        read_dataset(config.data)


def test_unlabelled_images_are_dropped_from_coco_and_kept_in_tables(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", {"train": OBJECTS, "val": {"c.png": [], "d.png": [("ant", False)]}})
    dropped = read_dataset(load_config([f"data={coco}"]).data)
    assert dropped.image_ids == ("train2014/a.png", "val2014/d.png")
    assert dropped.notes[-1] == (
        "2 of 4 images have no label and are dropped (1 train, 1 test); data.unlabelled=keep keeps them"
    )
    assert len(read_dataset(load_config([f"data={coco}", "data.unlabelled=keep"]).data)) == 4
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\nb.jpg,\n")
    words = [f"data={tmp_path / 'labels.csv'}"]
    assert read_dataset(load_config(words).data).image_ids == ("a.jpg", "b.jpg")
    assert read_dataset(load_config([*words, "data.unlabelled=drop"]).data).image_ids == ("a.jpg",)


def test_an_unknown_label_is_no_label_where_unlabelled_images_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,ant,bee\na.jpg,1,0\nb.jpg,-1,0\n")
    config = load_config([f"data={tmp_path / 'labels.csv'}", "data.unlabelled=drop"])
    assert read_dataset(config.data).image_ids == ("a.jpg",)


def test_data_without_any_label_are_refused_where_unlabelled_images_are_dropped(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": {"a.png": [("cat", True)]}})
    config = load_config([f"data={tmp_path}", "data.coco.crowd=negative"])
    with pytest.raises(DataError, match="no image of COCO 2014 has a label"):
        read_dataset(config.data)


def test_the_official_val_is_used_as_the_setting_says(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": OBJECTS, "val": OBJECTS})

    def splits(*words: str) -> list[str]:
        return list(read_dataset(load_config([f"data={tmp_path}", *words]).data).splits)

    assert splits() == ["train", "test"]
    assert splits("data.official_val=val") == ["train", "val"]
    assert splits("data.official_val=train") == ["train", "train"]
    write_coco(tmp_path, {"test": OBJECTS})
    assert splits() == ["train", "val", "test"]
    with pytest.raises(ConfigError, match="has a test split; take train or val for its val"):
        splits("data.official_val=test")


def test_given_classes_choose_and_order_those_of_a_file(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": {"a.png": [("cat", False), ("ant", False)]}})
    words = [f"data={tmp_path}", "data.class_names=[ant, zebra]"]
    data = read_dataset(load_config(words).data)
    assert data.class_names == ("ant", "zebra")
    assert data.targets.tolist() == [[1, 0]]
    assert "1 class is not in data.class_names: 'cat'" in data.notes
    words = [f"data={tmp_path}", "data.class_names=[ant, zebras]"]
    with pytest.raises(DataError, match=r"COCO 2014 has no class 'zebras'; .*; did you mean 'zebra'\?$"):
        read_dataset(load_config(words).data)


def test_missing_images_do_not_change_the_split_of_the_others(tmp_path: Path) -> None:
    config = table(tmp_path, [""] * 60)
    whole = with_splits(read_dataset(config.data), config)
    for number in (3, 40, 41):
        (tmp_path / "photos" / f"{number}.png").unlink()
    with pytest.raises(
        DataError, match=r"3 of 60 images of labels\.tsv are not there: '3\.png', '40\.png', '41"
    ):
        with_splits(read_dataset(config.data), config)
    skip = config.model_copy(update={"data": config.data.model_copy(update={"on_missing": "skip"})})
    kept = with_splits(read_dataset(skip.data), skip)
    assert len(kept) == 57
    assert kept.notes[-1].startswith("3 of 60 images are not there and left out: '3.png', '40.png', '41.png'")
    of_whole = dict(zip(whole.image_ids, whole.splits.tolist(), strict=True))
    assert [of_whole[name] for name in kept.image_ids] == kept.splits.tolist()


def test_a_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    content = {f"{number}.png": [("cat", False)] for number in range(20)}
    both = {"7.png": content["7.png"]}
    write_coco(tmp_path, {"train": content, "val": both | {"x.png": [("ant", False)]}}, images=None)
    for name in (*content, "x.png"):
        (tmp_path / name).touch()
    config = load_config([f"data={tmp_path}"])
    message = r"1 image of COCO 2014 in two splits: 'train2014/7\.png' \(\w+\) and 'val2014/7\.png' \(test\)"
    with pytest.raises(DataError, match=message):
        with_splits(read_dataset(config.data), config)


def test_only_the_images_of_the_split_that_is_read_need_be_there(tmp_path: Path) -> None:
    config = table(tmp_path, ["train", "val", "test", "test"])
    (tmp_path / "photos" / "0.png").unlink()
    assert len(read_split(config, "test")) == 2
    (tmp_path / "photos" / "2.png").unlink()
    with pytest.raises(DataError, match="1 of 2 images of"):
        read_split(config, "test")
    skip = config.model_copy(update={"data": config.data.model_copy(update={"on_missing": "skip"})})
    assert read_split(skip, "test").image_ids == ("3.png",)
