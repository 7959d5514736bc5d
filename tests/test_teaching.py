"""How a student comes to its teachers' logits: from the disk the same as from the teachers."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score
from torch import Tensor

from coterie.checkpoint import load_model
from coterie.config import Config, load_config
from coterie.data.loading import Batches, EpochSampler, ImageBatches, ResizedImages, Views
from coterie.data.transforms import Preprocessing, make_augmentation
from coterie.errors import ConfigError, RunError
from coterie.files import file_sha256
from coterie.models.folding import relative_error
from coterie.pipeline import Run, run
from coterie.preparation import teacher_weights
from coterie.progress import Bars
from coterie.tasks import DistillationTask
from coterie.teachers import Branch, Teachers
from coterie.teaching import LOGITS_FOLDER, Teaching
from coterie.view_cache import TaughtBatches, ViewCache
from tests.tiny import CLASS_NAMES, RUN_WORDS, SIDE, Net, Steady, cpu_fabric, make_dataset, tiny_net

KINDS = ("co-occurrence", "dis-occurrence")
# 24 training images: the last 4 of an order are left out of an epoch
WORDS = ("augment.cutout=0.5", "augment.randaugment=false", "train.batch_size=10", "distill.tolerance=0")
# a student whose views come again in every other epoch
CACHED = ("student.epochs=4", "student.views=2")


def load_branch(kind: str) -> Branch:
    """Two teachers of two classes each."""
    groups = (
        (("blue", "red"), ("stripes", "green")) if kind == KINDS[0] else (CLASS_NAMES[:2], CLASS_NAMES[2:])
    )
    teachers = [(tiny_net(number + len(kind), 2).eval(), group) for number, group in enumerate(groups)]
    return Branch(teachers, CLASS_NAMES)


def teaching(*words: str) -> Teaching:
    config = load_config([*WORDS, *words])
    return Teaching(config, views_of(config), cpu_fabric(), load_branch, Bars(Console(quiet=True)))


def views_of(config: Config, std: float = 0.25) -> Views:
    images = ResizedImages(make_dataset(), Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, std)))
    return Views(images, make_augmentation(config.augment), config.view_seed)


def batches_of(lesson: Teaching, batch_size: int, seed: int, cache: ViewCache | None = None) -> Batches:
    indices, views = lesson.images.dataset.indices("train"), lesson.config.student.views
    sampler = EpochSampler(indices, batch_size, shuffle=True, seed=seed, views=views)
    batches = ImageBatches(lesson.views, sampler)
    return batches if cache is None else TaughtBatches(batches, cache)


def cache_of(
    lesson: Teaching, folder: Path, kinds: Sequence[str] = KINDS, weights: str = "hash"
) -> ViewCache:
    return lesson.cache(folder, "fingerprint", {}, {kind: [(CLASS_NAMES, weights)] for kind in kinds})


def as_images(lesson: Teaching, pixels: Tensor) -> Tensor:
    return lesson.images.preprocessing.normalize(pixels)


def test_logits_from_the_disk_are_those_of_the_teachers_for_the_same_views(tmp_path: Path) -> None:
    lesson = teaching("student.views=2")
    plain = Teachers([load_branch(kind) for kind in KINDS])
    taught = batches_of(lesson, 10, 3, cache_of(lesson, tmp_path))
    live = batches_of(lesson, 10, 3)
    seen: dict[int, Tensor] = {}
    for epoch in range(4):
        for batch, alone in zip(taught.epoch(epoch), live.epoch(epoch), strict=True):
            assert batch.teacher_logits is not None
            assert alone.teacher_logits is None
            assert torch.equal(batch.pixels, alone.pixels)
            expected = plain(as_images(lesson, batch.pixels))
            torch.testing.assert_close(batch.teacher_logits, expected, rtol=1e-4, atol=1e-5)
            if epoch in (0, 2):  # the same view, in other company: the same bits
                for index, logits in zip(batch.indices.tolist(), batch.teacher_logits.unbind(1), strict=True):
                    assert torch.equal(seen.setdefault(index, logits), logits)
    assert len(list(tmp_path.rglob("[0-9]*.bin"))) == 2 * 2


def test_epochs_take_the_views_in_turn_each_in_an_order_of_its_own() -> None:
    epochs = []
    for epoch in range(3):
        batches = list(batches_of(teaching("student.views=2"), 10, 3).epoch(epoch))
        pixels = {int(i): p for batch in batches for i, p in zip(batch.indices, batch.pixels, strict=True)}
        epochs.append(([int(index) for batch in batches for index in batch.indices], pixels))
    (order, first), (_, second), (later_order, third) = epochs
    assert order != later_order
    assert all(torch.equal(third[index], first[index]) for index in first.keys() & third.keys())
    assert not any(torch.equal(second[index], first[index]) for index in first.keys() & second.keys())


def test_a_view_is_stored_for_every_training_image_also_those_that_an_epoch_leaves_out(
    tmp_path: Path,
) -> None:
    lesson = teaching()
    taken = {int(index) for batch in batches_of(lesson, 10, 3).epoch(0) for index in batch.indices}
    training = lesson.images.dataset.indices("train")
    assert len(taken) == 20 < len(training)
    stored = cache_of(lesson, tmp_path).view(0)
    assert [branch.shape for branch in stored] == [(24, 4)] * 2
    pixels = torch.stack([lesson.views[0, int(index)].pixels for index in training])
    expected = load_branch(KINDS[1])(as_images(lesson, pixels))
    np.testing.assert_allclose(stored[1], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "word", ["distill.w=0.9", "distill.a=0.2", "distill.seed=5", "distill.loss=squared-error"]
)
def test_students_that_differ_in_the_loss_or_the_seed_share_what_is_stored(tmp_path: Path, word: str) -> None:
    cache_of(teaching(), tmp_path).fill([0])
    assert cache_of(teaching(word), tmp_path).missing([0]) == []
    assert cache_of(teaching(word), tmp_path, KINDS[:1]).missing([0]) == []


@pytest.mark.parametrize(
    "word",
    [
        *("seed=1", "augment.view_seed=1", "augment.cutout=0.4", "augment.flip=0.5", "distill.tolerance=0.1"),
        *("precision=bf16", "channels_last=false", "distill.cache_dtype=float16", "distill.compile=true"),
    ],
)
def test_what_changes_views_or_answers_makes_another_cache(tmp_path: Path, word: str) -> None:
    cache_of(teaching(), tmp_path).fill([0])
    assert cache_of(teaching(word), tmp_path).missing([0]) == [0]


def test_other_teachers_data_preprocessing_and_versions_make_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = teaching()
    cache_of(lesson, tmp_path).fill([0])
    assert cache_of(lesson, tmp_path, weights="other").missing([0]) == [0]
    hashes = {kind: [(CLASS_NAMES, "hash")] for kind in KINDS}
    assert lesson.cache(tmp_path, "fingerprint", {}, hashes).missing([0]) == []
    assert lesson.cache(tmp_path, "other", {}, hashes).missing([0]) == [0]
    other = replace(lesson, views=views_of(lesson.config, std=0.2))
    assert cache_of(other, tmp_path).missing([0]) == [0]
    monkeypatch.setattr("coterie.features.version", lambda name: f"{name} of tomorrow")
    assert cache_of(lesson, tmp_path).missing([0]) == [0]


def config_of(made: Run, out: Path, *changes: str) -> Config:
    return load_config([*RUN_WORDS, f"data={made.config.data.source}", f"out={out}", *changes])


def student(folder: Path) -> str:
    """The hash of the student's weights."""
    return file_sha256(folder / "student" / "model.safetensors")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The branches whose teachers are made ready from here on."""
    asked: list[tuple[str, ...]] = []
    teachers = Teaching.teachers

    def recorded(self: Teaching, kinds: Sequence[str]) -> Teachers:
        asked.append(tuple(kinds))
        return teachers(self, kinds)

    monkeypatch.setattr(Teaching, "teachers", recorded)
    return asked


def test_a_student_from_the_disk_is_to_the_bit_the_one_that_filled_it(
    run_copy: Run, tmp_path: Path, answers: list[tuple[str, ...]]
) -> None:
    config = config_of(run_copy, run_copy.folder, *CACHED, f"cache_dir={tmp_path / 'shared'}")
    screen = io.StringIO()
    first = run(config, update=True, console=Console(file=screen))
    made, weights = list(answers), student(first.folder)
    assert made == [KINDS]
    assert "teachers' logits: 2 views, 2 made in" in screen.getvalue()
    answers.clear()
    again = run(config.model_copy(update={"out": tmp_path / "again"}))
    assert answers == []
    assert student(again.folder) == weights
    assert again.metrics == first.metrics


def test_students_of_one_set_of_teachers_ask_them_once(run_copy: Run, answers: list[tuple[str, ...]]) -> None:
    weights = set()
    for words in ((), ("distill.w=0.9",), ("distill.a=0.2",), ("distill.seed=5",)):
        run(config_of(run_copy, run_copy.folder, *CACHED, *words), update=True)
        weights.add(student(run_copy.folder))
    assert answers == [KINDS]
    assert len(weights) == 4
    teachers = {
        entry.name for entry in (run_copy.folder / "archive").iterdir() if "student" not in entry.name
    }
    assert teachers == set()
    assert len(list((run_copy.folder / LOGITS_FOLDER).rglob("[0-9]*.bin"))) == 4


def test_the_baseline_is_a_third_teacher_by_its_weight(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*CACHED, "distill.baseline=0.4", "distill.a=0.3", "distill.tolerance=0")
    config = config_of(run_copy, run_copy.folder, *words)
    assert teacher_weights(config) == pytest.approx(
        {"co-occurrence": 0.18, "dis-occurrence": 0.42, "baseline": 0.4}
    )
    made: list[Teachers] = []
    plain = Teaching.teachers

    def recorded(self: Teaching, kinds: Sequence[str]) -> Teachers:
        assert list(kinds) == list(teacher_weights(config))
        made.append(plain(self, kinds))
        return made[-1]

    monkeypatch.setattr(Teaching, "teachers", recorded)
    before = student(run_copy.folder)
    run(config, update=True)
    assert student(run_copy.folder) != before
    own, _ = load_model(run_copy.folder / "baseline", Net)
    images = torch.rand(5, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(made[0](images)[2], own.eval()(images), rtol=1e-4, atol=1e-5)


def test_branches_are_weighed_by_their_teachers_precision_on_validation() -> None:
    lesson = teaching("distill.ap_power=2", "distill.a=0.3")
    dataset = lesson.images.dataset
    validation = dataset.indices("val")
    targets = dataset.targets[validation]
    targets[:, 3] = np.minimum(targets[:, 3], 0)
    dataset.targets[validation] = targets  # no positive of the last label
    targets[0, 0] = dataset.targets[validation[0], 0] = -1
    pixels = torch.stack([Views(lesson.images)[0, int(index)].pixels for index in validation])
    logits = [load_branch(kind)(as_images(lesson, pixels)).numpy() for kind in KINDS]
    expected = []
    for label in range(3):
        known = targets[:, label] >= 0
        co, dis = (average_precision_score(targets[known, label], of[known, label]) ** 2 for of in logits)
        share = 0.3 * co / (0.3 * co + 0.7 * dis)
        expected.append([share, 1 - share])
    weights = lesson.weights()
    np.testing.assert_allclose(weights.numpy().T, [*expected, [0.3, 0.7]], rtol=1e-6)
    assert not np.allclose(weights[0, :3], 0.3, atol=0.01)
    loaded = lesson.teachers(KINDS)
    assert torch.equal(replace(lesson, load=no_branch).weights(loaded), weights)


def no_branch(_: str) -> Branch:
    raise AssertionError


@pytest.mark.parametrize("words", [(), ("distill.ap_power=2", "k=1"), ("distill.ap_power=2", "distill.a=1")])
def test_no_teacher_is_asked_for_weights_that_it_does_not_change(words: tuple[str, ...]) -> None:
    lesson = replace(teaching(*words), load=no_branch)
    assert lesson.weights().tolist() == list(teacher_weights(lesson.config).values())


@pytest.mark.parametrize("words", [(), CACHED])
def test_a_student_learns_with_the_weights_of_each_label(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    seen: list[Tensor] = []
    plain = DistillationTask.forward

    def recorded(self: DistillationTask, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        seen.append(self.weights)
        return plain(self, *inputs, **named)

    monkeypatch.setattr(DistillationTask, "forward", recorded)
    config = config_of(run_copy, run_copy.folder, "distill.ap_power=4", "distill.baseline=0.2", *words)
    run(config, update=True)
    others = {path.name.split("-")[0] for path in (run_copy.folder / "archive").iterdir()}
    assert others == {"student"}
    assert {weights.shape for weights in seen} == {(3, 4)}
    torch.testing.assert_close(seen[0].sum(dim=0), torch.ones(4))
    assert (seen[0] - seen[0][:, :1]).abs().max() > 0.01


def test_the_cache_changes_a_student_by_rounding_alone(run_copy: Run) -> None:
    def weights(*words: str) -> Tensor:
        steady = (*CACHED, "model=tests.tiny:Steady", "distill.tolerance=0", *words)
        made = run(config_of(run_copy, run_copy.folder, *steady), update=True)
        model, _ = load_model(made.folder / "student", Steady)
        return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])

    live = weights("distill.cache=off")
    torch.testing.assert_close(weights("distill.cache=on"), live, rtol=1e-3, atol=1e-4)
    in_float16 = weights("distill.cache_dtype=float16")
    assert 0 < relative_error(in_float16, live) < 1e-2


def test_a_run_stopped_while_it_fills_or_learns_ends_as_one_never_stopped(
    run_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config_of(run_copy, run_copy.folder, *CACHED), update=True)
    stopped = config_of(run_copy, tmp_path / "stopped", *CACHED)
    make = ViewCache._write
    view = ViewCache.view

    def stop_at_the_second_view(self: ViewCache, number: int, *rest: object, **named: object) -> bool:
        if number == 1:
            raise KeyboardInterrupt
        return make(self, number, *rest, **named)  # type: ignore[arg-type]

    def stop_at_the_third_epoch(self: ViewCache, number: int) -> object:
        read.append(number)
        if len(read) == 3:
            raise KeyboardInterrupt
        return view(self, number)

    read: list[int] = []
    monkeypatch.setattr(ViewCache, "_write", stop_at_the_second_view)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    assert len(list((tmp_path / "stopped" / LOGITS_FOLDER).rglob("[0-9]*.bin"))) == 2
    monkeypatch.undo()
    monkeypatch.setattr(ViewCache, "view", stop_at_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    assert list((tmp_path / "stopped" / "student").glob("state-*.pt"))
    monkeypatch.undo()
    ended = run(stopped)
    assert student(ended.folder) == student(whole.folder)
    assert ended.metrics == whole.metrics


def test_a_view_that_breaks_while_the_student_learns_is_made_again(
    run_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config_of(run_copy, run_copy.folder, *CACHED), update=True)
    view = ViewCache.view

    def broken(self: ViewCache, number: int) -> object:
        for file in (tmp_path / "run-2" / LOGITS_FOLDER).rglob(f"{number:04d}.bin"):
            file.write_bytes(file.read_bytes()[:-1])
        return view(self, number)

    monkeypatch.setattr(ViewCache, "view", broken)
    again = run(config_of(run_copy, tmp_path / "run-2", *CACHED))
    assert student(again.folder) == student(whole.folder)


def test_the_teachers_of_a_full_cache_disk_are_kept_and_a_restart_goes_on(
    run_copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(run_copy, run_copy.folder, *CACHED)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("coterie.array_store.atomic_write", full)
    with pytest.raises(RunError, match=r"teachers' logits cannot be written to .*teacher-logits: No space"):
        run(config, update=True)
    monkeypatch.undo()
    assert list(run(config).metrics["val"]) == list(run_copy.metrics["val"])


def test_too_small_a_disk_for_the_logits_is_said_before_any_training(
    run_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(run_copy, tmp_path / "new", *CACHED, f"cache_dir={tmp_path / 'logits'}")
    # enough for weights and states; two branches of two views, a header each
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 4 * 4096))
    monkeypatch.setattr("coterie.pipeline.check_space", lambda *_: None)
    with pytest.raises(
        RunError, match=r"logits need 0\.00 GB in .*/teacher-logits and the disk has 0\.00 GB free"
    ):
        run(config)
    assert not (tmp_path / "new" / "baseline").exists()
    (tmp_path / "logits").write_text("a file")
    monkeypatch.undo()
    with pytest.raises(
        RunError, match=r"logits cannot be written to .*/teacher-logits\. Choose another place"
    ):
        run(config)


def test_teachers_that_cannot_be_compiled_are_said_before_any_training(
    run_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler was found\nand much more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ConfigError, match=r"distill\.compile=true, but .*: no C\+\+ compiler was found$"):
        run(config_of(run_copy, tmp_path / "new", "distill.compile=true"))
    assert not (tmp_path / "new" / "baseline").exists()


def test_teachers_too_large_for_the_device_are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = teaching()
    answered = Teachers.forward

    def too_large(self: Teachers, images: Tensor, are_features: bool = False) -> Tensor:
        if len(images) > 20:
            raise torch.OutOfMemoryError("many lines")
        return answered(self, images, are_features)

    monkeypatch.setattr(Teachers, "forward", too_large)
    with pytest.raises(RunError, match=r"^the teachers do not fit into the memory of cpu; set a smaller"):
        cache_of(lesson, tmp_path).fill([0])


def test_the_form_of_the_teachers_and_their_error_are_said() -> None:
    screen = io.StringIO()
    lesson = replace(teaching(), reporter=Bars(Console(file=screen, width=200)))
    lesson.teachers(KINDS)
    assert screen.getvalue() == "teachers: 4 in float32; logits within 0.0e+00 of those in float32\n"


def test_a_student_of_another_seed_keeps_the_teachers(run_copy: Run) -> None:
    before = student(run_copy.folder)
    run(config_of(run_copy, run_copy.folder, "distill.seed=0"), update=True)
    assert student(run_copy.folder) == before  # that of the run
    run(config_of(run_copy, run_copy.folder, "distill.seed=1"), update=True)
    assert student(run_copy.folder) != before
    assert {entry.name.split("-")[0] for entry in (run_copy.folder / "archive").iterdir()} == {"student"}
