"""What a report is made from: the files of a finished run, read and compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.checkpoint import Checkpoint, read_checkpoint
from coterie.config import CONFIG_FILE, Config, read_config
from coterie.diagnostics import DIAGNOSTICS_FILE, LEANING_FILE, PARTITIONS, SCHEMA_VERSION
from coterie.errors import ConfigError, RunError, did_you_mean, shortened
from coterie.evaluation import Results
from coterie.labels import Partition
from coterie.logits import SplitLogits
from coterie.rundata import DATA_FILE, RunData, read_data
from coterie.runfolder import MANIFEST_FILE, METRICS_FILE, RunFolder, Training, read_results
from coterie.tune import TUNED, current_logits
from coterie.untrusted import parse_json

AGAIN = "the `coterie run` command of the run, given again, goes on with it"


@dataclass(frozen=True)
class FinishedRun:
    """A run whose baseline and student are trained and measured."""

    folder: Path
    config: Config
    trainings: tuple[Training, ...]
    data: RunData
    key: str
    metrics: Results
    leaning: Mapping[str, Any]
    partitions: Mapping[str, Partition]
    diagnostics: Mapping[str, Any]
    checkpoints: Mapping[str, Checkpoint]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.data.graph.class_names

    @property
    def splits(self) -> list[str]:
        """The measured splits, "val" first."""
        return list(self.metrics)

    @property
    def models(self) -> list[str]:
        """What was measured, by its name in tables."""
        return list(next(iter(self.metrics.values())))

    def logits(self, split: str) -> SplitLogits:
        """The logits of `split` that the results come from; RunError where there are none, or others."""
        logits = current_logits(RunFolder(self.folder), self.config, split)
        if logits.key != self.key:
            raise RunError(
                f"the logits of split '{split}' in {self.folder} are not those of its {METRICS_FILE}: the "
                "`coterie run` command of the run, given again, measures its models and trains nothing anew"
            )
        return logits

    def chosen_split(self, split: str | None) -> str:
        """`split`, by default the first test split, else val; ConfigError where it was not measured."""
        if split is None:
            return next((name for name in self.splits if name.startswith("test")), self.splits[0])
        if split not in self.splits:
            hint = did_you_mean(split, self.splits) or f"; it was on {shortened(self.splits)}"
            raise ConfigError(f"the run in {self.folder} was not measured on split '{split}'{hint}")
        return split

    def history(self, training: str) -> list[dict[str, Any]]:
        """What each epoch of a training left in its log; a line that a crash cut off is left out."""
        try:
            text = (self.folder / training / "log.jsonl").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        epochs = []
        for line in text.splitlines():
            try:
                epoch = parse_json(line)
            except ValueError:
                continue
            if isinstance(epoch, dict) and isinstance(epoch.get("epoch"), int):
                epochs.append(epoch)
        return epochs


def read_run(folder: Path) -> FinishedRun:
    """The run in `folder`; RunError with one message where it is none, not finished, or damaged."""
    if not (folder / MANIFEST_FILE).is_file():
        raise RunError(f"there is no run at {folder}: it has no {MANIFEST_FILE}")
    trainings = tuple(RunFolder(folder).trainings())
    pending = [training.name for training in trainings if training.state != "done"]
    if {"baseline", "student"} & set(pending):
        raise RunError(f"the run in {folder} is not finished, it lacks {shortened(pending)}: {AGAIN}")
    try:
        config = read_config(folder / CONFIG_FILE)
    except ConfigError as error:
        raise RunError(f"{folder / CONFIG_FILE} cannot be used: {error}") from None
    data = read_data(folder)
    key, metrics = _read_metrics(folder, data)
    kinds = list(dict.fromkeys(training.branch for training in trainings if training.branch))
    partitions = {kind: _read_partition(folder, kind, data, trainings) for kind in kinds}
    return FinishedRun(
        folder=folder,
        config=config,
        trainings=trainings,
        data=data,
        key=key,
        metrics=metrics,
        leaning=_read_leaning(folder, metrics),
        partitions=partitions,
        diagnostics=_read_diagnostics(folder, partitions),
        checkpoints={name: _read_checkpoint(folder, name, data) for name in TUNED},
    )


def _read_checkpoint(folder: Path, name: str, data: RunData) -> Checkpoint:
    checkpoint = read_checkpoint(folder / name)
    if checkpoint.class_names != data.graph.class_names:
        raise RunError(f"checkpoint {folder / name} is of other classes than {folder / DATA_FILE}: {AGAIN}")
    return checkpoint


def _read_partition(folder: Path, kind: str, data: RunData, trainings: Sequence[Training]) -> Partition:
    path = folder / PARTITIONS / f"{kind}.json"
    partition = Partition.load(path)
    if set(partition.class_names) != set(data.graph.class_names):
        raise _damaged(path, "it is of other classes than data.json")
    taught = [training.class_names for training in trainings if training.branch == kind]
    if list(map(set, taught)) != list(map(set, partition.group_names)):
        raise _damaged(path, "its groups are not those of the teachers")
    return partition.reordered(data.graph.class_names)


def _read_diagnostics(folder: Path, partitions: Mapping[str, Partition]) -> dict[str, Any]:
    """What `describe_partition` says of each of the `partitions`."""
    name = f"{PARTITIONS}/{DIAGNOSTICS_FILE}"
    try:
        branches: dict[str, Any] = read_results(folder, name, SCHEMA_VERSION)["branches"]
        whole = all(len(branches[kind]["groups"]) == partitions[kind].k for kind in partitions)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise _damaged(folder / name, "it is not of the groups of the run")
    return branches


def _read_metrics(folder: Path, data: RunData) -> tuple[str, Results]:
    """The key of the measurement, and what came out: the same models on every split, all classes."""
    content = read_results(folder, METRICS_FILE, SCHEMA_VERSION)
    try:
        key, metrics = content["key"], content["splits"]
        models = next(iter(metrics.values())).keys()
        whole = all(
            by_model.keys() == models
            and all(len(one["AP"]) == len(data.graph.class_names) for one in by_model.values())
            for by_model in metrics.values()
        ) and content["class_names"] == list(data.graph.class_names)
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise _damaged(folder / METRICS_FILE, "it holds no results") from None
    if not whole:
        raise _damaged(folder / METRICS_FILE, "its splits, models or classes do not agree")
    lacking = {"baseline", "student"} - models
    if lacking:
        raise RunError(f"the results of the run in {folder} lack {shortened(sorted(lacking))}: {AGAIN}")
    return key, metrics


def _read_leaning(folder: Path, metrics: Results) -> dict[str, Any]:
    """The leaning of the models in `metrics`."""
    content = read_results(folder, LEANING_FILE, SCHEMA_VERSION)
    try:
        whole = all(
            len(content["splits"][split][model]["each"]) == len(content["pairs"])
            for split, by_model in metrics.items()
            for model in by_model
        )
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise _damaged(folder / LEANING_FILE, "it is not of the models in metrics.json")
    return content


def _damaged(path: Path, reason: str) -> RunError:
    return RunError(f"{path} is damaged ({reason}); delete it: {AGAIN} and makes it anew")
