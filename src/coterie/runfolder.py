"""The folder of a run: its config, what was trained in it and from what, and a lock against a second run."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE, read_checkpoint
from coterie.config import CONFIG_FILE, Config, changed_settings, leaves, read_config
from coterie.errors import CheckpointError, ConfigError, RunError
from coterie.files import atomic_write, content_hash, file_sha256, lock
from coterie.untrusted import parse_json

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
METRICS_FILE = "metrics.json"
# Settings that change where and how fast a run goes, not what comes out of it. The data themselves are
# compared by their fingerprint and other files by their content, wherever they lie.
INDIFFERENT = (
    *("out", "device", "jobs", "together", "data.source", "data.format", "data.image_root", "data.workers"),
    *("data.webdataset.index", "data.check_images"),
    *("data.cache_gb", "data.disk_cache_gb", "model.weights", "model.word_vectors", "cache_dir"),
    *("resume.minutes", "resume.steps"),
    *("engine", "processes", "retries", "ray.address", "ray.cpus", "ray.gpus", "ray.work_dir", "storage"),
)


@dataclass(frozen=True)
class Training:
    """One entry of the manifest. `key` is a hash of all that the training depends on."""

    name: str
    class_names: tuple[str, ...]
    branch: str | None = None
    index: int | None = None
    state: Literal["pending", "done"] = "pending"
    key: str = ""
    weights_sha256: str = ""
    best_epoch: int = 0
    val_map: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Inputs:
    """What a run is made from and its config only points to.

    `fingerprint`: of the data, without the images whose ids are `unreadable`. `overlapping`: the ids of the
    training images that are measured too. `start_sha256`: of the file `model.weights`. `words_sha256`: of the
    file `model.word_vectors`.
    """

    fingerprint: str
    start_sha256: str | None = None
    words_sha256: str | None = None
    unreadable: tuple[str, ...] = ()
    overlapping: tuple[str, ...] = ()


class RunFolder:
    """Reads and writes the files of a run; every write is one step, so that a kill leaves the old or the
    new.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; RunError where another process holds it. The lock ends with the process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(
                f"run folder {self.path} cannot be written: {error.strerror}; choose another with out=…"
            ) from None
        with file:
            try:
                lock(file, wait=False)
            except BlockingIOError:
                raise RunError(
                    f"another process works in {self.path}; wait for it, or choose another with out=…"
                ) from None
            yield

    def check_config(self, config: Config, inputs: Inputs, update: bool = False) -> None:
        """RunError where the folder is of another config or made from other files, unless `update`."""
        if not (self.path / CONFIG_FILE).exists():
            strangers = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
            if strangers:
                raise RunError(
                    f"{self.path} holds other files ({strangers[0]}) and no run; choose another with out=…"
                )
            return
        try:
            saved = read_config(self.path / CONFIG_FILE)
        except ConfigError as error:
            raise RunError(
                f"{self.path / CONFIG_FILE} is damaged or of another version: {error}\n"
                "Choose another folder with out=…"
            ) from None
        changes = relevant_changes(saved, config)
        before = self.inputs() or inputs
        if before.fingerprint != inputs.fingerprint:
            changes.append("the images, labels or splits are others")
        if before.start_sha256 != inputs.start_sha256:
            changes.append("the weights in model.weights are others")
        if before.words_sha256 != inputs.words_sha256:
            changes.append("the vectors in model.word_vectors are others")
        if changes and not update:
            more = [f"and {len(changes) - 8} more"] if len(changes) > 8 else []
            shown = "\n  ".join(changes[:8] + more)
            raise RunError(
                f"{self.path} is a run of other settings:\n  {shown}\n"
                "Use the same settings to go on with it, another folder (out=…) for a new run, or --update "
                "to train anew only what the change touches"
            )

    def save_config(self, config: Config) -> None:
        atomic_write(self.path / CONFIG_FILE, config.to_yaml())

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands, {} where there is none yet; RunError where it is damaged."""
        path = self.path / MANIFEST_FILE
        if not path.exists():
            return {}
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from None
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            raise self._damaged(f"it is not of schema version {SCHEMA_VERSION}")
        return content

    def inputs(self) -> Inputs | None:
        """What the trainings of the manifest were made from, None where there is no manifest yet."""
        content = self.manifest()
        if not content:
            return None
        values = {field.name: content[field.name] for field in fields(Inputs) if field.name in content}
        try:
            ids = {name: tuple(content.get(name, ())) for name in ("unreadable", "overlapping")}
            return Inputs(**values | ids)
        except TypeError as error:
            raise self._damaged(str(error)) from None

    def trainings(self) -> list[Training]:
        """The trainings of the manifest, in the order of the run."""
        try:
            return [
                Training(**entry | {"class_names": tuple(entry["class_names"])})
                for entry in self.manifest().get("trainings", [])
            ]
        except (KeyError, TypeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from None

    def _damaged(self, reason: str) -> RunError:
        return RunError(
            f"manifest {self.path / MANIFEST_FILE} cannot be used: {reason}; put a copy of it back, or start "
            "in another folder with out=…"
        )

    def write_manifest(self, inputs: Inputs, trainings: Sequence[Training]) -> None:
        self._write_manifest({"schema_version": SCHEMA_VERSION, **asdict(inputs)}, trainings)

    def _write_manifest(self, content: dict[str, Any], trainings: Sequence[Training]) -> None:
        content = content | {"trainings": [asdict(training) for training in trainings]}
        atomic_write(self.path / MANIFEST_FILE, json.dumps(content, indent=1, ensure_ascii=False))

    def record(self, training: Training) -> None:
        """Put `training` into the manifest, in the place of the one of that name."""
        entries = [training if old.name == training.name else old for old in self.trainings()]
        self._write_manifest(self.manifest(), entries)

    def is_done(self, training: Training, key: str) -> bool:
        """Whether the training was finished with this `key` and its weights are still those."""
        if training.state != "done" or training.key != key:
            return False
        try:
            checkpoint = read_checkpoint(self.path / training.name)
        except CheckpointError:
            return False
        weights = self.path / training.name / WEIGHTS_FILE
        return (
            checkpoint.weights_sha256 == training.weights_sha256
            and weights.is_file()
            and file_sha256(weights) == training.weights_sha256
        )

    def set_aside(self, training: Training) -> None:
        """Move a finished training of another key to `archive/`, so that nothing trained is lost."""
        folder = self.path / training.name
        if not (folder / INFO_FILE).exists():
            return
        archive = self.path / "archive"
        archive.mkdir(exist_ok=True)
        name = f"{training.name.replace('/', '-')}-{training.key[:8]}"
        names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        folder.rename(next(archive / name for name in names if not (archive / name).exists()))

    def set_aside_others(self, planned: Sequence[Training]) -> None:
        """Move the finished trainings of the manifest that are not `planned` any more to `archive/`."""
        names = {training.name for training in planned}
        for training in self.trainings():
            if training.state == "done" and training.name not in names:
                self.set_aside(training)

    def remove_unfinished(self) -> None:
        """Remove the files that a killed process was writing; only the holder of the lock may. A process that
        the killed one had started may be ending still, and remove its own.
        """
        for file in self.path.rglob(".*.tmp"):
            file.unlink(missing_ok=True)


def relevant_changes(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` of each setting that differs and changes what comes out of a run."""
    return [
        f"{key}: {before} -> {after}"
        for key, before, after in changed_settings(old, new)
        if key not in INDIFFERENT
    ]


def relevant_settings(config: Config) -> dict[str, Any]:
    """The settings that change what comes out of a run, each under its key with dots."""
    return {key: value for key, value in leaves(config.to_values()) if key not in INDIFFERENT}


def reset(training: Training) -> Training:
    """The same sub-task, not yet trained."""
    return replace(
        training, state="pending", key="", weights_sha256="", best_epoch=0, val_map=None, seconds=0.0
    )


def read_keyed(path: Path, key: str) -> dict[str, Any] | None:
    """What is in a JSON file of the run; None where it was made under another key, or cannot be read."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("key") == key else None


def read_results(run: Path, name: str, schema_version: int) -> dict[str, Any]:
    """A JSON file that a run leaves when it is measured; RunError where it is missing or damaged."""
    again = "the `coterie run` command of the run, given again,"
    path = run / name
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        problem = f"it is not of schema version {schema_version}"
    except FileNotFoundError:
        raise RunError(f"there is no measured run at {run}, it has no {name}: {again} makes it") from None
    except (OSError, ValueError) as error:
        content, problem = None, str(error)
    if not isinstance(content, dict) or content.get("schema_version") != schema_version:
        raise RunError(f"{path} is damaged ({problem}); delete it: {again} makes it anew")
    return content


def measurement_key(
    weights: Sequence[str], models: Collection[str] | None, fingerprint: str, threshold: float
) -> str:
    """A hash of what a measurement depends on: the hashes of all finished `weights` in the order of the run,
    the names of the `models` that were asked for (None: all), the data and the threshold.
    """
    inputs = {
        "weights": list(weights),
        "models": None if models is None else sorted(models),
        "data": fingerprint,
        "threshold": threshold,
    }
    return content_hash(inputs)
