"""The states of a training under way: the last two, each with its hash, so that a damaged one is known."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coterie.errors import RunError, listed
from coterie.files import atomic_file

STATE_SCHEMA = 2
DIVERGED_FILE = "diverged.json"
PATTERN = "state-*.pt"
KEPT = 2


class States:
    """The states in `folder` of the training with this `key`. `note` is told of one that is damaged.

    A file holds what `torch.save` writes, and the SHA-256 of that at the end. It appears in one step, and
    only then the oldest goes.
    """

    def __init__(self, folder: Path, key: str, note: Callable[[str], object]) -> None:
        self.folder = folder
        self.key = key
        self.note = note
        self._whole: list[Path] = []  # oldest first

    def keep(self, step: int, content: dict[str, Any]) -> None:
        """Write the state after `step` steps, and remove all but the last two; OSError where that fails, and
        then those before are still there.
        """
        path = self.folder / f"state-{step:08d}.pt"
        # not into the file: of a disk that is full, torch says that a position is unexpected
        buffer = io.BytesIO()
        torch.save({"schema_version": STATE_SCHEMA, "key": self.key, **content}, buffer)
        with atomic_file(path) as file:
            file.write(buffer.getbuffer())
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
        self._whole = [*(kept for kept in self._whole if kept != path), path][-KEPT:]
        for old in self.folder.glob(PATTERN):
            if old not in self._whole:
                old.unlink()

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest state that is whole; None where there is none for this key."""
        found, damaged = None, []
        for path in sorted(self.folder.glob(PATTERN), reverse=True):
            content = read_state(path)
            if content is None:
                damaged.append(path.name)
            elif content.get("schema_version") == STATE_SCHEMA and content.get("key") == self.key:
                found, self._whole = content, [path]
                break
        if damaged:
            instead = f"goes on from {self._whole[0].name}" if self._whole else "begins anew"
            self.note(f"{self.folder.name}: {listed(damaged)} damaged and left out; it {instead}")
        return found


def newest_state(folder: Path) -> Path | None:
    """The file of the last state in a folder, whole or not; None where there is none."""
    return max(folder.glob(PATTERN), default=None)


def remove_states(folder: Path) -> None:
    """Remove what a training left in its folder to go on from, and of a divergence before: it is finished."""
    for path in (*folder.glob(PATTERN), folder / DIVERGED_FILE):
        path.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any] | None:
    """What is in a file, None where it is not what was written; RunError where it may not be read."""
    size = hashlib.sha256().digest_size
    try:
        with path.open("rb") as file:
            data = file.read(max(0, path.stat().st_size - size))
            if file.read() != hashlib.sha256(data).digest():
                return None
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise RunError(f"state {path} cannot be read: {error.strerror}; give the right to read it") from None
    except Exception:  # on bytes that are no state, torch raises nearly anything
        return None
    return content if isinstance(content, dict) else None
