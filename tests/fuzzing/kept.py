"""Files that we write to find them again: states, arrays, the index of shards, and a run at a storage."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from coterie.array_store import HEADER_BYTES, ArrayStore
from coterie.config import DataConfig, WebDatasetConfig
from coterie.data.presence import repeated_images
from coterie.data.reading import read_dataset
from coterie.labels import CooccurrenceGraph
from coterie.mirror import Mirror
from coterie.preparation import training_graph
from coterie.runfolder import RunFolder
from coterie.states import PATTERN
from tests.layouts import picture_bytes, write_tar
from tests.tiny import make_trainer

SHA256 = hashlib.sha256


def make_state(folder: Path) -> None:
    make_trainer(folder, epochs=1).run()


def mend_state(folder: Path) -> None:
    """The hash at the end of each state."""
    size = SHA256().digest_size
    for path in folder.rglob(PATTERN):
        content = path.read_bytes()[:-size]
        path.write_bytes(content + SHA256(content).digest())


def read_state(folder: Path) -> None:
    make_trainer(folder, epochs=2)


def _arrays(folder: Path) -> ArrayStore:
    return ArrayStore(folder, {"of": "nothing"}, (3, 4), "float16")


def make_arrays(folder: Path) -> None:
    store = _arrays(folder)
    with store.locked(0, wait=True), store.writing(0) as put:
        put(np.arange(12).reshape(3, 4))


def mend_arrays(folder: Path) -> None:
    """The hash that an array says of itself, where it says anything."""
    for path in folder.rglob("*.bin"):
        content = path.read_bytes()
        try:
            header = json.loads(content[:HEADER_BYTES])
            header["sha256"] = SHA256(content[HEADER_BYTES:]).hexdigest()
        except (ValueError, TypeError, RecursionError):
            continue
        path.write_bytes(json.dumps(header).encode().ljust(HEADER_BYTES) + content[HEADER_BYTES:])


def read_arrays(folder: Path) -> None:
    array = _arrays(folder).read(0)
    if array is not None:
        np.array(array).sum()


def _indexed(folder: Path) -> CooccurrenceGraph:
    settings = DataConfig(
        source=str(folder / "shards"), webdataset=WebDatasetConfig(index=folder / "index", window=2, block=1)
    )
    dataset = read_dataset(settings)
    dataset.fingerprint()
    repeated_images(dataset)
    for position in range(len(dataset)):
        dataset.load_image(position)
    return training_graph(dataset)


def make_index(folder: Path) -> None:
    for number in range(2):
        members: list[tuple[str, bytes | str]] = []
        for picture in range(3):
            members.append((f"{picture}.png", picture_bytes(3 * number + picture)))
            members.append((f"{picture}.json", json.dumps({"labels": ["cat", "ant"], "split": "train"})))
        write_tar(folder / "shards" / f"{number}.tar", members)
    _indexed(folder)


def mend_index(folder: Path) -> None:
    """The hashes of the files of single shards, and of the one of all."""
    for path in (folder / "index" / "shards").glob("*.bin"):
        payload = path.read_bytes()[64:]
        path.write_bytes(SHA256(payload).hexdigest().encode() + payload)
    mend_arrays(folder / "index")


def read_index(folder: Path) -> None:
    _indexed(folder)


def make_storage(folder: Path, run: Path) -> None:
    mirror = Mirror((folder / "storage").as_uri(), run)
    for training in RunFolder(run).trainings():
        mirror.keep(training)
    mirror.keep_run("key")


def read_storage(folder: Path) -> None:
    """Bring the run to an empty folder."""
    here = folder / "here"
    shutil.rmtree(here, ignore_errors=True)
    mirror = Mirror((folder / "storage").as_uri(), here)
    mirror.fetch_run()
    for training in RunFolder(here).trainings():
        mirror.fetch_state(training.name, training.key)
