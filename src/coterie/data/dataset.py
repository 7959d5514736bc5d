"""What every reader returns: images, targets in {1, 0, -1}, class names, splits."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from coterie.data.columns import BLOCK_ENTRIES, BLOCK_ROWS, Column, LabelLists, Positions
from coterie.errors import (
    OUT_OF_MEMORY,
    DataError,
    did_you_mean,
    is_out_of_memory,
    listed,
    repeated,
    shortened,
)

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
UNLABELLED = "unlabelled"  # the split of images whose labels nobody knows
TAUGHT = ("train", UNLABELLED)  # the splits that a student learns from

# Formats that are read. The others of Pillow have decoders that hardly anybody looks at, or run programs.
Image.init()
READ_FORMATS = tuple(
    name
    for name in (
        *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"),
        *("JPEG2000", "DIB", "TGA", "SGI", "PCX", "QOI", "ICO"),
    )
    if name in Image.OPEN
)
# An open picture takes up to nine bytes a pixel: a file of a few kilobytes can ask for any amount of memory.
MOST_PIXELS = 100_000_000
END_BYTES = 64
# Why a picture cannot be read that may be sound: a disk, a link to a server of files, a right, a limit.
OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENXIO, errno.ENODEV, errno.ESTALE),
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
}
# Targets of so many entries, a byte each, are an array; more may be lists.
MOST_DENSE = 2**28


class StoredImage(ABC):
    """A picture that is no file of its own: a member of an archive, a cell of a table.

    `str()` says where it is, as a path does. Threads and processes read at the same time.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """In bytes."""

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of the picture, encoded as in a file."""


ImageSource = Path | StoredImage


class StoredImages(Column[StoredImage]):
    """Pictures of archives that are indexed: each is made when it is asked for."""

    @abstractmethod
    def sizes(self) -> Iterator[npt.NDArray[np.int64]]:
        """The sizes in bytes of all pictures in order, some at a time."""

    @abstractmethod
    def ends(self) -> Iterator[npt.NDArray[np.uint64]]:
        """`hash_of_end` of each picture in order, some at a time."""

    @abstractmethod
    def archive_edges(self) -> Positions:
        """The positions at which another archive begins, in ascending order and the first 0."""


class ImageIds(Column[str]):
    """Ids that are different and text, each made when it is asked for."""

    @abstractmethod
    def sorted_parts(self) -> Iterator[tuple[Positions, list[str]]]:
        """Positions and ids of all images, part by part: each id of a part is below all of the next one."""


class UnreadableImage(DataError):
    """A picture that cannot be decoded; `reason` says why, without the path.

    `path` is a text for a picture that is no file of its own. `is_broken`: the picture itself, and not the
    disk, the network or the memory, for which it may be read at another time.
    """

    def __init__(self, path: Path | str, reason: str, is_broken: bool = True) -> None:
        # the arguments as they are: an exception is made anew from them when it comes from another process
        super().__init__(path, reason, is_broken)
        self.path = path
        self.reason = reason
        self.is_broken = is_broken

    def __str__(self) -> str:
        remedy = "" if self.is_broken else "; the picture may be sound: put that right and start again"
        return f"image {self.path} cannot be read: {self.reason}{remedy}"


class UnknownFormat(UnreadableImage):
    """What is there is no picture of a format that is read."""


@dataclass(frozen=True, eq=False)
class MultiLabelDataset:
    """Images with multi-label targets.

    `images`: N paths (as text too) or StoredImages, or one uint8 array [N, H, W, 3] (RGB).
    `targets`: int8 [N, C], 1 present, 0 absent, -1 unknown; or LabelLists, as large sets of shards have them.
    `splits`: N names, such as "train", "val", "test"; a name that starts with "test" is a test split. From
    images of the split "unlabelled" a student learns what its teachers say of them.
    `image_ids`: N unique names that messages and predictions use. `notes`: what the reader had to say.
    Raises DataError where shapes, values, class names or splits do not fit.
    """

    images: Sequence[ImageSource] | npt.NDArray[np.uint8]
    targets: Any  # a union would have everyone who knows that it is an array ask again
    class_names: tuple[str, ...]
    splits: npt.NDArray[np.str_]
    image_ids: Sequence[str]
    name: str = "dataset"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.images, np.ndarray | StoredImages) and any(
            isinstance(image, str) for image in self.images
        ):
            paths = [Path(image) if isinstance(image, str) else image for image in self.images]
            object.__setattr__(self, "images", paths)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if not isinstance(self.image_ids, ImageIds):
            object.__setattr__(self, "image_ids", tuple(self.image_ids))
        object.__setattr__(self, "splits", np.asarray(self.splits, dtype=np.str_))
        n, c = len(self.images), len(self.class_names)
        if isinstance(self.images, np.ndarray) and (
            self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3
        ):
            raise DataError(
                f"images of {self.name} must be uint8 [N, H, W, 3] (RGB), "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.targets.ndim != 2 or self.targets.shape != (n, c) or self.targets.dtype != np.int8:
            raise DataError(
                f"targets of {self.name} must be int8 [{n}, {c}] for {n} images and {c} classes, "
                f"got {self.targets.dtype} {list(self.targets.shape)}"
            )
        # of int8, the three values are all there are between the least and the greatest
        if (
            isinstance(self.targets, np.ndarray)
            and self.targets.size
            and not UNKNOWN <= self.targets.min() <= self.targets.max() <= PRESENT
        ):
            raise DataError(
                f"targets of {self.name} hold values other than 1 (present), 0 (absent), -1 (unknown)"
            )
        if len(self.splits) != n or len(self.image_ids) != n:
            raise DataError(
                f"{self.name} has {n} images, {len(self.splits)} splits and {len(self.image_ids)} ids; "
                "give one of each for every image"
            )
        ids = () if isinstance(self.image_ids, ImageIds) else self.image_ids
        for what, names in (
            ("class names", self.class_names),
            ("image ids", ids),
            ("splits", self.split_names),
        ):
            if not _is_text("".join(names)):
                wrong = [ascii(name) for name in names if not _is_text(name)]
                raise DataError(f"{what} of {self.name} are no text in Unicode: {listed(wrong)}")
        if len(set(self.class_names)) != c:
            twice = shortened(repeated(self.class_names))
            raise DataError(f"class names of {self.name} stand twice: {twice}")
        if len(set(ids)) != len(ids):
            twice = shortened(repeated(ids))
            raise DataError(f"image ids of {self.name} stand twice: {twice}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits, in the order of their first image."""
        names: dict[str, None] = {}
        for block in _blocks(self.splits):
            while len(block):
                names.setdefault(str(block[0]))
                block = block[block != block[0]]
        return tuple(names)

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Positions [n] of the images of `split`; DataError where there are none."""
        found = np.flatnonzero(self.splits == split)
        if not len(found):
            raise DataError(f"{self.name} has no split '{split}'; it has {shortened(self.split_names)}")
        return found

    def load_image(self, index: int) -> Image.Image:
        """Image `index` in RGB, in its own size; DataError names the file where it cannot be read."""
        source = self.images[index]
        if isinstance(source, np.ndarray):
            return Image.fromarray(source)
        return open_image(source)

    def subset(self, keep: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> MultiLabelDataset:
        """The same dataset with only the images `keep` (positions or a mask [N])."""
        positions: Positions = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep.astype(np.int64)
        images: Sequence[ImageSource] | npt.NDArray[np.uint8]
        if isinstance(self.images, np.ndarray):
            images = self.images[positions]
        elif isinstance(self.images, StoredImages):
            images = self.images.take(positions)
        else:
            images = [self.images[i] for i in positions]
        ids = self.image_ids
        return replace(
            self,
            images=images,
            targets=self.targets_at(positions),
            splits=self.splits[positions],
            image_ids=ids.take(positions) if isinstance(ids, ImageIds) else tuple(ids[i] for i in positions),
        )

    def targets_at(self, positions: Positions) -> Any:
        """The targets of the images at `positions`, dense or as lists like those of all."""
        if isinstance(self.targets, LabelLists):
            return self.targets.take(positions)
        return self.targets[positions]

    def with_classes(self, class_names: Sequence[str]) -> MultiLabelDataset:
        """The same images with the classes `class_names` in that order; DataError names a missing one."""
        column = {name: number for number, name in enumerate(self.class_names)}
        missing = [name for name in class_names if name not in column]
        if missing:
            hint = did_you_mean(missing[0], self.class_names)
            known = shortened(self.class_names)
            raise DataError(f"{self.name} has no class {shortened(missing)}; its classes are {known}{hint}")
        columns = [column[name] for name in class_names]
        targets = (
            self.targets.with_columns(columns)
            if isinstance(self.targets, LabelLists)
            else self.targets[:, columns]
        )
        return replace(self, targets=targets, class_names=tuple(class_names))

    def fingerprint(self) -> str:
        """SHA-256 over class names, targets, splits, ids, and pixels (arrays) or sizes in bytes (files)."""
        digest = hashlib.sha256()
        for names in (self.class_names, self.splits, self.image_ids):
            for number, block in enumerate(_blocks(names)):
                texts = block.tolist() if isinstance(block, np.ndarray) else block
                digest.update(b"\0" * (number > 0) + "\0".join(texts).encode())
            digest.update(b"\1")
        for part in _target_bytes(self.targets):
            digest.update(part)
        if isinstance(self.images, np.ndarray):
            digest.update(str(self.images.shape).encode())
            digest.update(np.ascontiguousarray(self.images).data)
        elif isinstance(self.images, StoredImages):
            for sizes in self.images.sizes():
                digest.update(sizes.astype("<u8").tobytes())
        else:
            digest.update(b"".join(size_in_bytes(image).to_bytes(8, "little") for image in self.images))
        return digest.hexdigest()

    def split_hash(self) -> str:
        """SHA-256 over which image is in which split, in any order: equal where two people split alike.

        Of the lines "split, tab, image id", sorted. Unlabelled images do not count: without them, and with
        others, the same is measured.
        """
        digest = hashlib.sha256()
        named = [name for name in self.split_names if name != UNLABELLED]
        for split in sorted(named, key=lambda name: f"{name}\t"):
            for positions, names in self._sorted_parts():
                chosen = np.flatnonzero(self.splits[positions] == split).tolist()
                lines = sorted(f"{split}\t{names[place]}\n" for place in chosen)
                digest.update("".join(lines).encode())
        return digest.hexdigest()

    def _sorted_parts(self) -> Iterator[tuple[Positions, Sequence[str]]]:
        if isinstance(self.image_ids, ImageIds):
            yield from self.image_ids.sorted_parts()
        else:
            yield np.arange(len(self)), self.image_ids


def open_image(
    source: ImageSource, *, formats: tuple[str, ...] = READ_FORMATS, max_pixels: int = MOST_PIXELS
) -> Image.Image:
    """The picture decoded, upright by its EXIF orientation, in 8-bit RGB; transparency is dropped.

    The first frame of an animation. `formats`: Pillow's names of those that are read. `max_pixels`: above,
    nothing is decoded. Raises UnreadableImage (a DataError) that names the file and the reason, UnknownFormat
    where it is of none of the formats.
    """
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise ValueError("it is no file")  # a pipe would be waited for
        opened = source if isinstance(source, Path) else io.BytesIO(source.read())
        with Image.open(opened, formats=formats) as image:
            _check_pixels(image, max_pixels)
            image.load()
            return _rgb(_upright(image))
    except (
        Exception
    ) as error:  # on a damaged file decoders raise nearly anything: struct.error, IndexError...
        place = source if isinstance(source, Path) else str(source)
        kind = UnknownFormat if isinstance(error, UnidentifiedImageError) else UnreadableImage
        is_broken = not is_out_of_memory(error) and getattr(error, "errno", None) not in OF_THE_MACHINE
        raise kind(place, _reason(source, error), is_broken) from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture that is open already as `open_image` gives it; UnreadableImage where it cannot be decoded."""
    try:
        _check_pixels(image, MOST_PIXELS)
        image.load()
        with contextlib.suppress(Exception):  # as in _upright, but the picture of the caller stays as it is
            image = ImageOps.exif_transpose(image)
        return _rgb(image)
    except Exception as error:
        place = getattr(image, "filename", "") or "of Pillow"
        raise UnreadableImage(place, str(error) or type(error).__name__) from None


def _blocks(values: Sequence[str] | npt.NDArray[np.str_]) -> Iterator[Any]:
    """The values in order, some at a time: all of them as texts would take far more memory."""
    for start in range(0, max(1, len(values)), BLOCK_ROWS):
        yield values[start : start + BLOCK_ROWS]


def _target_bytes(targets: npt.NDArray[np.int8] | LabelLists) -> Iterator[Any]:
    """What a fingerprint holds of targets: the array, of many lists what is in them."""
    if isinstance(targets, np.ndarray):
        yield np.ascontiguousarray(targets)
    elif len(targets) * targets.classes <= MOST_DENSE:
        step = max(1, BLOCK_ENTRIES // max(1, targets.classes))
        for start in range(0, len(targets), step):
            yield targets[start : start + step]
    else:
        for edges, columns in targets.blocks():
            yield np.diff(edges)
            yield columns


def _is_text(name: str) -> bool:
    """Whether it can be written: JSON may hold halves of a character, and archives names in other codes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def size_in_bytes(source: ImageSource | npt.NDArray[np.uint8]) -> int:
    """Of a picture as it is stored: a file, a part of one, or an array."""
    if isinstance(source, np.ndarray):
        return source.nbytes
    return source.stat().st_size if isinstance(source, Path) else source.size


def hash_of_end(content: bytes) -> int:
    """A number of 64 bits from the last bytes of a picture, where two of one size differ if any."""
    return int.from_bytes(hashlib.blake2b(content[-END_BYTES:], digest_size=8).digest(), "little")


def content_of(source: ImageSource | npt.NDArray[np.uint8]) -> bytes:
    """The bytes of a picture as it is stored."""
    if isinstance(source, np.ndarray):
        return source.tobytes()
    return source.read_bytes() if isinstance(source, Path) else source.read()


def _check_pixels(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise ValueError(
            f"it has {image.width:,} x {image.height:,} pixels, and at most {most:,} are decoded; "
            "make it smaller"
        )


def _upright(image: Image.Image) -> Image.Image:
    # A damaged EXIF block says nothing about the pixels, which are decoded by now.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips at 255 and leaves a white picture
        image = _eight_bits(image)
    elif image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8, strip by strip: the numbers in between take eight times the memory."""
    result = Image.new("L", image.size)
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        values = np.asarray(strip).astype(np.int64).clip(0, 65535)
        result.paste(Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)), (0, top))
    return result


def _reason(source: ImageSource, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError) or (isinstance(source, Path) and source.is_dir()):
        return "it is a folder"
    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture of a known format" if size_in_bytes(source) else "the file is empty"
    if isinstance(error, Image.DecompressionBombError) and Image.MAX_IMAGE_PIXELS:
        # a file of a few kilobytes can ask for any amount of memory
        return f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
