"""Where pictures lie: files, folders, patterns, lists of paths, addresses. Found one after the other, in the
same order each time, and never all of them in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from io import BufferedIOBase
from pathlib import Path

from PIL import Image

from coterie.data.dataset import READ_FORMATS, StoredImage
from coterie.download import Limits, WebImage, is_address
from coterie.errors import DataError

# MPO is what cameras call a JPEG with further pictures behind the first.
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in (*READ_FORMATS, "MPO")
)
STANDARD_INPUT = "-"
WILD = "*?["
CHUNK = 2**16

Source = Path | StoredImage


def find_pictures(
    words: Iterable[str | Path], *, listed: BufferedIOBase | None = None, web: Limits | None = None
) -> Iterator[Source]:
    """The pictures that `words` name, in their order: files as given, and by name those below folders and
    those that match patterns such as "photos/**/*.jpg".

    Below folders and in patterns, pictures are known by their suffix, what begins with a dot is passed over,
    and links to folders are not followed. The word "-" stands for the paths in `listed`, each on a line or
    before a NUL; one of those that is not there gives an error where it is read. Addresses http(s)://… are
    downloaded within the limits `web`, and refused without them. Raises DataError, before the first picture,
    for a word that names none, and for "-" without `listed`.
    """
    checked = [os.fspath(word) for word in words]
    if checked.count(STANDARD_INPUT) > 1:
        raise DataError("standard input can be read once; give - once")
    if listed is None and STANDARD_INPUT in checked:
        raise DataError("a list of pictures on standard input is not read here; name files and folders")
    for word in checked:
        if word != STANDARD_INPUT and next(_pictures_at(word, web), None) is None:
            kind = "pattern" if _is_pattern(word) else "folder"
            verb = "matches" if kind == "pattern" else "holds"
            raise DataError(f"{kind} {word} {verb} no picture (.jpg, .png, …)")
    return _all_pictures(checked, listed, web)


class Unreachable(StoredImage):
    """What stands for pictures that cannot be come by: reading it says why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    @property
    def size(self) -> int:
        return 0

    def read(self) -> bytes:
        raise OSError(self.reason)

    def __str__(self) -> str:
        return self.name


def _all_pictures(
    words: Sequence[str], listed: BufferedIOBase | None, web: Limits | None
) -> Iterator[Source]:
    for word in words:
        if word != STANDARD_INPUT:
            yield from _pictures_at(word, web)
        elif listed is not None:
            for path in listed_paths(listed):
                yield from _pictures_listed(path, web)


def _pictures_listed(path: str, web: Limits | None) -> Iterator[Source]:
    """As `_pictures_at`, but what is wrong with one path of a list is said in its place."""
    try:
        if is_address(path) or Path(path).is_dir():
            yield from _pictures_at(path, web)
        else:
            yield Path(path)
    except DataError as error:
        yield Unreachable(path, str(error))


def _pictures_at(word: str, web: Limits | None) -> Iterator[Source]:
    if is_address(word):
        if web is None:
            raise DataError(f"{word} is an address; --allow-urls downloads pictures")
        yield WebImage(word, web)
        return
    path = Path(word)
    if path.is_dir():
        yield from _below(path, None)
    elif _exists(path):
        yield path
    elif _is_pattern(word):
        base, parts = _divided(word)
        yield from _below(base, _Pattern(parts))
    else:
        raise DataError(f"there is no picture or folder {word}")


def listed_paths(stream: BufferedIOBase) -> Iterator[str]:
    """The paths in a stream, each on a line, or ended by a NUL where the first one is."""
    rest, separator = b"", None
    while chunk := stream.read1(CHUNK):
        rest += chunk
        if separator is None:
            found = [mark for mark in (b"\0", b"\n") if mark in rest]
            if not found:
                continue
            separator = found[0]
        *whole, rest = rest.split(separator)
        yield from map(os.fsdecode, _not_empty(whole, separator))
    yield from map(os.fsdecode, _not_empty([rest], separator))


def _not_empty(paths: Iterable[bytes], separator: bytes | None) -> Iterator[bytes]:
    for path in paths:
        path = path if separator == b"\0" else path.removesuffix(b"\r")
        if path:
            yield path


class _Pattern:
    """The parts of a pattern, matched name by name: a state is how many of them are used up.

    `**` matches any number of folders, at the end everything below.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = parts
        self.start = self._with_empty({0})

    def after(self, states: frozenset[int], name: str) -> frozenset[int]:
        """The states when `name` is matched too; none where it does not fit."""
        following = set()
        for state in states:
            if state == len(self.parts):
                continue
            if self.parts[state] == "**":
                following.add(state)
            elif fnmatchcase(name, self.parts[state]):
                following.add(state + 1)
        return self._with_empty(following)

    def is_whole(self, states: frozenset[int]) -> bool:
        return len(self.parts) in states

    def _with_empty(self, states: Iterable[int]) -> frozenset[int]:
        """With those that are reached where `**` stands for no folder."""
        reached = set(states)
        for state in range(len(self.parts)):
            if state in reached and self.parts[state] == "**":
                reached.add(state + 1)
        return frozenset(reached)


def _below(folder: Path, pattern: _Pattern | None, states: frozenset[int] | None = None) -> Iterator[Source]:
    """The pictures below `folder` by name, all of them or those that the rest of a pattern matches."""
    if pattern is not None and states is None:
        states = pattern.start
    try:
        names, folders = _listing(folder)
    except OSError as error:
        yield Unreachable(str(folder), f"the folder cannot be read: {error.strerror}")
        return
    for name in names:
        after = states if pattern is None or states is None else pattern.after(states, name)
        if name in folders:
            if pattern is None or (after and pattern.is_whole(after)):  # all that a matching folder holds
                yield from _below(folder / name, None)
            elif after:
                yield from _below(folder / name, pattern, after)
        elif _has_suffix(name) and (pattern is None or (after and pattern.is_whole(after))):
            yield folder / name


def _listing(folder: Path) -> tuple[list[str], set[str]]:
    """The pictures and folders in a folder by name, hidden ones left out; which of them are folders."""
    names, folders = [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.add(entry.name)
            elif not _has_suffix(entry.name) or (entry.is_symlink() and entry.is_dir()):
                continue
            names.append(entry.name)
    return sorted(names), folders


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (a million times)


def _is_pattern(word: str) -> bool:
    return any(mark in word for mark in WILD) and not _exists(Path(word))


def _divided(pattern: str) -> tuple[Path, list[str]]:
    """The folder that a pattern starts in, and the parts from the first wild one on."""
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if any(mark in part for mark in WILD))
    return Path(*parts[:first]), list(parts[first:])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text too long to be a path, or with a NUL
        return False
