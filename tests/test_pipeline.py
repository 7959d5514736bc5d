"""A whole run: what it leaves, what it does again, and that a kill changes nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from rich.console import Console
from torch import Tensor, nn

import coterie.pipeline
import coterie.preflight
import coterie.training
from coterie.api import fit
from coterie.checkpoint import INFO_FILE, load_model, read_checkpoint
from coterie.config import Config, load_config
from coterie.data.check import check_images
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages, plain_batches
from coterie.data.reading import read_dataset
from coterie.data.transforms import Preprocessing
from coterie.diagnostics import (
    DIAGNOSTICS_FILE,
    LEANING_FILE,
    PARTITIONS,
    companion_rates,
    describe_pairs,
    leaning_summary,
    strongest_pairs,
)
from coterie.errors import CheckpointError, ConfigError, DataError, PartitionError, RunError
from coterie.files import atomic_file
from coterie.logits import read_logits, written_splits
from coterie.metrics import average_precision, multilabel_metrics
from coterie.models.factory import ModelFactory
from coterie.pipeline import Run, run
from coterie.preparation import diagnose_partitions, make_partitions, training_graph
from coterie.runfolder import METRICS_FILE, RunFolder, Training
from coterie.stages import BRANCHES
from coterie.states import read_state
from coterie.trainer import Trainer, predict_logits
from coterie.training import Failed, Job, Workshop
from tests.killed import killed_at
from tests.tiny import (
    CLASS_NAMES,
    RUN_SETTINGS,
    RUN_WORDS,
    SIDE,
    Net,
    cpu_fabric,
    make_dataset,
    sized,
    write_table,
)

TRAININGS = [
    "baseline",
    "teachers/co-occurrence-0",
    "teachers/co-occurrence-1",
    "teachers/dis-occurrence-0",
    "teachers/dis-occurrence-1",
    "student",
]


def config_of(made: Run, *changes: str) -> Config:
    return load_config([*RUN_WORDS, f"data={made.config.data.source}", f"out={made.folder}", *changes])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trainings that are done from here on."""
    names: list[str] = []

    class Recorded(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            folder = self.folder
            names.append("/".join(folder.parts[-2:]) if folder.parent.name == "teachers" else folder.name)

    monkeypatch.setattr(coterie.training, "Trainer", Recorded)
    return names


def test_a_run_leaves_every_training_and_what_it_was_made_from(finished_run: Run) -> None:
    folder = RunFolder(finished_run.folder)
    assert [(training.name, training.state) for training in folder.trainings()] == [
        (name, "done") for name in TRAININGS
    ]
    for training in folder.trainings():
        assert read_checkpoint(finished_run.folder / training.name).class_names == training.class_names
        assert not list((finished_run.folder / training.name).glob("state-*.pt"))
    for branch in ("co-occurrence", "dis-occurrence"):
        partition = json.loads((finished_run.folder / "partitions" / f"{branch}.json").read_text())
        teachers = [training for training in folder.trainings() if training.branch == branch]
        assert sorted(name for teacher in teachers for name in teacher.class_names) == sorted(CLASS_NAMES)
        assert [len(teacher.class_names) for teacher in teachers] == [len(g) for g in partition["groups"]]


def test_every_model_is_measured_on_every_split(finished_run: Run) -> None:
    content = json.loads((finished_run.folder / METRICS_FILE).read_text())
    assert content["splits"] == finished_run.metrics
    assert content["class_names"] == sorted(CLASS_NAMES)
    assert list(finished_run.metrics) == ["val", "test", "test_shifted"]
    for models in finished_run.metrics.values():
        assert list(models) == ["baseline", "CGP teachers", "DGP teachers", "all teachers", "student"]


def test_the_leaning_of_every_model_is_kept_beside_its_metrics(finished_run: Run) -> None:
    content = json.loads((finished_run.folder / LEANING_FILE).read_text())
    assert content["splits"] == finished_run.leaning
    assert {split: list(models) for split, models in finished_run.leaning.items()} == {
        split: list(models) for split, models in finished_run.metrics.items()
    }
    dataset = read_dataset(finished_run.config.data)
    pairs = strongest_pairs(training_graph(dataset))
    assert content["pairs"] == describe_pairs(pairs, dataset.class_names)
    assert pairs
    shifted = dataset.subset(dataset.indices("test_shifted"))
    scores = finished_run.student.scores([shifted.load_image(number) for number in range(len(shifted))])
    expected = leaning_summary(companion_rates(scores, shifted.targets, pairs))
    assert finished_run.leaning["test_shifted"]["student"] == expected


def test_what_the_groups_do_is_kept_beside_them(finished_run: Run) -> None:
    content = json.loads((finished_run.folder / PARTITIONS / DIAGNOSTICS_FILE).read_text())
    dataset = read_dataset(finished_run.config.data)
    partitions = make_partitions(finished_run.config, dataset)
    expected = diagnose_partitions(finished_run.config, dataset, partitions)
    assert content["branches"] == json.loads(json.dumps(expected))
    for kind, partition in partitions.items():
        groups = content["branches"][kind]["groups"]
        assert [tuple(group["names"]) for group in groups] == list(partition.group_names)


def test_the_diagnostics_of_the_groups_are_made_once_for_each_setting(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Config] = []

    def diagnose(config: Config, *arguments: Any) -> Any:
        made.append(config)
        return diagnose_partitions(config, *arguments)

    monkeypatch.setattr(coterie.pipeline, "diagnose_partitions", diagnose)
    run(run_copy.config)
    assert made == []
    run(config_of(run_copy, "partition.root=1"), update=True)
    assert len(made) == 1


def test_the_logits_of_every_model_are_kept_and_give_its_metrics(finished_run: Run) -> None:
    dataset = read_dataset(finished_run.config.data)
    assert written_splits(finished_run.folder) == ["val", "test", "test_shifted"]
    for split, models in finished_run.metrics.items():
        kept = read_logits(finished_run.folder, split)
        positions = dataset.indices(split)
        assert kept.class_names == dataset.class_names
        assert kept.image_ids == tuple(dataset.image_ids[position] for position in positions)
        np.testing.assert_array_equal(kept.targets, dataset.targets[positions])
        assert list(kept.models) == list(models)
        for name, metrics in models.items():
            scores = torch.tensor(kept.models[name]).double().sigmoid()
            assert multilabel_metrics(scores, kept.targets, class_names=kept.class_names) == metrics


def test_logits_that_are_missing_are_made_again(run_copy: Run, trained: list[str]) -> None:
    before = read_logits(run_copy.folder, "test").models["student"].copy()
    (run_copy.folder / "logits" / "test" / "index.json").unlink()
    with pytest.raises(RunError, match=r"no logits of split 'test'; it has those of val, test_shifted"):
        read_logits(run_copy.folder, "test")
    run(run_copy.config)
    assert trained == []
    np.testing.assert_array_equal(read_logits(run_copy.folder, "test").models["student"], before)


def test_damaged_logits_are_told(run_copy: Run) -> None:
    path = run_copy.folder / "logits" / "test" / "student.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"logits/test are damaged"):
        read_logits(run_copy.folder, "test")


def test_leaning_that_cannot_be_read_is_measured_again(run_copy: Run, trained: list[str]) -> None:
    (run_copy.folder / LEANING_FILE).write_text('{"key": ')
    again = run(run_copy.config)
    assert again.leaning == run_copy.leaning
    assert again.metrics == run_copy.metrics
    assert trained == []


def test_the_teachers_rows_are_the_metrics_of_their_joined_logits(finished_run: Run) -> None:
    dataset = read_dataset(finished_run.config.data)
    test = dataset.indices("test")
    expected, joined = {}, []
    for branch, row in (("co-occurrence", "CGP teachers"), ("dis-occurrence", "DGP teachers")):
        logits = torch.empty(len(test), dataset.num_classes)
        for index in range(2):
            model, checkpoint = load_model(finished_run.folder / "teachers" / f"{branch}-{index}", Net)
            batches = plain_batches(ResizedImages(dataset, checkpoint.preprocessing), test, 64)
            columns = [dataset.class_names.index(name) for name in checkpoint.class_names]
            logits[:, columns] = predict_logits(model, batches, checkpoint.preprocessing, cpu_fabric())[0]
        joined.append(logits)
        expected[row] = logits
    expected["all teachers"] = (joined[0] + joined[1]) / 2
    for row, logits in expected.items():
        metrics = multilabel_metrics(logits.sigmoid(), dataset.targets[test], class_names=dataset.class_names)
        assert finished_run.metrics["test"][row] == metrics


def test_a_finished_run_trains_nothing_and_gives_the_same_metrics(
    finished_run: Run, trained: list[str]
) -> None:
    again = run(finished_run.config)
    assert trained == []
    assert again.metrics == finished_run.metrics


def test_metrics_that_cannot_be_read_are_measured_again(run_copy: Run, trained: list[str]) -> None:
    (run_copy.folder / METRICS_FILE).write_text('{"key": ')
    assert run(run_copy.config).metrics == run_copy.metrics
    assert trained == []


def test_a_change_of_distillation_trains_the_student_alone(run_copy: Run, trained: list[str]) -> None:
    config = config_of(run_copy, "distill.w=0.9")
    with pytest.raises(RunError, match=r"distill\.w: 0\.5 -> 0\.9"):
        run(config)
    new = run(config, update=True)
    assert trained == ["student"]
    (archived,) = (run_copy.folder / "archive").iterdir()
    assert load_model(archived, Net)[1].name == "student"
    for row in ("baseline", "all teachers"):
        assert new.metrics["test"][row] == run_copy.metrics["test"][row]


def test_a_change_of_every_training_trains_all_again(run_copy: Run, trained: list[str]) -> None:
    run(config_of(run_copy, "train.epochs=1"), update=True)
    assert trained == TRAININGS
    assert len(list((run_copy.folder / "archive").iterdir())) == len(TRAININGS)


def test_a_change_of_k_keeps_the_teachers_that_are_gone_in_the_archive(
    run_copy: Run, trained: list[str]
) -> None:
    run(config_of(run_copy, "k=1"), update=True)
    assert trained == ["teachers/co-occurrence-0", "student"]
    assert [entry.name for entry in (run_copy.folder / "teachers").iterdir()] == ["co-occurrence-0"]
    assert len(list((run_copy.folder / "archive").iterdir())) == 5


def test_a_change_of_the_threshold_reaches_checkpoints_and_metrics_without_training(
    run_copy: Run, trained: list[str]
) -> None:
    new = run(config_of(run_copy, "threshold=0.1"), update=True)
    assert trained == []
    assert new.student.checkpoint.threshold == 0.1
    assert new.metrics["test"]["student"]["mAP"] == run_copy.metrics["test"]["student"]["mAP"]
    assert new.metrics["test"]["student"]["CR"] > run_copy.metrics["test"]["student"]["CR"]
    assert run(new.config).metrics == new.metrics


def test_weights_that_were_tampered_with_are_trained_again(run_copy: Run, trained: list[str]) -> None:
    weights = run_copy.folder / "teachers" / "dis-occurrence-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    new = run(run_copy.config)
    # the same seed gives the same teacher, so the student stands
    assert trained == ["teachers/dis-occurrence-1"]
    assert new.metrics == run_copy.metrics


def describe_otherwise(folder: Path, **changes: Any) -> None:
    """Change what a checkpoint says of its weights."""
    path = folder / INFO_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["stripes", "red", "green", "blue"]}, "answers for other classes than the manifest"),
        (
            {"preprocessing": {"image_size": SIDE, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}},
            rf"takes images of Preprocessing\(image_size={SIDE}, mean=\(0.1, .* delete its folder to train",
        ),
    ],
    ids=["another order of the classes", "another preprocessing"],
)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("teachers/co-occurrence-0", ["k=1", "distill.w=0.9", "distill.a=1"]),
        ("baseline", ["student.start=baseline"]),
        ("student", ["threshold=0.4"]),
    ],
    ids=["the student learns from it", "the student starts from it", "it is measured"],
)
def test_a_model_that_does_not_fit_the_run_is_refused_wherever_it_is_used(
    finished_run: Run, tmp_path: Path, name: str, words: list[str], changes: dict[str, Any], message: str
) -> None:
    config = config_of(finished_run, f"out={tmp_path / 'run'}", "k=1", "distill.a=1")
    run(config)
    describe_otherwise(tmp_path / "run" / name, **changes)
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        run(config_of(finished_run, f"out={tmp_path / 'run'}", "k=1", "distill.a=1", *words), update=True)


def test_another_preprocessing_of_the_same_model_trains_anew(
    run_copy: Run, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a timm of another version, whose defaults for a model are others."""
    other = Preprocessing(SIDE, (0.1, 0.2, 0.3), (1, 1, 1))
    monkeypatch.setattr(ModelFactory, "preprocessing", property(lambda _: other))
    run(run_copy.config, only=["baseline"])
    assert trained == ["baseline"]


def test_states_that_a_run_left_that_was_killed_when_its_training_was_finished_are_removed(
    run_copy: Run,
) -> None:
    left = run_copy.folder / "baseline" / "state-00000006.pt"
    left.write_bytes(b"of no use any more")
    run(run_copy.config)
    assert not left.exists()


def test_a_killed_run_ends_with_the_metrics_of_one_never_stopped(finished_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    words = [*RUN_WORDS, f"data={finished_run.config.data.source}", f"out={folder}"]
    killed_at(folder / "teachers" / "co-occurrence-0" / "log.jsonl", "run", *words)
    states = [training.state for training in RunFolder(folder).trainings()]
    assert states[0] == "done"
    assert states[-1] == "pending"
    assert run(load_config(words)).metrics == finished_run.metrics


def test_a_baseline_alone_is_trained_and_measured_and_a_later_call_does_the_rest(
    finished_run: Run, tmp_path: Path, trained: list[str]
) -> None:
    config = config_of(finished_run, f"out={tmp_path / 'run'}")
    alone = run(config, only=("baseline",))
    assert trained == ["baseline"]
    assert alone.metrics == {
        split: {"baseline": models["baseline"]} for split, models in finished_run.metrics.items()
    }
    assert run(config, only=("baseline",)).metrics == alone.metrics
    assert run(config).metrics == finished_run.metrics
    assert trained == TRAININGS


def test_the_teachers_of_a_branch_are_measured_when_all_of_them_are_done(
    finished_run: Run, tmp_path: Path
) -> None:
    config = config_of(finished_run, f"out={tmp_path / 'run'}")
    assert run(config, only=["teachers/co-occurrence-0"]).metrics == {}
    one_branch = run(config, only=["teachers/co-occurrence-1"]).metrics
    assert [list(models) for models in one_branch.values()] == [["CGP teachers"]] * 3
    assert one_branch["val"]["CGP teachers"] == finished_run.metrics["val"]["CGP teachers"]


def test_of_the_models_there_are_the_chosen_ones_are_measured(run_copy: Run, trained: list[str]) -> None:
    chosen = run(run_copy.config, models=["student", "CGP teachers"])
    assert trained == []
    for split, models in run_copy.metrics.items():
        assert chosen.metrics[split] == {name: models[name] for name in ("CGP teachers", "student")}
    assert run(run_copy.config).metrics == run_copy.metrics


def test_a_run_takes_from_a_store_what_it_would_train_and_puts_the_rest_there(
    finished_run: Run, tmp_path: Path, trained: list[str]
) -> None:
    store = tmp_path / "store"
    first = run(config_of(finished_run, f"out={tmp_path / 'first'}"), store=store)
    assert trained == TRAININGS
    assert first.metrics == finished_run.metrics
    trained.clear()
    other = run(config_of(finished_run, f"out={tmp_path / 'other'}", "distill.w=0.9"), store=store)
    assert trained == ["student"]
    for name in TRAININGS[:-1]:
        weights = [made.folder / name / "model.safetensors" for made in (first, other)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert (other.folder / name / "log.jsonl").exists()
        assert read_checkpoint(other.folder / name).config["distill"]["w"] == 0.9
    trainings = [RunFolder(made.folder).trainings()[:-1] for made in (first, other)]
    assert trainings[0] == trainings[1]
    trained.clear()
    third = run(
        config_of(finished_run, f"out={tmp_path / 'third'}", "distill.w=0.9", "threshold=0.3"), store=store
    )
    assert trained == []
    assert third.student.checkpoint.threshold == 0.3
    assert third.metrics["test"]["student"]["mAP"] == other.metrics["test"]["student"]["mAP"]


def test_a_finished_run_fills_a_store_without_training(
    run_copy: Run, tmp_path: Path, trained: list[str]
) -> None:
    store = tmp_path / "store"
    run(run_copy.config, store=store)
    run(config_of(run_copy, f"out={tmp_path / 'other'}"), store=store)
    assert trained == []


def test_what_is_taken_from_a_store_replaces_a_training_of_other_settings(
    run_copy: Run, tmp_path: Path, trained: list[str]
) -> None:
    store = tmp_path / "store"
    config = config_of(run_copy, f"out={tmp_path / 'other'}", "distill.w=0.9")
    other = run(config, store=store)
    trained.clear()
    new = run(config_of(run_copy, "distill.w=0.9"), update=True, store=store)
    assert trained == []
    assert new.metrics == other.metrics
    assert [entry.name.split("-")[0] for entry in (run_copy.folder / "archive").iterdir()] == ["student"]


def test_a_store_that_cannot_be_written_is_said_before_any_training(
    finished_run: Run, tmp_path: Path, trained: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the store of trainings .* cannot be written"):
        run(config_of(finished_run, f"out={tmp_path / 'run'}"), store=tmp_path / "file" / "store")
    assert trained == []


def test_groups_at_random_are_a_run_of_their_own(finished_run: Run, tmp_path: Path) -> None:
    result = run(config_of(finished_run, "partition.random=same-sizes", f"out={tmp_path / 'run'}"))
    for branch in ("co-occurrence", "dis-occurrence"):
        partition = json.loads((result.folder / PARTITIONS / f"{branch}.json").read_text())
        assert partition["kind"] == "random"
        teachers = [t for t in RunFolder(result.folder).trainings() if t.branch == branch]
        assert [list(teacher.class_names) for teacher in teachers] == partition["groups"]
    assert list(result.metrics["test"]) == list(finished_run.metrics["test"])


def test_a_model_of_other_settings_is_not_measured(run_copy: Run) -> None:
    config = config_of(run_copy, "train.epochs=1")
    assert list(run(config, only=["baseline"], update=True).metrics["val"]) == ["baseline"]


def test_only_names_trainings_of_the_run_and_no_student_before_its_teachers(
    run_copy: Run, tmp_path: Path, trained: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"no training 'basline'; .*; did you mean 'baseline'\?$"):
        run(run_copy.config, only=["basline"])
    for config in (config_of(run_copy, f"out={tmp_path / 'new'}"), config_of(run_copy, "train.epochs=1")):
        with pytest.raises(ConfigError, match="teachers that are not done: 'teachers/co-occurrence-0'"):
            run(config, only=["baseline", "student"], update=True)
    assert trained == []
    assert run(run_copy.config, only=["student"], update=True).metrics == run_copy.metrics


def test_a_baseline_that_teaches_is_trained_before_the_student(
    run_copy: Run, tmp_path: Path, trained: list[str]
) -> None:
    teachers = [name for name in TRAININGS if name.startswith("teachers/")]
    config = config_of(run_copy, f"out={tmp_path / 'new'}", "distill.baseline=0.2")
    with pytest.raises(ConfigError, match="teachers that are not done: 'baseline'"):
        run(config, only=[*teachers, "student"])
    assert trained == []
    # other weights of the baseline are another student
    first = config_of(run_copy, "distill.baseline=0.2")
    run(first, update=True)
    assert trained == ["student"]
    trained.clear()
    run(config_of(run_copy, "distill.baseline=0.2", "baseline.epochs=1"), update=True)
    assert trained == ["baseline", "student"]


def test_with_all_weight_on_one_branch_the_other_is_not_trained(finished_run: Run, tmp_path: Path) -> None:
    result = run(config_of(finished_run, "distill.a=1", f"out={tmp_path / 'run'}"))
    assert [training.name for training in RunFolder(result.folder).trainings()] == [
        "baseline",
        "teachers/co-occurrence-0",
        "teachers/co-occurrence-1",
        "student",
    ]
    assert list(result.metrics["test"]) == ["baseline", "CGP teachers", "student"]
    assert result.metrics["test"]["CGP teachers"] == finished_run.metrics["test"]["CGP teachers"]


def test_repeats_of_the_groups_have_teachers_of_their_own(
    finished_run: Run, run_copy: Run, trained: list[str]
) -> None:
    result = run(config_of(run_copy, "partition.repeats=2"), update=True)
    further = [f"teachers/{branch}.2-{index}" for branch in BRANCHES for index in range(2)]
    assert trained == [*further, "student"]
    names = [training.name for training in RunFolder(result.folder).trainings()]
    assert names == [*TRAININGS[:-1], *further, "student"]
    for branch in BRANCHES:
        teachers = [t for t in RunFolder(result.folder).trainings() if t.branch == f"{branch}.2"]
        first, second = (
            json.loads((result.folder / PARTITIONS / f"{name}.json").read_text())["groups"]
            for name in (branch, f"{branch}.2")
        )
        assert [list(teacher.class_names) for teacher in teachers] == second != first
    assert list(result.metrics["test"]) == list(finished_run.metrics["test"])
    assert result.metrics["test"]["CGP teachers"] != finished_run.metrics["test"]["CGP teachers"]
    assert result.metrics["test"]["student"] != finished_run.metrics["test"]["student"]


def test_teachers_may_learn_the_labels_outside_of_their_group(run_copy: Run, trained: list[str]) -> None:
    result = run(config_of(run_copy, "teacher.outside=0.25"), update=True)
    teachers = [name for name in TRAININGS if name.startswith("teachers/")]
    assert trained == [*teachers, "student"]
    dataset = read_dataset(result.config.data)
    kept = {training.name: training for training in RunFolder(result.folder).trainings()}
    logits = read_logits(result.folder, "test").models
    for branch, row in (("co-occurrence", "CGP teachers"), ("dis-occurrence", "DGP teachers")):
        together, counted = np.zeros_like(logits[row]), np.zeros(len(dataset.class_names))
        for name in teachers:
            if kept[name].branch != branch:
                continue
            group = set(kept[name].class_names)
            assert 0 < len(group) < len(dataset.class_names)
            model, checkpoint = load_model(result.folder / name, Net)
            assert checkpoint.class_names == dataset.class_names
            images = ResizedImages(dataset, checkpoint.preprocessing)
            counts = np.array([1.0 if each in group else 0.25 for each in dataset.class_names])
            for split in ("val", "test"):
                batches = plain_batches(images, dataset.indices(split), 64)
                answers, targets = predict_logits(model, batches, checkpoint.preprocessing, cpu_fabric())
                if split == "test":
                    together += answers.numpy() * counts
                else:
                    ap = average_precision(answers, targets).numpy()
                    known = ~np.isnan(ap)
                    expected = 100 * (ap * counts)[known].sum() / counts[known].sum()
                    assert kept[name].val_map == pytest.approx(expected, abs=1e-4)
            counted += counts
        assert logits[row] == pytest.approx(together / counted, abs=1e-4)
    trained.clear()
    run(config_of(run_copy, "teacher.outside=0.25", "distill.relations=1"), update=True)
    assert trained == ["student"]


def test_a_student_of_mixed_images_learns_from_the_same_teachers(
    finished_run: Run, run_copy: Run, trained: list[str]
) -> None:
    result = run(config_of(run_copy, "student.mixup=0.5"), update=True)
    assert trained == ["student"]
    assert result.metrics["test"]["student"] != finished_run.metrics["test"]["student"]
    assert result.metrics["test"]["baseline"] == finished_run.metrics["test"]["baseline"]
    trained.clear()
    result = run(config_of(run_copy, "train.mixup=0.5", "together=5"), update=True)
    assert trained == TRAININGS
    assert result.metrics["test"]["baseline"] != finished_run.metrics["test"]["baseline"]


@pytest.mark.parametrize("words", [("distill.relations=5",), ("distill.generator=0.1",)])
def test_a_student_learns_more_than_logits_from_the_same_teachers(
    finished_run: Run, run_copy: Run, trained: list[str], words: tuple[str, ...]
) -> None:
    result = run(config_of(run_copy, *words), update=True)
    assert trained == ["student"]
    students = [RunFolder(one.folder).trainings()[-1] for one in (result, finished_run)]
    assert students[0].weights_sha256 != students[1].weights_sha256
    assert result.metrics["test"]["all teachers"] == finished_run.metrics["test"]["all teachers"]


def test_a_model_whose_embeddings_cannot_be_seen_is_refused_before_it_trains(
    tmp_path: Path, trained: list[str]
) -> None:
    class Scores(Net):
        """What gives the logits is a convolution."""

        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.scores = nn.Conv2d(6, num_classes, 1)
            del self.head

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.scores(self.norm(self.convolution(images)))
            return scores.mean(dim=(2, 3))

    settings = RUN_SETTINGS | {"distill": {"relations": 1}}
    with pytest.raises(ConfigError, match=r"^distill\.relations looks at .* choose another model\.head"):
        fit(make_dataset(), sized(Scores), out=tmp_path / "run", **settings)
    assert trained == []


def test_one_group_is_plain_self_distillation(tmp_path: Path) -> None:
    result = fit(make_dataset(), sized(Net), out=tmp_path / "run", **RUN_SETTINGS | {"k": 1})
    teachers = [training for training in RunFolder(result.folder).trainings() if training.branch]
    assert [training.class_names for training in teachers] == [CLASS_NAMES]
    assert list(result.metrics["test"]) == ["baseline", "teacher", "student"]


def test_more_groups_than_classes_are_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=r"5.*4 classes"):
        fit(make_dataset(), sized(Net), out=tmp_path / "run", **RUN_SETTINGS | {"k": 5})
    assert not (tmp_path / "run").exists()


def test_unknown_targets_flow_through(tmp_path: Path) -> None:
    dataset = make_dataset(unknown=0.3)
    result = fit(dataset, sized(Net), out=tmp_path / "run", **RUN_SETTINGS)
    test = dataset.subset(dataset.indices("test"))
    assert isinstance(test.images, np.ndarray)
    scores = result.student.scores(list(test.images))
    expected = multilabel_metrics(scores, test.targets, class_names=CLASS_NAMES)
    assert result.metrics["test"]["student"]["mAP"] == pytest.approx(expected["mAP"])


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda logits: logits[:, :-1], r"it gave \[2, 3\]"),
        (lambda logits: logits.mean(), r"it gave \[\]"),
        (lambda logits: {"logits": logits}, "it gave dict"),
    ],
)
def test_a_model_of_another_shape_is_refused_before_any_training(
    tmp_path: Path, answer: Callable[[Tensor], object], got: str
) -> None:
    class Wrong(Net):
        def forward(self, images: Tensor) -> Tensor:
            return answer(super().forward(images))  # type: ignore[return-value]

    with pytest.raises(ConfigError, match=rf"must return logits \[B, 4\].*{got}"):
        fit(make_dataset(), sized(Wrong), out=tmp_path / "run", **RUN_SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_take_the_images_is_refused_before_any_training(tmp_path: Path) -> None:
    def build(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))

    with pytest.raises(ConfigError, match="does not take images of 16 x 16 pixels"):
        fit(make_dataset(), sized(build), out=tmp_path / "run", **RUN_SETTINGS)


def test_a_model_whose_shapes_changed_is_trained_again(tmp_path: Path, trained: list[str]) -> None:
    width = 6

    def build(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, SIDE), nn.Flatten(), nn.Linear(width, num_classes))

    settings = RUN_SETTINGS | {"train": {"epochs": 1}}
    fit(make_dataset(), sized(build), out=tmp_path / "run", **settings)
    width = 7
    trained.clear()
    fit(make_dataset(), sized(build), out=tmp_path / "run", **settings)
    assert trained == TRAININGS


def test_a_full_disk_stops_the_run_and_a_restart_goes_on(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(finished_run, f"out={tmp_path / 'run'}")
    states = 0

    def write_until_full(path: Path) -> Any:
        nonlocal states
        states += 1
        if states == 4:  # the second epoch of the first teacher
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return atomic_file(path)

    monkeypatch.setattr("coterie.states.atomic_file", write_until_full)
    with pytest.raises(RunError, match=r"run stopped: No space left on device.*goes on from the last"):
        run(config)
    assert [training.state for training in RunFolder(tmp_path / "run").trainings()][:2] == ["done", "pending"]
    (path,) = (tmp_path / "run" / "teachers" / "co-occurrence-0").glob("state-*.pt")
    state = read_state(path)
    assert state is not None
    assert state["progress"]["epoch"] == 1
    monkeypatch.undo()
    assert run(config).metrics == finished_run.metrics


def test_too_small_a_disk_is_said_before_any_training(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100))
    with pytest.raises(RunError, match=r"the run needs about .* GB in .*run and the disk has 0.00 GB free"):
        run(config_of(finished_run, f"out={tmp_path / 'run'}"))
    assert trained == []


def test_a_disk_without_room_for_what_is_trained_again_is_said_too(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100))
    run(config_of(run_copy))
    with pytest.raises(RunError, match="the disk has"):
        run(config_of(run_copy, "distill.w=0.25"), update=True)
    assert trained == []


def test_a_class_without_positives_in_train_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset()
    dataset.targets[dataset.indices("train"), 1] = 0
    with pytest.raises(DataError, match=r"no positive in train: 'green'; data.min_positives=1"):
        fit(dataset, sized(Net), out=tmp_path / "run", **RUN_SETTINGS)


def test_images_that_cannot_be_read_are_left_out_of_partitions_and_results(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    (tmp_path / "photos" / "059.png").write_bytes(b"not a picture")
    words = [*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}"]
    with pytest.raises(DataError, match=r"'059.png' \(it is not a picture of a known format\)"):
        run(load_config(words))
    skipped = run(load_config([*words, "data.on_corrupt=skip"]))
    dataset = make_dataset()
    keep = np.arange(len(dataset)) != 59
    without = write_table(tmp_path / "without", dataset.subset(keep))
    expected = run(load_config([*RUN_WORDS, f"data={without}", f"out={tmp_path / 'expected'}"]))
    assert skipped.metrics == expected.metrics


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the datasets whose images are checked from here on."""
    names: list[str] = []

    def check(dataset: MultiLabelDataset, *arguments: Any, **named: Any) -> Any:
        names.append(dataset.name)
        return check_images(dataset, *arguments, **named)

    monkeypatch.setattr(coterie.preflight, "check_images", check)
    return names


def test_images_that_passed_the_check_are_not_decoded_again(run_copy: Run, decoded: list[str]) -> None:
    run(run_copy.config)
    run(config_of(run_copy, "threshold=0.4"), update=True)
    assert decoded == []


def test_other_images_are_checked(run_copy: Run, decoded: list[str], tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    (tmp_path / "photos" / "003.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot be read: '003\.png'"):
        run(config_of(run_copy, f"data={table}"))
    assert decoded == ["labels.csv"]


def test_images_that_were_left_out_are_left_out_again_and_named(
    tmp_path: Path, decoded: list[str], trained: list[str]
) -> None:
    table = write_table(tmp_path / "photos")
    (tmp_path / "photos" / "003.png").write_bytes(b"no picture")
    words = [*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}"]
    first = run(load_config([*words, "data.on_corrupt=skip"]))
    trained.clear()
    screen = io.StringIO()
    again = run(load_config([*words, "data.on_corrupt=skip"]), console=Console(file=screen))
    assert again.metrics == first.metrics
    assert (len(decoded), trained) == (1, [])
    assert "note: 1 of 60 images cannot be read and are left out: '003.png'" in screen.getvalue()
    with pytest.raises(DataError, match=r"cannot be read: '003\.png'"):
        run(load_config(words), update=True)


def test_a_measured_image_that_is_in_training_stops_the_run_unless_told_otherwise(
    tmp_path: Path, decoded: list[str]
) -> None:
    table = write_table(tmp_path / "photos")
    dataset = make_dataset()
    trained, tested = (int(dataset.indices(split)[0]) for split in ("train", "test"))
    pictures = tmp_path / "photos"
    shutil.copy(pictures / f"{trained:03d}.png", pictures / f"{tested:03d}.png")
    words = [*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}"]
    message = rf"1 measured image .* '{tested:03d}.png' \(test\) is '{trained:03d}.png' \(train\)"
    with pytest.raises(DataError, match=message):
        run(load_config(words), only=["baseline"])
    screen = io.StringIO()
    skipped = run(load_config([*words, "data.on_overlap=skip"]), only=["baseline"])
    again = run(
        load_config([*words, "data.on_overlap=skip"]), only=["baseline"], console=Console(file=screen)
    )
    assert again.metrics == skipped.metrics
    assert len(decoded) == 2  # the refused one, and the first that was not
    assert f"and left out: '{trained:03d}.png'" in screen.getvalue()
    assert "23 train, 12 val, 12 test" in screen.getvalue()
    kept = load_config([*RUN_WORDS, f"data={table}", f"out={tmp_path / 'kept'}", "data.on_overlap=keep"])
    screen = io.StringIO()
    run(kept, only=["baseline"], console=Console(file=screen, width=200))
    assert "24 train" in screen.getvalue()
    assert "note: 1 training image is measured too, byte by byte" in screen.getvalue()


def test_weights_to_start_from_count_by_their_content(tmp_path: Path, trained: list[str]) -> None:
    def words(weights: Path) -> Config:
        return load_config(
            [
                *RUN_WORDS,
                *("model=test_resnet", "model.image_size=32", "train.epochs=1"),
                *(f"model.weights={weights}", f"data={table}", f"out={tmp_path / 'run'}"),
            ]
        )

    table = write_table(tmp_path / "photos")
    first, moved = tmp_path / "first.pt", tmp_path / "moved.pt"
    backbone = timm.create_model("test_resnet", num_classes=0)
    torch.save(backbone.state_dict(), first)
    run(words(first), only=["baseline"])
    first.rename(moved)
    run(words(moved), only=["baseline"])
    assert trained == ["baseline"]
    torch.save({name: tensor + 1 for name, tensor in backbone.state_dict().items()}, moved)
    with pytest.raises(RunError, match=r"the weights in model\.weights are others"):
        run(words(moved), only=["baseline"])
    run(words(moved), only=["baseline"], update=True)
    assert trained == ["baseline", "baseline"]


def test_each_teacher_gets_the_word_vectors_of_its_own_labels(tmp_path: Path, trained: list[str]) -> None:
    """And they count by their content: moved ones are the same, other ones are a change."""
    table = write_table(tmp_path / "photos")
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)

    def config(words: Path) -> Config:
        return load_config(
            [
                *RUN_WORDS,
                *("model=test_resnet", "model.image_size=32", "train.epochs=1"),
                *("model.head=transformer", "model.transformer.width=8", f"model.word_vectors={words}"),
                *(f"data={table}", f"out={tmp_path / 'run'}"),
            ]
        )

    first, moved = tmp_path / "first.npz", tmp_path / "moved.npz"
    np.savez(first, vectors=vectors, class_names=np.array(CLASS_NAMES))
    screen = io.StringIO()
    done = run(config(first), console=Console(file=screen))
    assert "first.npz: vectors of 3 numbers for 4 classes" in screen.getvalue()
    assert len(trained) == 6
    for name in trained:
        classifier = done.predictor(name)
        rows = [CLASS_NAMES.index(label) for label in classifier.class_names]
        saved_vectors = classifier.model.state_dict()["head.label_vectors"].numpy()
        np.testing.assert_array_equal(saved_vectors, vectors[rows])
    first.rename(moved)
    run(config(moved))
    assert len(trained) == 6
    np.savez(moved, vectors=vectors + 1, class_names=np.array(CLASS_NAMES))
    with pytest.raises(RunError, match=r"the vectors in model\.word_vectors are others"):
        run(config(moved))
    run(config(moved), only=["baseline"], update=True)
    assert trained[6:] == ["baseline"]


def test_word_vectors_that_lack_a_class_are_told_before_any_training(tmp_path: Path) -> None:
    words = tmp_path / "words.npz"
    np.savez(words, vectors=np.ones((2, 3)), class_names=np.array(["red", "stripe"]))
    model = {"name": "test_resnet", "head": "transformer", "word_vectors": words}
    with pytest.raises(ConfigError, match=r"lack 3 of the 4 classes: .*'stripes' \(nearest: 'stripe'\)"):
        fit(make_dataset(), model, out=tmp_path / "run", **RUN_SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_picture_that_breaks_in_a_training_is_one_clear_error(
    run_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "photos")
    monkeypatch.setattr(coterie.preflight, "check_images", lambda dataset, *_, **__: (dataset, []))
    (tmp_path / "photos" / "003.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^image .*003\.png cannot be read: it is not a picture"):
        run(config_of(run_copy, f"data={table}", f"out={tmp_path / 'other'}", "data.workers=1"))


def test_another_dataset_is_refused(run_copy: Run, tmp_path: Path) -> None:
    dataset = make_dataset()
    splits = dataset.splits.copy()
    splits[0] = "val"
    table = write_table(tmp_path / "others", replace(dataset, splits=splits))
    with pytest.raises(RunError, match="the images, labels or splits are others"):
        run(config_of(run_copy, f"data={table}"))


@pytest.mark.parametrize("kind", [ConfigError, ZeroDivisionError])
def test_an_error_that_ends_a_run_tells_of_failures_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    train = Workshop.train

    def fails(self: Workshop, jobs: Sequence[Job], *rest: Any) -> Iterator[Training | Failed]:
        if len(jobs) == 1 and jobs[0].training.name == "baseline":
            yield jobs[0].training, RunError("the loss of baseline is nan")
        elif jobs[0].training.name == "teachers/co-occurrence-1":
            raise kind("no such luck")
        else:
            yield from train(self, jobs, *rest)

    monkeypatch.setattr(Workshop, "train", fails)
    settings = RUN_SETTINGS | {"out": str(tmp_path / "new"), "model": {"image_size": SIDE}}
    config = load_config(settings=settings)
    with pytest.raises(RunError if kind is ConfigError else kind) as caught:
        run(config, dataset=make_dataset(), builder=Net)
    told = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    assert "\n".join(told) == (
        "no such luck\n1 training had failed before:\n  baseline: the loss of baseline is nan"
    )
