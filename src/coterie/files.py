"""Writing files so that a reader finds the old content or the new, never half of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def atomic_write(path: Path, data: bytes | str) -> None:
    """Put `data` (text as UTF-8) at `path` in one step; makes the folder where it is missing.

    Raises OSError where that cannot be done, and then `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the same folder: a rename is one step only within a file system
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
