"""Tuning a run: what it writes, what it leaves alone, and what uses it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.special import expit

from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE, read_checkpoint, write_description
from coterie.errors import RunError
from coterie.logits import read_logits
from coterie.pipeline import Run, run
from coterie.runfolder import MANIFEST_FILE, RunFolder
from coterie.seeding import derive_seed
from coterie.tune import describe_tuning, reset_run, show_tuning, tune_run
from coterie.tuning import CHOICES, GLOBAL, PER_CLASS, Objective, Tuning, tune_thresholds


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_recommended_thresholds_are_kept_in_both_checkpoints(run_copy: Run) -> None:
    before = files_of(run_copy.folder)
    tunings = tune_run(run_copy.folder)
    after = files_of(run_copy.folder)
    assert {name for name in before if before[name] != after[name]} == {
        f"{model}/{INFO_FILE}" for model in ("baseline", "student")
    }
    kept = read_logits(run_copy.folder, "val")
    for name in ("baseline", "student"):
        seed = derive_seed(run_copy.config.seed, "tuning")
        expected = tune_thresholds(kept.models[name], kept.targets, seed=seed)
        checkpoint = read_checkpoint(run_copy.folder / name)
        assert tunings[name].recommended == expected.recommended
        assert checkpoint.thresholds == tuple(expected.thresholds())
        assert checkpoint.temperature == expected.temperature != 1
        assert checkpoint.threshold == 0.5


def test_what_was_tuned_is_used_by_predictions(run_copy: Run) -> None:
    photos = sorted((Path(run_copy.config.data.source).parent).glob("*.png"))[:6]
    before = run_copy.predictor("student")
    tune_run(run_copy.folder)
    place = run_copy.folder / "student"
    limits = (0.45, 0.5, 0.52, 0.55)
    write_description(place, replace(read_checkpoint(place), thresholds=limits))
    tuned = run_copy.predictor("student")
    temperature = tuned.checkpoint.temperature
    logits = np.log(before.scores(photos).astype(float) / (1 - before.scores(photos)))
    np.testing.assert_allclose(tuned.scores(photos), expit(logits / temperature), rtol=1e-4)
    assert tuned.thresholds == limits
    for prediction in tuned.predict(photos):
        above = {
            label
            for (label, score), limit in zip(prediction.scores.items(), limits, strict=True)
            if score > limit
        }
        assert set(prediction.labels) == above
    for prediction in tuned.predict(photos, threshold=0.5):
        assert set(prediction.labels) == {label for label, score in prediction.scores.items() if score > 0.5}


def test_tuned_on_a_run_that_is_given_again_nothing_is_trained_and_nothing_lost(run_copy: Run) -> None:
    tune_run(run_copy.folder)
    before = files_of(run_copy.folder)
    again = run(run_copy.config)
    assert files_of(run_copy.folder).keys() == before.keys()
    for name in ("baseline", "student"):
        for file in (INFO_FILE, WEIGHTS_FILE, "log.jsonl"):
            assert files_of(run_copy.folder)[f"{name}/{file}"] == before[f"{name}/{file}"]
    assert again.student.checkpoint.temperature != 1
    assert not (run_copy.folder / "archive").exists()


def test_thresholds_outlive_another_global_threshold(run_copy: Run) -> None:
    tune_run(run_copy.folder)
    tuned = read_checkpoint(run_copy.folder / "student")
    run(run_copy.config.model_copy(update={"threshold": 0.3}), update=True)
    assert read_checkpoint(run_copy.folder / "student") == replace(tuned, threshold=0.3)


def test_another_run_does_not_take_what_was_tuned_out_of_a_store(run_copy: Run, tmp_path: Path) -> None:
    tune_run(run_copy.folder)
    run(run_copy.config, store=tmp_path / "store")
    other = run_copy.config.model_copy(update={"out": tmp_path / "other"})
    run(other, store=tmp_path / "store")
    taken = read_checkpoint(tmp_path / "other" / "student")
    mine = read_checkpoint(run_copy.folder / "student")
    assert taken.weights_sha256 == mine.weights_sha256
    assert (taken.thresholds, taken.temperature) == (None, 1.0)
    assert mine.thresholds is not None


def test_a_global_threshold_without_calibration(run_copy: Run) -> None:
    tunings = tune_run(run_copy.folder, only_global=True, calibrate=False)
    for name, tuning in tunings.items():
        checkpoint = read_checkpoint(run_copy.folder / name)
        assert tuning.recommended == GLOBAL
        assert checkpoint.temperature == 1
        assert checkpoint.thresholds == (expit(tuning.choices[GLOBAL].cuts[0]),) * 4


def test_nothing_is_written_where_nobody_asked_for_it(run_copy: Run) -> None:
    before = files_of(run_copy.folder)
    dry = tune_run(run_copy.folder, write=False)
    assert files_of(run_copy.folder) == before
    assert dry["student"].thresholds().tolist() == tune_run(run_copy.folder)["student"].thresholds().tolist()


def test_what_was_tuned_can_be_taken_out_again(run_copy: Run) -> None:
    before = {name: read_checkpoint(run_copy.folder / name) for name in ("baseline", "student")}
    tune_run(run_copy.folder)
    assert reset_run(run_copy.folder) == ["baseline", "student"]
    assert {name: read_checkpoint(run_copy.folder / name) for name in before} == before


def test_logits_of_other_weights_are_refused(run_copy: Run) -> None:
    folder = RunFolder(run_copy.folder)
    student = folder.trainings()[-1]
    folder.record(replace(student, weights_sha256="0" * 64))
    with pytest.raises(RunError, match="of other weights than its checkpoints: the `coterie run` command"):
        tune_run(run_copy.folder)


def test_what_is_no_run_is_refused(run_copy: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run at .*student; name the folder of a run"):
        tune_run(run_copy.folder / "student")
    with pytest.raises(RunError, match="no run with a baseline or a student"):
        reset_run(tmp_path / "nothing")
    (run_copy.folder / "logits" / "val" / "index.json").unlink()
    with pytest.raises(RunError, match="no logits of split 'val'"):
        tune_run(run_copy.folder)
    (run_copy.folder / MANIFEST_FILE).unlink()
    with pytest.raises(RunError, match="there is no run at"):
        tune_run(run_copy.folder)


def test_what_is_shown_has_the_numbers_and_what_is_recommended(run_copy: Run) -> None:
    tuning = tune_run(run_copy.folder, Objective.parse("precision=1"), write=False)["student"]
    shown = shown_lines(tuning)
    assert "student: thresholds for precision=1, from 12 images of val" in shown
    for name, choice in tuning.choices.items():
        (line,) = [line for line in shown.splitlines() if line.startswith(f" {name} ")]
        parts = (choice.in_sample, choice.cross_validated)
        summaries = [part.summary(tuning.objective) for part in parts]
        expected = [f"{summary[key]:.2f}" for key in summaries[0] for summary in summaries]
        assert line.removeprefix(f" {name}").split() == expected
    assert f"recommended: {tuning.recommended} (OP " in shown
    for name in tuning.unreached:
        assert f"'{name}'" in shown
    assert f"temperature {tuning.temperature:.3f}: calibration error " in shown


def shown_lines(tuning: Tuning) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_tuning("student", tuning, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("scale", "temperature", "said"),
    [
        (100.0, "20.000", "this temperature is the highest that is tried: the scores are far too sure"),
        (0.001, "0.050", "this temperature is the lowest that is tried: hardly a score is wrong"),
        (1.0, "0.743", None),
    ],
)
def test_a_temperature_at_the_end_of_those_tried_is_told(
    scale: float, temperature: str, said: str | None
) -> None:
    logits = scale * np.tile([[2.0], [-2.0], [1.0], [-1.0]], (3, 1))
    targets = (logits > 0).astype(np.int8)
    targets[2:4] = 1 - targets[2:4]
    shown = shown_lines(tune_thresholds(logits, targets))
    assert f"temperature {temperature}" in shown
    assert said in shown if said else "is tried" not in shown


def test_classes_that_get_no_label_are_told() -> None:
    logits = np.array([[5, 1, 3], [4, 2, 2], [3, 3, 1], [2, 4, 0.0]])
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], np.int8)
    tuning = tune_thresholds(
        logits, targets, Objective.parse("precision=1"), class_names=("ant", "bee", "cat"), among=(PER_CLASS,)
    )
    assert tuning.unlabelled == ("bee",)  # its only positive scores least; 'cat' has none
    assert describe_tuning(tuning)["unlabelled"] == ["bee"]
    assert "1 class with positives on val would label none of its images: 'bee'" in shown_lines(tuning)
    of_f1 = tune_thresholds(logits, targets, among=(PER_CLASS,))
    assert of_f1.unlabelled == ()
    assert "would label none" not in shown_lines(of_f1)


def test_all_numbers_are_described_by_class(run_copy: Run) -> None:
    tuning = tune_run(run_copy.folder, write=False)["student"]
    described = json.loads(json.dumps(describe_tuning(tuning)))
    assert tuple(described["choices"]) == CHOICES
    for name, choice in tuning.choices.items():
        for column, label in enumerate(tuning.class_names):
            of_class = described["choices"][name]["classes"][label]
            assert of_class["threshold"] == tuning.thresholds(name)[column]
            assert of_class["in_sample"]["f1"] == choice.in_sample.f1[column]
            assert of_class["cross_validated"]["recall"] == choice.cross_validated.recall[column]
    assert described["positives"] == dict(zip(tuning.class_names, tuning.positives.tolist(), strict=True))
