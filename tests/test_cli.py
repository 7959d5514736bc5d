"""The command line: what it prints, and that bad input is one message and never a traceback."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import nn

from coterie.checkpoint import read_checkpoint, write_description
from coterie.cli import main
from coterie.config import load_config
from coterie.data.reading import read_dataset
from coterie.data.table import read_table
from coterie.errors import ConfigError
from coterie.logits import read_logits
from coterie.metrics import average_precision, multilabel_metrics
from coterie.pipeline import Run
from coterie.predictor import Predictor, load_classifier
from coterie.recipe import recipe_names
from coterie.runfolder import RunFolder
from coterie.trainer import Trainer
from tests.layouts import labels_of, write_json, write_tar, write_tiny_coco
from tests.tiny import CLASS_NAMES, RUN_WORDS, SIDE, Net, change_line, make_dataset, write_table

OWN_MODEL = ("--model", "tests.tiny:Net")


@dataclass(frozen=True)
class Outcome:
    status: int
    output: str
    error: str


Command = Callable[..., Outcome]


@pytest.fixture
def coterie_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`coterie WORDS…` in this process."""

    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["coterie", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "photos")


def run_words(table: Path, out: Path, *changes: str) -> list[str]:
    return ["run", *RUN_WORDS, f"data={table}", f"out={out}", *changes]


def assert_refused(outcome: Outcome, *parts: str, status: int = 1) -> None:
    """One message on stderr with all `parts`, and no traceback."""
    assert outcome.status == status, outcome.error
    assert outcome.error.startswith("error: ")
    assert outcome.error.count("error: ") == 1
    assert "Traceback" not in outcome.error
    for part in parts:
        assert part in outcome.error


# Help


def test_help_names_the_commands(coterie_command: Command) -> None:
    outcome = coterie_command("--help")
    assert outcome.status == 0
    for name in ("run", "ablate", "partition", "diagnose", "evaluate", "predict", "recipes", "settings"):
        assert f" {name} " in outcome.output


def test_help_of_run_says_how_to_write_settings_and_how_to_go_on(coterie_command: Command) -> None:
    outcome = coterie_command("run", "--help")
    assert "coterie run [OPTIONS] [KEY=VALUE]..." in outcome.output
    assert "the same command goes on with a run that was stopped" in outcome.output
    assert "--update" in outcome.output
    assert "--no-update" not in outcome.output


def test_wrong_usage_has_a_status_of_its_own(coterie_command: Command) -> None:
    assert coterie_command("run", "--no-such-option").status == 2
    assert coterie_command("predict").status == 2
    assert coterie_command("dance").status == 2


def test_settings_and_recipes_are_listed(coterie_command: Command) -> None:
    assert "train.epochs" in coterie_command("settings").output
    lines = coterie_command("recipes").output.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    (demo,) = [line for line in lines if line.startswith("demo ")]
    assert demo.endswith("  The built-in scenes on a CPU in a few minutes: `make demo`")


def test_a_recipe_is_copied_and_nothing_is_overwritten(
    coterie_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert coterie_command("recipes", "copy", "demo").output == (
        "written to demo.yaml; `coterie run recipe=demo.yaml` runs it\n"
    )
    assert load_config(["recipe=demo.yaml"]) == load_config(["recipe=demo"])
    Path("demo.yaml").write_text("k: 3\n")
    assert_refused(coterie_command("recipes", "copy", "demo"), "demo.yaml is there already", "another file")
    assert Path("demo.yaml").read_text() == "k: 3\n"
    assert coterie_command("recipes", "copy", "coco-r101-448", "mine/own.yaml").status == 0
    assert load_config(["recipe=mine/own.yaml"]).model.name == "resnet101.tv_in1k"
    outcome = coterie_command("recipes", "copy", "demo", "own.txt")
    assert_refused(outcome, "a file whose name ends in .yaml, got own.txt")
    assert_refused(coterie_command("recipes", "copy", "dmo"), "no recipe 'dmo'; did you mean 'demo'?")
    assert coterie_command("recipes", "copy").status == 2


def test_help_and_partitions_do_not_wait_for_torch() -> None:
    code = "import sys, {}; print(sorted({{'timm', 'torch'}} & set(sys.modules)))"
    for modules in ("coterie, coterie.cli", "coterie.config, coterie.preparation"):
        command = [sys.executable, "-c", code.format(modules)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# run: other formats than tables


def test_a_run_goes_from_coco_annotations_to_metrics(coterie_command: Command, tmp_path: Path) -> None:
    coco = write_tiny_coco(tmp_path / "coco")
    outcome = coterie_command(*run_words(coco, tmp_path / "run", "data.val_fraction=0.2"))
    assert outcome.status == 0, outcome.error
    lines = outcome.output.splitlines()
    data = read_dataset(load_config([f"data={coco}"]).data)
    images = len(data.indices("test"))
    assert re.match(
        rf"COCO 2017: 4 classes, \d+ train, \d+ val, {images} test images; split \w{{12}}$", lines[0]
    )
    assert any("the published val is the test split" in line for line in lines)
    student = load_classifier(tmp_path / "run", Net)
    assert student.class_names == data.class_names == CLASS_NAMES[::-1]
    test = data.subset(data.indices("test"))
    mean = multilabel_metrics(student.scores(list(test.images)), test.targets)["mAP"]
    (row,) = [line.split() for line in lines if "test mAP" in line]
    assert float(row[-2]) == pytest.approx(mean, abs=0.006)
    again = coterie_command("evaluate", tmp_path / "run", f"data={coco}", *OWN_MODEL)
    assert f"{mean:.2f}" in again.output


def test_a_run_reads_shards_in_place_with_loading_processes(coterie_command: Command, tmp_path: Path) -> None:
    dataset = make_dataset()
    for split in dataset.split_names:
        members: list[tuple[str, bytes | str]] = []
        for index in dataset.indices(split):
            buffer = io.BytesIO()
            dataset.load_image(index).save(buffer, "PNG")
            labels = ";".join(labels_of(dataset, index))
            members += [(f"{index}.png", buffer.getvalue()), (f"{index}.txt", labels)]
        write_tar(tmp_path / "shards" / f"{split}-000.tar", members)
    words = run_words(tmp_path / "shards", tmp_path / "run", "data.workers=1", "data.cache_gb=0")
    outcome = coterie_command(*words)
    assert outcome.status == 0, outcome.error
    assert "test mAP" in outcome.output
    assert not list((tmp_path / "shards").glob("*.png"))


# inspect


def test_inspect_shows_the_data_and_writes_all_of_it(coterie_command: Command, tmp_path: Path) -> None:
    coco = write_tiny_coco(tmp_path / "coco")
    (coco / "val2017" / "036.png").unlink()
    out = tmp_path / "report.json"
    outcome = coterie_command("inspect", f"data={coco}", "--pairs", "1", "--out", out)
    assert outcome.status == 0
    assert outcome.output.startswith("COCO 2017 (coco), 4 classes")
    assert "images are not there: 'val2017/036.png'; data.image_root" in outcome.output
    report = json.loads(out.read_text())
    assert report["missing"] == ["val2017/036.png"]
    assert report["class_names"] == ["stripes", "blue", "green", "red"]
    assert len(report["pairs"]) == 1
    assert f"split: {report['split_hash']}" in outcome.output.splitlines()


def test_inspect_refuses_what_is_no_data(coterie_command: Command, tmp_path: Path) -> None:
    write_json(tmp_path / "annotations" / "captions_val2017.json", {})
    assert_refused(
        coterie_command("inspect", f"data={tmp_path}"), "'captions_val2017.json'", "instances_val2014"
    )


# run: what is printed


def test_a_run_prints_plain_lines_and_the_results(
    coterie_command: Command, table: Path, finished_run: Run
) -> None:
    outcome = coterie_command(*run_words(table, table.parent.parent / "run"))
    assert outcome.status == 0
    assert outcome.error == ""
    lines = outcome.output.splitlines()
    split = read_table(table).split_hash()[:12]
    images = "24 train, 12 val, 12 test, 12 test_shifted images"
    assert lines[0] == f"labels.csv: 4 classes, {images}; split {split}"
    assert lines[1] == "note: 1 image has no label"
    assert lines[2].startswith("baseline: val mAP ")
    assert sum(line.startswith("teachers/") for line in lines) == 4
    assert not any(mark in outcome.output for mark in ("\x1b", "\r"))
    student = finished_run.metrics["test_shifted"]["student"]
    (row,) = [line for line in lines if "test_shifted mAP" in line]
    assert f"{student['mAP']:.2f}" in row


def test_a_finished_run_says_so(coterie_command: Command, run_copy: Run) -> None:
    outcome = coterie_command(*run_words(Path(run_copy.config.data.source), run_copy.folder))
    assert outcome.status == 0
    assert outcome.output.count("done before") == 6


def test_names_with_brackets_are_printed_as_they_are(coterie_command: Command, tmp_path: Path) -> None:
    dataset = replace(make_dataset(), class_names=("[red]", "[/green]", ":blue:", "stripes [bold]x"))
    dataset.targets[dataset.indices("val"), 0] = 0
    table = write_table(tmp_path / "photos [1]", dataset)
    outcome = coterie_command(*run_words(table, tmp_path / "run [2]"))
    assert outcome.status == 0
    assert "in val and are left out of its means: '[red]'" in outcome.output
    assert f"{tmp_path / 'run [2]'} holds the run" in outcome.output
    groups = coterie_command("partition", *RUN_WORDS, f"data={table}")
    for name in dataset.class_names:
        assert name in groups.output
    listed = coterie_command(
        "predict", tmp_path / "run [2]", table.parent / "000.png", *OWN_MODEL, "--top", 4
    )
    assert listed.output.startswith(f"{table.parent / '000.png'}: ")
    for name in dataset.class_names:
        assert f"{name} 0." in listed.output
    assert_refused(coterie_command("evaluate", tmp_path / "run [3]"), f"at {tmp_path / 'run [3]'}\n")


def test_partitions_are_shown_and_written(coterie_command: Command, table: Path, tmp_path: Path) -> None:
    outcome = coterie_command("partition", *RUN_WORDS, f"data={table}", "--out", tmp_path / "groups")
    assert outcome.status == 0
    assert "co-occurrence (normalized-cut)" in outcome.output
    for branch in ("co-occurrence", "dis-occurrence"):
        content = json.loads((tmp_path / "groups" / f"{branch}.json").read_text())
        assert sorted(name for group in content["groups"] for name in group) == sorted(CLASS_NAMES)
        drawn = (tmp_path / "groups" / f"{branch}.svg").read_text()
        assert all(f">{name}</text>" in drawn for name in CLASS_NAMES)


def test_partitions_are_drawn_side_by_side(coterie_command: Command, table: Path, tmp_path: Path) -> None:
    words = ("partition", *RUN_WORDS, f"data={table}", "--picture")
    outcome = coterie_command(*words, tmp_path / "new" / "groups.svg")
    assert outcome.output.endswith(f"written to {tmp_path / 'new' / 'groups.svg'}\n")
    drawn = (tmp_path / "new" / "groups.svg").read_text()
    assert all(drawn.count(f">{name}</text>") == 2 for name in CLASS_NAMES)
    assert_refused(coterie_command(*words, "groups.gif"), "picture groups.gif must end in .svg, .png, .pdf")


def test_partitions_come_with_what_they_do_and_how_far_seeds_agree(
    coterie_command: Command, table: Path
) -> None:
    words = ("partition", *RUN_WORDS, f"data={table}", "seed=5")
    output = " ".join(coterie_command(*words).output.split())
    assert "% of the co-occurrence inside groups" in output
    assert output.count("agreement of seeds 5, 6, 7: adjusted Rand index ") == 2
    assert "agreement" not in coterie_command(*words, "--repeats", 1).output
    random = " ".join(coterie_command(*words, "partition.random=same-sizes", "--repeats", 2).output.split())
    assert "co-occurrence (random groups): normalized cut" in random
    assert "agreement of seeds 5, 6: adjusted Rand index" in random
    assert coterie_command(*words, "--repeats", 0).status == 2


def test_a_run_takes_and_fills_a_store(coterie_command: Command, table: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    coterie_command(*run_words(table, tmp_path / "one"), "--store", store)
    outcome = coterie_command(*run_words(table, tmp_path / "two", "distill.w=0.9"), "--store", store)
    assert outcome.status == 0
    assert outcome.output.count(f"taken from {store}, val mAP") == 5


def test_a_run_does_only_the_trainings_that_are_named(
    coterie_command: Command, table: Path, tmp_path: Path
) -> None:
    names = ("baseline", "teachers/dis-occurrence-1")
    outcome = coterie_command("run", "--only", *names, *run_words(table, tmp_path / "run")[1:])
    assert outcome.status == 0
    states = {each.name: each.state for each in RunFolder(tmp_path / "run").trainings()}
    assert [name for name, state in states.items() if state == "done"] == list(names)
    outcome = coterie_command(*run_words(table, tmp_path / "run"), "--only", "baselin")
    assert_refused(outcome, "there is no training 'baselin'", "did you mean 'baseline'?")


# run: bad input


def break_file(table: Path) -> None:
    (table.parent / "003.png").write_bytes(b"no picture")


def empty_table(table: Path) -> None:
    table.write_text("")


def remove_image(table: Path) -> None:
    (table.parent / "003.png").unlink()


def repeat_row(table: Path) -> None:
    change_line(table, "004.png", "003.png,red,train")


def put_in_two_splits(table: Path) -> None:
    change_line(table, "004.png", "003.png,red,test")


def remove_positives(table: Path) -> None:
    for number in range(24):
        change_line(table, f"{number:03d}.png", f"{number:03d}.png,red;blue;stripes,train")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (remove_image, ("1 of 60 images", "'003.png'", "data.image_root")),
        (break_file, ("'003.png'", "not a picture of a known format", "data.on_corrupt=skip")),
        (empty_table, ("labels.csv is empty", "it needs a header")),
        (repeat_row, ("'003.png' in line 5 and line 6", "put all labels of an image in one row")),
        (put_in_two_splits, ("'003.png' in split 'train'", "in split 'test'", "keep each in one split")),
        (remove_positives, ("no positive in train: 'green'", "data.min_positives=1")),
    ],
)
def test_bad_data_is_one_message(
    coterie_command: Command, table: Path, damage: Callable[[Path], None], parts: tuple[str, ...]
) -> None:
    damage(table)
    outcome = coterie_command(*run_words(table, table.parent.parent / "run"))
    assert_refused(outcome, *parts)
    assert not (table.parent.parent / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("k=5", ("5", "4 classes")),
        ("train.epoch=3", ("no setting 'train.epoch'", "did you mean 'train.epochs'")),
        ("train.epochs=many", ("setting 'train.epochs'", "got 'many'")),
        ("nonsense", ("'nonsense' is not a setting", "key=value")),
        ("model=resnet5", ("model.name=resnet5", "no such model", "did you mean 'resnet")),
        ("model=tests.tiny:Nett", ("no function 'Nett'", "did you mean 'Net'")),
        ("data=missing/labels.csv", ("missing/labels.csv is not there",)),
        ("recipe=demmo", ("no recipe 'demmo'", "did you mean 'demo'")),
        ("model.head=csar", ("setting 'model.head' must be 'linear', 'csra'", "got 'csar'")),
        ("model.head=csra", ("model.head does not reach your own model",)),
        ("model={name: test_resnet, head: csra, csra: {H: 4}}", ("no setting 'model.csra.H'",)),
        ("model={name: crossvit_tiny_240, head: csra}", ("crossvit_tiny_240 has no feature map", "=linear")),
        (
            "model={name: test_resnet, head: transformer, word_vectors: missing.npz}",
            ("word vectors missing.npz are not there",),
        ),
        (
            "data.class_names=[red, green, blue, stripe]",
            ("'stripes'", "is not one of the 4 classes", "did you mean 'stripe'?"),
        ),
    ],
)
def test_bad_settings_are_one_message(
    coterie_command: Command, table: Path, change: str, parts: tuple[str, ...]
) -> None:
    assert_refused(coterie_command(*run_words(table, table.parent.parent / "run", change)), *parts)
    assert not (table.parent.parent / "run").exists()


def test_of_several_processes_one_says_what_is_wrong_with_their_settings(
    coterie_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert_refused(coterie_command("run", "train.epoch=2"), "there is no setting 'train.epoch'")
    monkeypatch.setenv("RANK", "1")
    assert coterie_command("run", "train.epoch=2") == Outcome(1, "", "")


def test_a_corrupt_image_can_be_left_out(coterie_command: Command, table: Path) -> None:
    break_file(table)
    outcome = coterie_command(*run_words(table, table.parent.parent / "run", "data.on_corrupt=skip"))
    assert outcome.status == 0
    assert "note: 1 of 60 images cannot be read and are left out: '003.png'" in outcome.output
    assert "23 train" in outcome.output


def test_weights_of_another_architecture_are_refused(
    coterie_command: Command, table: Path, tmp_path: Path
) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "others.pt")
    words = run_words(table, tmp_path / "run", "model.name=test_resnet", "model.image_size=32")
    outcome = coterie_command(*words, f"model.weights={tmp_path / 'others.pt'}")
    assert_refused(outcome, "others.pt is not of this backbone", "model.name")
    outcome = coterie_command(*words, f"model.weights={tmp_path / 'missing.pt'}")
    assert_refused(outcome, "missing.pt is not there")


def test_a_folder_of_another_config_is_refused_and_nothing_is_lost(
    coterie_command: Command, run_copy: Run
) -> None:
    before = (run_copy.folder / "manifest.json").read_bytes()
    words = run_words(Path(run_copy.config.data.source), run_copy.folder, "distill.a=0.25")
    assert_refused(coterie_command(*words), "distill.a: 0.5 -> 0.25", "out=", "--update")
    assert (run_copy.folder / "manifest.json").read_bytes() == before
    updated = coterie_command(*words, "--update")
    assert updated.status == 0
    assert updated.output.count("done before") == 5


def test_a_folder_that_cannot_be_written_is_named(
    coterie_command: Command, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    outcome = coterie_command(*run_words(table, table.parent.parent / "run"))
    assert_refused(outcome, "run cannot be written: Permission denied", "out=")


def test_a_run_in_use_is_refused(coterie_command: Command, run_copy: Run) -> None:
    with RunFolder(run_copy.folder).locked():
        words = run_words(Path(run_copy.config.data.source), run_copy.folder)
        assert_refused(coterie_command(*words), "another process works in", str(run_copy.folder))


def test_a_full_disk_in_a_training_is_one_message_and_a_restart_goes_on(
    coterie_command: Command, table: Path, finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = table.parent.parent / "run"
    sync = os.fsync

    def sync_until_full(file: int) -> None:
        if list((folder / "teachers" / "co-occurrence-0").glob("state-*.pt")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", sync_until_full)
    outcome = coterie_command(*run_words(table, folder))
    monkeypatch.setattr(os, "fsync", sync)
    assert_refused(outcome, f"the run in {folder} stopped: No space left on device", "goes on from the last")
    assert not list(folder.rglob("*.tmp"))
    assert [training.state for training in RunFolder(folder).trainings()].count("done") == 1
    assert coterie_command(*run_words(table, folder)).status == 0
    assert json.loads((folder / "metrics.json").read_text())["splits"] == finished_run.metrics


def test_too_small_a_disk_is_one_message(
    coterie_command: Command, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 0))
    outcome = coterie_command(*run_words(table, table.parent.parent / "run"))
    assert_refused(outcome, "the disk has 0.00 GB free", "free some, or choose another place with out=")


def test_ctrl_c_in_a_training_is_one_message_and_a_restart_goes_on(
    coterie_command: Command, table: Path, finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = table.parent.parent / "run"
    step, steps = Trainer.step, 0

    def step_until_stopped(self: Trainer, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 11:  # in the second epoch of the first teacher
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", step_until_stopped)
    outcome = coterie_command(*run_words(table, folder))
    assert_refused(
        outcome,
        "stopped; the same command, given again, goes on: a run from the last state that it kept",
        status=130,
    )
    restarted = coterie_command(*run_words(table, folder))
    assert restarted.status == 0
    assert restarted.output.count("done before") == 1
    assert steps == 6 * 6 + 2  # of the broken epoch two steps were done twice, and one never
    assert json.loads((folder / "metrics.json").read_text())["splits"] == finished_run.metrics


def test_a_loss_that_is_not_a_number_is_one_message(
    coterie_command: Command, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Net, "forward", lambda self, images: self.head.weight.sum(1).expand(len(images), -1) / 0
    )
    outcome = coterie_command(*run_words(table, table.parent.parent / "run"))
    assert_refused(
        outcome, "the loss of baseline is ", "in epoch 1 of 2, at step 1 of 3", "Lower the learning"
    )


def test_as_a_program_it_prints_the_message_and_exits_with_one(table: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    (table.parent / "003.png").unlink()
    command = [sys.executable, "-m", "coterie", *run_words(table, table.parent.parent / "run")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert_refused(Outcome(finished.returncode, finished.stdout, finished.stderr), "'003.png'")
    assert finished.stdout == ""


# diagnose


def test_diagnose_shows_the_groups_and_the_leaning_of_a_run(
    coterie_command: Command, finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    outcome = coterie_command("diagnose", finished_run.folder, "--split", "test", "--pairs", 1)
    assert outcome.status == 0
    lines = [" ".join(line.split()) for line in outcome.output.splitlines()]
    text = " ".join(lines)
    assert "co-occurrence (normalized-cut): normalized cut" in text
    assert text.count("agreement of seeds 0, 1, 2: adjusted Rand index") == 2
    leaning = finished_run.leaning["test"]
    for model in ("baseline", "all teachers", "student"):
        means = [leaning[model][what] for what in ("recall", "false_positives")]
        cells = [
            f"{mean['with']:.1f} {mean['without']:.1f} {mean['difference']:+.1f} {mean['pairs']}"
            for mean in means
        ]
        assert f"{model} {' '.join(cells)}" in lines
    pair = json.loads((finished_run.folder / "leaning.json").read_text())["pairs"][0]
    rates = leaning["student"]["each"][0].values()
    cells = [f"{rate['percent']:.1f} of {rate['of']}" for rate in rates]
    assert f"{pair['label']} {pair['companion']} student {' '.join(cells)}" in lines
    assert "val: leaning" not in text
    whole = coterie_command("diagnose", finished_run.folder).output
    assert [whole.count(f"{split}: leaning") for split in ("val", "test", "test_shifted")] == [1, 1, 1]


def test_a_folder_in_the_place_of_a_file_is_named(
    coterie_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    outcome = coterie_command("evaluate", finished_run.folder, "--out", tmp_path, *OWN_MODEL)
    assert_refused(outcome, f"Is a directory: {tmp_path}\n")


def test_diagnose_says_why_there_is_no_leaning_to_show(coterie_command: Command, run_copy: Run) -> None:
    path = run_copy.folder / "leaning.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pairs": []}))
    output = coterie_command("diagnose", run_copy.folder).output
    assert "no leaning to show: no two labels are on 10 training images together" in output
    assert "recall" not in output


def test_diagnose_refuses_what_it_cannot_show(
    coterie_command: Command, run_copy: Run, tmp_path: Path
) -> None:
    none = coterie_command("diagnose", tmp_path / "none")
    assert_refused(
        none,
        f"there is no measured run at {tmp_path / 'none'}",
        "the `coterie run` command of the run, given again",
    )
    exam = coterie_command("diagnose", run_copy.folder, "--split", "tset")
    assert_refused(exam, "was not measured on split 'tset'; did you mean 'test'?")
    leaning = run_copy.folder / "leaning.json"
    for content in ("{half", "[]", '{"schema_version": 99}'):
        leaning.write_text(content)
        assert_refused(coterie_command("diagnose", run_copy.folder), "leaning.json", "delete it")
    leaning.unlink()
    assert_refused(coterie_command("diagnose", run_copy.folder), "it has no leaning.json")


# ablate


def ablate_words(table: Path, out: Path, *options: object) -> list[object]:
    return ["ablate", *RUN_WORDS, f"data={table}", "--out", out, *options]


def test_ablate_takes_lists_of_values_and_prints_the_plan(
    coterie_command: Command, table: Path, tmp_path: Path
) -> None:
    options = ("--rows", "cgp", "psd", "--a", "0.1", "0.9", "--k", "3", "--seeds", "4", "7", "--plan")
    for words in (
        ablate_words(table, tmp_path / "ablation", *options),
        ["ablate", *options, *RUN_WORDS, f"data={table}", "--out", tmp_path / "ablation"],
    ):
        outcome = coterie_command(*words)
        assert outcome.status == 0, outcome.error
        firsts = [line.split()[0] for line in outcome.output.splitlines() if line.strip()]
        rows = ["baseline", "cgp", "psd", "a-0.1", "a-0.9", "k-3"]
        assert [word for word in firsts if word in rows] == rows
        assert not any(word.startswith("w-") for word in firsts)
        assert "seeds 4, 7: " in outcome.output
        assert not (tmp_path / "ablation").exists()
    repeated = coterie_command(*ablate_words(table, tmp_path, "--seeds", 4, "--seeds", 7, "--plan"))
    assert "seeds 4, 7: " in repeated.output


def test_ablate_ends_in_a_table_and_writes_the_report(
    coterie_command: Command, table: Path, tmp_path: Path
) -> None:
    own = tmp_path / "rows.yaml"
    own.write_text("flat: [augment.cutout=0]\n")
    words = ablate_words(
        table, tmp_path / "out", "--rows", "cgp", "flat", "--rows-file", own, "--seeds", "0", "1"
    )
    outcome = coterie_command(*words)
    assert outcome.status == 0, outcome.error
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["baseline", "cgp", "flat"]
    (cgp,) = [each for each in content["summary"] if each["row"] == "cgp" and each["split"] == "test"]
    shown = f"{cgp['mAP']:.2f} ± {cgp['mAP_sd']:.2f} {cgp['difference']:+.2f} ± {cgp['difference_sd']:.2f}"
    lines = [" ".join(line.split()) for line in outcome.output.splitlines()]
    assert any(line.startswith(f"cgp {shown}") for line in lines)
    for suffix in ("md", "csv", "png"):
        assert (tmp_path / "out" / f"ablation.{suffix}").stat().st_size > 0
    again = coterie_command(*words)
    assert again.output.count("taken from") == again.output.count("images/s") == 0


def test_ablate_exits_with_one_where_a_row_failed(
    coterie_command: Command, table: Path, tmp_path: Path
) -> None:
    own = tmp_path / "rows.yaml"
    own.write_text("nan: [student.lr=1e30]\n")
    words = ablate_words(table, tmp_path / "out", "--rows", "nan", "cgp", "--rows-file", own, "--seeds", "0")
    outcome = coterie_command(*words)
    assert_refused(outcome, "some rows failed, and the others are done", "nan at seed 0: the ")
    assert " cgp " in outcome.output


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--rows", "cpg"), ("no row 'cpg'", "did you mean 'cgp'")),
        (("--k", "9"), ("row 'k-9'", "9", "4 classes")),
        (("--a", "2"), ("row 'a-2'", "setting 'distill.a'")),
        (("--seeds", "1", "1"), ("seed 1 stands twice",)),
        (("--rows-file", "none.yaml"), ("none.yaml is not there",)),
        (("trains.epochs=3",), ("no setting 'trains.epochs'", "did you mean 'train.epochs'")),
    ],
)
def test_ablate_refuses_bad_words_before_it_begins(
    coterie_command: Command, table: Path, tmp_path: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_refused(coterie_command(*ablate_words(table, tmp_path / "out", *options)), *parts)
    assert not (tmp_path / "out").exists()


def test_ablate_with_a_value_that_is_no_number_is_wrong_usage(
    coterie_command: Command, table: Path, tmp_path: Path
) -> None:
    for options in (("--seeds", "zero"), ("--seeds", "-1"), ("--a", "half"), ("--rows",)):
        assert coterie_command(*ablate_words(table, tmp_path / "out", *options)).status == 2


# evaluate


def test_evaluate_measures_a_run_on_its_own_data(
    coterie_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "results.json"
    outcome = coterie_command("evaluate", finished_run.folder, *OWN_MODEL, "--out", out)
    assert outcome.status == 0
    expected = {name: finished_run.metrics["test"][name] for name in ("baseline", "student")}
    written = json.loads(out.read_text())
    assert written.pop("conventions") == {
        "threshold": "0.5",
        "average precision": "all-point: every positive, not interpolated",
        "images without labels": "kept; 0 of 12 images measured have no label of a measured class",
        "classes of the data left out": [],
        "classes of the model left out": [],
    }
    assert written == {"test": expected}
    assert outcome.output.splitlines()[0] == "note: 1 image has no label"
    assert "labels.csv, threshold 0.5" in outcome.output
    (row,) = [line for line in outcome.output.splitlines() if "test mAP" in line]
    assert f"{expected['baseline']['mAP']:.2f}" in row
    assert f"{expected['student']['mAP']:.2f}" in row


def test_evaluate_measures_one_checkpoint_on_other_data_and_another_split(
    coterie_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    table = write_table(tmp_path / "photos")
    words = (finished_run.folder / "student", f"data={table}", "--split", "val", *OWN_MODEL)
    outcome = coterie_command("evaluate", *words)
    assert f"{finished_run.metrics['val']['student']['mAP']:.2f}" in outcome.output


def without_splits(table: Path) -> Path:
    """The table, its column of splits taken away."""
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines), encoding="utf-8")
    return table


def test_evaluate_measures_every_row_of_another_table_without_splits(
    coterie_command: Command, finished_run: Run, table: Path, tmp_path: Path
) -> None:
    without_splits(table)
    out = tmp_path / "results.json"
    words = ("evaluate", finished_run.folder, f"data={table}", "--out", out, *OWN_MODEL)
    outcome = coterie_command(*words, "--allow-overlap")
    assert "note: no splits given: all 60 images are measured" in outcome.output
    dataset = make_dataset()
    assert isinstance(dataset.images, np.ndarray)
    ordered = dataset.with_classes(finished_run.student.class_names)
    scores = finished_run.student.scores(list(dataset.images))
    expected = multilabel_metrics(scores, ordered.targets, class_names=ordered.class_names)
    assert json.loads(out.read_text())["test"]["student"]["mAP"] == pytest.approx(expected["mAP"])


def test_evaluate_draws_the_splits_of_the_run_for_the_data_of_the_run(
    coterie_command: Command, table: Path, tmp_path: Path
) -> None:
    without_splits(table)
    words = ("data.val_fraction=0.2", "data.test_fraction=0.2", "data.min_positives=1")
    assert coterie_command(*run_words(table, tmp_path / "run", *words)).status == 0
    expected = json.loads((tmp_path / "run" / "metrics.json").read_text())["splits"]["test"]
    for source in ((), (f"data={tmp_path / 'photos' / '..' / 'photos' / 'labels.csv'}",)):
        out = tmp_path / "results.json"
        outcome = coterie_command("evaluate", tmp_path / "run", *source, "--out", out, *OWN_MODEL)
        assert "drawn with seed 0" in outcome.output
        assert json.loads(out.read_text())["test"]["student"] == expected["student"]


def test_evaluate_takes_the_images_of_another_table_from_its_own_folder(
    coterie_command: Command, finished_run: Run, run_copy: Run, table: Path, tmp_path: Path
) -> None:
    for name in ("baseline", "student"):
        path = run_copy.folder / name / "checkpoint.json"
        info = json.loads(path.read_text())
        info["config"]["data"]["image_root"] = str(tmp_path / "gone")
        path.write_text(json.dumps(info))
    own = coterie_command("evaluate", run_copy.folder, *OWN_MODEL)
    assert_refused(own, f"data.image_root {tmp_path / 'gone'} is not a folder")
    outcome = coterie_command("evaluate", run_copy.folder, f"data={table}", *OWN_MODEL)
    assert f"{finished_run.metrics['test']['student']['mAP']:.2f}" in outcome.output
    moved = shutil.copy(table, tmp_path / "moved.csv")
    words = (f"data={moved}", f"data.image_root={table.parent}")
    assert coterie_command("evaluate", run_copy.folder, *words, *OWN_MODEL).status == 0


def test_evaluate_takes_and_shows_a_threshold(
    coterie_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    outcome = coterie_command("evaluate", finished_run.folder, "threshold=0", "--out", out, *OWN_MODEL)
    assert "labels.csv, threshold 0.0" in outcome.output
    assert json.loads(out.read_text())["test"]["student"]["CR"] == 100


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("train.epochs=3", "setting 'train.epochs' has no effect on an evaluation"),
        ("recipe=demo", "setting 'recipe' has no effect on an evaluation"),
        ("k=3", "data.*, threshold, device and precision"),
        ("treshold=0.5", "no setting 'treshold'; did you mean 'threshold'"),
    ],
)
def test_evaluate_refuses_settings_without_an_effect(
    coterie_command: Command, finished_run: Run, word: str, part: str
) -> None:
    assert_refused(coterie_command("evaluate", finished_run.folder, word, *OWN_MODEL), part)


@pytest.mark.parametrize(
    ("word", "before"),
    [
        ("data.test_fraction=0.5", "data.test_fraction is 0.1"),
        ("data.unlabelled=drop", "data.unlabelled is not set"),
        ("data.coco.crowd=ignore", "data.coco.crowd is positive"),
        ("data.split_column=fold", "data.split_column is split"),
        ("data.class_names=[a,b]", "data.class_names is not set"),
    ],
)
def test_evaluate_refuses_to_draw_the_splits_of_the_run_anew(
    coterie_command: Command, finished_run: Run, word: str, before: str
) -> None:
    outcome = coterie_command("evaluate", finished_run.folder, word, *OWN_MODEL)
    assert_refused(outcome, f"{before} in this run: another one would draw splits anew")


def test_evaluate_measures_on_data_of_another_format_with_classes_in_another_order(
    coterie_command: Command, finished_run: Run, run_copy: Run, tmp_path: Path
) -> None:
    for name in ("baseline", "student"):
        path = run_copy.folder / name / "checkpoint.json"
        info = json.loads(path.read_text())
        info["config"]["data"]["format"] = "table"  # said when it was trained, and not of the other data
        path.write_text(json.dumps(info))
    coco = write_tiny_coco(tmp_path / "coco")
    words = (f"data={coco}", "data.unlabelled=keep")
    outcome = coterie_command("evaluate", run_copy.folder, *words, *OWN_MODEL)
    assert outcome.status == 0, outcome.error
    assert f"{finished_run.metrics['test']['student']['mAP']:.2f}" in outcome.output


def test_evaluate_says_which_classes_it_leaves_out(
    coterie_command: Command, finished_run: Run, table: Path
) -> None:
    change_line(table, "040.png", "040.png,red;purple,test")
    outcome = coterie_command("evaluate", finished_run.folder, f"data={table}", *OWN_MODEL)
    assert outcome.status == 0
    assert "note: classes of the data that the model does not know are left out: 'purple'" in outcome.output


def test_evaluate_refuses_a_table_of_other_classes(
    coterie_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    dataset = replace(make_dataset(), class_names=("red", "greens", "blue", "stripes"))
    table = write_table(tmp_path / "photos", dataset)
    outcome = coterie_command("evaluate", finished_run.folder, f"data={table}", *OWN_MODEL)
    assert_refused(outcome, "no class 'green'", "did you mean 'greens'? --class-map same measures")


def test_evaluate_refuses_what_is_no_finished_run(
    coterie_command: Command, run_copy: Run, tmp_path: Path
) -> None:
    assert_refused(
        coterie_command("evaluate", tmp_path / "none"), f"no run or checkpoint at {tmp_path / 'none'}"
    )
    (run_copy.folder / "student" / "checkpoint.json").unlink()
    outcome = coterie_command("evaluate", run_copy.folder, *OWN_MODEL)
    assert_refused(outcome, f"the run in {run_copy.folder} is not finished", "coterie run")
    assert_refused(coterie_command("evaluate", run_copy.folder / "baseline"), "--model module:function")


def test_evaluate_refuses_a_split_that_is_not_there(coterie_command: Command, finished_run: Run) -> None:
    outcome = coterie_command("evaluate", finished_run.folder, "--split", "exam", *OWN_MODEL)
    assert_refused(outcome, "no split 'exam'", "'test_shifted'")


def test_evaluate_maps_classes_by_a_file(
    coterie_command: Command, finished_run: Run, table: Path, tmp_path: Path
) -> None:
    words = ("evaluate", finished_run.folder / "student", f"data={table}", *OWN_MODEL)
    dataset = make_dataset()
    header = 'image,rot,"grün, hell",blue,stripes,split'
    rows = zip(dataset.image_ids, dataset.targets.tolist(), dataset.splits, strict=True)
    lines = [f"{name},{','.join(map(str, targets))},{split}" for name, targets, split in rows]
    table.write_text("\n".join([header, *lines]), encoding="utf-8")
    mapping = tmp_path / "classes.csv"
    mapping.write_text('data,model\n"grün, hell",green\nrot,red\nblue,blue\n', encoding="utf-8")
    assert_refused(
        coterie_command(*words),
        "its classes are 'rot', 'grün, hell', 'blue', 'stripes'; --class-map same",
        "--class-map FILE maps the others",
    )
    out = tmp_path / "out.json"
    outcome = coterie_command(*words, "--class-map", mapping, "--out", out)
    assert outcome.status == 0, outcome.error
    assert "note: classes of the data that the model does not know are left out: 'stripes'" in outcome.output
    assert "note: classes of the model that the data do not have are left out: 'stripes'" in outcome.output
    names = finished_run.student.class_names
    trained = dict(zip(names, finished_run.metrics["test"]["student"]["AP"], strict=True))
    measured = json.loads(out.read_text())["test"]["student"]["AP"]
    assert measured == pytest.approx([trained[name] for name in ("green", "red", "blue")])
    same = coterie_command(*words, "--class-map", "same", "--out", out)
    assert same.status == 0
    assert json.loads(out.read_text())["test"]["student"]["AP"] == pytest.approx(
        [trained[name] for name in names if name in ("blue", "stripes")]
    )


def test_evaluate_takes_a_definition_of_average_precision(
    coterie_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    words = ("evaluate", finished_run.folder, *OWN_MODEL, "--out", out)
    outcome = coterie_command(*words, "--ap", "11-point")
    assert "average precision: 11-point, interpolated, as in VOC 2007" in outcome.output
    kept = read_logits(finished_run.folder, "test")
    expected = average_precision(np.array(kept.models["student"]), kept.targets, "11-point")
    assert json.loads(out.read_text())["test"]["student"]["AP"] == pytest.approx((100 * expected).tolist())
    assert coterie_command(*words, "--ap", "12-point").status == 2


def test_evaluate_refuses_images_of_the_training(
    coterie_command: Command, finished_run: Run, table: Path
) -> None:
    words = ("evaluate", finished_run.folder, *OWN_MODEL)
    outcome = coterie_command(*words, "--split", "train")
    assert_refused(outcome, "24 of 24 images of split 'train' were trained on: '000.png'", "--allow-overlap")
    trained = Path(finished_run.config.data.source)
    lines = trained.read_text(encoding="utf-8").splitlines()
    other = trained.parent / "other.csv"
    other.write_text("\n".join([lines[0], *(line.replace("train", "test") for line in lines[20:45])]) + "\n")
    try:
        outcome = coterie_command(*words, f"data={other}")
        assert_refused(outcome, "5 of 13 images of split 'test' were trained on: '019.png', '020.png'")
        assert coterie_command(*words, f"data={other}", "--allow-overlap").status == 0
    finally:
        other.unlink()
    outcome = coterie_command(*words, f"data={table}", "--split", "train")  # copies elsewhere
    assert_refused(outcome, "24 of 24 images of split 'train' were trained on: '000.png'")


def test_evaluate_says_where_the_images_of_the_training_cannot_be_compared(
    coterie_command: Command, run_copy: Run, table: Path
) -> None:
    path = run_copy.folder / "student" / "checkpoint.json"
    content = json.loads(path.read_text())
    content["config"]["data"]["source"] = str(table.parent / "gone.csv")
    path.write_text(json.dumps(content))
    outcome = coterie_command("evaluate", path.parent, *OWN_MODEL, f"data={table}")
    assert outcome.status == 0
    assert "note: images of the training may be among the measured" in " ".join(outcome.output.split())


def test_evaluate_says_by_which_conventions(coterie_command: Command, run_copy: Run, tmp_path: Path) -> None:
    coco = write_tiny_coco(tmp_path / "coco")
    words = ("evaluate", run_copy.folder, f"data={coco}", *OWN_MODEL)
    outcome = coterie_command(*words)
    assert "images without labels: dropped; 0 of " in outcome.output
    assert "crowd objects: a class with these alone is present (data.coco.crowd)" in outcome.output
    outcome = coterie_command(*words, "data.unlabelled=keep", "data.coco.crowd=ignore")
    assert "images without labels: kept; " in outcome.output
    assert "crowd objects: a class with these alone is unknown (data.coco.crowd)" in outcome.output
    assert coterie_command("tune", run_copy.folder, "--global").status == 0
    tuned = read_checkpoint(run_copy.folder / "student")
    assert tuned.thresholds is not None
    outcome = coterie_command(*words)
    assert (
        f"student: {tuned.thresholds[0]:.4f}, tuned at temperature {tuned.temperature:.3f}" in outcome.output
    )


def test_evaluate_asks_for_data_where_those_of_the_training_are_gone(
    coterie_command: Command, run_copy: Run, tmp_path: Path, table: Path
) -> None:
    place = run_copy.folder / "student"
    checkpoint = read_checkpoint(place)
    gone = dict(checkpoint.config["data"], source=str(tmp_path / "gone.csv"))
    write_description(place, replace(checkpoint, config=checkpoint.config | {"data": gone}))
    words = ("evaluate", place, *OWN_MODEL)
    assert_refused(
        coterie_command(*words), "trained on are not there any more", "gone.csv", "name others: data="
    )
    assert coterie_command(*words, f"data={table}").status == 0
    config = {key: value for key, value in checkpoint.config.items() if key != "data"}
    write_description(place, replace(checkpoint, config=config))
    assert_refused(coterie_command(*words), "has no data of its own; name some: data=labels.csv")
    assert_refused(coterie_command(*words, "data.min_positives=1"), "has no data of its own")
    assert coterie_command(*words, f"data={table}").status == 0
    assert_refused(coterie_command(*words, "data=scenes"), "has no class")


# tune


def test_tune_keeps_thresholds_that_evaluate_and_predict_use(
    coterie_command: Command, run_copy: Run, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.json"
    outcome = coterie_command("tune", run_copy.folder, "--for", "cost=1:3", "--out", out)
    assert outcome.status == 0, outcome.error
    assert "baseline: thresholds for cost=1:3, from 12 images of val" in outcome.output
    assert outcome.output.endswith(
        f"kept in the checkpoints of {run_copy.folder}: predict and evaluate use them from now on\n"
    )
    checkpoint = read_checkpoint(run_copy.folder / "student")
    described = json.loads(out.read_text())["student"]
    chosen = described["choices"][described["recommended"]]["classes"]
    assert checkpoint.thresholds == tuple(chosen[name]["threshold"] for name in checkpoint.class_names)

    measured = tmp_path / "measured.json"
    words = ("evaluate", run_copy.folder, "--split", "val", "--out", measured, *OWN_MODEL)
    assert coterie_command(*words).status == 0
    kept = read_logits(run_copy.folder, "val")
    scores = torch.from_numpy(np.array(kept.models["student"])).double() / checkpoint.temperature
    expected = multilabel_metrics(scores.sigmoid(), kept.targets, checkpoint.thresholds)
    assert json.loads(measured.read_text())["val"]["student"]["CF1"] == pytest.approx(expected["CF1"])
    assert coterie_command(*words, "threshold=0.4").status == 0
    expected = multilabel_metrics(scores.sigmoid(), kept.targets, 0.4)
    assert json.loads(measured.read_text())["val"]["student"]["CF1"] == pytest.approx(expected["CF1"])


def test_tune_can_only_show_and_can_be_undone(coterie_command: Command, run_copy: Run) -> None:
    outcome = coterie_command("tune", run_copy.folder, "--global", "--no-calibration", "--dry-run")
    assert outcome.status == 0, outcome.error
    assert "recommended: global" in outcome.output
    assert "temperature 1.000" in outcome.output
    assert outcome.output.endswith("no checkpoint was changed (--dry-run)\n")
    assert read_checkpoint(run_copy.folder / "student").thresholds is None
    assert coterie_command("tune", run_copy.folder).status == 0
    assert read_checkpoint(run_copy.folder / "student").thresholds is not None
    assert_refused(
        coterie_command("tune", run_copy.folder, "--reset", "--dry-run"), "leave --dry-run and --out"
    )
    assert read_checkpoint(run_copy.folder / "student").thresholds is not None
    outcome = coterie_command("tune", run_copy.folder, "--reset")
    assert outcome.output == "baseline and student: one threshold for all classes again, temperature 1\n"
    assert read_checkpoint(run_copy.folder / "student").thresholds is None


def test_tune_refuses_what_it_cannot_do(coterie_command: Command, run_copy: Run, tmp_path: Path) -> None:
    assert_refused(
        coterie_command("tune", run_copy.folder, "--for", "recall"), "'recall'; choose f1, precision"
    )
    assert_refused(coterie_command("tune", tmp_path / "none"), f"there is no run at {tmp_path / 'none'}")
    assert_refused(coterie_command("tune", run_copy.folder / "student"), "not one of its checkpoints")


# predict


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of three pictures, one of them broken; names and labels need care in a table."""
    folder = tmp_path / 'a, "b"'
    folder.mkdir()
    for name in ("1.png", "3.png"):
        make_dataset().load_image(0).save(folder / name)
    (folder / "2.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def awkward_run(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose labels hold commas and quotes."""
    folder = tmp_path_factory.mktemp("awkward")
    for name in ("model.safetensors", "checkpoint.json"):
        (folder / name).write_bytes((finished_run.folder / "student" / name).read_bytes())
    info = json.loads((folder / "checkpoint.json").read_text())
    info["class_names"] = ["a, b", 'the "c"', "d;e", "é\tf"]
    (folder / "checkpoint.json").write_text(json.dumps(info))
    return folder


def test_predict_prints_a_line_a_picture_and_says_what_it_could_not_read(
    coterie_command: Command, finished_run: Run, mixed: Path
) -> None:
    outcome = coterie_command("predict", finished_run.folder, mixed, *OWN_MODEL, "--top", 2)
    lines = outcome.output.splitlines()
    best = finished_run.student.predict([mixed / "1.png"], threshold=0)[0]
    shown = ", ".join(f"{label} {best.scores[label]:.2f}" for label in best.labels[:2])
    assert lines[0] == f"{mixed / '1.png'}: {shown}"
    assert lines[1] == f"{mixed / '2.png'}: it is not a picture of a known format"
    assert len(lines) == 3
    assert_refused(outcome, "1 of 3 pictures cannot be read", "2.png (it is not a picture of a known format)")


def test_predict_as_csv_survives_commas_and_quotes(
    coterie_command: Command, awkward_run: Path, mixed: Path
) -> None:
    outcome = coterie_command("predict", awkward_run, mixed, *OWN_MODEL, "--threshold", 0, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(outcome.output)))
    labels = [row["label"] for row in rows if row["image"] == str(mixed / "1.png")]
    assert sorted(labels) == sorted(["a, b", 'the "c"', "d;e", "é\tf"])
    scores = [float(row["score"]) for row in rows[:4]]
    assert scores == sorted(scores, reverse=True)
    assert [row for row in rows if row["error"]] == [
        {
            "image": str(mixed / "2.png"),
            "label": "",
            "score": "",
            "error": "it is not a picture of a known format",
        }
    ]
    assert outcome.status == 1


def test_predict_as_jsonl_has_an_object_a_picture(
    coterie_command: Command, awkward_run: Path, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "labels.jsonl"
    outcome = coterie_command(
        "predict", awkward_run, mixed, *OWN_MODEL, "--top", 4, "--format", "jsonl", "--out", out
    )
    assert outcome.output == ""
    first, broken, third = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert set(first["labels"]) == {"a, b", 'the "c"', "d;e", "é\tf"}
    assert first["labels"] == third["labels"]
    assert broken == {
        "image": str(mixed / "2.png"),
        "labels": {},
        "error": "it is not a picture of a known format",
    }


def test_predict_gives_the_labels_above_the_threshold_or_the_best(
    coterie_command: Command, finished_run: Run, table: Path
) -> None:
    photo = table.parent / "000.png"
    words = ("predict", finished_run.folder, photo, *OWN_MODEL, "--format", "jsonl")
    scores = finished_run.student.predict([photo])[0].scores
    ranked = sorted(scores, key=lambda label: -scores[label])

    def labels(*options: object) -> list[str]:
        outcome = coterie_command(*words, *options)
        assert outcome.status == 0
        return list(json.loads(outcome.output)["labels"])

    middle = (scores[ranked[1]] + scores[ranked[2]]) / 2
    assert labels("--threshold", middle) == ranked[:2]
    assert labels("--threshold", 1) == []
    assert labels("--threshold", middle, "--top", 1) == ranked[:1]
    assert labels("--threshold", middle, "--top", 3) == ranked[:2]
    assert labels("--top", 3) == ranked[:3]
    assert labels() == [label for label in ranked if scores[label] > 0.5]


def test_predict_without_labels_still_has_a_row(
    coterie_command: Command, finished_run: Run, table: Path
) -> None:
    words = ("predict", finished_run.folder, table.parent / "000.png", *OWN_MODEL, "--threshold", 1)
    assert coterie_command(*words).output == f"{table.parent / '000.png'}: -\n"
    assert coterie_command(*words, "--format", "csv").output.splitlines() == [
        "image,label,score,error",
        f"{table.parent / '000.png'},,,",
    ]


def test_predict_takes_patterns_and_lists_and_writes_parquet(
    coterie_command: Command, finished_run: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels.parquet"
    pattern = table.parent / "**" / "00[0-3].png"
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{table.parent}/010.png\0none.png\0".encode()))
    )
    outcome = coterie_command(
        "predict", finished_run.folder, pattern, "-", *OWN_MODEL, "--out", out, "--threshold", 0
    )
    assert_refused(outcome, "1 of 6 pictures cannot be read; the first: none.png (there is no such file)")
    rows = pyarrow.parquet.read_table(out).to_pylist()
    names = [*(f"{number:03d}.png" for number in (0, 1, 2, 3, 10)), "none.png"]
    assert [Path(row["image"]).name for row in rows] == names
    (first,) = finished_run.student.predict([table.parent / "000.png"], threshold=0)
    assert rows[0]["labels"] == list(first.labels)
    assert rows[0]["scores"] == pytest.approx([first.scores[label] for label in first.labels], abs=1e-6)
    assert not (tmp_path / "labels.parquet.partial").exists()


def test_predict_goes_on_where_it_was_stopped(
    coterie_command: Command, finished_run: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", finished_run.folder, table.parent, *OWN_MODEL, "--format", "csv", "--out")
    assert coterie_command(*words, tmp_path / "whole.csv").status == 0
    forward = Predictor._forward
    calls = iter(range(100))

    def stopped_in_the_second_batch(self: Predictor, pixels: list[torch.Tensor]) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return forward(self, pixels)

    monkeypatch.setattr(Predictor, "_forward", stopped_in_the_second_batch)
    outcome = coterie_command(*words, tmp_path / "out.csv")
    assert_refused(outcome, "stopped; the same command, given again, goes on", status=130)
    assert not (tmp_path / "out.csv").exists()
    assert_refused(coterie_command(*words, tmp_path / "out.csv", "--top", 1), "remove it, or choose another")
    assert coterie_command(*words, tmp_path / "out.csv").status == 0
    assert next(calls) == 3  # one batch of 60 pictures was left
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_predict_gives_the_classes_that_are_asked_for(
    coterie_command: Command, awkward_run: Path, table: Path
) -> None:
    words = ("predict", awkward_run, table.parent / "000.png", *OWN_MODEL, "--top", 9, "--format", "jsonl")
    outcome = coterie_command(*words, "--classes", "a, b", "é\tf")
    assert set(json.loads(outcome.output)["labels"]) == {"a, b", "é\tf"}
    assert_refused(coterie_command(*words, "--classes", ""), "name at least one class")


def test_predict_downloads_only_where_that_is_allowed(coterie_command: Command, finished_run: Run) -> None:
    words = ("predict", finished_run.folder, "http://127.0.0.1:9/a.png", *OWN_MODEL)
    assert_refused(coterie_command(*words), "http://127.0.0.1:9/a.png is an address; --allow-urls downloads")
    assert_refused(coterie_command(*words, "--allow-urls"), "127.0.0.1 is in a private network")
    assert_refused(coterie_command(*words, "--allow-private"), "Connection refused")


def test_predict_refuses_where_there_is_nothing_to_do(
    coterie_command: Command, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    words = ("predict", finished_run.folder, "-", *OWN_MODEL)
    assert_refused(coterie_command(*words, "--out", tmp_path / "out.csv"), "standard input names none")
    assert not list(tmp_path.iterdir())
    assert_refused(coterie_command(*words, "--format", "parquet"), "name it with --out")


def test_predict_refuses_what_is_no_finished_run(
    coterie_command: Command, run_copy: Run, tmp_path: Path
) -> None:
    assert_refused(coterie_command("predict", tmp_path / "none", tmp_path), "no run or checkpoint at")
    (run_copy.folder / "student" / "checkpoint.json").unlink()
    outcome = coterie_command("predict", run_copy.folder, tmp_path, *OWN_MODEL)
    assert_refused(outcome, f"the run in {run_copy.folder} is not finished")


def test_predict_refuses_pictures_that_are_not_there_before_it_writes(
    coterie_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "labels.csv"
    out.write_text("of yesterday")
    (tmp_path / "empty").mkdir()
    words = ("predict", finished_run.folder, *OWN_MODEL, "--out", out)
    assert_refused(coterie_command(*words, tmp_path / "missing.jpg"), "no picture or folder", "missing.jpg")
    assert_refused(coterie_command(*words, tmp_path / "empty"), "empty holds no picture")
    assert_refused(coterie_command(*words, "--device", "warp", tmp_path), "device warp cannot be used")
    assert out.read_text() == "of yesterday"


def test_predict_says_where_it_cannot_write(coterie_command: Command, finished_run: Run, table: Path) -> None:
    words = ("predict", finished_run.folder, table.parent / "000.png", *OWN_MODEL)
    assert_refused(
        coterie_command(*words, "--out", table.parent), "is a folder; name a file", str(table.parent)
    )
    assert_refused(coterie_command(*words, "--out", table / "out.csv"), str(table))


def test_a_config_file_of_a_run_makes_the_same_run(finished_run: Run) -> None:
    recipe = f"recipe={finished_run.folder / 'config.yaml'}"
    with pytest.raises(ConfigError, match=r"names code to run, model\.name=tests\.tiny:Net"):
        load_config([recipe])
    config = load_config([recipe, "model=tests.tiny:Net"])
    assert config == finished_run.config
    assert config.model.image_size == SIDE
