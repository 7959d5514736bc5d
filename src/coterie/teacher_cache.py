"""The teachers' logits of every view, on the disk: computed once, for every student that learns from them.

A view is the augmented form that all training images have in one epoch. Each branch has a folder named by a
hash of all that its logits depend on, with one file for each view. A file appears in one step when it is
whole, and is read only after its size, what it says of itself and its hash have been compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from coterie.data.loading import Batch, Batches, EpochSampler, Views
from coterie.errors import RunError
from coterie.files import atomic_write
from coterie.runfolder import content_hash

SCHEMA_VERSION = 1
# What a file says of itself comes first, and leaves the logits at a multiple of a page.
HEADER_BYTES = 4096
INPUTS_FILE = "inputs.json"

Logits = npt.NDArray[np.float32]
StoredLogits = npt.NDArray[np.floating[Any]]
# names of branches -> (number of a view -> blocks [branches, b, C] over all training images, in their order)
Teach = Callable[[tuple[str, ...]], Callable[[int], Iterator[Logits]]]
REMEDY = "Choose another place with distill.cache_dir=…, fewer distill.views, or distill.cache=off"


class BranchLogits:
    """The logits [N, C] of one branch's teachers for each view, in a folder of their own.

    `inputs` is all that they depend on; `shape` is (N, C).
    """

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.inputs = {"schema_version": SCHEMA_VERSION, **inputs, "shape": list(shape), "dtype": dtype}
        self.key = content_hash(self.inputs)
        self.folder = folder / self.key[:16]

    @property
    def nbytes(self) -> int:
        """The size of the file of one view."""
        return HEADER_BYTES + self.shape[0] * self.shape[1] * self.dtype.itemsize

    def path(self, view: int) -> Path:
        return self.folder / f"view-{view:04d}.bin"

    def read(self, view: int) -> StoredLogits | None:
        """The logits [N, C] of a view, mapped from its file; None where there is none that is whole, of these
        inputs and as it was written.
        """
        try:
            with self.path(view).open("rb") as file:
                if os.fstat(file.fileno()).st_size != self.nbytes:
                    return None
                header = json.loads(file.read(HEADER_BYTES))
                if header != self._header(view, hashlib.file_digest(file, "sha256").hexdigest()):
                    return None
                return np.memmap(file, self.dtype, "r", HEADER_BYTES, self.shape)
        except (OSError, ValueError):
            return None

    @contextlib.contextmanager
    def writing(self, view: int) -> Iterator[Callable[[Logits], None]]:
        """A function that takes the view's logits block by block, [b, C]; they are there when all of them
        are written. Only one process may write a view at a time: see `locked`.
        """
        path = self.path(view)
        for remains in self.folder.glob(f".{path.name}.*.part"):  # of a process that was killed
            remains.unlink()
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        digest = hashlib.sha256()
        try:
            with unfinished.open("xb") as file:
                file.write(bytes(HEADER_BYTES))

                def put(block: Logits) -> None:
                    with np.errstate(over="ignore"):
                        stored = block.astype(self.dtype)
                    if not np.isfinite(stored).all():
                        raise RunError(
                            f"the teachers give logits that are not finite, or do not fit {self.dtype.name}; "
                            "use precision=fp32, or distill.cache_dtype=float32"
                        )
                    digest.update(stored.tobytes())
                    file.write(stored.tobytes())

                yield put
                header = json.dumps(self._header(view, digest.hexdigest())).encode()
                file.seek(0)
                file.write(header.ljust(HEADER_BYTES))
                file.flush()
                os.fsync(file.fileno())
                if os.fstat(file.fileno()).st_size != self.nbytes:
                    raise ValueError(f"the logits of {path} must be {self.shape}")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, view: int, wait: bool) -> Iterator[None]:
        """Be the only process that writes the view; BlockingIOError where there is one, unless it is to
        `wait`. The lock ends with the process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / INPUTS_FILE).exists():  # for a person who wonders what this is
            atomic_write(self.folder / INPUTS_FILE, json.dumps(self.inputs, indent=1, ensure_ascii=False))
        with (self.folder / f".view-{view:04d}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def _header(self, view: int, sha256: str) -> dict[str, Any]:
        return {"key": self.key, "view": view, "sha256": sha256}


class TeacherCache:
    """The logits of all branches that a student learns from, by view.

    `teach` loads the teachers of branches and gives what makes their logits. It is called for those that are
    missing and for nothing else: where all logits are there, no teacher is loaded.
    """

    def __init__(self, branches: Mapping[str, BranchLogits], teach: Teach) -> None:
        self.branches = branches
        self.teach = teach

    def missing(self, views: Iterable[int]) -> list[int]:
        """Those of the views whose logits are not all there."""
        return [view for view in views if self._read(view) is None]

    def view(self, view: int) -> list[StoredLogits]:
        """The logits [N, C] of each branch for one view; made where they are missing."""
        logits = self._read(view)
        if logits is None:
            self.fill([view])
            logits = self._read(view)
        if logits is None:
            raise RunError(
                f"the teachers' logits in {self._place} are damaged as soon as they are written; is the disk "
                "sound? Choose another with distill.cache_dir=…, or distill.cache=off"
            )
        return logits

    def fill(self, views: Sequence[int], advance: Callable[[int], object] | None = None) -> None:
        """Make what is missing of the views; `advance` is told how many images are done.

        What another process is making is left to it, and waited for at the end. RunError where the folder
        cannot be written or has no room; the views before are kept.
        """
        teach = functools.cache(self.teach)  # the teachers are let go of at the end
        try:
            self._check_space(views)
            of_others = [view for view in views if not self._make(view, teach, advance, wait=False)]
            for view in of_others:
                self._make(view, teach, advance, wait=True)
        except OSError as error:
            raise RunError(
                f"the teachers' logits cannot be written to {self._place}: {error.strerror or error}. The "
                f"views before are kept. {REMEDY}"
            ) from error

    def _make(self, view: int, teach: Teach, advance: Callable[[int], object] | None, wait: bool) -> bool:
        """Make one view unless it is there; False where another process is at it, and no `wait` is wanted."""
        with contextlib.ExitStack() as stack:
            # in one order everywhere, or two processes could wait for each other
            for branch in sorted(self.branches.values(), key=lambda branch: branch.folder):
                try:
                    stack.enter_context(branch.locked(view, wait))
                except BlockingIOError:
                    return False
            missing = tuple(name for name, branch in self.branches.items() if branch.read(view) is None)
            if missing:
                puts = [stack.enter_context(self.branches[name].writing(view)) for name in missing]
                for block in teach(missing)(view):
                    for put, logits in zip(puts, block, strict=True):
                        put(logits)
                    if advance is not None:
                        advance(block.shape[1])
        return True

    def _read(self, view: int) -> list[StoredLogits] | None:
        found = [branch.read(view) for branch in self.branches.values()]
        whole = [logits for logits in found if logits is not None]
        return whole if len(whole) == len(found) else None

    def _check_space(self, views: Sequence[int]) -> None:
        needed = sum(
            branch.nbytes
            for branch in self.branches.values()
            for view in views
            if not branch.path(view).exists()
        )
        check_room(self._place, needed)

    @property
    def _place(self) -> Path:
        return next(iter(self.branches.values())).folder.parent


def check_room(folder: Path, needed: int) -> None:
    """RunError where `folder` cannot be written, or has not that many bytes free."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"the teachers' logits cannot be written to {folder}. {REMEDY}")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"the teachers' logits need {needed / 1e9:.2f} GB in {folder} and the disk has "
            f"{free / 1e9:.2f} GB free. {REMEDY}"
        )


class TaughtBatches(Batches):
    """Training batches that bring the teachers' logits [R, B, C] of their views with them."""

    def __init__(self, views: Views, sampler: EpochSampler, workers: int, cache: TeacherCache) -> None:
        super().__init__(views, sampler, workers)
        self.cache = cache

    def epoch(self, epoch: int) -> Iterator[Batch]:
        stored = self.cache.view(self.sampler.view(epoch))
        for batch in super().epoch(epoch):
            # the rows of the cache are the training images in ascending order
            rows = np.searchsorted(self.indices, batch.indices.numpy())
            logits = np.stack([branch[rows] for branch in stored]).astype(np.float32)
            yield batch._replace(teacher_logits=torch.from_numpy(logits))
