"""The index of shards: where each picture lies, its id, labels and split, as arrays; in memory, or in files
that are mapped.

In a folder, each shard has a file, which is made again where the shard has changed, and all of them together
have one that is mapped: what is not whole, of these shards or as it was written, is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from coterie.array_store import HEADER_BYTES, ArrayStore
from coterie.data.columns import Array, Positions
from coterie.data.dataset import ImageIds, StoredImage, StoredImages
from coterie.data.targets import usual_split
from coterie.errors import DataError
from coterie.files import atomic_write, content_hash
from coterie.untrusted import parse_json

ODD_NAMES = 5  # of members that are left out, to be named
SHARDS_FOLDER = "shards"
ALIGNMENT = 64  # bytes
# The arrays of an index and their types; lists have edges, one more than there are images. Of a shard alone,
# labels and splits are numbers in its own lists of names.
TYPES = {
    "offsets": "<i8",
    "sizes": "<i8",
    "ends": "<u8",
    "name_edges": "<i8",
    "names": "|u1",
    "label_edges": "<i8",
    "labels": "<i4",
    "splits": "<i4",
}
LISTS = {"name_edges": "names", "label_edges": "labels"}


@dataclass(frozen=True)
class Stamp:
    """What tells a shard from one that was written again: its size in bytes and when it was written."""

    size: int
    written: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(status.st_size, status.st_mtime_ns)


class TarImage(StoredImage):
    """A picture in an uncompressed tar archive, by its place there; with a `stamp`, in that archive only."""

    __slots__ = ("_size", "name", "offset", "shard", "stamp")

    def __init__(self, shard: Path, name: str, offset: int, size: int, stamp: Stamp | None = None) -> None:
        self.shard = shard
        self.name = name
        self.offset = offset
        self._size = size
        self.stamp = stamp

    @property
    def size(self) -> int:
        return self._size

    def read(self) -> bytes:
        # Opened anew each time: a file that threads or processes share has one position for all of them.
        with self.shard.open("rb") as file:
            if self.stamp is not None and self.stamp != Stamp.of(os.fstat(file.fileno())):
                raise ValueError("its shard has changed since it was indexed; start again")
            if self.stamp is not None and not 0 <= self.offset <= self.offset + self._size <= self.stamp.size:
                raise ValueError("its index is of another shard; remove the folder data.webdataset.index")
            file.seek(self.offset)
            return file.read(self._size)

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


@dataclass(frozen=True)
class ShardPart:
    """What one shard holds: the arrays of its pictures, and the names that its labels and splits stand for.

    `kind`: the extension of the labels, "" where the shard has no sample. `odd`: how many members are left
    out, the first of them named.
    """

    kind: str
    label_names: tuple[str, ...]
    split_names: tuple[str, ...]
    odd: int
    odd_names: tuple[str, ...]
    arrays: Mapping[str, Array] = field(repr=False)

    def __len__(self) -> int:
        return len(self.arrays["offsets"])

    def to_bytes(self, key: str) -> bytes:
        """As a file: the hash of what follows, then arrays as safetensors; `key` says of which shard."""
        about = {name: value for name, value in vars(self).items() if name != "arrays"} | {"key": key}
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        payload = save({**self.arrays, "about": text})
        return hashlib.sha256(payload).hexdigest().encode() + payload

    @classmethod
    def from_bytes(cls, content: bytes, key: str) -> Self:
        """ValueError where it is not what `to_bytes` wrote of the same `key`."""
        sha256, payload = content[:64], content[64:]
        if hashlib.sha256(payload).hexdigest().encode() != sha256:
            raise ValueError("it is damaged")
        try:
            arrays = load(payload)
            about = parse_json(arrays.pop("about").tobytes())
            if about["key"] != key:
                raise ValueError("it is of another shard")
            names = (tuple(about[name]) for name in ("label_names", "split_names", "odd_names"))
            label_names, split_names, odd_names = names
            part = cls(about["kind"], label_names, split_names, int(about["odd"]), odd_names, arrays)
        except (SafetensorError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None
        splits = arrays["splits"]
        if len(splits) and not 0 <= splits.min() <= splits.max() < len(part.split_names):
            raise ValueError("splits without a name")
        check_fit(arrays, labels=len(part.label_names))
        return part


def make_part(
    pictures: Sequence[tuple[bytes, int, int, int]],
    labels: Sequence[Sequence[str]],
    splits: Sequence[str],
    kind: str,
    odd_names: Sequence[str],
) -> ShardPart:
    """The part of a shard from what is known of each picture: (name, offset, size, hash of the end), the
    names of its labels, its split.
    """
    names, offsets, sizes, ends = zip(*pictures, strict=True) if pictures else ((), (), (), ())
    label_numbers, split_numbers = _Numbers(), _Numbers()
    numbers = [label_numbers[name] for of_image in labels for name in of_image]
    arrays = {
        "offsets": offsets,
        "sizes": sizes,
        "ends": ends,
        "name_edges": (0, *accumulate(map(len, names))),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "label_edges": (0, *accumulate(map(len, labels))),
        "labels": numbers,
        "splits": [split_numbers[name] for name in splits],
    }
    typed = {name: np.array(values, TYPES[name]) for name, values in arrays.items()}
    return ShardPart(
        kind, (*label_numbers,), (*split_numbers,), len(odd_names), (*odd_names[:ODD_NAMES],), typed
    )


class _Numbers(dict[str, int]):
    """Texts by number, in the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


class MappedArrays(Mapping[str, Array]):
    """Arrays in one file, mapped; `layout` has (type, first byte, length) by name. Another process that gets
    them maps the file anew.
    """

    def __init__(self, path: Path, start: int, layout: Mapping[str, tuple[str, int, int]]) -> None:
        self.path, self.start, self.layout = path, start, dict(layout)
        self._arrays: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._arrays:
            type_, first, length = self.layout[name]
            try:
                # of length 0, nothing can be mapped
                found: Array = (
                    np.memmap(self.path, type_, "r", self.start + first, (length,))
                    if length
                    else np.empty(0, type_)
                )
            except OSError as error:
                reason = error.strerror
                raise DataError(f"index {self.path} is not there any more ({reason}); start again") from None
            self._arrays[name] = found.view(np.ndarray)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_arrays": {}}


@dataclass(frozen=True)
class ShardIndex:
    """All pictures of shards: `arrays` as in `TYPES`, but that labels are numbers of `class_names` and splits
    texts. `edges` [S + 1]: the first picture of each of `shards`, which lie below `top` and had `stamps`.
    """

    top: Path
    shards: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    class_names: tuple[str, ...]
    edges: Positions
    notes: tuple[str, ...]
    arrays: Mapping[str, Array] = field(repr=False)

    def __len__(self) -> int:
        return int(self.edges[-1])

    def shard_of(self, row: int) -> int:
        return int(np.searchsorted(self.edges, row, side="right")) - 1

    def names(self, start: int, stop: int) -> list[str]:
        """The names of the members from row `start` to `stop`."""
        edges = self.arrays["name_edges"][start : stop + 1].tolist()
        text = self.arrays["names"][edges[0] : edges[-1]].tobytes()
        return [text[first - edges[0] : last - edges[0]].decode() for first, last in pairwise(edges)]


class ShardImages(StoredImages):
    """The pictures of an index."""

    def __init__(self, known: ShardIndex, rows: Positions | None = None) -> None:
        super().__init__(len(known), rows)
        self.known = known

    def value(self, row: int) -> TarImage:
        known, arrays = self.known, self.known.arrays
        shard = known.shard_of(row)
        (name,) = known.names(row, row + 1)
        place = int(arrays["offsets"][row]), int(arrays["sizes"][row])
        return TarImage(known.top / known.shards[shard], name, *place, known.stamps[shard])

    def take(self, positions: Positions) -> ShardImages:
        return ShardImages(self.known, positions if self.rows is None else self.rows[positions])

    def sizes(self) -> Iterator[Array]:
        return (self.known.arrays["sizes"][rows] for rows in self.row_blocks())

    def ends(self) -> Iterator[Array]:
        return (self.known.arrays["ends"][rows] for rows in self.row_blocks())

    def archive_edges(self) -> Positions:
        if self.rows is None:
            return np.unique(self.known.edges[:-1])
        shards = np.searchsorted(self.known.edges, self.rows, side="right")
        return np.append(0, np.flatnonzero(np.diff(shards)) + 1)


class ShardIds(ImageIds):
    """The ids of an index: shard and member."""

    def __init__(self, known: ShardIndex, rows: Positions | None = None) -> None:
        super().__init__(len(known), rows)
        self.known = known

    def value(self, row: int) -> str:
        (name,) = self.known.names(row, row + 1)
        return f"{self.known.shards[self.known.shard_of(row)]}/{name}"

    def take(self, positions: Positions) -> ShardIds:
        return ShardIds(self.known, positions if self.rows is None else self.rows[positions])

    def sorted_parts(self) -> Iterator[tuple[Positions, list[str]]]:
        known = self.known
        order = np.arange(0) if self.rows is None else np.argsort(self.rows, kind="stable")
        ordered = order if self.rows is None else self.rows[order]
        for shard in sorted(range(len(known.shards)), key=lambda shard: f"{known.shards[shard]}/"):
            start, stop = int(known.edges[shard]), int(known.edges[shard + 1])
            names = [f"{known.shards[shard]}/{name}" for name in known.names(start, stop)]
            if self.rows is None:
                yield np.arange(start, stop), names
            else:
                first, last = np.searchsorted(ordered, (start, stop))
                yield order[first:last], [names[row - start] for row in ordered[first:last]]


@dataclass
class Totals:
    """What the parts of all shards have together, summed up one by one."""

    label_names: set[str] = field(default_factory=set)
    split_names: dict[str, None] = field(default_factory=dict)
    images: list[int] = field(default_factory=list)
    lengths: Counter[str] = field(default_factory=Counter)
    odd: int = 0
    odd_names: tuple[str, ...] = ()

    def add(self, part: ShardPart) -> None:
        self.label_names |= set(part.label_names)
        self.split_names |= dict.fromkeys(part.split_names)
        self.images.append(len(part))
        self.odd += part.odd
        self.odd_names = (*self.odd_names, *part.odd_names)[:ODD_NAMES]
        # edges: their first is that of the next part
        self.lengths.update({name: len(part.arrays[name]) - (name in LISTS) for name in TYPES})

    def layout(self) -> dict[str, tuple[str, int, int]]:
        """(type, first byte, length) of each array in one file."""
        layout, first = {}, 0
        for name, kind in TYPES.items():
            length = self.lengths[name] + (name in LISTS)
            layout[name] = (self.splits_type if name == "splits" else kind, first, length)
            size = np.dtype(layout[name][0]).itemsize * length
            first += -(-size // ALIGNMENT) * ALIGNMENT
        return layout

    @property
    def splits_type(self) -> str:
        return f"<U{max([1, *(len(usual_split(name)) for name in self.split_names)])}"


def merged(
    totals: Totals, parts: Callable[[], Iterable[ShardPart]], classes: Sequence[str]
) -> Iterator[tuple[str, Array]]:
    """(name, block) of each array of all parts in the order of `TYPES`: labels as numbers of `classes`,
    ascending in each list, splits as texts.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    for name, kind in TYPES.items():
        if name in LISTS:
            yield name, np.zeros(1, kind)
        start = 0
        for part in parts():
            block = part.arrays[name]
            if name in LISTS:
                block = block[1:] + start
                start = int(block[-1]) if len(block) else start
            elif name == "labels":
                numbers = np.array([number_of[label] for label in part.label_names], kind)[block]
                rows = np.repeat(np.arange(len(part)), np.diff(part.arrays["label_edges"]))
                block = numbers[np.lexsort((numbers, rows))]
            elif name == "splits":
                block = np.array([usual_split(split) for split in part.split_names], totals.splits_type)[
                    block
                ]
            yield name, block


@dataclass(frozen=True)
class Whole:
    """What is known of all shards: as of a `ShardIndex`, wherever they lie."""

    class_names: tuple[str, ...]
    edges: Positions
    notes: tuple[str, ...]
    arrays: Mapping[str, Array]


class IndexFolder:
    """The files of indices: one for each shard, and one for each set of shards."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_part(self, shard: str, key: str) -> ShardPart | None:
        """What is known of a shard; None where that is nothing whole of this `key`."""
        try:
            return ShardPart.from_bytes(self._part(shard).read_bytes(), key)
        except (OSError, ValueError):
            return None

    def parts(self, keys: Iterable[tuple[str, str]]) -> Iterator[ShardPart]:
        """The parts of (shard, key), which are there."""
        for shard, key in keys:
            part = self.read_part(shard, key)
            if part is None:
                raise DataError(f"{self._part(shard)} was changed while it was read; start again")
            yield part

    def write_part(self, shard: str, key: str, part: ShardPart) -> None:
        with self._told():
            atomic_write(self._part(shard), part.to_bytes(key))

    def read(self, key: str, shards: int) -> Whole | None:
        """What is known of so many shards, mapped; None where that is nothing whole of this `key`."""
        try:
            about = parse_json(self._about(key).read_text(encoding="utf-8"))
            if about["key"] != key or (path := self._mapped(about)) is None:
                return None
            names = [list(map(str, about[name])) for name in ("class_names", "notes")]
            edges = np.array(about["edges"], np.int64)
            arrays = MappedArrays(path, HEADER_BYTES, _checked_layout(about["layout"]))
            check_fit(arrays, edges, len(names[0]))
            if len(edges) != shards + 1:
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None
        return Whole(tuple(names[0]), edges, tuple(names[1]), arrays)

    def _mapped(self, about: dict[str, Any]) -> Path | None:
        store = self._store(about)
        return None if store.read(0) is None else store.path(0)

    def write(self, about: dict[str, Any], blocks: Iterable[tuple[str, Array]]) -> None:
        """Write what `read` finds; another process that is writing it is waited for."""
        layout, store, written = about["layout"], self._store(about), 0
        with self._told(), store.locked(0, wait=True):
            with store.writing(0) as put:
                for name, block in blocks:
                    first = layout[name][1]
                    put(np.zeros(max(0, first - written), np.uint8))
                    put(block.view(np.uint8))
                    written = max(first, written) + block.nbytes
                put(np.zeros(store.shape[0] - written, np.uint8))
            atomic_write(self._about(about["key"]), json.dumps(about))

    def _store(self, about: dict[str, Any]) -> ArrayStore:
        type_, first, length = about["layout"]["splits"]  # the last
        size = first + np.dtype(type_).itemsize * length
        return ArrayStore(self.path, {"index": content_hash(about)}, (size,), "uint8")

    def _part(self, shard: str) -> Path:
        return self.path / SHARDS_FOLDER / f"{content_hash(shard)[:16]}.bin"

    def _about(self, key: str) -> Path:
        return self.path / f"{key[:16]}.json"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"the index of the shards cannot be written to {self.path}: {error.strerror or error}; "
                "choose another folder with data.webdataset.index"
            ) from None


def _checked_layout(layout: dict[str, Any]) -> dict[str, tuple[str, int, int]]:
    """The layout of `Totals.layout` as read from a file; ValueError where it is none."""
    checked = {name: (str(layout[name][0]), int(layout[name][1]), int(layout[name][2])) for name in TYPES}
    for name, (kind, *bounds) in checked.items():
        if kind != TYPES[name] and not (name == "splits" and re.fullmatch(r"<U[1-9]\d{0,4}", kind)):
            raise ValueError(f"{name} of type {kind}")
        if min(bounds) < 0:
            raise ValueError(f"{name} at {bounds}")
    return checked


def check_fit(arrays: Mapping[str, Array], edges: Array | None = None, labels: int | None = None) -> None:
    """ValueError where arrays do not fit together, to the `edges` of shards or the number of `labels`."""
    n = len(arrays["offsets"])
    if any(len(arrays[name]) != n for name in ("sizes", "ends", "splits")):
        raise ValueError("arrays of different lengths")
    lists = [(arrays[name], n + 1, len(arrays[of])) for name, of in LISTS.items()]
    if edges is not None:
        lists.append((edges, len(edges), n))
    for bounds, length, last in lists:
        if len(bounds) != length or not length or bounds[0] != 0 or bounds[-1] != last:
            raise ValueError("edges that do not fit")
        if (bounds[1:] < bounds[:-1]).any():
            raise ValueError("edges that do not ascend")
    numbers = arrays["labels"]
    if labels is not None and len(numbers) and not 0 <= numbers.min() <= numbers.max() < labels:
        raise ValueError("labels without a name")
