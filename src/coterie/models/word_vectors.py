"""Word vectors of class names, from an npz file or from the text format of GloVe and word2vec."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coterie.errors import ConfigError, listed, repeated, shortened

Vectors = dict[str, npt.NDArray[np.float32]]
# Lines of a text file that are looked at to learn how many numbers a line has.
FIRST_LINES = 100
LONGEST_LINE = 2**20  # characters
# Of an npz file: numbers that differ are hardly smaller when they are compressed.
FEW_BYTES, MOST_RATIO = 2**26, 20


@dataclass(frozen=True)
class WordVectors:
    """`vectors` [C, dimensions] float32 of classes in order. `averaged`: classes that the file has only word
    by word.
    """

    path: Path
    vectors: Tensor
    averaged: tuple[str, ...]

    def __str__(self) -> str:
        count, dimensions = self.vectors.shape
        rest = f"; the mean of their words for {shortened(self.averaged)}" if self.averaged else ""
        return f"{self.path.name}: vectors of {dimensions} numbers for {count} classes{rest}"


def read_word_vectors(path: Path, class_names: Sequence[str]) -> WordVectors:
    """The vectors of the classes in `path`, found by name.

    An npz holds `vectors` [N, dimensions] and `class_names` [N]; any other file is text, in each line a name
    and its numbers. A class of several words that has no vector gets the mean of its words', where each has
    one. Raises ConfigError where the file is not such a one, or lacks a class.
    """
    words = {word for name in class_names for word in _words(name)}
    found = _read(path, {*class_names, *words})
    vectors: Vectors = {}
    for name in class_names:
        if name in found:
            vectors[name] = found[name]
        elif all(word in found for word in _words(name)):
            vectors[name] = np.mean([found[word] for word in _words(name)], axis=0)
    if missing := [name for name in class_names if name not in vectors]:
        raise ConfigError(_lacks(path, missing, len(class_names)))
    stacked = np.stack([vectors[name] for name in class_names])
    if not np.isfinite(stacked).all():
        wrong = [name for name in class_names if not np.isfinite(vectors[name]).all()]
        raise ConfigError(f"word vectors {path} hold values that are no numbers, for {shortened(wrong)}")
    averaged = tuple(name for name in class_names if name not in found)
    return WordVectors(path, torch.from_numpy(stacked.astype(np.float32)), averaged)


def count_dimensions(path: Path) -> int:
    """How many numbers each vector in `path` has."""
    return _read_npz(path)[1].shape[1] if path.suffix == ".npz" else _text_dimensions(path)


def _words(name: str) -> list[str]:
    return name.split()


def _read(path: Path, wanted: set[str]) -> Vectors:
    if path.suffix == ".npz":
        names, vectors = _read_npz(path)
        return {name: vectors[row] for row, name in enumerate(names) if name in wanted}
    return _read_text(path, wanted)


def _names(path: Path) -> list[str]:
    """All names that a file has."""
    if path.suffix == ".npz":
        return _read_npz(path)[0]
    dimensions = _text_dimensions(path)
    return [name for name, _ in _text_lines(path, dimensions)]


def _read_npz(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    try:
        _check_unpacked(path)
        with np.load(path, allow_pickle=False) as content:
            missing = [key for key in ("vectors", "class_names") if key not in content]
            if missing:
                raise ConfigError(
                    f"word vectors {path} must hold `vectors` and `class_names`; {shortened(missing)} is not "
                    f"among its {shortened(list(content))}"
                )
            vectors, names = content["vectors"], [str(name) for name in content["class_names"].ravel()]
    except FileNotFoundError:
        raise _not_there(path) from None
    except ConfigError:
        raise
    except Exception as error:  # on a damaged file, and on objects in it, numpy raises nearly anything
        raise ConfigError(f"word vectors {path} cannot be read as an npz file: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(names) or vectors.dtype.kind not in "iuf":
        raise ConfigError(
            f"word vectors {path} must hold one row of `vectors` for each of its {len(names)} names, got "
            f"{vectors.dtype} of the shape {list(vectors.shape)}"
        )
    if twice := repeated(names):
        raise ConfigError(f"word vectors {path} name {shortened(twice)} more than once")
    return names, vectors.astype(np.float32)


def _check_unpacked(path: Path) -> None:
    """ValueError where an npz would unfold to more than vectors do: a thousand times its size is easy."""
    with ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(FEW_BYTES, MOST_RATIO * path.stat().st_size):
        raise ValueError(f"it would unfold to {unpacked:,} bytes")


def _read_text(path: Path, wanted: set[str]) -> Vectors:
    """The vectors of the `wanted` names; a file may hold millions, so that only their lines are parsed."""
    dimensions = _text_dimensions(path)
    vectors: Vectors = {}
    for name, numbers in _text_lines(path, dimensions, {name.split(" ")[0] for name in wanted}):
        if name not in wanted or name in vectors:
            continue
        if len(numbers) < dimensions or not all(map(_is_number, numbers)):
            raise ConfigError(
                f"word vectors {path}: the line of '{name}' must be a name and {dimensions} numbers"
            )
        vectors[name] = np.array(numbers, dtype=np.float32)
    return vectors


def _text_lines(
    path: Path, dimensions: int, first_words: set[str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """(name, numbers) of each line, of those whose name begins with one of `first_words` where given."""
    for line in _open_lines(path):
        if first_words is None or line.split(" ", 1)[0] in first_words:
            name, *numbers = line.rsplit(" ", dimensions)
            yield name, numbers


def _text_dimensions(path: Path) -> int:
    """How many numbers a line has: what most of the first lines end with, as a name may end with one too."""
    counts = [
        sum(1 for _ in itertools.takewhile(_is_number, reversed(line.split(" ")[1:])))
        for line in itertools.islice(_open_lines(path), FIRST_LINES)
    ]
    # word2vec begins with a line of how many vectors there are, of how many numbers
    counts = counts[1:] if counts[:1] == [1] and len(counts) > 1 else counts
    dimensions = max(counts, key=counts.count, default=0)
    if dimensions == 0:
        raise ConfigError(
            f"word vectors {path} must be an npz file, or text with a name and its numbers in each line"
        )
    return dimensions


def _open_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise ConfigError(
                        f"word vectors {path} have a line of more than {LONGEST_LINE:,} characters"
                    )
                if stripped := line.rstrip():
                    yield stripped
    except FileNotFoundError:
        raise _not_there(path) from None
    except OSError as error:
        raise ConfigError(f"word vectors {path} cannot be read: {error.strerror}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _not_there(path: Path) -> ConfigError:
    return ConfigError(f"word vectors {path} are not there; name a file with model.word_vectors=FILE")


def _lacks(path: Path, missing: Sequence[str], count: int) -> str:
    """Which classes have no vector, each with the names that are nearest to it."""
    names = _names(path)
    hints = []
    for name in missing[:3]:
        near = difflib.get_close_matches(name, names, n=2)
        hints.append(f"'{name}'" + (f" (nearest: {shortened(near)})" if near else ""))
    more = [f"'{name}'" for name in missing[3:]]
    return (
        f"word vectors {path} lack {len(missing)} of the {count} classes: {listed([*hints, *more], 3)}. "
        "Add their vectors under these names, or leave model.word_vectors out to learn them"
    )
