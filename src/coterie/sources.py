"""Where pictures lie: files, folders, patterns, lists of paths, addresses. Found one after the other, in the
same order each time, and never all of them in memory.
"""

from __future__ import annotations

import os
from collections import Counter
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
# Control characters but those that end lines, paths and columns, and the one that begins colours.
NOT_IN_LISTS = bytes(set(range(32)) - set(b"\0\t\n\r\x1b"))

Source = Path | StoredImage


def find_pictures(
    words: Iterable[str | Path], *, listed: BufferedIOBase | None = None, web: Limits | None = None
) -> Iterator[Source]:
    """The pictures that `words` name, in their order: files as given, and by name those below folders and
    those that match patterns such as "photos/**/*.jpg". What several words name comes once, with the first.

    Below folders and in patterns, pictures are known by their suffix, what begins with a dot is passed over,
    and links to folders are not followed. The word "-" stands for the paths in `listed`, each on a line or
    before a NUL, each as often as it stands there; one that is not there gives an error where it is read.
    Addresses http(s)://… are downloaded within the limits `web`, and refused without them. Raises DataError,
    before the first picture, for a word that names none, and for "-" without `listed`; where its turn comes,
    for a `listed` that is no text.
    """
    checked = [os.fspath(word) for word in words]
    if checked.count(STANDARD_INPUT) > 1:
        raise DataError("standard input can be read once; give - once")
    if listed is None and STANDARD_INPUT in checked:
        raise DataError("a list of pictures on standard input is not read here; name files and folders")
    for word in checked:
        if word != STANDARD_INPUT and next(_pictures_at(word, web), None) is None:
            if not _is_pattern(word):
                raise DataError(f"folder {word} holds no picture (.jpg, .png, …)")
            base, _ = _divided(word)
            reason = "no picture (.jpg, .png, …)" if base.is_dir() else f"nothing: there is no folder {base}"
            raise DataError(f"pattern {word} matches {reason}")
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
    named = _Named(words)
    for word in words:
        if word != STANDARD_INPUT:
            yield from named.new(word, _pictures_at(word, web))
        elif listed is not None:
            for path in listed_paths(listed):
                yield from _pictures_listed(path, web)


class _Named:
    """The pictures that several words could name: a hash of each, about 70 bytes.

    Of words that lie apart, as two folders do, nothing is remembered.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.starts = Counter(_start(word) for word in words)
        self.above = {folder for start in self.starts for folder in start.parents}
        self.seen: set[int] = set()

    def new(self, word: str, pictures: Iterator[Source]) -> Iterator[Source]:
        """Those of the `pictures` of `word` that no other word has named before."""
        start = _start(word)
        alone = self.starts[start] == 1 and start not in self.above
        if alone and self.starts.keys().isdisjoint(start.parents):
            yield from pictures
            return
        for picture in pictures:
            # not resolved: a link is a name of its own
            key = hash(picture.absolute() if isinstance(picture, Path) else str(picture))
            if key not in self.seen:
                self.seen.add(key)
                yield picture


def _start(word: str) -> Path:
    """The file or folder that the pictures of a word are, or lie below."""
    return (_divided(word)[0] if _is_pattern(word) else Path(word)).absolute()


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
        if base.is_dir():
            yield from _below(base, _Pattern(parts))
    else:
        raise DataError(f"there is no picture or folder {word}")


def listed_paths(stream: BufferedIOBase) -> Iterator[str]:
    """The paths in a stream, each on a line, or ended by a NUL where the first one is.

    DataError where it begins like a picture, or another file that is no text.
    """
    rest, separator = b"", None
    while chunk := stream.read1(CHUNK):
        rest += chunk
        if separator is None:
            found = [mark for mark in (b"\0", b"\n") if mark in rest]
            if not found:
                continue
            separator = found[0]
            _check_list(rest, separator)
        *whole, rest = rest.split(separator)
        yield from map(os.fsdecode, _not_empty(whole, separator))
    if separator is None:
        _check_list(rest, b"\n")
    yield from map(os.fsdecode, _not_empty([rest], separator))


def _check_list(beginning: bytes, separator: bytes) -> None:
    """DataError for bytes that no list of paths begins with: controls, and no file of the first name."""
    if beginning.translate(None, NOT_IN_LISTS) == beginning:
        return
    if not _exists(Path(os.fsdecode(beginning.partition(separator)[0]))):
        raise DataError(
            "standard input holds a picture, or another file that is no text; - reads paths from there, each "
            "on a line. Write the picture to a file, and name that"
        )


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
