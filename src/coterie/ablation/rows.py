"""The rows of an ablation: settings over those that all rows share, and the model of that run to look at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from coterie.config import Config, load_config, parse_words
from coterie.errors import ConfigError, did_you_mean, either
from coterie.preparation import branch_weights
from coterie.untrusted import parse_yaml

# A training step costs a forward and a backward pass, which is two forwards.
PLAIN_STEP = 3
ROW_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# Rows are compared seed by seed, on the same pictures.
SHARED_SETTINGS = ("data", "seed", "out", "device", "recipe")


@dataclass(frozen=True)
class Row:
    """One line of the table: `model` of the run that `words` make of the settings which all rows share.

    `model`: its name in the tables of a run, such as "student" or "all teachers". `compute_of`: the epochs
    of the baseline are those that cost what this part of the run costs, and it has all of them.
    """

    name: str
    title: str
    words: tuple[str, ...] = ()
    model: str = "student"
    compute_of: Literal["run", "student"] | None = None


@dataclass(frozen=True)
class Sweep:
    """Rows that differ in one setting."""

    setting: str
    symbol: str
    values: tuple[float, ...]


BASELINE = Row("baseline", "baseline", model="baseline")
CONTROLS = (
    BASELINE,
    Row("k1", "one teacher of all labels (K = 1)", ("k=1",)),
    Row("random", "random groups of the same sizes", ("partition.random=same-sizes",)),
    Row("random-equal", "random groups of equal sizes", ("partition.random=equal-sizes",)),
    Row("cgp", "co-occurrence groups only", ("distill.a=1",)),
    Row("dgp", "dis-occurrence groups only", ("distill.a=0", "partition.dis_method=balanced")),
    Row("dgp-paper", "dis-occurrence only, the paper's", ("distill.a=0", "partition.dis_method=paper")),
    Row("psd", "both branches (PSD)"),
    Row("cgp-teachers", "co-occurrence teachers", model="CGP teachers"),
    Row("dgp-teachers", "dis-occurrence teachers", model="DGP teachers"),
    Row("all-teachers", "all teachers", model="all teachers"),
    Row("squared-error", "PSD by squared error", ("distill.loss=squared-error",)),
    Row("bernoulli-kl", "PSD by Bernoulli KL", ("distill.loss=bernoulli-kl",)),
    Row("compute-student", "baseline at the cost of the student", model="baseline", compute_of="student"),
    Row("compute-run", "baseline at the cost of the run", model="baseline", compute_of="run"),
)
SWEEPS = {
    "a": Sweep("distill.a", "a", (0.25, 0.75)),
    "w": Sweep("distill.w", "w", (0.25, 0.75)),
    "k": Sweep("k", "K", (3, 8)),
    "root": Sweep("partition.root", "root", (1, 4)),
}


def choose_rows(
    config: Config,
    num_classes: int,
    names: Iterable[str] | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
    own: Sequence[Row] = (),
) -> tuple[Row, ...]:
    """The rows of these `names`, by default all there are; the baseline is always the first.

    `values` of sweeps ("a", "w", "k", "root") take the place of the usual ones, and bring in their rows.
    Without them, a value that the config has already, or of more groups than classes, is left out.
    ConfigError names the row nearest to one that is not there.
    """
    values = dict(values or {})
    groups: dict[str, tuple[Row, ...]] = {row.name: (row,) for row in CONTROLS}
    for name, sweep in SWEEPS.items():
        usual = _usual_values(sweep, config, num_classes)
        groups[name] = tuple(_sweep_row(name, sweep, value) for value in values.get(name, usual))
    # a row of a sweep has a name of its own too
    groups |= {row.name: (row,) for rows in list(groups.values()) for row in rows}
    for row in own:
        if row.name in groups:
            raise ConfigError(f"there is a row '{row.name}' already; give yours another name")
        groups[row.name] = (row,)
    chosen = list(groups) if names is None else [*names, *values]
    for name in chosen:
        if name not in groups:
            hint = did_you_mean(name, groups) or f"; the rows are {', '.join(groups)}"
            raise ConfigError(f"there is no row '{name}'{hint}")
    return tuple(dict.fromkeys([BASELINE, *(row for name in chosen for row in groups[name])]))


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows in a YAML file: `name: [words]`, or `name: {words: [...], model: …, title: …, compute_of: …}`.

    ConfigError names the row and what is wrong with it.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"rows file {path} is not there") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"rows file {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"rows file {path} must hold rows as `name: [key=value, …]`")
    return tuple(_own_row(path, str(name), value) for name, value in content.items())


def row_config(row: Row, config: Config) -> Config:
    """The settings of a run that the row's model is of; ConfigError where the row's words do not fit."""
    shared = [key for key in parse_words(row.words) if key in SHARED_SETTINGS]
    if shared:
        raise ConfigError(f"'{shared[0]}' is the same for all rows; give it for the whole ablation")
    changed = load_config(row.words, settings=config.to_values())
    if row.compute_of is None:
        return changed
    forwards = run_forwards(changed) if row.compute_of == "run" else student_forwards(changed)
    epochs = round(forwards / PLAIN_STEP)
    return load_config([f"baseline.epochs={epochs}", "baseline.patience=null"], settings=changed.to_values())


def num_groups(config: Config) -> int:
    """How many groups of labels have a teacher: K of each branch."""
    return config.k * len(branch_weights(config))


def student_forwards(config: Config) -> int:
    """What the student's training costs for each image, in forwards of its network: a plain step, and one
    forward of each teacher.
    """
    teachers = num_groups(config) + (config.distill.baseline > 0)
    return config.student.epochs * (PLAIN_STEP + teachers)


def run_forwards(config: Config) -> int:
    """What teachers and student cost for each image, in forwards of the student's network."""
    epochs = num_groups(config) * config.teacher.epochs
    if config.distill.baseline > 0:
        epochs += config.baseline.epochs
    return epochs * PLAIN_STEP + student_forwards(config)


def _usual_values(sweep: Sweep, config: Config, num_classes: int) -> list[float]:
    settings: Any = config
    for part in sweep.setting.split("."):
        settings = getattr(settings, part)
    return [
        value
        for value in sweep.values
        if value != settings and (sweep.setting != "k" or value <= num_classes)
    ]


def _sweep_row(name: str, sweep: Sweep, value: float) -> Row:
    text = f"{value:.12g}"
    return Row(f"{name}-{text}", f"{sweep.symbol} = {text}", (f"{sweep.setting}={text}",))


def _own_row(path: Path, name: str, value: Any) -> Row:
    if not ROW_NAME.fullmatch(name):
        raise ConfigError(
            f"rows file {path}: '{name}' is no name of a row; use letters, digits, '.', '_', '-'"
        )
    fields = {"words": value} if isinstance(value, list) else value
    if not isinstance(fields, dict):
        raise ConfigError(f"rows file {path}: row '{name}' must be a list of key=value, got {value!r}")
    known = ("words", "model", "title", "compute_of")
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"rows file {path}: row '{name}' has no '{field}'; it may have {either(known)}"
                + did_you_mean(str(field), known)
            )
    try:
        row = TypeAdapter(Row).validate_python({"title": name} | fields | {"name": name})
        model = parse_words(row.words).get("model", {})
        if isinstance(model, dict) and ":" in str(model.get("name", "")):
            raise ConfigError("a file does not name code to run; give the model for the whole ablation")
    except (ValidationError, ConfigError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"'{reason['loc'][0]}': {reason['msg']}" if reason else str(error)
        raise ConfigError(f"rows file {path}: row '{name}': {what}") from None
    return row
