"""Files: written so that a reader finds the old content or the new, never half of it; held by one process
alone; known by their hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place at `path` in one step, at the end of the block; makes the folder
    where it is missing.

    Raises OSError where that cannot be done; then, and where the block raises, `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the same folder: a rename is one step only within a file system
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Put `data` (text as UTF-8) at `path` in one step, as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


_locked: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def lock(file: IO[Any], *, wait: bool) -> None:
    """Be the only process that holds the open `file`, until it is closed or the process ends.

    Raises BlockingIOError where another holds it, unless it is to `wait` for that one.
    """
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    _locked.add(file)


def _let_go() -> None:
    """In a process that was just forked, as one that loads images is: it has the files open as well, and
    would hold their locks until it ends.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for file in _locked:
        if not file.closed:  # a number that is closed could be given to another file, and then closed again
            os.dup2(null, file.fileno(), inheritable=False)
    os.close(null)
    _locked.clear()


os.register_at_fork(after_in_child=_let_go)


def file_sha256(path: Path) -> str:
    """SHA-256 of what is in a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
