"""WebDataset shards: labels of every kind, random access in place, archives that are not to be trusted."""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from coterie.config import load_config
from coterie.data.check import check_images
from coterie.data.dataset import UnreadableImage, open_image
from coterie.data.reading import read_dataset
from coterie.data.shards import TarImage
from coterie.data.webdataset import find_shards, read_webdataset
from coterie.errors import DataError
from tests.layouts import picture_bytes, pixels_of, write_tar

Members = list[tuple[str, bytes | str | tarfile.TarInfo]]


def samples(first: int, *labels: list[str], **more: str) -> Members:
    """Members of samples with a json of labels."""
    members: Members = []
    for number, found in enumerate(labels, start=first):
        members.append((f"{number:04d}.png", picture_bytes(number)))
        members.append((f"{number:04d}.json", json.dumps({"labels": found, **more})))
    return members


def error(source: Path | str, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        read_webdataset(str(source), **settings)  # type: ignore[arg-type]
    return str(caught.value)


def test_shards_are_read_in_order_with_splits_from_their_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "own-train-000.tar", samples(0, ["cat", "ant"], []))
    write_tar(tmp_path / "own-train-001.tar", samples(0, ["ant"]))
    write_tar(tmp_path / "own-validation-000.tar", samples(7, ["cat"]))
    data = read_webdataset(str(tmp_path))
    assert data.class_names == ("ant", "cat")
    assert data.targets.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]
    assert data.splits.tolist() == ["train", "train", "train", "val"]
    assert data.image_ids == (
        "own-train-000.tar/0000.png",
        "own-train-000.tar/0001.png",
        "own-train-001.tar/0000.png",
        "own-validation-000.tar/0007.png",
    )
    assert data.notes == ("split 'validation' is read as 'val'",)
    for index, number in enumerate((0, 1, 0, 7)):
        assert np.array_equal(np.asarray(data.load_image(index)), pixels_of(number))


def test_shards_named_unlabelled_are_of_that_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000.tar", samples(1, ["cat", "dog"]))
    write_tar(tmp_path / "unlabelled-000.tar", samples(2, []))
    write_tar(tmp_path / "unlabeled-001.tar", samples(3, []))
    assert read_webdataset(str(tmp_path)).splits.tolist() == ["train", "unlabelled", "unlabelled"]


def test_shards_of_a_split_may_lie_in_a_folder_of_its_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", samples(0, ["cat"]))
    write_tar(tmp_path / "test" / "0.tar", samples(0, ["cat"]))
    data = read_webdataset(str(tmp_path))
    assert data.splits.tolist() == ["test", "train"]
    assert data.image_ids == ("test/0.tar/0000.png", "train/0.tar/0000.png")


def test_a_split_in_the_json_goes_before_the_name_of_the_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", samples(0, ["cat"]) + samples(1, ["cat"], split="test"))
    assert read_webdataset(str(tmp_path)).splits.tolist() == ["train", "test"]


@pytest.mark.parametrize("name", ["a.tar", "train-test.tar"])
def test_a_name_with_no_split_or_with_two_gives_none(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "photos" / name, samples(0, ["cat"]))
    assert read_webdataset(str(tmp_path / "photos")).splits.tolist() == [""]


@pytest.mark.parametrize(
    ("extension", "content", "names"),
    [
        ("json", '{"labels": ["cat", "ant", "cat"]}', ["ant", "cat"]),
        ("json", '{"labels": "cat; ant"}', ["ant", "cat"]),
        ("json", '{"labels": [2, 0]}', ["ant", "cat"]),
        ("json", '{"labels": null}', []),
        ("cls", "2", ["cat"]),
        ("cls", "0 2\n", ["ant", "cat"]),
        ("cls", "0,2", ["ant", "cat"]),
        ("txt", "cat;ant\n", ["ant", "cat"]),
        ("txt", "", []),
    ],
)
def test_labels_are_names_or_numbers_in_json_cls_or_txt(
    tmp_path: Path, extension: str, content: str, names: list[str]
) -> None:
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncat\n")
    write_tar(tmp_path / "a.tar", [("x/1.png", picture_bytes()), (f"x/1.{extension}", content)])
    data = read_webdataset(str(tmp_path / "a.tar"))
    assert data.class_names == ("ant", "bee", "cat")
    assert [name for name, target in zip(data.class_names, data.targets[0], strict=True) if target] == names


def test_numbers_need_names_and_names_must_be_classes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("1.png", picture_bytes()), ("1.cls", "3")])
    assert "are numbers, such as 3; put the names of the classes" in error(shard)
    assert "label 3 of sample" in error(shard, class_names=["ant", "bee"])
    odd = write_tar(tmp_path / "c.tar", [("1.png", picture_bytes()), ("1.cls", "-1")])
    assert "label -1 of sample" in error(odd, class_names=["ant", "bee"])
    odd = write_tar(tmp_path / "c.tar", [("1.png", picture_bytes()), ("1.cls", "ant")])
    assert f"the .cls of sample {odd}/1 holds 'ant', and not numbers" in error(odd, class_names=["ant"])
    data = read_webdataset(str(shard), class_names=["ant", "bee", "cat", "dog"])
    assert data.targets.tolist() == [[0, 0, 0, 1]]
    shard = write_tar(tmp_path / "b.tar", samples(0, ["emu"]))
    assert f"label 'emu' of image {shard}/0000 is not one of the 1 classes" in error(
        shard, class_names=["em"]
    )


def test_the_labels_are_in_json_unless_that_lacks_them(tmp_path: Path) -> None:
    members: Members = [("1.png", picture_bytes()), ("1.json", '{"width": 8}')]
    members += [("1.cls", "0"), ("1.txt", "a photo")]
    shard = write_tar(tmp_path / "a.tar", members)
    assert read_webdataset(str(shard), class_names=["ant"]).targets.tolist() == [[1]]
    assert read_webdataset(str(shard), labels="txt").class_names == ("a photo",)
    message = error(shard, labels="json")
    assert "has no 'labels'; its keys are 'width', and data.labels_column names the one" in message


def test_columns_and_delimiter_are_those_of_the_settings(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", [("1.png", picture_bytes()), ("1.json", '{"tags": "cat|ant", "fold": "test"}')]
    )
    words = ("data.labels_column=tags", "data.split_column=fold", "data.delimiter=|")
    data = read_dataset(load_config([f"data={tmp_path}", *words]).data)
    assert data.class_names == ("ant", "cat")
    assert data.splits.tolist() == ["test"]


def test_of_two_pictures_the_setting_chooses(tmp_path: Path) -> None:
    members: Members = [("1.jpg", b"no picture"), ("1.seg.png", picture_bytes(3)), ("1.txt", "cat")]
    shard = write_tar(tmp_path / "a.tar", members)
    message = error(shard)
    assert (
        f"sample {shard}/1 holds 2 pictures: 'jpg', 'seg.png'; choose with data.webdataset.image=" in message
    )
    data = read_dataset(load_config([f"data={shard}", "data.webdataset.image=seg.png"]).data)
    assert np.array_equal(np.asarray(data.load_image(0)), pixels_of(3))


def test_pictures_of_different_kinds_may_stand_beside_each_other(tmp_path: Path) -> None:
    members: Members = [("1.PNG", picture_bytes()), ("1.txt", "cat"), ("2.jpeg", b"x"), ("2.txt", "cat")]
    assert len(read_webdataset(str(write_tar(tmp_path / "a.tar", members)))) == 2


def test_samples_without_picture_or_labels_are_counted_and_named(tmp_path: Path) -> None:
    members: Members = [("1.png", picture_bytes()), ("1.txt", "cat")]
    shard = write_tar(tmp_path / "a.tar", [*members, ("2.txt", "cat")])
    assert f"1 of 2 samples hold no picture (.jpg, .png, …): {shard}/2; the first holds 'txt'" in error(shard)
    shard = write_tar(tmp_path / "b.tar", [*members, ("2.png", picture_bytes())])
    assert f"1 of 2 samples hold no .txt, where labels are looked for: {shard}/2" in error(shard)
    shard = write_tar(tmp_path / "c.tar", [("1.png", picture_bytes()), ("1.npy", b"")])
    assert "holds 'png', 'npy', but labels are expected in .json, .cls, .txt" in error(shard)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[1]", "holds a list, not an object"),
        ("{", "cannot be read"),
        (b"\xff", "is not UTF-8 text"),
        ('{"labels": 5}', "are '5', but a list of names or of numbers is expected"),
        ('{"labels": [0.5]}', "but a list of names or of numbers is expected"),
        ('{"labels": [true]}', "but a list of names or of numbers is expected"),
        ('{"labels": ["x"' + " " * 2**20 + "]}", "bytes, too many for the labels of an image"),
    ],
)
def test_labels_that_cannot_be_read_name_the_sample(tmp_path: Path, content: bytes | str, part: str) -> None:
    shard = write_tar(tmp_path / "a.tar", [("1.png", picture_bytes()), ("1.json", content)])
    message = error(shard)
    assert f"{shard}/1" in message
    assert part in message


def test_links_devices_and_nameless_members_are_left_out_with_a_note(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("private")
    odd = []
    for name, kind in (("2.txt", tarfile.SYMTYPE), ("3.txt", tarfile.LNKTYPE), ("4.txt", tarfile.CHRTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, str(secret)
        odd.append((name, info))
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    shard = write_tar(
        tmp_path / "a.tar",
        [*odd, ("x", folder), ("README", b""), ("1.png", picture_bytes()), ("1.txt", "cat")],
    )
    data = read_webdataset(str(shard))
    assert data.class_names == ("cat",)
    assert data.notes == (
        "4 members are no plain files with key and extension, and left out: 'a.tar/2.txt', 'a.tar/3.txt', "
        "'a.tar/4.txt', 'a.tar/README'",
    )


def test_a_member_that_names_a_place_outside_is_only_a_name(tmp_path: Path) -> None:
    members: Members = [("../../up.png", picture_bytes(1)), ("../../up.txt", "cat")]
    members += [("/abs.png", picture_bytes(2)), ("/abs.txt", "ant")]
    data = read_webdataset(str(write_tar(tmp_path / "in" / "a.tar", members)))
    assert data.image_ids == ("a.tar/../../up.png", "a.tar//abs.png")
    assert np.array_equal(np.asarray(data.load_image(1)), pixels_of(2))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in"]


def test_a_sample_twice_in_a_shard_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("1.txt", "cat"), ("1.TXT", "dog")])
    assert f"{shard} holds 1.TXT twice" in error(shard)


@pytest.mark.parametrize("kept", [-9000, 2000, 700, 512 * 4, 512 * 4 + 3])
def test_a_shard_that_is_cut_off_is_never_a_shorter_one(tmp_path: Path, kept: int) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(0, ["cat"], ["ant"], ["cat"]))
    shard.write_bytes(shard.read_bytes()[:kept])
    assert f"shard {shard} " in error(shard)


def test_a_shard_with_a_damaged_header_is_never_a_shorter_one(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(0, ["cat"], ["ant"]))
    content = bytearray(shard.read_bytes())
    content[content.index(b"0001.png") + 1] ^= 255
    shard.write_bytes(content)
    assert f"shard {shard} is damaged or cut off at byte" in error(shard)


@pytest.mark.parametrize(
    "content", [b"", b"hello" * 200, gzip.compress(b"x" * 4096, mtime=0)], ids=["empty", "text", "gzip"]
)
def test_a_file_that_is_no_uncompressed_archive_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert "cannot be read as an uncompressed tar archive" in error(tmp_path / "a.tar")


def test_an_empty_archive_holds_no_sample(tmp_path: Path) -> None:
    assert "hold no sample" in error(write_tar(tmp_path / "a.tar", []))


def test_patterns_stand_for_shards_in_order(tmp_path: Path) -> None:
    for name in ("t-008", "t-009", "t-010", "v-000"):
        write_tar(tmp_path / f"{name}.tar", [])

    def names(pattern: str) -> list[str]:
        return [shard.stem for shard in find_shards(f"{tmp_path}/{pattern}")]

    assert names("t-{008..010}.tar") == ["t-008", "t-009", "t-010"]
    assert names("{v-000,t-009}.tar") == ["v-000", "t-009"]
    assert names("t-0{08,10}.tar") == ["t-008", "t-010"]
    assert names("t-*.tar") == ["t-008", "t-009", "t-010"]
    assert names("{t-01?,v-*}.tar") == ["t-010", "v-000"]
    with pytest.raises(DataError, match=r"2 of 4 shards of .* are not there: '.*t-007.tar', '.*t-011.tar'"):
        find_shards(f"{tmp_path}/t-{{007,008,009,011}}.tar")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no \.tar"):
        find_shards(str(tmp_path / "none"))


def test_shards_may_be_named_from_the_folder_they_lie_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "train-0.tar", samples(4, ["cat"]))
    monkeypatch.chdir(tmp_path)
    for source in (".", "train-0.tar", "train-{0,0}.tar"):
        data = read_webdataset(source)
        assert data.image_ids == ("train-0.tar/0004.png",)
        assert data.name == tmp_path.name


def test_a_pattern_is_known_as_a_source(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", samples(0, ["cat"]))
    write_tar(tmp_path / "train-1.tar", samples(0, ["cat"]))
    for pattern, images in (("train-{0..1}.tar", 2), ("train-*.tar", 2), ("train-0.tar", 1)):
        assert len(read_dataset(load_config([f"data={tmp_path}/{pattern}"]).data)) == images


def test_a_damaged_picture_in_a_shard_is_told_by_its_place(tmp_path: Path) -> None:
    members: Members = [("1.png", picture_bytes()), ("2.png", b"\x89PNG"), ("3.png", b"")]
    members += [(f"{number}.txt", "cat") for number in (1, 2, 3)]
    shard = write_tar(tmp_path / "a.tar", members)
    data = read_webdataset(str(shard))
    with pytest.raises(UnreadableImage, match=rf"image {shard}/2\.png cannot be read"):
        data.load_image(1)
    kept, reports = check_images(data, "skip")
    assert kept.image_ids == ("a.tar/1.png",)
    assert reports[1] == ("a.tar/3.png", "the file is empty")
    shard.unlink()
    with pytest.raises(UnreadableImage, match="there is no such file"):
        data.load_image(0)


def test_images_are_read_by_many_threads_and_in_other_processes(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(0, *[["cat"]] * 40))
    data = pickle.loads(pickle.dumps(read_webdataset(str(tmp_path))))
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(data.load_image, range(40)))
    for number, picture in enumerate(pictures):
        assert np.array_equal(np.asarray(picture), pixels_of(number))


def test_a_fingerprint_holds_sizes_and_a_subset_the_places(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(0, ["cat"], ["ant"]))
    data = read_webdataset(str(tmp_path))
    part = data.subset(np.array([1]))
    (image,) = part.images
    assert isinstance(image, TarImage)
    assert image.size == len(picture_bytes(1))
    assert np.array_equal(np.asarray(open_image(image)), pixels_of(1))
    before = data.fingerprint()
    assert read_webdataset(str(tmp_path)).fingerprint() == before
    members = samples(0, ["cat"], ["ant"])
    members[0] = ("0000.png", picture_bytes(0) + b"\0")
    write_tar(tmp_path / "a.tar", members)
    assert read_webdataset(str(tmp_path)).fingerprint() != before


def test_shards_that_the_library_has_written_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/train-%03d.tar", maxcount=2, verbose=0) as writer:
        for number in range(3):
            labels = {"labels": ["cat", "ant"][: number % 2 + 1]}
            writer.write({"__key__": f"photo{number}", "png": picture_bytes(number), "json": labels})
    data = read_webdataset(str(tmp_path))
    assert data.image_ids == (
        "train-000.tar/photo0.png",
        "train-000.tar/photo1.png",
        "train-001.tar/photo2.png",
    )
    assert data.targets.tolist() == [[0, 1], [1, 1], [0, 1]]
    assert np.array_equal(np.asarray(data.load_image(2)), pixels_of(2))
