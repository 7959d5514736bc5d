"""The files of a run at a URL, for other machines (`storage=URL`): as they were written, or not there.

Each training, and what the run has beside them, is a part: `NAME.json` lists its files with their hashes, and
they lie in the folder `NAME.files`, each under its hash. The list is put there last and in one step, so that
it never names what is not there yet; what is read is compared with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE
from coterie.config import Config
from coterie.errors import ConfigError, CoterieError, RunError
from coterie.extras import need_extra
from coterie.files import content_hash, file_sha256
from coterie.runfolder import (
    CONFIG_FILE,
    MANIFEST_FILE,
    RunFolder,
    Training,
    relevant_settings,
)
from coterie.trainer import LOG_FILE, EpochWatcher, Reporter
from coterie.untrusted import parse_json

RUN = "run"
# What is kept of a finished training, and what grows while it is read.
FINISHED = (WEIGHTS_FILE, INFO_FILE, LOG_FILE)
GROWING = "tensorboard"


class _Part(BaseModel):
    """The list of the files of a part, by their hashes. `key` is that of what they were made from; of a
    finished training there is its entry in the manifest, of another how many `epochs` lie behind.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    key: str
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    epochs: int = 0
    training: Training | None = None


@dataclass(frozen=True)
class Mirror:
    """The run whose folder on this machine is `folder`, at `url`."""

    url: str
    folder: Path

    def check(self) -> None:
        """ConfigError where the URL is of no known kind, or RunError where nothing can be written there."""
        self._publish("check", _Part(key="", files={}))
        self._remove([self._list("check")])

    def keep_state(self, name: str, key: str) -> None:
        """Put there what the unfinished training `name` has written so far."""
        files = (path for path in (self.folder / name).rglob("*") if path.is_file())
        names = [str(path.relative_to(self.folder / name)) for path in files]
        visible = [each for each in names if not each.startswith((".", GROWING))]
        self._put(name, self.folder / name, visible, key, epochs=_epochs(self.folder / name))

    def keep(self, training: Training) -> None:
        """Put the finished `training` there."""
        folder = self.folder / training.name
        present = [file for file in FINISHED if (folder / file).is_file()]
        self._put(training.name, folder, present, training.key, training=training)

    def fetch_state(self, name: str, key: str) -> bool:
        """Take up what another machine has kept of the unfinished training `name`, where that has come
        further than the one in the folder here; whether it has.
        """
        part = self._read(name)
        if part is None or part.key != key or part.epochs <= _epochs(self.folder / name):
            return False
        return self._fetch(name, self.folder / name, part) is not None

    def take(self, name: str, key: str) -> Training | None:
        """Bring the files of the finished training `name` here, those that differ; its entry in the manifest,
        or None where it is not there whole.
        """
        part = self._read(name)
        if part is None or part.key != key or part.training is None:
            return None
        part = self._fetch(name, self.folder / name, part)
        return None if part is None or part.key != key else part.training

    def keep_run(self, key: str) -> None:
        """Put there what the run has beside its trainings: settings, manifest, groups, results."""
        run = self.folder
        files = [*run.glob("*.json"), run / CONFIG_FILE, *run.glob("partitions/*"), *run.glob("logits/*")]
        names = [str(path.relative_to(run)) for path in files if path.is_file()]
        self._put(RUN, run, names, key)

    def fetch_run(self) -> None:
        """Bring the run here, with what is finished of it, where the folder has none."""
        if (self.folder / CONFIG_FILE).exists() or (part := self._read(RUN)) is None:
            return
        if self._fetch(RUN, self.folder, part) is None:
            (self.folder / CONFIG_FILE).unlink(missing_ok=True)
            (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
            return
        for training in RunFolder(self.folder).trainings():
            if training.state == "done":
                self.take(training.name, training.key)

    def check_run(self, key: str) -> None:
        """RunError where the URL holds a run of other settings."""
        part = self._read(RUN)
        if part is not None and part.key != key:
            raise RunError(
                f"{self.url} holds a run of other settings or data; choose another with storage=…, or "
                "--update to replace what differs"
            )

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What goes wrong on the way, as one error."""
        try:
            yield
        except CoterieError:
            raise
        except Exception as error:  # each kind of storage raises errors of its own
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RunError(
                f"storage={self.url}: {reason}. When that is put right, the same command goes on"
            ) from error

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system of the URL, and the path in it."""
        from fsspec.core import url_to_fs

        try:
            return url_to_fs(self.url)  # type: ignore[no-any-return]
        except ImportError as error:
            raise ConfigError(f"storage={self.url}: {error}") from None
        except ValueError as error:
            raise ConfigError(
                f"storage={self.url}: {error}; write it as sftp://HOST/PATH, for instance"
            ) from None

    def _list(self, name: str) -> str:
        return f"{self._place[1]}/{name}.json"

    def _file(self, name: str, sha256: str) -> str:
        return f"{self._place[1]}/{name}.files/{sha256}"

    def _read(self, name: str) -> _Part | None:
        """The part of a name; None where there is none that can be read."""
        with self._reached():
            try:
                return _Part.model_validate(parse_json(self._place[0].cat_file(self._list(name))))
            except (FileNotFoundError, ValueError):
                return None

    def _put(self, name: str, folder: Path, files: Sequence[str], key: str, **more: Any) -> None:
        """Put `files` of `folder` there, then their list, and remove what only the list before named."""
        before = self._read(name)
        part = _Part(key=key, files={file: file_sha256(folder / file) for file in sorted(files)}, **more)
        if part == before:
            return
        there = set() if before is None else set(before.files.values())
        with self._reached():
            for file, sha256 in part.files.items():
                if sha256 not in there:
                    with self._writing(self._file(name, sha256)) as unfinished:
                        self._place[0].put_file(str(folder / file), unfinished)
        self._publish(name, part)
        self._remove(self._file(name, sha256) for sha256 in there - set(part.files.values()))

    def _publish(self, name: str, part: _Part) -> None:
        with self._reached(), self._writing(self._list(name)) as unfinished:
            self._place[0].pipe_file(unfinished, part.model_dump_json(indent=1).encode())

    @contextmanager
    def _writing(self, place: str) -> Iterator[str]:
        """A name to write to; what is there goes to `place` in one step."""
        fs, _ = self._place
        fs.makedirs(place.rpartition("/")[0], exist_ok=True)
        unfinished = f"{place}.{secrets.token_hex(4)}.tmp"
        try:
            yield unfinished
            fs.mv(unfinished, place)
        except BaseException:
            with suppress(Exception):  # the first error counts
                fs.rm_file(unfinished)
            raise

    def _remove(self, places: Iterable[str]) -> None:
        with self._reached():
            for place in places:
                with suppress(FileNotFoundError):
                    self._place[0].rm_file(place)

    def _fetch(self, name: str, folder: Path, part: _Part) -> _Part | None:
        """Bring the files of a part here, those that differ; the part whose files are here then. A list whose
        files are not as it says is removed, so that they are put there anew.
        """
        while not all(self._bring(name, folder, file, sha256) for file, sha256 in part.files.items()):
            newer = self._read(name)
            if newer is None or newer == part:
                self._remove([self._list(name)])
                return None
            part = newer  # another machine has put it there in the meantime
        return part

    def _bring(self, name: str, folder: Path, file: str, sha256: str) -> bool:
        """Bring one file here, unless it is; whether it is what was put there."""
        path = folder / file
        if not path.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"storage={self.url}: {name}.json names a file outside of the run: {file}")
        if path.is_file() and file_sha256(path) == sha256:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with self._reached():
                try:
                    self._place[0].get_file(self._file(name, sha256), str(unfinished))
                except FileNotFoundError:
                    return False
            if file_sha256(unfinished) != sha256:
                return False
            unfinished.replace(path)
            return True
        finally:
            unfinished.unlink(missing_ok=True)


def make_mirror(config: Config, folder: Path) -> Mirror | None:
    """Where `config.storage` lies, None where the run has none; ConfigError where it cannot be used."""
    if config.storage is None:
        return None
    if config.storage.startswith(("sftp:", "ssh:")):
        need_extra("sftp", f"storage={config.storage}", "paramiko")
    mirror = Mirror(config.storage, folder)
    mirror.check()
    return mirror


def run_key(config: Config, inputs: Any) -> str:
    """A hash of what the results of a run depend on: its settings, and the data and files they name."""
    return content_hash([relevant_settings(config), asdict(inputs)])


def _epochs(folder: Path) -> int:
    """How many epochs of a training lie behind, by its log."""
    with suppress(FileNotFoundError):
        return len((folder / LOG_FILE).read_bytes().splitlines())
    return 0


@dataclass(frozen=True)
class Keeping:
    """A reporter that puts the state of each training there after every epoch, and tells another reporter."""

    mirror: Mirror
    keys: dict[str, str]
    reporter: Reporter

    def note(self, text: str) -> None:
        self.reporter.note(text)

    @contextmanager
    def watch(self, name: str, epochs: int, images: int, done: int = 0) -> Iterator[EpochWatcher]:
        with self.reporter.watch(name, epochs, images, done) as watcher:
            # there are also bars of what is no training
            yield _KeepingWatcher(self, name, watcher) if name in self.keys else watcher


@dataclass(frozen=True)
class _KeepingWatcher:
    keeping: Keeping
    name: str
    watcher: EpochWatcher

    def advance(self, images: int) -> None:
        self.watcher.advance(images)

    def epoch_done(self, line: dict[str, Any]) -> None:
        self.watcher.epoch_done(line)
        try:
            self.keeping.mirror.keep_state(self.name, self.keeping.keys[self.name])
        except RunError as error:  # it is no reason to stop: the next epoch may come through
            self.keeping.note(f"{self.name}: epoch {line['epoch']} is kept on its machine only: {error}")
