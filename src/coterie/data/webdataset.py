"""WebDataset shards: pictures and labels in tar archives, read in place by an index of their members."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coterie.data.dataset import MultiLabelDataset, StoredImage
from coterie.data.targets import SPLIT_ALIASES, SPLIT_NAMES, split_notes, targets_of_names, usual_split
from coterie.errors import DataError, counted, did_you_mean, listed, shortened
from coterie.untrusted import parse_json

PICTURES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2", "avif"))
LABELS = ("json", "cls", "txt")
CLASS_NAMES_FILE = "classnames.txt"
# Directory and name up to the first dot, then the extension, as WebDataset divides a member's name.
MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
MOST_SHARDS = 1_000_000
LARGEST_LABELS = 2**20  # bytes: more is no list of labels
BLOCK = tarfile.BLOCKSIZE


class TarImage(StoredImage):
    """A picture in an uncompressed tar archive, by its place there."""

    __slots__ = ("_size", "name", "offset", "shard")

    def __init__(self, shard: Path, name: str, offset: int, size: int) -> None:
        self.shard = shard
        self.name = name
        self.offset = offset
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read(self) -> bytes:
        # Opened anew each time: a file that threads or processes share has one position for all of them.
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self._size)

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Sample:
    """The members of one shard that share a key, by extension."""

    shard: Path
    key: str
    members: dict[str, _Member] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.shard}/{self.key}"


def read_webdataset(
    source: str,
    *,
    image: str | None = None,
    labels: str | None = None,
    labels_column: str = "labels",
    split_column: str = "split",
    delimiter: str = ";",
    class_names: Sequence[str] | None = None,
) -> MultiLabelDataset:
    """The dataset of uncompressed tar shards: one file, a folder, or a pattern such as train-{000..099}.tar.

    A sample is the members with one key. Its labels are in the member with the extension `labels`: json
    (names or numbers under `labels_column`, as a list or joined by `delimiter`), cls (numbers) or txt (names
    joined by `delimiter`). Numbers count from 0 in `class_names`, else in classnames.txt beside the shards.
    The split is under `split_column` in the json, else a word in the name of the shard or its folder. Nothing
    is unpacked: links and other odd members are left out. DataError names shard and sample.
    """
    shards = find_shards(source)
    samples, notes = _index(shards)
    pictures = _pictures(samples, image)
    kind = labels or _kind_of_labels(samples, labels_column)
    contents: list[Any] = list(_contents(samples, kind))
    if kind.rpartition(".")[2] == "json":
        entries = [_json_entry(*pair, labels_column) for pair in zip(samples, contents, strict=True)]
        splits = [str(entry.get(split_column) or "") for entry in entries]
        cells = [entry[labels_column] for entry in entries]
    else:
        splits = [""] * len(samples)
        cells = contents
        if kind.rpartition(".")[2] == "cls":
            cells = [_numbers(*pair) for pair in zip(samples, contents, strict=True)]
    splits = [split or _split_in_name(sample.shard) for split, sample in zip(splits, samples, strict=True)]
    given = class_names if class_names is not None else _class_names_beside(shards)
    names = [_names(sample, cell, delimiter, given) for sample, cell in zip(samples, cells, strict=True)]
    targets, classes = targets_of_names(names, given, lambda row: str(samples[row]))
    top = _common_folder(shards)
    return MultiLabelDataset(
        images=[TarImage(sample.shard, *picture) for sample, picture in zip(samples, pictures, strict=True)],
        targets=targets,
        class_names=tuple(classes),
        splits=np.array([usual_split(split) for split in splits], dtype=np.str_),
        image_ids=tuple(
            f"{sample.shard.relative_to(top).as_posix()}/{picture.name}"
            for sample, picture in zip(samples, pictures, strict=True)
        ),
        name=top.resolve().name,
        notes=(*notes, *split_notes(splits)),
    )


def find_shards(source: str) -> list[Path]:
    """The archives of a file, a folder (and the folders in it) or a pattern with {000..099}, {a,b}, *, ?."""
    path = Path(source)
    if path.is_dir():
        shards = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")])
    elif path.exists():
        shards = [path]
    else:
        parts = [sorted(glob.glob(part)) or [part] for part in _braces(source)]  # noqa: PTH207  # noqa: PTH207
        shards = [Path(name) for name in itertools.chain.from_iterable(parts)]
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        raise DataError(
            f"{len(missing):,} of {counted(len(shards), 'shard')} of {source} are not there: "
            f"{shortened(missing)}; name those there are, as in train-{{000..099}}.tar or train-*.tar"
        )
    if not shards:
        raise DataError(f"folder {source} holds no .tar; name the folder of the shards, or a pattern")
    return list(dict.fromkeys(shards))


def _braces(pattern: str) -> list[str]:
    """The names that {000..099} and {a,b} in `pattern` stand for, in order; DataError for too many."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds is not None:
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        numbers = range(int(bounds[1]), int(bounds[2]) + 1)
        choices = [f"{number:0{width}d}" for number in itertools.islice(numbers, MOST_SHARDS + 1)]
    else:
        choices = match[1].split(",")
    names: list[str] = []
    for choice in choices:
        names += _braces(pattern[: match.start()] + choice + pattern[match.end() :])
        if len(names) > MOST_SHARDS:
            raise DataError(f"{pattern} stands for more than {MOST_SHARDS:,} shards; name those there are")
    return names


def _index(shards: Sequence[Path]) -> tuple[list[_Sample], list[str]]:
    """The samples of all shards, and notes on what is left out."""
    samples: list[_Sample] = []
    odd: list[str] = []
    for shard in shards:
        of_shard: dict[str, _Sample] = {}
        for member, is_plain in _members(shard):
            match = MEMBER.fullmatch(member.name)
            if not is_plain or match is None:
                odd.append(f"{shard.name}/{member.name}")
                continue
            sample = of_shard.setdefault(match[1], _Sample(shard, match[1]))
            extension = match[2].lower()
            if extension in sample.members:
                raise DataError(f"{shard} holds {member.name} twice; write the shard again")
            sample.members[extension] = member
        samples += of_shard.values()
    if not samples:
        raise DataError(f"{counted(len(shards), 'shard')} ({listed([str(shards[0])])}, …) hold no sample")
    if not odd:
        return samples, []
    what = counted(len(odd), "member is no plain file with", "members are no plain files with")
    return samples, [f"{what} key and extension, and left out: {shortened(odd)}"]


def _members(shard: Path) -> Iterator[tuple[_Member, bool]]:
    """The members of an archive, but for folders, and whether each is a plain file in one piece.

    DataError where the archive is compressed, damaged or cut off: tarfile takes most of these for its end.
    """
    try:
        with tarfile.open(shard, "r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                if member.size < 0 or archive.offset <= end:
                    raise ValueError(f"{member.name} ends before it begins")
                end = archive.offset
                archive.members = []  # type: ignore[attr-defined] # it would keep every one
                if not member.isdir():
                    plain = member.isreg() and not member.issparse()
                    yield _Member(member.name, member.offset_data, member.size), plain
            end = archive.offset
    # on damaged headers tarfile raises nearly anything
    except Exception as error:
        raise DataError(
            f"shard {shard} cannot be read as an uncompressed tar archive: {error}; unpack a .tar.gz to a "
            ".tar, and download a damaged shard again"
        ) from None
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise DataError(
                f"shard {shard} is damaged or cut off at byte {end:,}; download or write it again"
            )


def _pictures(samples: Sequence[_Sample], extension: str | None) -> list[_Member]:
    """The picture of each sample: the member with `extension`, by default the only one that is a picture."""
    pictures, lacking = [], []
    for sample in samples:
        found = [
            other
            for other in sample.members
            if other == extension or (extension is None and other.rpartition(".")[2] in PICTURES)
        ]
        if len(found) > 1:
            raise DataError(
                f"sample {sample} holds {len(found)} pictures: {shortened(found)}; choose with "
                f"data.webdataset.image={found[0]}"
            )
        if found:
            pictures.append(sample.members[found[0]])
        else:
            lacking.append(sample)
    if lacking:
        what = "no picture (.jpg, .png, …)" if extension is None else f"no .{extension}"
        raise DataError(
            f"{len(lacking):,} of {counted(len(samples), 'sample')} hold {what}: "
            f"{listed([str(sample) for sample in lacking], 3)}; the first holds "
            f"{shortened(list(lacking[0].members))}"
        )
    return pictures


def _kind_of_labels(samples: Sequence[_Sample], labels_column: str) -> str:
    """The extension of the member with the labels: in the first sample, json that has them, cls or txt."""
    first = samples[0]
    here = [extension for extension in LABELS if extension in first.members]
    if (
        here[:1] == ["json"]
        and len(here) > 1
        and labels_column not in _json(first, *_contents([first], "json"))
    ):
        here = here[1:]
    if not here:
        raise DataError(
            f"sample {first} holds {shortened(list(first.members))}, but labels are expected in "
            f"{listed([f'.{extension}' for extension in LABELS])}; data.webdataset.labels names another "
            "extension"
        )
    return here[0]


def _contents(samples: Sequence[_Sample], extension: str) -> Iterator[str]:
    """The text of the member with `extension` of each sample, in their order."""
    lacking = [sample for sample in samples if extension not in sample.members]
    if lacking:
        raise DataError(
            f"{len(lacking):,} of {counted(len(samples), 'sample')} hold no .{extension}, where labels are "
            f"looked for: {listed([str(sample) for sample in lacking], 3)}; data.webdataset.labels names "
            "another extension"
        )
    for shard, of_shard in itertools.groupby(samples, key=lambda sample: sample.shard):
        with shard.open("rb") as file:
            for sample in of_shard:
                member = sample.members[extension]
                if member.size > LARGEST_LABELS:
                    raise DataError(
                        f"{shard}/{member.name} has {member.size:,} bytes, too many for the labels of an "
                        "image; data.webdataset.labels names the member that holds them"
                    )
                file.seek(member.offset)
                try:
                    yield file.read(member.size).decode("utf-8")
                except UnicodeDecodeError:
                    raise DataError(f"{shard}/{member.name} is not UTF-8 text; write it as such") from None


def _json_entry(sample: _Sample, text: str, labels_column: str) -> dict[str, Any]:
    entry = _json(sample, text)
    if labels_column not in entry:
        raise DataError(
            f"the json of sample {sample} has no '{labels_column}'; its keys are {shortened(list(entry))}, "
            f"and data.labels_column names the one of the labels{did_you_mean(labels_column, entry)}"
        )
    return entry


def _json(sample: _Sample, text: str) -> dict[str, Any]:
    try:
        entry = parse_json(text)
    except ValueError as error:
        raise DataError(f"the json of sample {sample} cannot be read: {error}") from None
    if not isinstance(entry, dict):
        kind = type(entry).__name__
        raise DataError(f"the json of sample {sample} holds a {kind}, not an object with labels")
    return entry


def _numbers(sample: _Sample, text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise DataError(f"the .cls of sample {sample} holds {text.strip()[:50]!r}, and not numbers") from None


def _names(sample: _Sample, cell: Any, delimiter: str, class_names: Sequence[str] | None) -> list[str]:
    """The label names that a cell holds: a text, or a list of names or of numbers of classes."""
    labels = cell.split(delimiter) if isinstance(cell, str) else [] if cell is None else cell
    if not isinstance(labels, list) or not all(
        isinstance(label, str | int) and not isinstance(label, bool) for label in labels
    ):
        raise DataError(
            f"the labels of sample {sample} are {shortened([cell])}, but a list of names or of numbers is "
            "expected, or a text"
        )
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers and class_names is None:
        raise DataError(
            f"the labels of sample {sample} are numbers, such as {numbers[0]}; put the names of the classes, "
            f"one in a line and in their order, into {CLASS_NAMES_FILE} beside the shards, or give "
            "data.class_names"
        )
    wrong = [number for number in numbers if not 0 <= number < len(class_names or ())]
    if wrong:
        raise DataError(
            f"label {wrong[0]} of sample {sample} is no class: there are {len(class_names or ())}, from 0 on"
        )
    named = [class_names[label] if isinstance(label, int) and class_names else str(label) for label in labels]
    return list(dict.fromkeys(name for label in named if (name := label.strip())))


def _class_names_beside(shards: Sequence[Path]) -> list[str] | None:
    """The lines of classnames.txt in the folder of the first shard or the one above, None without one."""
    for folder in (shards[0].parent, shards[0].parent.parent):
        path = folder / CLASS_NAMES_FILE
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError:
                raise DataError(f"{path} is not UTF-8 text; write it as such") from None
            return [name for line in lines if (name := line.strip())]
    return None


def _split_in_name(shard: Path) -> str:
    """The split that is a word in the name of the shard, else of its folder; "" where none or two are."""
    for name in (shard.stem, shard.resolve().parent.name):
        words = {word for word in re.split("[^a-z]+", name.lower()) if word in (*SPLIT_NAMES, *SPLIT_ALIASES)}
        if words:
            return words.pop() if len(words) == 1 else ""
    return ""


def _common_folder(shards: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([shard.parent for shard in shards]))
