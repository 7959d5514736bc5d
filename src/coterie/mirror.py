"""The files of a run at a URL, for other machines (`storage=URL`): as they were written, or not there.

Each training, and what the run has beside them, is a part: `NAME.json` lists its files with their hashes, and
they lie in the folder `NAME.files`, each under its hash. The list is put there last and in one step, so that
it never names what is not there yet; what is read is compared with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE
from coterie.config import CONFIG_FILE, Config
from coterie.errors import ConfigError, CoterieError, RunError
from coterie.extras import need_extra
from coterie.files import content_hash, file_sha256
from coterie.runfolder import MANIFEST_FILE, RunFolder, Training, relevant_settings, reset
from coterie.states import newest_state
from coterie.trainer import LOG_FILE, EpochWatcher, Reporter
from coterie.untrusted import parse_json

RUN = "run"
SFTP = ("sftp:", "ssh:")
FINISHED = (WEIGHTS_FILE, INFO_FILE, LOG_FILE)

T = TypeVar("T")
# Within the folder of a part: neither `..` nor hidden, as the lock of a run is.
_Inside = Annotated[str, Field(pattern=r"^[^./][^/]*(/[^./][^/]*)*$")]
_SHA256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """The list of the files of a part, by their hashes. `key` is that of what they were made from; of a
    finished training there is its entry in the manifest, of another how many `epochs` lie behind.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    key: str
    files: dict[_Inside, _SHA256]
    epochs: int = 0
    training: Training | None = None


@dataclass(frozen=True)
class Mirror:
    """The run whose folder on this machine is `folder`, at `url`."""

    url: str
    folder: Path

    def __reduce__(self) -> tuple[type[Mirror], tuple[str, Path]]:
        """Another process makes a connection of its own, with what it knows to log in."""
        return Mirror, (self.url, self.folder)

    def check(self) -> None:
        """ConfigError where the URL is of no known kind, or RunError where nothing can be written there."""
        self._publish("check", _Part(key="", files={}))
        self._remove([_list("check")])

    def keep_state(self, name: str, key: str) -> None:
        """Put there how far the unfinished training `name` has come."""
        folder = self.folder / name
        state = newest_state(folder)
        if state is not None:
            self._put(name, folder, [state.name, LOG_FILE], key, epochs=_epochs(folder))

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

    def take(self, training: Training, key: str) -> Training | None:
        """Bring the files of `training` here, those that differ, where it was finished with this `key`; its
        entry in the manifest then, or None where it is not there whole.
        """
        part = self._read(training.name)
        if part is None or part.key != key or part.training is None:
            return None
        part = self._fetch(training.name, self.folder / training.name, part)
        if part is None or part.key != key or part.training is None:
            return None
        found = replace(part.training, key=key, weights_sha256=part.files.get(WEIGHTS_FILE, ""))
        return found if found.state == "done" and reset(found) == reset(training) else None

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
        inside: TypeAdapter[str] = TypeAdapter(_Inside)
        for training in RunFolder(self.folder).trainings():
            if training.state == "done":
                with suppress(ValidationError):
                    inside.validate_python(training.name)
                    self.take(training, training.key)

    def check_run(self, key: str) -> None:
        """RunError where the URL holds a run of other settings."""
        part = self._read(RUN)
        if part is not None and part.key != key:
            raise RunError(
                f"{self.url} holds a run of other settings or data; choose another with storage=…, or "
                "--update to replace what differs"
            )

    def _at_storage(self, action: Callable[[Any], T]) -> T:
        """What `action` gives with the file system of the URL. Where it fails it is done once more, over a
        new connection, as one that was idle for an epoch may have been cut; RunError where that fails too.
        """
        try:
            return action(self._fs)
        except CoterieError:
            raise
        except Exception:  # each kind of storage raises errors of its own
            self.__dict__.pop("_fs", None)
        try:
            return action(self._fs)
        except CoterieError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RunError(
                f"storage={self.url}: {reason}. When that is put right, the same command goes on"
            ) from error

    @cached_property
    def _fs(self) -> Any:
        """The file system of the URL, as one whose root is there."""
        from fsspec.core import url_to_fs
        from fsspec.implementations.dirfs import DirFileSystem

        try:
            if self.url.startswith(SFTP):
                from coterie.sftp import KnownHosts

                server = KnownHosts._get_kwargs_from_urls(self.url)
                fs, path = (
                    KnownHosts(**server, skip_instance_cache=True),
                    KnownHosts._strip_protocol(self.url),
                )
            else:
                fs, path = url_to_fs(self.url, skip_instance_cache=True)
            return DirFileSystem(path, fs, skip_instance_cache=True)
        except ImportError as error:
            raise ConfigError(f"storage={self.url}: {error}") from None
        except ValueError as error:
            raise ConfigError(
                f"storage={self.url}: {error}; write it as sftp://HOST/PATH, for instance"
            ) from None

    def _read(self, name: str) -> _Part | None:
        """The part of a name; None where there is none that can be read."""

        def read(fs: Any) -> _Part | None:
            try:
                return _Part.model_validate(parse_json(fs.cat_file(_list(name))))
            except (FileNotFoundError, ValueError):
                return None

        return self._at_storage(read)

    def _put(self, name: str, folder: Path, files: Sequence[str], key: str, **more: Any) -> None:
        """Put `files` of `folder` there, then their list, and remove what only the list before named."""
        before = self._read(name)
        part = _Part(key=key, files={file: file_sha256(folder / file) for file in sorted(files)}, **more)
        if part == before:
            return

        def put(fs: Any, place: str, path: Path) -> None:
            fs.put_file(str(path), place)

        there = set() if before is None else set(before.files.values())
        for file, sha256 in part.files.items():
            if sha256 not in there:
                self._write(_file(name, sha256), partial(put, path=folder / file))
        self._publish(name, part)
        self._remove(_file(name, sha256) for sha256 in there - set(part.files.values()))

    def _publish(self, name: str, part: _Part) -> None:
        content = part.model_dump_json(indent=1).encode()
        self._write(_list(name), lambda fs, place: fs.pipe_file(place, content))

    def _write(self, place: str, write: Callable[[Any, str], object]) -> None:
        """Let `write` write to a name that is free; what is there then goes to `place` in one step."""

        def written(fs: Any) -> None:
            fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            unfinished = f"{place}.{secrets.token_hex(4)}.tmp"
            try:
                write(fs, unfinished)
                fs.mv(unfinished, place)
            except BaseException:
                with suppress(Exception):  # the first error counts
                    fs.rm_file(unfinished)
                raise

        self._at_storage(written)

    def _remove(self, places: Iterable[str]) -> None:
        def remove(fs: Any, place: str) -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(place)

        for place in places:
            self._at_storage(partial(remove, place=place))

    def _fetch(self, name: str, folder: Path, part: _Part) -> _Part | None:
        """Bring the files of a part here, those that differ; the part whose files are here then. A list whose
        files are not as it says is removed, so that they are put there anew.
        """
        while not all(self._bring(name, folder, file, sha256) for file, sha256 in part.files.items()):
            newer = self._read(name)
            if newer is None or newer == part:
                self._remove([_list(name)])
                return None
            part = newer  # another machine has put it there in the meantime
        return part

    def _bring(self, name: str, folder: Path, file: str, sha256: str) -> bool:
        """Bring one file here, unless it is; whether it is what was put there."""
        path = folder / file
        if path.is_file() and file_sha256(path) == sha256:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")

        def get(fs: Any) -> bool:
            try:
                fs.get_file(_file(name, sha256), str(unfinished))
            except FileNotFoundError:
                return False
            return file_sha256(unfinished) == sha256

        try:
            if self._at_storage(get):
                unfinished.replace(path)
                return True
            return False
        finally:
            unfinished.unlink(missing_ok=True)


def _list(name: str) -> str:
    return f"{name}.json"


def _file(name: str, sha256: str) -> str:
    return f"{name}.files/{sha256}"


def make_mirror(config: Config, folder: Path) -> Mirror | None:
    """Where `config.storage` lies, None where the run has none; ConfigError where it cannot be used."""
    if config.storage is None:
        return None
    if config.storage.startswith(SFTP):
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
