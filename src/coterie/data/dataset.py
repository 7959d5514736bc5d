"""What every reader returns: images, targets in {1, 0, -1}, class names, splits."""

from __future__ import annotations

import contextlib
import hashlib
import io
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from coterie.errors import DataError, did_you_mean, listed, repeated, shortened

PRESENT, ABSENT, UNKNOWN = 1, 0, -1

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


class UnreadableImage(DataError):
    """A picture that cannot be decoded; `reason` says why, without the path.

    `path` is a text for a picture that is no file of its own.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        # the arguments as they are: an exception is made anew from them when it comes from another process
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"image {self.path} cannot be read: {self.reason}"


class UnknownFormat(UnreadableImage):
    """What is there is no picture of a format that is read."""


@dataclass(frozen=True, eq=False)
class MultiLabelDataset:
    """Images with multi-label targets.

    `images`: N paths (as text too) or StoredImages, or one uint8 array [N, H, W, 3] (RGB).
    `targets`: int8 [N, C], 1 present, 0 absent, -1 unknown.
    `splits`: N names, such as "train", "val", "test"; a name that starts with "test" is a test split.
    `image_ids`: N unique names that messages and predictions use. `notes`: what the reader had to say.
    Raises DataError where shapes, values, class names or splits do not fit.
    """

    images: Sequence[ImageSource] | npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int8]
    class_names: tuple[str, ...]
    splits: npt.NDArray[np.str_]
    image_ids: tuple[str, ...]
    name: str = "dataset"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.images, np.ndarray) and any(isinstance(image, str) for image in self.images):
            paths = [Path(image) if isinstance(image, str) else image for image in self.images]
            object.__setattr__(self, "images", paths)
        object.__setattr__(self, "class_names", tuple(self.class_names))
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
        if self.targets.size and not UNKNOWN <= self.targets.min() <= self.targets.max() <= PRESENT:
            raise DataError(
                f"targets of {self.name} hold values other than 1 (present), 0 (absent), -1 (unknown)"
            )
        if len(self.splits) != n or len(self.image_ids) != n:
            raise DataError(
                f"{self.name} has {n} images, {len(self.splits)} splits and {len(self.image_ids)} ids; "
                "give one of each for every image"
            )
        for what, names in (
            ("class names", self.class_names),
            ("image ids", self.image_ids),
            ("splits", self.split_names),
        ):
            if not _is_text("".join(names)):
                wrong = [ascii(name) for name in names if not _is_text(name)]
                raise DataError(f"{what} of {self.name} are no text in Unicode: {listed(wrong)}")
        if len(set(self.class_names)) != c:
            twice = shortened(repeated(self.class_names))
            raise DataError(f"class names of {self.name} stand twice: {twice}")
        if len(set(self.image_ids)) != n:
            twice = shortened(repeated(self.image_ids))
            raise DataError(f"image ids of {self.name} stand twice: {twice}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits, in the order of their first image."""
        return tuple(dict.fromkeys(self.splits.tolist()))

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
        positions = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep
        images = (
            self.images[positions]
            if isinstance(self.images, np.ndarray)
            else [self.images[i] for i in positions]
        )
        return replace(
            self,
            images=images,
            targets=self.targets[positions],
            splits=self.splits[positions],
            image_ids=tuple(self.image_ids[i] for i in positions),
        )

    def with_classes(self, class_names: Sequence[str]) -> MultiLabelDataset:
        """The same images with the classes `class_names` in that order; DataError names a missing one."""
        missing = [name for name in class_names if name not in self.class_names]
        if missing:
            hint = did_you_mean(missing[0], self.class_names)
            known = shortened(self.class_names)
            raise DataError(f"{self.name} has no class {shortened(missing)}; its classes are {known}{hint}")
        columns = [self.class_names.index(name) for name in class_names]
        return replace(self, targets=self.targets[:, columns], class_names=tuple(class_names))

    def fingerprint(self) -> str:
        """SHA-256 over class names, targets, splits, ids, and pixels (arrays) or sizes in bytes (files)."""
        digest = hashlib.sha256()
        for names in (self.class_names, tuple(self.splits.tolist()), self.image_ids):
            digest.update("\0".join(names).encode() + b"\1")
        digest.update(np.ascontiguousarray(self.targets).tobytes())
        if isinstance(self.images, np.ndarray):
            digest.update(str(self.images.shape).encode() + np.ascontiguousarray(self.images).tobytes())
        else:
            digest.update(b"".join(size_in_bytes(image).to_bytes(8, "little") for image in self.images))
        return digest.hexdigest()

    def split_hash(self) -> str:
        """SHA-256 over which image is in which split, in any order: equal where two people split alike.

        Of the lines "split, tab, image id", sorted.
        """
        lines = [f"{split}\t{name}\n" for split, name in zip(self.splits, self.image_ids, strict=True)]
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


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
        raise kind(place, _reason(source, error)) from None


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
    return str(error) or type(error).__name__
