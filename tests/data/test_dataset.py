"""The dataset type: what it refuses, what it hands out, and pictures of every kind as 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from coterie.data.dataset import (
    MultiLabelDataset,
    StoredImage,
    UnknownFormat,
    UnreadableImage,
    open_image,
)
from coterie.errors import DataError


def dataset() -> MultiLabelDataset:
    return MultiLabelDataset(
        images=np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3),
        targets=np.array([[1, 0, -1], [0, 1, 0], [1, 1, 0]], np.int8),
        class_names=("ant", "bee", "cat"),
        splits=np.array(["train", "val", "train"]),
        image_ids=("x", "y", "z"),
        name="toy",
    )


def pixels(image: Image.Image) -> list[list[list[int]]]:
    assert image.mode == "RGB"
    values: list[list[list[int]]] = np.asarray(image).tolist()
    return values


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"targets": np.zeros((3, 2), np.int8)},
            r"must be int8 \[3, 3\] for 3 images and 3 classes, got int8 \[3, 2\]",
        ),
        ({"targets": np.zeros((3, 3), np.int64)}, "got int64"),
        ({"targets": np.full((3, 3), 2, np.int8)}, "values other than 1"),
        ({"splits": np.array(["train"])}, "3 images, 1 splits and 3 ids"),
        ({"class_names": ("ant", "bee", "ant")}, "class names of toy stand twice: 'ant'"),
        ({"image_ids": ("x", "y", "x")}, "image ids of toy stand twice: 'x'"),
        ({"images": np.zeros((3, 2, 2, 3), np.float32)}, r"uint8 \[N, H, W, 3\] \(RGB\), got float32"),
        ({"images": np.zeros((3, 3, 2, 2), np.uint8)}, r"got uint8 \[3, 3, 2, 2\]"),
        ({"images": np.zeros((3, 2, 2), np.uint8)}, r"got uint8 \[3, 2, 2\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object], part: str) -> None:
    with pytest.raises(DataError, match=part):
        replace(dataset(), **change)  # type: ignore[arg-type]


def test_lists_and_paths_as_text_are_taken() -> None:
    made = MultiLabelDataset(
        images=["a.jpg", "b.jpg"],  # type: ignore[list-item]
        targets=np.eye(2, dtype=np.int8),
        class_names=["ant", "bee"],  # type: ignore[arg-type]
        splits=["train", "val"],  # type: ignore[arg-type]
        image_ids=["x", "y"],
    )
    assert list(made.images) == [Path("a.jpg"), Path("b.jpg")]
    assert (made.class_names, made.image_ids) == (("ant", "bee"), ("x", "y"))
    assert made.indices("val").tolist() == [1]


def test_indices_are_the_positions_of_a_split() -> None:
    assert dataset().indices("train").tolist() == [0, 2]
    assert dataset().split_names == ("train", "val")
    with pytest.raises(DataError, match="toy has no split 'test'; it has 'train', 'val'"):
        dataset().indices("test")


@pytest.mark.parametrize("keep", [np.array([True, False, True]), np.array([0, 2])])
def test_a_subset_keeps_all_parts_in_line(keep: npt.NDArray[np.int64]) -> None:
    part = dataset().subset(keep)
    assert part.image_ids == ("x", "z")
    assert part.targets.tolist() == [[1, 0, -1], [1, 1, 0]]
    assert part.splits.tolist() == ["train", "train"]
    assert pixels(part.load_image(1)) == pixels(dataset().load_image(2))


def test_classes_are_chosen_and_ordered_by_name() -> None:
    part = dataset().with_classes(["cat", "ant"])
    assert part.class_names == ("cat", "ant")
    assert part.targets.tolist() == [[-1, 1], [0, 0], [0, 1]]
    with pytest.raises(DataError, match=r"no class 'cats'; its classes are .*; did you mean 'cat'\?$"):
        dataset().with_classes(["cats"])


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ("ant", "bee", "dog")},
        {"targets": np.zeros((3, 3), np.int8)},
        {"splits": np.array(["train", "test", "train"])},
        {"image_ids": ("x", "y", "w")},
        {"images": np.zeros((3, 2, 2, 3), np.uint8)},
    ],
)
def test_a_fingerprint_changes_with_every_part(change: dict[str, object]) -> None:
    assert dataset().fingerprint() == dataset().fingerprint()
    assert replace(dataset(), **change).fingerprint() != dataset().fingerprint()  # type: ignore[arg-type]


def test_a_split_hash_is_of_ids_and_splits_in_any_order() -> None:
    data = dataset()
    lines = b"train\tx\ntrain\tz\nval\ty\n"
    assert data.split_hash() == hashlib.sha256(lines).hexdigest()
    assert data.subset(np.array([2, 0, 1])).split_hash() == data.split_hash()
    assert data.with_classes(["cat"]).split_hash() == data.split_hash()
    assert replace(data, splits=np.array(["train", "train", "val"])).split_hash() != data.split_hash()
    assert data.subset(np.array([0, 1])).split_hash() != data.split_hash()


class Stored(StoredImage):
    """A picture in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return "in memory"


def test_pictures_that_are_no_files_are_decoded_like_files(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.array([[1, 2]], np.uint8)).save(tmp_path / "a.png", exif=exif)
    stored = Stored((tmp_path / "a.png").read_bytes())
    data = replace(dataset(), images=[stored, stored, tmp_path / "a.png"])
    assert [pixels(data.load_image(index)) for index in range(3)] == [[[[2] * 3, [1] * 3]]] * 3
    part = data.subset(np.array([True, False, False]))
    assert list(part.images) == [stored]
    other = replace(data, images=[Stored(stored.content + b"\0"), stored, tmp_path / "a.png"])
    same = replace(data, images=[tmp_path / "a.png"] * 3)
    assert same.fingerprint() == data.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"x", "it is not a picture of a known format")]
)
def test_a_stored_picture_that_cannot_be_read_says_where_it_is(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        open_image(Stored(content))
    assert str(caught.value) == f"image in memory cannot be read: {reason}"
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


def test_an_array_image_is_handed_out_as_it_is() -> None:
    assert pixels(dataset().load_image(0)) == np.arange(12).reshape(2, 2, 3).tolist()


def test_gray_pictures_repeat_their_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 200]], np.uint8)).save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png")) == [[[7] * 3, [200] * 3]]


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16)).save(path)
    assert pixels(open_image(path)) == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_sixteen_bits_of_the_other_byte_order_are_scaled_too(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], ">u2").tobytes())
    assert pixels(open_image(path)) == [[[1] * 3, [255] * 3]]


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """An RGB picture, as Pillow does not write it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_sixteen_bits_in_colour_keep_their_high_byte() -> None:
    values = np.array([[0, 128 * 257, 65535], [256, 511, 30000]], ">u2")
    stored = Stored(png(2, 1, 16, b"\0" + values.tobytes()))
    assert pixels(open_image(stored)) == [[[0, 128, 255], [1, 1, 117]]]


def test_a_small_file_of_too_many_pixels_is_not_decoded() -> None:
    with pytest.raises(UnreadableImage) as caught:
        open_image(Stored(png(40_000, 40_000, 8, b"")))
    assert caught.value.reason == "it has more than 178,956,970 pixels; make it smaller"
    with pytest.raises(UnreadableImage) as caught:
        open_image(Stored(png(300, 200, 8, b"")), max_pixels=59_999)
    assert caught.value.reason == ("it has 300 x 200 pixels, and at most 59,999 are decoded; make it smaller")
    assert open_image(Stored(png(2, 1, 8, bytes(7))), max_pixels=2).size == (2, 1)


def test_only_the_formats_that_are_asked_for_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.bmp")
    assert pixels(open_image(tmp_path / "a.bmp", formats=("BMP",))) == [[[1, 2, 3]]]
    with pytest.raises(UnknownFormat, match="it is not a picture of a known format"):
        open_image(tmp_path / "a.bmp", formats=("PNG", "JPEG"))


def test_a_broken_picture_is_not_one_of_unknown_format() -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    with pytest.raises(UnreadableImage, match=r"image file is truncated") as caught:
        open_image(Stored(whole.getvalue()[:900]))
    assert not isinstance(caught.value, UnknownFormat)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "a.png")
    Image.new("LA", (1, 1), (40, 0)).save(tmp_path / "b.png")
    assert pixels(open_image(tmp_path / "a.png")) == [[[10, 20, 30]]]
    assert pixels(open_image(tmp_path / "b.png")) == [[[40, 40, 40]]]


@pytest.mark.parametrize("transparency", [None, 0, b"\x80\x00"])
def test_palettes_are_looked_up_without_a_warning(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    if transparency is not None:
        image.info["transparency"] = transparency
    image.save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(open_image(tmp_path / "a.png")) == [[[10, 20, 30], [40, 50, 60]]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert pixels(open_image(tmp_path / "a.tif")) == [[[255, 0, 0]]]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = pixels(open_image(tmp_path / "a.jpg"))[0][0]
    assert red > 250
    assert green < 5
    assert blue < 5


def test_black_and_white_pictures_become_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png")) == [[[0] * 3, [255] * 3]]


def test_the_first_frame_stands_for_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (1, 1), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(open_image(tmp_path / "a.gif")) == [[[255, 0, 0]]]


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[1, 2], [3, 4], [5, 6]]),
        (3, [[6, 5], [4, 3], [2, 1]]),
        (6, [[5, 3, 1], [6, 4, 2]]),
        (8, [[2, 4, 6], [1, 3, 5]]),
    ],
)
def test_pictures_are_turned_upright_by_exif(
    tmp_path: Path, orientation: int, expected: list[list[int]], extension: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # blocks of 16 pixels in greys far apart: JPEG and WebP lose details
    picture = np.kron(np.array([[1, 2], [3, 4], [5, 6]], np.uint8) * 40, np.ones((16, 16), np.uint8))
    path = tmp_path / f"a.{extension}"
    Image.fromarray(picture).convert("RGB").save(path, exif=exif)
    image = open_image(path)
    levels = np.asarray(image)[8::16, 8::16, 0] / 40
    assert levels.round().astype(int).tolist() == expected
    assert image.getexif().get(0x0112, 1) == 1  # else a later reader would turn it again


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [b"MM\0*\xff\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0", b"nothing known"])
def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path, block: bytes) -> None:
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    image.save(tmp_path / "a.png", exif=b"Exif\0\0" + block)
    assert pixels(open_image(tmp_path / "a.png")) == [[[10, 20, 30]]]


def test_floats_are_refused_since_their_range_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 1), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match="floats of unknown range; save it with 8 or 16 bits"):
        open_image(tmp_path / "a.tif")


def test_an_unreadable_picture_is_an_error_about_data_with_path_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(DataError, match=r"a\.jpg cannot be read: there is no such file"):
        open_image(path)
    path.touch()
    with pytest.raises(UnreadableImage) as caught:
        open_image(path)
    assert str(caught.value) == f"image {path} cannot be read: the file is empty"
    assert caught.value.reason == "the file is empty"


def test_an_unreadable_image_is_the_same_error_in_another_process() -> None:
    error = UnreadableImage(Path("a/b.png"), "the file is empty")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnreadableImage
    assert str(again) == "image a/b.png cannot be read: the file is empty"
    assert (again.path, again.reason) == (error.path, error.reason)
