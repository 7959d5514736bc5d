"""The index of shards: the same data from memory and from files, made anew only where a shard has changed."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from coterie.data import shards, webdataset
from coterie.data.columns import LabelLists
from coterie.data.dataset import MultiLabelDataset, UnreadableImage
from coterie.data.overlap import find_twins, perhaps_same_bytes, same_bytes
from coterie.data.shards import IndexFolder, ShardImages
from coterie.data.webdataset import read_webdataset
from coterie.errors import DataError
from coterie.preparation import training_graph
from tests.layouts import picture_bytes, pixels_of, write_tar

LABELS = [["cat", "ant"], [], ["bee"], ["ant"], ["cat"]]


def write_shards(folder: Path, shards: int = 4, name: str = "train") -> Path:
    for shard in range(shards):
        write_shard(folder, shard, name=name)
    return folder


def write_shard(
    folder: Path, shard: int, images: int = 5, name: str = "train", first: int | None = None
) -> Path:
    members: list[tuple[str, bytes | str | tarfile.TarInfo]] = []
    for number in range(images):
        key = 10 * shard + number
        members += [
            (f"{key:04d}.png", picture_bytes(key if first is None else first + number)),
            (f"{key:04d}.json", json.dumps({"labels": LABELS[(number + shard) % len(LABELS)]})),
        ]
    return write_tar(folder / f"{name}-{shard:03d}.tar", members)


def assert_same(one: MultiLabelDataset, other: MultiLabelDataset) -> None:
    assert one.class_names == other.class_names
    assert tuple(one.image_ids) == tuple(other.image_ids)
    assert np.array_equal(np.asarray(one.targets), np.asarray(other.targets))
    assert one.splits.tolist() == other.splits.tolist()
    assert one.fingerprint() == other.fingerprint()
    assert one.split_hash() == other.split_hash()
    assert one.split_names == other.split_names
    assert one.notes == other.notes
    for index in range(len(one)):
        assert one.load_image(index).tobytes() == other.load_image(index).tobytes()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_shards(tmp_path / "data")
    write_shard(tmp_path / "data", 7, name="validation")
    return tmp_path / "data"


def read(data: Path, **settings: object) -> MultiLabelDataset:
    return read_webdataset(str(data), index=data.parent / "index", **settings)  # type: ignore[arg-type]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are read from now on."""
    names: list[str] = []
    plain = webdataset._read_shard

    def counted(shard: Path, *rest: object) -> shards.ShardPart:
        names.append(shard.name)
        return plain(shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(webdataset, "_read_shard", counted)
    return names


def test_an_index_in_files_is_the_data_in_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = read_webdataset(str(data))
    assert isinstance(in_memory.targets, np.ndarray)
    names = counting(monkeypatch)
    made, found = read(data), read(data)
    assert len(names) == 5  # and none the second time
    for mapped in (made, found):
        assert isinstance(mapped.targets, LabelLists)
        assert isinstance(mapped.targets.arrays, shards.MappedArrays)
        assert_same(mapped, in_memory)
        assert np.array_equal(training_graph(mapped).counts, training_graph(in_memory).counts)


def test_parts_and_other_classes_of_an_index_are_those_of_the_data(data: Path) -> None:
    mapped, in_memory = read(data), read_webdataset(str(data))
    chosen = np.array([21, 3, 4, 11, 0])
    for keep in (chosen, np.arange(25) % 3 == 0):
        parts = [one.subset(keep).with_classes(["cat", "ant"]) for one in (mapped, in_memory)]
        assert_same(*parts)
        assert_same(*(part.subset(np.array([2, 0])) for part in parts))


def test_another_process_maps_the_files_anew(data: Path) -> None:
    pickled = pickle.dumps(read(data))
    assert len(pickled) < 10_000
    assert_same(pickle.loads(pickled), read_webdataset(str(data)))


def test_only_a_shard_that_has_changed_is_read_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(data)
    write_shard(data, 2, images=4)
    write_shard(data, 9)
    names = counting(monkeypatch)
    after = read(data)
    assert names == ["train-002.tar", "train-009.tar"]
    assert_same(after, read_webdataset(str(data)))
    assert after.fingerprint() != before.fingerprint()
    names.clear()
    (data / "train-001.tar").unlink()
    assert_same(read(data), read_webdataset(str(data)))
    assert [name for name in names if name == "train-001.tar"] == []


def test_other_settings_have_an_index_of_their_own(data: Path) -> None:
    read(data)
    chosen = read(data, class_names=["cat", "bee", "ant", "emu"])
    assert_same(chosen, read_webdataset(str(data), class_names=["cat", "bee", "ant", "emu"]))
    with pytest.raises(DataError, match="is not one of the 2 classes"):
        read(data, class_names=["cat", "bee"])


def test_a_folder_of_another_name_gives_another_split(tmp_path: Path) -> None:
    write_shard(tmp_path / "val", 0, name="a")
    assert set(read(tmp_path / "val").splits) == {"val"}
    (tmp_path / "val").rename(tmp_path / "train")
    assert set(read(tmp_path / "train").splits) == {"train"}


def test_a_shard_that_changes_under_a_run_says_so(data: Path) -> None:
    for dataset in (read(data), read_webdataset(str(data))):
        write_shard(data, 1, images=3)
        with pytest.raises(
            UnreadableImage, match=r"001\.tar/0010\.png cannot be read: its shard has changed"
        ):
            dataset.load_image(5)
        assert dataset.load_image(0).tobytes() == pixels_of(0).tobytes()
        write_shard(data, 1)


@pytest.mark.parametrize("which", ["*/0000.bin", "*.json", "shards/*.bin"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_index_is_made_again(data: Path, which: str, damage: str) -> None:
    read(data)
    paths = sorted((data.parent / "index").glob(which))
    assert paths
    for path in paths:
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        kept = {"cut": content[: len(content) // 2], "flip": content, "empty": b"", "gone": b""}[damage]
        path.write_bytes(bytes(kept))
        if damage == "gone":
            path.unlink()
    assert_same(read(data), read_webdataset(str(data)))


def test_an_index_that_says_what_cannot_be_is_none(data: Path) -> None:
    """With right hashes: whoever can write the folder may write anything, and that runs no code."""
    read(data)
    folder = IndexFolder(data.parent / "index")
    (path,) = folder.path.glob("*.json")
    about = json.loads(path.read_text())
    whole = folder.read(about["key"], 5)
    assert whole is not None
    right = {name: np.array(values) for name, values in whole.arrays.items()}
    for name, wrong in (("label_edges", -1), ("name_edges", 10**9), ("labels", 3)):
        changed = right | {name: right[name].copy()}
        changed[name][1:3] = wrong
        folder.write(about, iter(changed.items()))
        assert folder.read(about["key"], 5) is None
    wrong_abouts: list[dict[str, object]] = [
        {"edges": [0, 1]},
        {"edges": [0, 25]},
        {"notes": 1},
        {"class_names": []},
    ]
    for wrong_about in wrong_abouts:
        folder.write(about | wrong_about, iter(right.items()))
        assert folder.read(about["key"], 5) is None
    folder.write(about, iter((right | {"sizes": right["sizes"] + 10**15}).items()))
    with pytest.raises(UnreadableImage, match="its index is of another shard"):
        read(data).load_image(0)
    kinds = about["layout"] | {"labels": ["|O", *about["layout"]["labels"][1:]]}
    path.write_text(json.dumps(about | {"layout": kinds}))
    assert folder.read(about["key"], 5) is None
    assert_same(read(data), read_webdataset(str(data)))


def test_an_index_that_cannot_be_written_names_the_setting(data: Path) -> None:
    (data.parent / "index").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be written to .*index.*data\.webdataset\.index"):
        read(data)


def test_a_disk_that_damages_what_it_keeps_is_one_message(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndexFolder, "read", lambda *_: None)
    with pytest.raises(DataError, match=r"damaged as soon as it is written; is the disk sound\?"):
        read(data)


def test_an_index_that_is_stopped_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "train-003.tar").write_bytes((data / "train-003.tar").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"shard .*train-003\.tar cannot be read"):
        read(data)
    write_shard(data, 3)
    names = counting(monkeypatch)
    found = read(data)
    assert names == ["train-003.tar", "validation-007.tar"]
    assert_same(found, read_webdataset(str(data)))


def test_class_names_that_disagree_are_one_message(tmp_path: Path) -> None:
    for folder, names in (("train", "ant\nbee\n"), ("val", "bee\nant\n")):
        write_tar(tmp_path / folder / "0.tar", [("1.png", picture_bytes()), ("1.cls", "0")])
        (tmp_path / folder / "classnames.txt").write_text(names)
    with pytest.raises(DataError, match=r"disagree about the classes: the order differs"):
        read_webdataset(str(tmp_path))
    (tmp_path / "val" / "classnames.txt").write_text("ant\nemu\n")
    with pytest.raises(DataError, match=r"'bee', 'emu' in one of them only"):
        read_webdataset(str(tmp_path))
    assert read_webdataset(str(tmp_path), class_names=["ant"]).class_names == ("ant",)
    (tmp_path / "val" / "classnames.txt").write_text("ant\nbee\n")
    assert read_webdataset(str(tmp_path)).class_names == ("ant", "bee")


def test_twins_are_found_by_the_index_as_by_the_files(data: Path) -> None:
    write_shard(data, 8, name="test", first=11)  # 0011.png to 0013.png of train, and more
    mapped = read(data)
    listed = [mapped.images[position] for position in range(len(mapped))]
    assert isinstance(mapped.images, ShardImages)
    assert same_bytes(mapped.images) == same_bytes(listed)
    side = mapped.splits == "train"
    assert same_bytes(mapped.images, side) == same_bytes(listed, side)
    assert same_bytes(mapped.images, ~side) == same_bytes(listed, side)
    twins = [(twin.trained, twin.measured) for twin in find_twins(mapped)]
    assert ("train-001.tar/0011.png", "test-008.tar/0080.png") in twins
    assert len(twins) == 4
    test = mapped.subset(mapped.indices("test"))
    alike = perhaps_same_bytes(mapped.images, list(test.images))
    assert set(alike.tolist()) >= {11, 12, 13}
    assert perhaps_same_bytes(mapped.images, [mapped.images[3]]).tolist() == [3, 14]


def test_archives_begin_where_their_first_image_is(data: Path) -> None:
    images = read(data).images
    assert isinstance(images, ShardImages)
    assert images.archive_edges().tolist() == [0, 5, 10, 15, 20]
    assert images.take(np.array([3, 4, 5, 20, 24])).archive_edges().tolist() == [0, 2, 3]
