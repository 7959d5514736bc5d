"""The models side by side: baseline, the teachers that know a class, the student."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from coterie.errors import CheckpointError
from coterie.explain.columns import find_models
from coterie.pipeline import Run
from coterie.predictor import Predictor, load_classifier
from tests.tiny import CLASS_NAMES, Net

LOAD = partial(load_classifier, model=Net)


def test_a_run_shows_baseline_a_teacher_of_each_branch_and_student(finished_run: Run) -> None:
    models = find_models(finished_run.folder, load=LOAD)
    assert [column.title for column in models.columns] == [
        "baseline",
        "CGP teacher",
        "DGP teacher",
        "student",
    ]
    assert models.main.predictor.checkpoint.name == "student"
    for branch, column in (("co-occurrence", models.columns[1]), ("dis-occurrence", models.columns[2])):
        for name in CLASS_NAMES:
            explainer = column.find(name)
            assert explainer is not None
            assert explainer.predictor.checkpoint.name.startswith(f"teachers/{branch}-")
            assert name in explainer.predictor.class_names
        assert column.find("yellow") is None
    found = [column.find("red") for column in (models.columns[0], models.columns[3])]
    assert [explainer.predictor.checkpoint.name for explainer in found if explainer] == [
        "baseline",
        "student",
    ]


def test_a_model_is_loaded_once_and_a_teacher_when_it_is_asked_for(finished_run: Run) -> None:
    loaded: list[str] = []

    def load(folder: Path) -> Predictor:
        loaded.append(folder.name)
        return LOAD(folder)

    models = find_models(finished_run.folder, load=load)
    assert sorted(loaded) == ["baseline", "student"]
    for _ in range(2):
        for column in models.columns:
            column.find("red")
    assert sorted(folder.rpartition("-")[0] or folder for folder in loaded) == [
        "baseline",
        "co-occurrence",
        "dis-occurrence",
        "student",
    ]


def test_a_checkpoint_stands_alone_or_beside_another(finished_run: Run) -> None:
    student, teacher = finished_run.folder / "student", finished_run.folder / "teachers" / "co-occurrence-0"
    assert [column.title for column in find_models(student, load=LOAD).columns] == ["student"]
    first, last = find_models(student, against=teacher, load=LOAD).columns
    assert (first.title, last.title) == ("baseline", "student")
    explainer = first.find(find_models(teacher, load=LOAD).main.predictor.class_names[0])
    assert explainer is not None
    assert explainer.predictor.checkpoint.name == "teachers/co-occurrence-0"


def test_against_a_run_is_against_its_baseline(finished_run: Run) -> None:
    first, _ = find_models(finished_run.folder / "student", against=finished_run.folder, load=LOAD).columns
    explainer = first.find("red")
    assert explainer is not None
    assert explainer.predictor.checkpoint.name == "baseline"


def test_what_is_not_trained_is_left_out(run_copy: Run) -> None:
    shutil.rmtree(run_copy.folder / "baseline")
    for folder in (run_copy.folder / "teachers").glob("dis-occurrence-*"):
        shutil.rmtree(folder)
    titles = [column.title for column in find_models(run_copy.folder, load=LOAD).columns]
    assert titles == ["CGP teacher", "student"]
    shutil.rmtree(run_copy.folder / "student")
    with pytest.raises(CheckpointError, match="is not finished, it has no student yet"):
        find_models(run_copy.folder, load=LOAD)
