"""Thresholds and temperature of a run's models: chosen on its validation logits, kept in its checkpoints."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from coterie.checkpoint import read_checkpoint, write_description
from coterie.config import CONFIG_FILE, Config, read_config
from coterie.errors import CheckpointError, RunError, counted, shortened
from coterie.logits import SplitLogits, read_logits
from coterie.progress import say
from coterie.runfolder import MANIFEST_FILE, RunFolder, measurement_key
from coterie.seeding import derive_seed
from coterie.tuning import (
    CHOICES,
    F1,
    GLOBAL,
    PER_CLASS,
    UNTUNED,
    Choice,
    Counts,
    Objective,
    Tuning,
    tune_thresholds,
)

SPLIT = "val"
# what a temperature at an end of those that are tried says of the scores
AT_BOUND = {
    "highest": "the scores are far too sure, or hardly tell which labels an image has",
    "lowest": "hardly a score is wrong on these images, and on others they will be too sure",
}
TUNED = ("baseline", "student")


def tune_run(
    path: Path,
    objective: Objective = F1,
    *,
    only_global: bool = False,
    calibrate: bool = True,
    write: bool = True,
) -> dict[str, Tuning]:
    """Choose thresholds and temperature for baseline and student of a run, and put the recommended ones, or
    the global one, into their checkpoints; weights stay as they are. What was chosen, by model.

    RunError where there is no run, or none that was measured as it stands.
    """
    folder = RunFolder(path)
    if not (path / MANIFEST_FILE).exists():
        raise RunError(f"there is no run at {path}; name the folder of a run, not one of its checkpoints")
    config = read_config(path / CONFIG_FILE)
    logits = current_logits(folder, config, SPLIT)
    names = [name for name in TUNED if name in logits.models]
    if not names:
        raise RunError(f"the run in {path} has neither a baseline nor a student yet")
    tunings = {}
    for name in names:
        if read_checkpoint(path / name).class_names != logits.class_names:
            raise CheckpointError(f"checkpoint {path / name} has other classes than the logits of the run")
        tunings[name] = tune_thresholds(
            logits.models[name],
            logits.targets,
            objective,
            class_names=logits.class_names,
            threshold=config.threshold,
            calibrate=calibrate,
            seed=derive_seed(config.seed, "tuning"),
            among=(GLOBAL,) if only_global else CHOICES,
        )
    if write:
        for name, tuning in tunings.items():
            _keep(folder, name, tuple(tuning.thresholds().tolist()), tuning.temperature)
    return tunings


def reset_run(path: Path) -> list[str]:
    """Take thresholds and temperature out of the checkpoints of a run again; the names of those it has."""
    names = [name for name in TUNED if (path / name).is_dir()]
    if not names:
        raise RunError(f"there is no run with a baseline or a student at {path}")
    for name in names:
        _keep(RunFolder(path), name, None, 1.0)
    return names


def _keep(folder: RunFolder, name: str, thresholds: tuple[float, ...] | None, temperature: float) -> None:
    place = folder.path / name
    with folder.locked():
        checkpoint = read_checkpoint(place)
        write_description(place, replace(checkpoint, thresholds=thresholds, temperature=temperature))


def current_logits(folder: RunFolder, config: Config, split: str) -> SplitLogits:
    """The logits of a run on `split`; RunError where they are not of the weights that it holds."""
    logits = read_logits(folder.path, split)
    weights = [training.weights_sha256 for training in folder.trainings() if training.state == "done"]
    inputs = folder.inputs()
    fingerprint = inputs.fingerprint if inputs else ""
    possible = [
        measurement_key(weights, models, fingerprint, config.threshold)
        for models in (None, tuple(logits.models))
    ]
    if logits.key not in possible:
        raise RunError(
            f"the logits in {folder.path} are of other weights than its checkpoints: the `coterie run` "
            "command of the run, given again, measures its models and trains nothing that is done"
        )
    return logits


def show_tuning(name: str, tuning: Tuning, console: Console) -> None:
    """Print what each way to choose thresholds is worth for the model `name`, and what is recommended."""
    images = tuning.choices[tuning.recommended].in_sample.images
    say(console, f"{name}: thresholds for {tuning.objective}, from {counted(images, 'image')} of {SPLIT}")
    console.print(tuning_table(tuning))
    for line in _conclusions(tuning):
        say(console, line)


def tuning_table(tuning: Tuning) -> Table:
    """A row for each choice, the recommended one bold: what it is worth in sample and cross-validated."""
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("thresholds", no_wrap=True)
    for heading in tuning.choices[tuning.recommended].in_sample.summary(tuning.objective):
        table.add_column(f"{heading}\nin sample", justify="right")
        table.add_column("cross-\nval.", justify="right")
    for name, choice in tuning.choices.items():
        summaries = [
            counts.summary(tuning.objective) for counts in (choice.in_sample, choice.cross_validated)
        ]
        cells = [f"{summary[heading]:.2f}" for heading in summaries[0] for summary in summaries]
        table.add_row(name, *cells, style="bold" if name == tuning.recommended else None)
    return table


def _conclusions(tuning: Tuning) -> list[str]:
    def asked(name: str, part: str) -> dict[str, float]:
        counts: Counts = getattr(tuning.choices[name], part)
        return counts.asked(tuning.objective)

    def gain(name: str, part: str) -> str:
        before = asked(UNTUNED, part)
        return ", ".join(f"{key} {value - before[key]:+.2f}" for key, value in asked(name, part).items())

    lines = [
        f"recommended: {tuning.recommended} ({gain(tuning.recommended, 'cross_validated')}, cross-validated)",
        f"a threshold for each class gives {gain(PER_CLASS, 'in_sample')} on the images it is chosen on, and "
        f"{gain(PER_CLASS, 'cross_validated')} on others",
    ]
    if tuning.unreached:
        lines.append(
            f"no threshold has the precision for {counted(len(tuning.unreached), 'class', 'classes')}, where "
            f"the strictest is taken: {shortened(tuning.unreached)}"
        )
    if tuning.unlabelled:
        lines.append(
            f"{counted(len(tuning.unlabelled), 'class', 'classes')} with positives on {SPLIT} would label "
            f"none of its images: {shortened(tuning.unlabelled)}"
        )
    of = tuning.calibration
    lines.append(
        f"temperature {tuning.temperature:.3f}: calibration error {100 * of.error_before:.2f} -> "
        f"{100 * of.error_after:.2f} percent ({100 * of.error_cross_validated:.2f} cross-validated), Brier "
        f"score {of.brier_before:.4f} -> {of.brier_after:.4f} ({of.brier_cross_validated:.4f})"
    )
    if (bound := tuning.temperature_bound) is not None:
        lines.append(f"this temperature is the {bound} that is tried: {AT_BOUND[bound]}")
    return lines


def describe_tuning(tuning: Tuning) -> dict[str, Any]:
    """All numbers, for JSON: the thresholds of each choice with what they do by class."""

    def rates(counts: Counts, column: int) -> dict[str, float]:
        return {key: float(getattr(counts, key)[column]) for key in ("precision", "recall", "f1")}

    def by_class(name: str, choice: Choice) -> dict[str, Any]:
        thresholds = tuning.thresholds(name)
        return {
            label: {
                "threshold": float(thresholds[column]),
                "in_sample": rates(choice.in_sample, column),
                "cross_validated": rates(choice.cross_validated, column),
            }
            for column, label in enumerate(tuning.class_names)
        }

    return {
        "objective": str(tuning.objective),
        "recommended": tuning.recommended,
        "temperature": tuning.temperature,
        "calibration": asdict(tuning.calibration),
        "positives": dict(zip(tuning.class_names, tuning.positives.tolist(), strict=True)),
        "temperature_bound": tuning.temperature_bound,
        "unreached": list(tuning.unreached),
        "unlabelled": list(tuning.unlabelled),
        "choices": {
            name: {
                "in_sample": choice.in_sample.summary(tuning.objective),
                "cross_validated": choice.cross_validated.summary(tuning.objective),
                "classes": by_class(name, choice),
            }
            for name, choice in tuning.choices.items()
        },
    }
