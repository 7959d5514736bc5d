"""Rows: which there are, what they change, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.ablation.rows import (
    BASELINE,
    CONTROLS,
    Row,
    choose_rows,
    num_groups,
    read_rows,
    row_config,
    run_forwards,
    student_forwards,
)
from coterie.config import Config, changed_settings, load_config
from coterie.errors import ConfigError


def names(rows: tuple[Row, ...]) -> list[str]:
    return [row.name for row in rows]


def changes(row: Row, config: Config) -> list[str]:
    return [f"{key}={value}" for key, _, value in changed_settings(config, row_config(row, config))]


# Choosing


def test_by_default_there_is_every_control_and_values_of_every_sweep() -> None:
    rows = names(choose_rows(load_config(["k=5"]), num_classes=20))
    sweeps = ["a-0.25", "a-0.75", "w-0.25", "w-0.75", "k-3", "k-8", "root-1", "root-4"]
    assert rows == [row.name for row in CONTROLS] + sweeps


def test_usual_values_that_the_settings_have_or_that_cannot_be_are_left_out() -> None:
    config = load_config(["k=3", "distill.a=0.25", "partition.root=4"])
    rows = names(choose_rows(config, num_classes=7, names=["a", "k", "root"]))
    assert rows == ["baseline", "a-0.75", "root-1"]


def test_the_baseline_is_always_the_first_and_no_row_stands_twice() -> None:
    rows = choose_rows(Config(), 20, ["psd", "w-0.75", "w", "baseline", "psd"])
    assert names(rows) == ["baseline", "psd", "w-0.75", "w-0.25"]


def test_given_values_take_the_place_of_the_usual_ones_and_bring_their_rows() -> None:
    rows = choose_rows(Config(), 20, ["cgp"], {"a": [0.1, 1.0], "k": [19]})
    assert names(rows) == ["baseline", "cgp", "a-0.1", "a-1", "k-19"]
    rows = choose_rows(Config(), 20, None, {"a": [0.123456789]})
    assert [row.words for row in rows if row.name.startswith("a-")] == [("distill.a=0.123456789",)]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cpg", "did you mean 'cgp'"),
        ("a-0.2", "did you mean 'a-0.25'"),
        ("zzzz", "the rows are baseline, k1"),
    ],
)
def test_an_unknown_row_is_refused_with_the_nearest(name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no row '{name}'.*{part}"):
        choose_rows(Config(), 20, ["psd", name])


# What rows change


def test_the_rows_change_what_their_names_say() -> None:
    config = load_config(["k=4", "train.epochs=10"])
    by_name = {row.name: (changes(row, config), row.model) for row in CONTROLS}
    assert by_name == {
        "baseline": ([], "baseline"),
        "k1": (["k=1"], "student"),
        "random": (["partition.random=same-sizes"], "student"),
        "random-equal": (["partition.random=equal-sizes"], "student"),
        "cgp": (["distill.a=1.0"], "student"),
        "dgp": (["partition.dis_method=balanced", "distill.a=0.0"], "student"),
        "dgp-paper": (["partition.dis_method=paper", "distill.a=0.0"], "student"),
        "psd": ([], "student"),
        "cgp-teachers": ([], "CGP teachers"),
        "dgp-teachers": ([], "DGP teachers"),
        "all-teachers": ([], "all teachers"),
        "squared-error": (["distill.loss=squared-error"], "student"),
        "bernoulli-kl": ([], "student"),
        # K = 4: a distillation step is 3 + 8 forwards, of a plain step's 3
        "compute-student": (["baseline.epochs=37"], "baseline"),
        # 8 teachers of 10 epochs, and the student
        "compute-run": (["baseline.epochs=117"], "baseline"),
    }


def test_a_change_of_train_in_a_row_reaches_all_roles_but_those_with_a_value_of_their_own() -> None:
    config = load_config(["train.epochs=10", "teacher.epochs=4"])
    changed = row_config(Row("long", "long", ("train.epochs=20",)), config)
    assert [changed.baseline.epochs, changed.teacher.epochs, changed.student.epochs] == [20, 4, 20]


def test_a_baseline_with_the_compute_of_others_has_all_of_its_epochs() -> None:
    config = load_config(["train.patience=3"])
    changed = row_config(Row("compute", "compute", model="baseline", compute_of="run"), config)
    assert changed.baseline.patience is None
    assert changed.teacher.patience == 3


# What rows cost


def test_the_published_procedure_costs_43_forwards_for_each_image_and_epoch() -> None:
    config = load_config(["k=5", "train.epochs=1"])
    assert num_groups(config) == 10
    assert student_forwards(config) == 13
    assert run_forwards(config) == 43


def test_the_cost_follows_the_epochs_of_each_role_and_the_branches_there_are() -> None:
    config = load_config(["k=3", "train.epochs=7", "teacher.epochs=2", "distill.a=1"])
    assert student_forwards(config) == 7 * (3 + 3)
    assert run_forwards(config) == 3 * 2 * 3 + 7 * 6
    assert num_groups(load_config(["k=1"])) == 1


def test_a_baseline_that_teaches_costs_its_training_and_its_forwards() -> None:
    words = ["k=3", "train.epochs=7", "teacher.epochs=2", "baseline.epochs=5", "distill.baseline=0.2"]
    config = load_config(words)
    assert student_forwards(config) == 7 * (3 + 6 + 1)
    assert run_forwards(config) == 6 * 2 * 3 + 5 * 3 + 7 * 10


# Own rows


def rows_file(folder: Path, text: str) -> Path:
    path = folder / "rows.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_of_ones_own_are_read_from_yaml(tmp_path: Path) -> None:
    text = """
    no-cutout: [augment.cutout=0]
    long-teachers: {words: [teacher.epochs=80], model: all teachers, title: patient}
    same: {compute_of: run, model: baseline}
    """
    own = read_rows(rows_file(tmp_path, text))
    assert own == (
        Row("no-cutout", "no-cutout", ("augment.cutout=0",)),
        Row("long-teachers", "patient", ("teacher.epochs=80",), "all teachers"),
        Row("same", "same", (), "baseline", "run"),
    )
    assert names(choose_rows(Config(), 20, ["same", "psd"], own=own)) == ["baseline", "same", "psd"]
    assert names(choose_rows(Config(), 20, own=own))[-3:] == ["no-cutout", "long-teachers", "same"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must hold rows as"),
        ("- cgp", "must hold rows as"),
        ("{half", "cannot be read"),
        ("a=b: [k=2]", "'a=b' is no name of a row"),
        ("mine: k=2", "row 'mine' must be a list of key=value, got 'k=2'"),
        ("mine: {word: [k=2]}", "row 'mine' has no 'word'.*did you mean 'words'"),
        ("mine: {words: 3}", "row 'mine': 'words'"),
        ("mine: {compute_of: all}", "row 'mine': 'compute_of': Input should be 'run' or 'student'"),
        ("mine: [k]", "row 'mine': 'k' is not a setting"),
    ],
)
def test_a_rows_file_that_does_not_fit_names_the_row(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=rf"rows file .*rows\.yaml:?.*{part}"):
        read_rows(rows_file(tmp_path, text))


def test_a_rows_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows file .*none\.yaml is not there"):
        read_rows(tmp_path / "none.yaml")


def test_an_own_row_does_not_replace_another() -> None:
    with pytest.raises(ConfigError, match="there is a row 'psd' already"):
        choose_rows(Config(), 20, own=[Row("psd", "mine")])
    with pytest.raises(ConfigError, match=r"there is a row 'a-0\.25' already"):
        choose_rows(Config(), 20, own=[Row("a-0.25", "mine")])


@pytest.mark.parametrize("word", ["data=x.csv", "data.min_positives=3", "seed=3", "out=x", "device=cpu"])
def test_what_all_rows_share_cannot_be_in_one(word: str) -> None:
    with pytest.raises(ConfigError, match=f"'{word.split('=')[0].split('.')[0]}' is the same for all rows"):
        row_config(Row("mine", "mine", (word,)), Config())


def test_a_word_that_is_no_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'distill.alpha'"):
        row_config(Row("mine", "mine", ("distill.alpha=1",)), Config())


def test_the_baseline_row_is_the_plain_run() -> None:
    assert row_config(BASELINE, Config()) == Config()
