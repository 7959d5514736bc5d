"""The plan: which runs there are, which trainings they share, and what is left."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coterie.ablation.plan import Plan, make_plan, plan_table, run_name, show_plan
from coterie.ablation.rows import BASELINE, CONTROLS, Row
from coterie.config import Config, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import ConfigError
from coterie.pipeline import run
from tests.tiny import RUN_SETTINGS, SIDE, Net, make_dataset

ROWS = {row.name: row for row in CONTROLS}


def config(**settings: Any) -> Config:
    values = RUN_SETTINGS | {"model": {"name": "tests.tiny:Net", "image_size": SIDE}} | settings
    return load_config(settings=values)


def plan_of(out: Path, *rows: Row | str, seeds: Sequence[int] = (0,), **settings: Any) -> Plan:
    chosen = [ROWS[row] if isinstance(row, str) else row for row in rows]

    def read(_: int) -> MultiLabelDataset:
        return make_dataset()

    return make_plan(config(**settings), chosen, seeds, out, out / "trainings", read, Net)


def needs(plan: Plan, row: str) -> list[str]:
    """The names of the trainings of a row at the first seed."""
    (found,) = [
        planned.needs[ROWS[row]]
        for planned in plan.runs
        if ROWS[row] in planned.needs and planned.config.seed == 0
    ]
    return [training.name for training in found]


CO = ["teachers/co-occurrence-0", "teachers/co-occurrence-1"]
DIS = ["teachers/dis-occurrence-0", "teachers/dis-occurrence-1"]


def test_a_row_needs_what_its_model_is_made_of_and_learns_from(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *ROWS)
    expected = {
        "baseline": ["baseline"],
        "k1": ["teachers/co-occurrence-0", "student"],
        "cgp": [*CO, "student"],
        "dgp": [*DIS, "student"],
        "psd": [*CO, *DIS, "student"],
        "cgp-teachers": CO,
        "dgp-teachers": DIS,
        "all-teachers": [*CO, *DIS],
        "compute-run": ["baseline"],
    }
    assert {row: needs(plan, row) for row in expected} == expected


def test_rows_of_the_same_settings_are_one_run(tmp_path: Path) -> None:
    rows = ("baseline", "psd", "cgp-teachers", "bernoulli-kl", "cgp", "squared-error")
    plan = plan_of(tmp_path, *rows, seeds=(0, 1))
    assert [[row.name for row in planned.needs] for planned in plan.runs] == [
        ["baseline", "psd", "cgp-teachers", "bernoulli-kl"],
        ["cgp"],
        ["squared-error"],
    ] * 2
    assert [planned.config.seed for planned in plan.runs] == [0, 0, 0, 1, 1, 1]
    assert [planned.folder.name for planned in plan.runs][2:4] == [
        "distill.loss-squared-error-s0",
        "as-set-s1",
    ]
    assert plan.runs[0].only == ["baseline", *CO, *DIS, "student"]
    assert plan.runs[0].models == ["baseline", "student", "CGP teachers"]
    assert plan.runs[1].only == [*CO, "student"]


def test_shared_trainings_are_counted_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "baseline", "cgp", "psd", "squared-error", "all-teachers", seeds=(0, 1))
    # at each seed: the baseline, four teachers, and the students of three rows
    assert len(plan.trainings()) == 2 * (1 + 4 + 3)
    assert len(plan.left) == 16
    assert len(plan.trainings([ROWS["psd"]])) == 2 * 5
    # two epochs each; a student of cgp has two teachers, the others four
    student_of_two, student_of_four = 2 * (3 + 2), 2 * (3 + 4)
    forwards = 2 * (5 * 2 * 3 + student_of_two + 2 * student_of_four)
    assert sum(training.forwards for training in plan.left) == forwards
    assert plan.baselines(plan.left) == pytest.approx(forwards / 6)


def test_a_teacher_of_all_labels_is_not_the_baseline(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "baseline", "k1")
    assert [training.name for training in plan.trainings().values()] == [
        "baseline",
        "teachers/co-occurrence-0",
        "student",
    ]


def test_teachers_of_other_groups_or_settings_are_others(tmp_path: Path) -> None:
    longer = Row("longer", "longer", ("teacher.epochs=3",), "CGP teachers")
    wider = Row("wider", "wider", ("distill.w=0.9",), "CGP teachers")
    plan = plan_of(tmp_path, BASELINE, "cgp-teachers", longer, wider)
    identities = [plan.trainings([row]).keys() for row in plan.rows]
    assert not identities[1] & identities[2]
    assert identities[1] == identities[3]


def test_students_of_other_teachers_are_others(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, BASELINE, "psd", Row("k3", "", ("k=3",)), Row("same", "", ("partition.root=3",)))
    students = [
        [training.identity for training in plan.trainings([row]).values() if training.name == "student"]
        for row in plan.rows[1:]
    ]
    assert students[0] != students[1]
    assert students[0] == students[2]  # of four classes, another root makes the same groups


def test_what_the_store_has_is_done_whichever_run_trained_it(tmp_path: Path) -> None:
    rows = ("baseline", "cgp", "psd", "squared-error")
    assert len(plan_of(tmp_path, *rows).left) == 8
    other = config(distill={"a": 1.0}).model_copy(update={"out": tmp_path / "elsewhere"})
    run(other, dataset=make_dataset(), builder=Net, store=tmp_path / "trainings")
    left = plan_of(tmp_path, *rows).left
    assert sorted(training.name for training in left) == sorted([*DIS, "student", "student"])
    assert plan_of(tmp_path, "cgp", "baseline").left == []


def test_a_student_is_left_where_one_of_its_teachers_is(tmp_path: Path) -> None:
    whole = config().model_copy(update={"out": tmp_path / "elsewhere"})
    run(whole, dataset=make_dataset(), builder=Net, store=tmp_path / "trainings")
    plan = plan_of(tmp_path, "baseline", "psd")
    assert plan.left == []
    (teacher,) = [training for training in plan.trainings().values() if training.name == DIS[0]]
    (tmp_path / "trainings" / teacher.identity / "training.json").unlink()
    assert [training.name for training in plan_of(tmp_path, "psd").left] == [DIS[0], "student"]


def test_the_plan_is_shown_with_what_is_shared_and_left(tmp_path: Path) -> None:
    done = config().model_copy(update={"out": tmp_path / "elsewhere"})
    run(done, dataset=make_dataset(), builder=Net, store=tmp_path / "trainings", only=["baseline"])
    plan = plan_of(tmp_path, "baseline", "cgp", "psd")
    file = io.StringIO()
    show_plan(plan, Console(file=file, width=120))
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert lines[1] == "row trainings shared done left cost"
    assert "baseline baseline 1 0 1 0 0.0" in lines
    assert "cgp co-occurrence groups only 3 2 0 3 3.7" in lines
    assert "psd both branches (PSD) 5 2 0 3 4.3" in lines
    assert lines[-1] == "seeds 0: 7 trainings in 2 runs, 1 done, 6 left at the cost of 8.0 baselines"
    assert plan_table(plan).row_count == 3


def test_every_row_that_cannot_be_is_named_before_any_training(tmp_path: Path) -> None:
    rows = ("baseline", Row("k9", "", ("k=9",)), "psd", Row("mine", "", (), "studnt"))
    with pytest.raises(ConfigError, match=r"(?s)^row 'k9': k = 9.*4 classes.*\nrow 'mine': .*mean 'student'"):
        plan_of(tmp_path, *rows)
    with pytest.raises(ConfigError, match=r"row 'dgp-teachers': this run has no model 'DGP teachers'"):
        plan_of(tmp_path, "dgp-teachers", distill={"a": 1})
    with pytest.raises(ConfigError, match=r"row 'wrong': .*drop_rate"):
        plan_of(tmp_path, Row("wrong", "", ("model.drop_rate=0.5",)))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_named_by_what_differs() -> None:
    base = load_config(["k=3", "seed=7"])

    def name(*words: str) -> str:
        return run_name(base, load_config(["k=3", "seed=7", *words]))

    assert name() == "as-set-s7"
    assert name("distill.a=1", "k=4") == "k-4+distill.a-1.0-s7"
    assert name("teacher.epochs=4") == "teacher.epochs-4-s7"
    # what a file name cannot hold is told apart by a hash
    names = {name(f"model.name={text}") for text in ("a/b", "a:b", "a b", "x" * 200, "x" * 201)}
    assert len(names) == 5
    assert all(re.fullmatch(r"[\w.+-]{1,80}", found) for found in names)
