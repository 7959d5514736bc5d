"""A whole ablation: every shared training once, on after a kill, and one table at the end."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from rich.console import Console

import coterie.preflight
import coterie.training
from coterie.ablation import Ablation, Row, ablate
from coterie.ablation.running import _shared
from coterie.checkpoint import WEIGHTS_FILE, read_checkpoint
from coterie.config import Config, load_config
from coterie.data.check import check_images
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import ConfigError, RunError
from coterie.pipeline import run
from coterie.runfolder import RunFolder
from coterie.teachers import Teachers
from coterie.teaching import Teaching
from coterie.trainer import Trainer
from tests.killed import killed_at
from tests.tiny import RUN_WORDS, Net, make_dataset, write_table

ROWS = ("baseline", "cgp", "psd", "all-teachers")
SEEDS = (0, 1)
# at each seed the baseline, four teachers, the student of cgp and that of psd
TRAININGS = 2 * (1 + 4 + 2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data") / "photos")


def config(table: Path, *words: str) -> Config:
    return load_config([*RUN_WORDS, f"data={table}", *words])


@pytest.fixture(scope="module")
def finished(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ablation]:
    """A finished ablation of four rows and two seeds, and its folder."""
    out = tmp_path_factory.mktemp("finished") / "ablation"
    return out, ablate(config(table), ROWS, SEEDS, out=out)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(run, training) of the trainings that are done from here on."""
    names: list[tuple[str, str]] = []

    class Recorded(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            parts = self.folder.parts
            names.append((parts[parts.index("runs") + 1], self.folder.name))

    monkeypatch.setattr(coterie.training, "Trainer", Recorded)
    return names


def again(out: Path, table: Path, rows: Sequence[str] = ROWS, **options: Any) -> Ablation:
    return ablate(config(table), rows, SEEDS, out=out, **options)


def test_every_shared_training_is_done_once(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    result = again(tmp_path / "ablation", table)
    counts = Counter(trained)
    assert set(counts.values()) == {1}
    assert len(trained) == TRAININGS
    # cgp comes after the run of the settings as they are, whose teachers it takes
    assert [name for run_, name in trained if run_ == "distill.a-1.0-s0"] == ["student"]
    for seed in SEEDS:
        runs = [tmp_path / "ablation" / "runs" / f"{name}-s{seed}" for name in ("as-set", "distill.a-1.0")]
        shared = [(path / "teachers" / "co-occurrence-0" / WEIGHTS_FILE).read_bytes() for path in runs]
        assert shared[0] == shared[1]
    assert again(tmp_path / "ablation", table) == result
    assert len(trained) == TRAININGS


def test_the_numbers_are_those_of_runs_on_their_own(
    table: Path, tmp_path: Path, finished: tuple[Path, Ablation]
) -> None:
    _, result = finished
    tests: dict[str, list[float]] = {}
    for seed in SEEDS:
        words = (f"seed={seed}", f"out={tmp_path / f'plain-{seed}'}")
        plain = run(config(table, *words)).metrics["test"]
        cgp = run(config(table, *words, "distill.a=1", f"out={tmp_path / f'cgp-{seed}'}")).metrics["test"]
        values = (plain["baseline"], cgp["student"], plain["student"], plain["all teachers"])
        for row, metrics in zip(ROWS, values, strict=True):
            tests.setdefault(row, []).append(metrics["mAP"])
            assert result.values(row, "test")[seed] == metrics["mAP"]
    for row in ROWS:
        differences = [own - other for own, other in zip(tests[row], tests["baseline"], strict=True)]
        assert result.spread(row, "test") == pytest.approx((mean(tests[row]), stdev(tests[row]), 2))
        assert result.difference(row, "test") == pytest.approx((mean(differences), stdev(differences), 2))
    assert result.splits == ["val", "test", "test_shifted"]


def test_leaning_and_cost_come_from_the_runs(finished: tuple[Path, Ablation]) -> None:
    out, result = finished
    leaning = [
        json.loads((out / "runs" / f"as-set-s{seed}" / "leaning.json").read_text())["splits"]["test"]
        for seed in SEEDS
    ]
    for what in ("recall", "false_positives"):
        expected = mean(models["student"][what]["difference"] for models in leaning)
        assert result.leaning("psd", "test", what) == pytest.approx(expected)
    needed = [
        training.seconds
        for seed in SEEDS
        for training in RunFolder(out / "runs" / f"distill.a-1.0-s{seed}").trainings()
        if training.state == "done"
    ]
    assert len(needed) == 2 * 3
    assert result.costs()["cgp"][0] == pytest.approx(sum(needed))
    assert result.costs()["all-teachers"][1] == 0


def test_a_training_that_was_taken_says_whose_run_it_is_in(finished: tuple[Path, Ablation]) -> None:
    out, _ = finished
    folder = out / "runs" / "distill.a-1.0-s0"
    checkpoint = read_checkpoint(folder / "teachers" / "co-occurrence-0")
    assert checkpoint.config["distill"]["a"] == 1
    assert checkpoint.config["out"] == str(folder)


def test_a_killed_ablation_goes_on_and_ends_with_the_numbers_of_one_never_stopped(
    table: Path, tmp_path: Path, finished: tuple[Path, Ablation], trained: list[tuple[str, str]]
) -> None:
    out = tmp_path / "killed"
    words = ["ablate", *RUN_WORDS, f"data={table}", "--rows", *ROWS, "--seeds", "0", "1", "--out", str(out)]
    killed_at(out / "runs" / "as-set-s0" / "teachers" / "dis-occurrence-0" / "log.jsonl", *words)
    done = {entry.name for entry in (out / "trainings").iterdir() if not entry.name.startswith(".")}
    for manifest in (out / "runs").glob("*/manifest.json"):  # the last one may not have come to the store yet
        trainings = RunFolder(manifest.parent).trainings()
        done |= {training.key for training in trainings if training.key and training.state == "done"}
    assert 3 <= len(done) < TRAININGS
    result = again(out, table)
    assert len(trained) == TRAININGS - len(done)
    _, expected = finished
    for row in ROWS:
        for split in expected.splits:
            assert result.values(row, split) == expected.values(row, split)


def test_ctrl_c_stops_the_whole_ablation(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[tuple[str, str]]
) -> None:
    step, steps = Trainer.step, 0

    def step_until_stopped(self: Trainer, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", step_until_stopped)
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path / "ablation", table)
    assert [name for _, name in trained] == ["baseline", "co-occurrence-0"]


def test_a_damaged_training_in_the_store_is_done_again(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    out = tmp_path / "ablation"
    ablate(config(table), ["psd"], [0], out=out)
    assert len(trained) == 6
    teacher = RunFolder(out / "runs" / "as-set-s0").trainings()[1]
    weights = out / "trainings" / teacher.key / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    trained.clear()
    # the run whose training it is has it still; the next one cannot take it
    result = ablate(config(table), ["psd", "cgp"], [0], out=out)
    assert result.failures == ()
    assert trained == [("distill.a-1.0-s0", "co-occurrence-0"), ("distill.a-1.0-s0", "student")]
    assert weights.read_bytes() == content


def test_a_row_that_fails_is_reported_and_the_others_finish(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def diverge(self: Trainer, *arguments: Any) -> Any:
        if self.settings.lr == 0.5:
            raise ZeroDivisionError("no such luck")
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", diverge)
    own = [Row("broken", "broken", ("student.lr=0.5",)), Row("nan", "nan", ("student.lr=1e30",))]
    rows = ["baseline", "broken", "nan", "cgp"]
    out = tmp_path / "ablation"
    file = io.StringIO()
    result = ablate(config(table), rows, [0], own=own, out=out, console=Console(file=file, width=200))
    assert [failure.row for failure in result.failures] == ["broken", "nan"]
    assert result.failures[0].message.startswith("ZeroDivisionError: no such luck (more in ")
    assert "diverge" in (out / "errors.log").read_text()
    assert "in epoch 1 of 2" in result.failures[1].message
    assert "broken at seed 0 failed: ZeroDivisionError" in file.getvalue()
    assert set(result.values("cgp", "test")) == {0}
    assert "- nan at seed 0: the " in (out / "ablation.md").read_text()
    with pytest.raises(RunError, match=r"some rows failed, and the others are done:\nbroken at seed 0"):
        result.raise_failures()
    monkeypatch.undo()
    assert ablate(config(table), ["broken"], [0], own=own, out=out).failures == ()


def test_a_student_that_fails_does_not_cost_the_other_rows_of_its_run(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    rows = ["baseline", "psd", "cgp-teachers"]
    result = ablate(config(table, "student.lr=1e30"), rows, [0], out=tmp_path / "ablation")
    assert [failure.row for failure in result.failures] == ["psd"]
    assert set(result.values("baseline", "test")) == set(result.values("cgp-teachers", "test")) == {0}
    assert Counter(trained)["as-set-s0", "baseline"] == 1


def test_a_plan_trains_nothing_and_leaves_nothing(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    file = io.StringIO()
    again(tmp_path / "ablation", table, plan_only=True, console=Console(file=file, width=120))
    assert f"{TRAININGS} trainings in 4 runs, 0 done, {TRAININGS} left" in file.getvalue()
    assert trained == []
    assert not (tmp_path / "ablation").exists()


def test_a_further_row_trains_only_what_it_adds(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    out = tmp_path / "ablation"
    ablate(config(table), ["cgp"], [0], out=out)
    trained.clear()
    ablate(config(table), ["cgp", "w"], [0], values={"w": [0.9]}, out=out)
    assert [name for _, name in trained] == ["dis-occurrence-0", "dis-occurrence-1", "student"]


def test_two_ablations_share_a_store(table: Path, tmp_path: Path, trained: list[tuple[str, str]]) -> None:
    ablate(config(table), ["cgp"], [0], out=tmp_path / "one", store=tmp_path / "store")
    trained.clear()
    ablate(config(table), ["cgp"], [0], out=tmp_path / "two", store=tmp_path / "store")
    assert trained == []


def test_the_images_of_a_seed_are_checked_once(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[str] = []

    def check(dataset: MultiLabelDataset, *arguments: Any, **named: Any) -> Any:
        checks.append(dataset.name)
        return check_images(dataset, *arguments, **named)

    monkeypatch.setattr(coterie.preflight, "check_images", check)
    assert ablate(config(table), ["cgp"], [0, 1], out=tmp_path / "ablation").failures == ()
    assert len(checks) == 2  # of four runs


def test_pictures_that_are_left_out_are_left_out_of_the_plan_too(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    (table.parent / "003.png").write_bytes(b"no picture")
    settings = config(table, "data.on_corrupt=skip")
    out = tmp_path / "ablation"
    ablate(settings, ["cgp"], [0], out=out)
    file = io.StringIO()
    ablate(settings, ["cgp"], [0], out=out, plan_only=True, console=Console(file=file, width=120))
    assert "4 trainings in 2 runs, 4 done, 0 left" in file.getvalue()


def test_a_dataset_and_a_builder_may_be_given(tmp_path: Path) -> None:
    settings = load_config([word for word in RUN_WORDS if not word.startswith("model=")])
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"name": "tests.tiny:Net"})}
    )
    result = ablate(settings, ["cgp"], [3], out=tmp_path / "a", dataset=make_dataset(), builder=Net)
    assert set(result.values("cgp", "test")) == {3}


# What is refused


def test_a_folder_of_other_settings_is_refused_unless_it_is_to_be_updated(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    out = tmp_path / "ablation"
    ablate(config(table), ["baseline"], [0], out=out)
    trained.clear()
    with pytest.raises(RunError, match=r"ablation of other settings:\n  train\.epochs: 2 -> 1\n.*--update"):
        ablate(config(table, "train.epochs=1"), ["baseline"], [0], out=out)
    assert trained == []
    ablate(config(table, "train.epochs=1"), ["baseline"], [0], out=out, update=True)
    assert len(trained) == 1
    # another seed is no other ablation
    ablate(config(table, "train.epochs=1", "seed=5"), ["baseline"], out=out, plan_only=True)


def test_a_folder_of_other_files_is_refused(table: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files \(thesis\.txt\) and no ablation"):
        ablate(config(table), ["baseline"], [0], out=tmp_path)


def test_a_damaged_settings_file_is_named(table: Path, tmp_path: Path) -> None:
    (tmp_path / "ablation.yaml").write_text("seed: [")
    with pytest.raises(RunError, match=r"(?s)ablation\.yaml is damaged.*\nChoose another folder with --out"):
        ablate(config(table), ["baseline"], [0], out=tmp_path)


def test_a_second_process_is_refused(table: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(RunError, match="another process works in"):
        ablate(config(table), ["baseline"], [0], out=tmp_path)


def test_a_seed_that_stands_twice_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed 1 stands twice"):
        ablate(config(table), ["baseline"], [0, 1, 1], out=tmp_path)


def test_by_default_there_are_three_seeds_from_the_setting_on(table: Path, tmp_path: Path) -> None:
    result = ablate(config(table, "seed=4"), ["baseline"], out=tmp_path / "a", plan_only=True)
    assert result.seeds == (4, 5, 6)


def test_rows_share_what_their_teachers_say(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    teachers = Teaching.teachers

    def recorded(self: Teaching, kinds: Sequence[str]) -> Teachers:
        asked.append(tuple(kinds))
        return teachers(self, kinds)

    monkeypatch.setattr(Teaching, "teachers", recorded)
    out = tmp_path / "ablation"
    ablate(config(table), ("cgp", "psd", "w"), (0,), values={"w": [0.1, 0.9]}, out=out)
    # by the first student; the others, that of one branch too, find it on the disk
    assert asked == [("co-occurrence", "dis-occurrence")]
    asked.clear()
    again = ablate(config(table), ("cgp", "psd", "w"), (0,), values={"w": [0.1, 0.3, 0.9]}, out=out)
    assert asked == []
    assert again.failures == ()


def test_teachers_that_start_from_the_baseline_are_shared_and_planned(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    out = tmp_path / "ablation"
    chosen = config(table, "teacher.start=baseline")
    plan = ablate(chosen, ("psd", "cgp-teachers"), (0,), out=out, plan_only=True)
    assert plan.outcomes == ()
    result = ablate(chosen, ("psd", "cgp-teachers"), (0,), out=out)
    assert result.failures == ()
    assert [name for _, name in trained] == [
        *("baseline", "co-occurrence-0", "co-occurrence-1", "dis-occurrence-0", "dis-occurrence-1"),
        "student",
    ]
    trained.clear()
    ablate(chosen, ("psd", "w"), (0,), values={"w": [0.9]}, out=out)
    assert [name for _, name in trained] == ["student"]


def test_a_student_of_the_baseline_needs_it(
    table: Path, tmp_path: Path, trained: list[tuple[str, str]]
) -> None:
    out = tmp_path / "ablation"
    row = Row("taught", "taught by the baseline too", ("distill.baseline=0.3", "baseline.epochs=1"))
    result = ablate(config(table), ("taught",), (0,), own=(row,), out=out)
    assert result.failures == ()
    assert [name for _, name in trained].count("baseline") == 2  # the row's own is another


def test_what_teachers_say_is_kept_for_all_rows_but_of_mixed_images(tmp_path: Path) -> None:
    assert _shared(load_config(), tmp_path).distill.cache == "on"
    assert _shared(load_config(["distill.cache=off"]), tmp_path).distill.cache == "off"
    for word in ("student.mixup=0.2", "distill.relations=1"):
        assert _shared(load_config([word]), tmp_path).distill.cache == "auto"
