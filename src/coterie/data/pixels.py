"""The resized images of a dataset on the disk: decoded once, for every training of their size."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coterie.array_store import Array, ArrayStore, check_room
from coterie.errors import RunError
from coterie.threads import in_threads

PIXELS_FOLDER = "pixels"
# A file of so many images is read whole once, to be checked, and mapped from then on. What is mapped counts
# as an open file, and a process may have about a thousand: of many images, more are in one.
IMAGES_A_FILE = 512
MOST_FILES = 256
WHAT = "the resized images"
REMEDY = "Choose another place with cache_dir=…, or data.disk_cache_gb=0"


class PixelStore:
    """Squares of `side` pixels, uint8 [side, side, 3], of the images that `fingerprint` stands for."""

    def __init__(self, folder: Path, fingerprint: str, images: int, side: int) -> None:
        inputs = {"data": fingerprint, "versions": {"pillow": version("pillow")}}
        self.images = images
        self.images_a_file = max(IMAGES_A_FILE, -(-images // MOST_FILES))
        self.store = ArrayStore(folder, inputs, (self.images_a_file, side, side, 3), "uint8")
        self._files: dict[int, Array] = {}

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return len(self._numbers) * self.store.nbytes

    def fill(self, decode: Callable[[int], npt.NDArray[np.uint8]], advance: Callable[[int], object]) -> None:
        """Write the files that are missing, damaged or of other images; `decode` gives one image.

        What another process writes is waited for. RunError where the disk cannot hold them; the files before
        are kept then. Raises what `decode` raises.
        """
        folder = self.store.folder.parent
        missing = [number for number in self._numbers if self.store.read(number) is None]
        check_room(folder, len(missing) * self.store.nbytes, WHAT, REMEDY)
        try:
            for number in missing:
                with self.store.locked(number, wait=True):
                    if self.store.read(number) is None:
                        self._write(number, decode)
                advance(self.images_a_file)
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"{WHAT} cannot be written to {folder}: {reason}. {REMEDY}") from error

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """The image at a position; RunError where its file is not what was written."""
        number, row = divmod(index, self.images_a_file)
        if number not in self._files:
            found = self.store.read(number)
            if found is None:
                raise RunError(
                    f"{WHAT} in {self.store.path(number)} are damaged; start the run again, it mends them"
                )
            self._files[number] = found
        image: npt.NDArray[np.uint8] = self._files[number][row]
        return image

    def __getstate__(self) -> dict[str, object]:
        """Without the files that this process has mapped: another maps its own."""
        return vars(self) | {"_files": {}}

    def _write(self, number: int, decode: Callable[[int], npt.NDArray[np.uint8]]) -> None:
        first = number * self.images_a_file
        indices = range(first, min(first + self.images_a_file, self.images))
        with self.store.writing(number) as put:
            for image in in_threads(decode, indices):
                put(image[None])
            if len(indices) < self.images_a_file:
                put(np.zeros((self.images_a_file - len(indices), *self.store.shape[1:]), dtype=np.uint8))

    @property
    def _numbers(self) -> range:
        return range(-(-self.images // self.images_a_file))
