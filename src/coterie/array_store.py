"""Arrays on the disk that took long to compute: whole and of the same inputs, or not there.

Each store has a folder named by a hash of all that its arrays depend on, with one file for each. A file
appears in one step when it is whole, and is read only after its size, what it says of itself and its hash
have been compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from coterie.errors import RunError
from coterie.files import atomic_write, content_hash, lock
from coterie.untrusted import parse_json

SCHEMA_VERSION = 2
# What a file says of itself comes first, and leaves the array at a multiple of a page.
HEADER_BYTES = 4096
INPUTS_FILE = "inputs.json"

Array = npt.NDArray[Any]


class NotStorable(ValueError):
    """Values that the type of a store cannot hold."""


class ArrayStore:
    """Arrays of one shape [N, ...] by their number, in a folder of their own.

    `inputs` is all that they depend on: another `inputs`, `shape` or `dtype` has another folder.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, Any],
        shape: tuple[int, ...],
        dtype: Literal["float32", "float16", "uint8"] = "float32",
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.inputs = {"schema_version": SCHEMA_VERSION, **inputs, "shape": list(shape), "dtype": dtype}
        self.key = content_hash(self.inputs)
        self.folder = folder / self.key[:16]

    @property
    def nbytes(self) -> int:
        """The size of the file of one array."""
        return HEADER_BYTES + math.prod(self.shape) * self.dtype.itemsize

    def path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.bin"

    def read(self, number: int) -> Array | None:
        """The array [N, ...] of a number, mapped from its file; None where there is none that is whole, of
        these inputs and as it was written.
        """
        try:
            with self.path(number).open("rb") as file:
                if os.fstat(file.fileno()).st_size != self.nbytes:
                    return None
                header = parse_json(file.read(HEADER_BYTES))
                if header != self._header(number, hashlib.file_digest(file, "sha256").hexdigest()):
                    return None
                return np.memmap(file, self.dtype, "r", HEADER_BYTES, self.shape)
        except (OSError, ValueError):
            return None

    @contextlib.contextmanager
    def writing(self, number: int) -> Iterator[Callable[[Array], None]]:
        """A function that takes the array block by block, [b, ...]; it is there when all of them are written.
        Only one process may write a number at a time: see `locked`.
        """
        path = self.path(number)
        for remains in self.folder.glob(f".{path.name}.*.part"):  # of a process that was killed
            remains.unlink()
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        digest = hashlib.sha256()
        try:
            with unfinished.open("xb") as file:
                file.write(bytes(HEADER_BYTES))

                def put(block: Array) -> None:
                    with np.errstate(over="ignore"):
                        stored = block.astype(self.dtype, copy=False)
                    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
                        raise NotStorable(f"values that are not finite, or do not fit {self.dtype.name}")
                    digest.update(stored.tobytes())
                    file.write(stored.tobytes())

                yield put
                header = json.dumps(self._header(number, digest.hexdigest())).encode()
                file.seek(0)
                file.write(header.ljust(HEADER_BYTES))
                file.flush()
                os.fsync(file.fileno())
                if os.fstat(file.fileno()).st_size != self.nbytes:
                    raise ValueError(f"the array in {path} must be {self.shape}")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, number: int, wait: bool) -> Iterator[None]:
        """Be the only process that writes the number; BlockingIOError where there is one, unless it is to
        `wait`. The lock ends with the process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / INPUTS_FILE).exists():  # for a person who wonders what this is
            atomic_write(self.folder / INPUTS_FILE, json.dumps(self.inputs, indent=1, ensure_ascii=False))
        with (self.folder / f".{number:04d}.lock").open("w") as file:
            lock(file, wait=wait)
            yield

    def _header(self, number: int, sha256: str) -> dict[str, Any]:
        return {"key": self.key, "number": number, "sha256": sha256}


def check_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """RunError where `folder` cannot be written, or has not that many bytes free for `what`."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"{what} cannot be written to {folder}. {remedy}")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"{what} need {needed / 1e9:.2f} GB in {folder} and the disk has {free / 1e9:.2f} GB free. "
            f"{remedy}"
        )
