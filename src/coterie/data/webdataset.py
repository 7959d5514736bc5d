"""WebDataset shards: pictures and labels in tar archives, read in place by an index of their members."""

from __future__ import annotations

import functools
import glob
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coterie.data.columns import LabelLists
from coterie.data.dataset import END_BYTES, MOST_DENSE, UNLABELLED, MultiLabelDataset, hash_of_end
from coterie.data.shards import (
    IndexFolder,
    ShardIds,
    ShardImages,
    ShardIndex,
    ShardPart,
    Stamp,
    Totals,
    make_part,
    merged,
)
from coterie.data.targets import SPLIT_ALIASES, SPLIT_NAMES, outside_of_classes, split_notes
from coterie.errors import DataError, counted, did_you_mean, listed, shortened
from coterie.files import content_hash
from coterie.untrusted import parse_json

PICTURES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2", "avif"))
LABELS = ("json", "cls", "txt")
CLASS_NAMES_FILE = "classnames.txt"
# Directory and name up to the first dot, then the extension, as WebDataset divides a member's name.
MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
MOST_SHARDS = 1_000_000
LARGEST_LABELS = 2**20  # bytes: more is no list of labels
BLOCK = tarfile.BLOCKSIZE
# Of what is found in a shard: another number makes every index anew.
SCHEMA_VERSION = 1


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


@dataclass(frozen=True)
class _Reading:
    """How samples are read: the settings of `read_webdataset`, and the classes where they are given."""

    image: str | None
    labels: str | None
    labels_column: str
    split_column: str
    delimiter: str
    class_names: tuple[str, ...] | None


def read_webdataset(
    source: str,
    *,
    image: str | None = None,
    labels: str | None = None,
    labels_column: str = "labels",
    split_column: str = "split",
    delimiter: str = ";",
    class_names: Sequence[str] | None = None,
    index: Path | None = None,
) -> MultiLabelDataset:
    """The dataset of uncompressed tar shards: one file, a folder, or a pattern such as train-{000..099}.tar.

    A sample is the members with one key. Its labels are in the member with the extension `labels`: json
    (names or numbers under `labels_column`, as a list or joined by `delimiter`), cls (numbers) or txt (names
    joined by `delimiter`). Numbers count from 0 in `class_names`, else in classnames.txt beside the shards.
    The split is under `split_column` in the json, else a word in the name of the shard or its folder. Nothing
    is unpacked: links and other odd members are left out. `index`: a folder that keeps what was found in each
    shard until that changes, and from which it is mapped; None: in memory. DataError names shard and sample.
    """
    shards = find_shards(source)
    given = class_names if class_names is not None else _class_names_beside(shards)
    names = None if given is None else tuple(given)
    reading = _Reading(image, labels, labels_column, split_column, delimiter, names)
    found = _read_index(shards, reading, None if index is None else IndexFolder(index))
    targets = LabelLists(found.arrays, len(found.class_names))
    dense = index is None and len(targets) * targets.classes <= MOST_DENSE
    return MultiLabelDataset(
        images=ShardImages(found),
        targets=targets[:] if dense else targets,
        class_names=found.class_names,
        splits=found.arrays["splits"],
        image_ids=tuple(ShardIds(found)) if dense else ShardIds(found),
        name=found.top.resolve().name,
        notes=found.notes,
    )


def _read_index(shards: Sequence[Path], reading: _Reading, folder: IndexFolder | None) -> ShardIndex:
    """The index of all shards, from the `folder` as far as it is there, and put there where it was not."""
    top = _common_folder(shards)
    names = tuple(shard.relative_to(top).as_posix() for shard in shards)
    stamps = tuple(Stamp.of(shard.stat()) for shard in shards)
    # the word in the name of a shard or its folder may be its split
    told = [
        (name, *asdict(stamp).values(), _split_in_name(shard))
        for name, stamp, shard in zip(names, stamps, shards, strict=True)
    ]
    key = content_hash([SCHEMA_VERSION, asdict(reading), told])
    index = functools.partial(ShardIndex, top, names, stamps)
    if folder is not None and (kept := folder.read(key, len(shards))) is not None:
        return index(kept.class_names, kept.edges, kept.notes, kept.arrays)
    totals, parts = _read_parts(shards, top, told, reading, folder)
    if not sum(totals.images):
        raise DataError(f"{counted(len(shards), 'shard')} ({listed([str(shards[0])])}, …) hold no sample")
    classes = reading.class_names if reading.class_names is not None else tuple(sorted(totals.label_names))
    edges = np.append(0, np.cumsum(totals.images))
    notes = tuple(split_notes(totals.split_names))
    if totals.odd:
        what = counted(totals.odd, "member is no plain file with", "members are no plain files with")
        odd = [*totals.odd_names, *[""] * (totals.odd - len(totals.odd_names))]
        notes = (f"{what} key and extension, and left out: {shortened(odd)}", *notes)
    blocks = merged(totals, parts, classes)
    if folder is None:
        grouped = itertools.groupby(blocks, key=lambda block: block[0])
        arrays = {name: np.concatenate([block for _, block in of_array]) for name, of_array in grouped}
        return index(classes, edges, notes, arrays)
    about = {"key": key, "class_names": classes, "edges": edges.tolist(), "notes": notes}
    folder.write(about | {"layout": totals.layout()}, blocks)
    if (kept := folder.read(key, len(shards))) is None:
        raise DataError(
            f"the index of the shards in {folder.path} is damaged as soon as it is written; is the disk "
            "sound? Choose another folder with data.webdataset.index"
        )
    return index(kept.class_names, kept.edges, kept.notes, kept.arrays)


def _read_parts(
    shards: Sequence[Path],
    top: Path,
    told: Sequence[tuple[Any, ...]],
    reading: _Reading,
    folder: IndexFolder | None,
) -> tuple[Totals, Callable[[], Iterable[ShardPart]]]:
    """What the shards hold together, and what gives the part of each, one after the other."""
    totals, kind = Totals(), reading.labels or ""
    parts: list[ShardPart] = []
    keys: list[tuple[str, str]] = []
    for shard, words in zip(shards, told, strict=True):
        name, key = words[0], content_hash([SCHEMA_VERSION, asdict(reading), kind, words])
        part = None if folder is None else folder.read_part(name, key)
        if part is None:
            part = _read_shard(shard, top, reading, kind)
            if folder is not None:
                folder.write_part(name, key, part)
        if folder is None:
            parts.append(part)
        keys.append((name, key))
        totals.add(part)
        kind = kind or part.kind
    return totals, (lambda: parts) if folder is None else (lambda: folder.parts(keys))


def _read_shard(shard: Path, top: Path, reading: _Reading, kind: str) -> ShardPart:
    """The pictures of one shard with their labels and splits; `kind` is the extension of the labels, "" where
    the first sample is to tell.
    """
    samples, odd = _index(shard)
    if not samples:
        return make_part([], [], [], kind, odd)
    pictures = _pictures(samples, reading.image)
    kind = kind or _kind_of_labels(samples, reading.labels_column)
    contents: list[Any] = list(_contents(samples, kind))
    if kind.rpartition(".")[2] == "json":
        entries = [_json_entry(*pair, reading.labels_column) for pair in zip(samples, contents, strict=True)]
        splits = [str(entry.get(reading.split_column) or "") for entry in entries]
        cells = [entry[reading.labels_column] for entry in entries]
    else:
        splits = [""] * len(samples)
        cells = contents
        if kind.rpartition(".")[2] == "cls":
            cells = [_numbers(*pair) for pair in zip(samples, contents, strict=True)]
    split = _split_in_name(shard)
    given = reading.class_names
    labels = [
        _names(sample, cell, reading.delimiter, given) for sample, cell in zip(samples, cells, strict=True)
    ]
    if given is not None and (outside := set().union(*labels).difference(given)):
        raise outside_of_classes(labels, outside, given, lambda row: str(samples[row]))
    described = _described(shard, top, pictures)
    return make_part(described, labels, [own or split for own in splits], kind, odd)


def _described(shard: Path, top: Path, pictures: Sequence[_Member]) -> list[tuple[bytes, int, int, int]]:
    """(name, offset, size, hash of the end) of the pictures of a shard."""
    described = []
    with shard.open("rb") as file:
        for name, offset, size in pictures:
            tail = min(size, END_BYTES)
            file.seek(offset + size - tail)
            end = hash_of_end(file.read(tail))
            try:
                written = name.encode()
            except UnicodeEncodeError:
                wrong = ascii(f"{shard.relative_to(top).as_posix()}/{name}")
                raise DataError(
                    f"image ids of {top.resolve().name} are no text in Unicode: {wrong}"
                ) from None
            described.append((written, offset, size, end))
    return described


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


def _index(shard: Path) -> tuple[list[_Sample], list[str]]:
    """The samples of a shard, and the members that are left out."""
    samples: dict[str, _Sample] = {}
    odd: list[str] = []
    for member, is_plain in _members(shard):
        match = MEMBER.fullmatch(member.name)
        if not is_plain or match is None:
            odd.append(f"{shard.name}/{member.name}")
            continue
        sample = samples.setdefault(match[1], _Sample(shard, match[1]))
        extension = match[2].lower()
        if extension in sample.members:
            raise DataError(f"{shard} holds {member.name} twice; write the shard again")
        sample.members[extension] = member
    return list(samples.values()), odd


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
    shard = samples[0].shard
    with shard.open("rb") as file:
        for sample in samples:
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
    """The lines of classnames.txt in the folders of the shards or the ones above, None without one; DataError
    where two of them differ.
    """
    found: dict[Path, list[str]] = {}
    for folder in dict.fromkeys(shard.parent for shard in shards):
        path = next(
            (
                path
                for path in (folder / CLASS_NAMES_FILE, folder.parent / CLASS_NAMES_FILE)
                if path.is_file()
            ),
            None,
        )
        if path is None or path in found:
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise DataError(f"{path} is not UTF-8 text; write it as such") from None
        found[path] = [name for line in lines if (name := line.strip())]
    first = next(iter(found), None)
    for path, names in found.items():
        if first is not None and names != found[first]:
            differ = sorted(set(names) ^ set(found[first]))
            how = f"{shortened(differ)} in one of them only" if differ else "the order differs"
            raise DataError(
                f"{first} and {path} disagree about the classes: {how}; numbers would stand for other "
                "labels. Make them the same, or give data.class_names"
            )
    return None if first is None else found[first]


def _split_in_name(shard: Path) -> str:
    """The split that is a word in the name of the shard, else of its folder; "" where none or two are."""
    for name in (shard.stem, shard.resolve().parent.name):
        words = set(re.split("[^a-z]+", name.lower())) & {*SPLIT_NAMES, *SPLIT_ALIASES, UNLABELLED}
        if words:
            return words.pop() if len(words) == 1 else ""
    return ""


def _common_folder(shards: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([shard.parent for shard in shards]))
