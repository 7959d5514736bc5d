"""Pictures with the same bytes are found, wherever they lie, and few files are read for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import coterie.data.overlap
from coterie.data.dataset import ImageSource, MultiLabelDataset
from coterie.data.overlap import END, Twin, check_twins, find_twins, same_bytes, settle_twins
from coterie.data.shards import TarImage
from coterie.errors import DataError


def files(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"{number}.bin" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def dataset(images: Sequence[ImageSource], splits: str) -> MultiLabelDataset:
    return MultiLabelDataset(
        images=images,
        targets=np.ones((len(images), 1), np.int8),
        class_names=("cat",),
        splits=np.array(splits.split()),
        image_ids=tuple(str(number) for number in range(len(images))),
        name="toy",
    )


def test_groups_are_of_equal_bytes_in_order(tmp_path: Path) -> None:
    large = bytes(END) * 3
    paths = files(tmp_path, b"b", b"a", large + b"1", b"b", b"1" + large, large + b"1", b"b", b"")
    assert same_bytes(paths) == [[0, 3, 6], [2, 5]]


def test_pictures_that_differ_in_their_beginning_alone_differ(tmp_path: Path) -> None:
    assert same_bytes(files(tmp_path, b"a" + bytes(END), b"b" + bytes(END))) == []


def test_with_sides_only_groups_of_both_count(tmp_path: Path) -> None:
    paths = files(tmp_path, b"b", b"b", b"a", b"c", b"a")
    assert same_bytes(paths, np.array([True, True, True, False, False])) == [[2, 4]]


def test_a_file_is_read_whole_only_where_size_and_end_are_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[str] = []
    digest = coterie.data.overlap._digest

    def watched(source: object) -> bytes:
        whole.append(Path(str(source)).name)
        return digest(source)  # type: ignore[arg-type]

    monkeypatch.setattr(coterie.data.overlap, "_digest", watched)
    same_bytes(files(tmp_path, b"aa", b"bb", b"a", b"a", b"ccc"))
    assert sorted(whole) == ["2.bin", "3.bin"]


def test_files_members_of_archives_and_arrays_are_compared(tmp_path: Path) -> None:
    (archive,) = files(tmp_path, b"..ab..ab")
    members = [TarImage(archive, "1", 2, 2), TarImage(archive, "2", 6, 2)]
    (tmp_path / "alone").write_bytes(b"ab")
    assert same_bytes([*members, tmp_path / "alone"]) == [[0, 1, 2]]
    arrays = np.zeros((3, 2, 2, 3), np.uint8)
    arrays[1, 0, 0] = 1
    assert same_bytes(arrays) == [[0, 2]]


def test_what_is_no_file_is_passed_over_without_opening_it(tmp_path: Path) -> None:
    for name in ("pipe1", "pipe2"):
        os.mkfifo(tmp_path / name)
    paths = [tmp_path / "pipe1", tmp_path / "pipe2", Path("/dev/zero"), Path("/dev/zero"), tmp_path / "gone"]
    assert same_bytes([*paths, *files(tmp_path, b"a", b"a")]) == [[5, 6]]


def test_twins_are_of_training_and_of_what_is_measured(tmp_path: Path) -> None:
    images = files(tmp_path, b"a", b"a", b"b", b"b", b"a", b"c", b"c", b"d", b"d", b"a")
    toy = dataset(images, "train train train val test_hard val test train other test")
    assert find_twins(toy) == [
        Twin("0", "4", "test_hard", others=("1",)),
        Twin("0", "9", "test", others=("1",)),
        Twin("2", "3", "val"),
    ]


def test_twins_are_refused_left_out_or_kept(tmp_path: Path) -> None:
    toy = dataset(files(tmp_path, b"a", b"b", b"b", b"c", b"a"), "train train val train test")
    with pytest.raises(DataError) as raised:
        check_twins(toy, "error")
    assert str(raised.value) == (
        "2 measured images of toy are training images byte by byte: '4' (test) is '0' (train), "
        "'2' (val) is '1' (train); metrics on them say nothing about other images. Remove one of each, or "
        "leave them out of the training with data.on_overlap=skip; data.on_overlap=keep measures all the same"
    )
    found = check_twins(toy, "skip")
    assert found == ("0", "1")
    left = settle_twins(toy, found, "skip")
    assert left.image_ids == ("2", "3", "4")
    assert left.notes == ("2 training images are among the measured, byte by byte, and left out: '0', '1'",)
    kept = settle_twins(toy, check_twins(toy, "keep"), "keep")
    assert kept.image_ids == toy.image_ids
    (note,) = kept.notes
    assert note.startswith("2 training images are measured too, byte by byte: '0', '1'")


def test_an_unlabelled_image_that_is_measured_is_a_twin_too(tmp_path: Path) -> None:
    toy = dataset(files(tmp_path, b"a", b"b", b"b"), "train unlabelled test")
    assert find_twins(toy) == [Twin("1", "2", "test", "unlabelled")]
    with pytest.raises(DataError, match=r"byte by byte: '2' \(test\) is '1' \(unlabelled\)"):
        check_twins(toy, "error")


def test_every_training_image_that_is_measured_too_is_left_out(tmp_path: Path) -> None:
    toy = dataset(files(tmp_path, b"a", b"a", b"a", b"b", b"a"), "train train unlabelled train test")
    found = check_twins(toy, "skip")
    assert found == ("0", "1", "2")
    left = settle_twins(toy, found, "skip")
    assert left.image_ids == ("3", "4")
    assert find_twins(left) == []


def test_data_without_twins_pass_as_they_are(tmp_path: Path) -> None:
    toy = dataset(files(tmp_path, b"a", b"a", b"b", b"b"), "train train val test")
    assert check_twins(toy, "error") == ()
    assert settle_twins(toy, (), "error") is toy
