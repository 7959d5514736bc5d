"""Finished trainings that several runs share, by the key of all that their weights depend on."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE, Checkpoint, read_checkpoint
from coterie.errors import CheckpointError, RunError
from coterie.files import atomic_write, file_sha256, lock
from coterie.runfolder import Training
from coterie.trainer import LOG_FILE
from coterie.untrusted import parse_json

SCHEMA_VERSION = 1
ENTRY_FILE = "training.json"


class Store:
    """A folder with a folder for each finished training, named by its key: weights, checkpoint, log, entry.

    What is in it appears in one step, and is checked: by size when it is looked up, by the hash of the
    weights when it is taken. A damaged training counts as missing and is removed, so that the next `put`
    replaces it. Several processes may share a store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the folder, and remove what a killed process left; RunError where it cannot be written."""
        with self._locked():
            for remains in self.path.glob(".*.tmp"):
                shutil.rmtree(remains)

    def find(self, key: str) -> Training | None:
        """The finished training of `key`, its weights not yet read; None where there is none."""
        place = self.path / key
        try:
            content = parse_json((place / ENTRY_FILE).read_text(encoding="utf-8"))
            if content["schema_version"] != SCHEMA_VERSION:
                return None
            training = TypeAdapter(Training).validate_python(content["training"])
            whole = content["weights_bytes"] == (place / WEIGHTS_FILE).stat().st_size
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None
        return training if whole and training.key == key and training.state == "done" else None

    def take(self, key: str, folder: Path) -> tuple[Training, Checkpoint] | None:
        """Put weights and log into `folder`, and give the description that belongs to them there.

        None where the store cannot give the training whole.
        """
        training = self.find(key)
        if training is None:
            return None
        place = self.path / key
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / f".{WEIGHTS_FILE}.{secrets.token_hex(4)}.tmp"
        try:
            checkpoint = read_checkpoint(place)
            _link(place / WEIGHTS_FILE, weights)
            hashes = {training.weights_sha256, checkpoint.weights_sha256, file_sha256(weights)}
            if len(hashes) > 1:
                raise CheckpointError(f"the weights in {place} are others than {ENTRY_FILE} says")
            log = place / LOG_FILE
            lines = log.read_bytes() if log.exists() else b""
            weights.replace(folder / WEIGHTS_FILE)
        except (CheckpointError, FileNotFoundError):
            self._remove(key)
            return None
        finally:
            weights.unlink(missing_ok=True)
        atomic_write(folder / LOG_FILE, lines)
        return training, checkpoint

    def put(self, training: Training, folder: Path) -> None:
        """Keep the `training` that was finished in `folder`, unless the store has it."""
        if self.find(training.key) is not None:
            return
        with self._locked():
            if self.find(training.key) is not None:  # another process was first
                return
            place, unfinished = self.path / training.key, self.path / f".{training.key}.tmp"
            for remains in (place, unfinished):  # damaged, or of a killed process
                shutil.rmtree(remains, ignore_errors=True)
            unfinished.mkdir()
            _link(folder / WEIGHTS_FILE, unfinished / WEIGHTS_FILE)
            for name in (INFO_FILE, LOG_FILE):
                if (folder / name).exists():
                    atomic_write(unfinished / name, (folder / name).read_bytes())
            content = {
                "schema_version": SCHEMA_VERSION,
                "weights_bytes": (folder / WEIGHTS_FILE).stat().st_size,
                "training": asdict(training),
            }
            atomic_write(unfinished / ENTRY_FILE, json.dumps(content, indent=1, ensure_ascii=False))
            unfinished.rename(place)

    def _remove(self, key: str) -> None:
        with self._locked():
            shutil.rmtree(self.path / key, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait until no other process writes to the store; RunError where it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(
                f"the store of trainings {self.path} cannot be written: {error.strerror}; choose another"
            ) from None
        with file:
            lock(file, wait=True)
            yield


def _link(source: Path, target: Path) -> None:
    """The same file under another name where the file system can do that, else a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
