"""Faults one by one: nothing that was finished is lost, the message is one, and a restart ends as if nothing
had been.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coterie.preflight
from coterie.config import Config, ResumeConfig, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import Views
from coterie.data.reading import read_dataset
from coterie.errors import CoterieError, DataError, RunError
from coterie.pipeline import Run, run
from coterie.runfolder import RunFolder
from tests.tiny import (
    RUN_SETTINGS,
    RUN_WORDS,
    SIDE,
    Net,
    equal_weights,
    make_dataset,
    make_trainer,
    write_table,
)


class Disk:
    """Lets so many files be written, and then none: the next one fails when it is opened, written, synced or
    put in its place. What was there can be read.
    """

    STAGES = ("open", "write", "sync", "replace")

    def __init__(self, patch: pytest.MonkeyPatch, files: int, stage: str, code: int) -> None:
        self.left, self.stage, self.code = files, stage, code
        self.failed = False
        patch.setattr(io, "open", self._opening(io.open))
        patch.setattr(builtins, "open", self._opening(builtins.open))
        patch.setattr(os, "fsync", self._failing("sync", os.fsync))
        patch.setattr(os, "replace", self._failing("replace", os.replace))

    def _opening(self, function: Any) -> Any:
        def opened(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wxa") or isinstance(file, int) or Path(os.fsdecode(file)).name == ".lock":
                return function(file, mode, *arguments, **named)
            self.left -= 1
            self._may("open")
            return _Written(function(file, mode, *arguments, **named), self)

        return opened

    def _failing(self, stage: str, function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            self._may(stage)
            return function(*arguments)

        return called

    def _may(self, stage: str) -> None:
        if self.failed or (self.left < 0 and stage == self.stage):
            self.failed = True
            raise OSError(self.code, os.strerror(self.code))


class _Written:
    """A file whose writing may fail half-way."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> Any:
        try:
            self._disk._may("write")
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)


@pytest.fixture(scope="module")
def dataset() -> MultiLabelDataset:
    """The tiny one without test images: there is less to write."""
    whole = make_dataset()
    return whole.subset(np.flatnonzero(np.isin(whole.splits, ["train", "val"])))


def start(out: Path, dataset: MultiLabelDataset, only: Sequence[str] | None = None) -> Run:
    """A baseline, a teacher and a student of one epoch, or `only` some of them."""
    settings = RUN_SETTINGS | {
        "k": 1,
        "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
        "distill": {"a": 1.0},
        "model": {"image_size": SIDE},
    }
    config = load_config(settings=settings | {"out": str(out)})
    return run(config, dataset=dataset, builder=Net, only=only)


@pytest.fixture(scope="module")
def undisturbed(dataset: MultiLabelDataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(tmp_path_factory.mktemp("undisturbed") / "run", dataset)


def weights(run_folder: Path) -> dict[str, str]:
    return {training.name: training.weights_sha256 for training in RunFolder(run_folder).trainings()}


def with_fault(
    patch: pytest.MonkeyPatch, start: Callable[[], Run], files: int, stage: str, code: int
) -> str | None:
    """What a run says on a disk that takes so many files, None where it comes to its end."""
    with patch.context() as patched:
        disk = Disk(patched, files, stage, code)
        try:
            start()
        except CoterieError as error:
            assert disk.failed
            return str(error)
    assert not disk.failed
    return None


def check_restart(out: Path, restart: Callable[[], Run], undisturbed: Run) -> None:
    """What was finished is not done again, and the run ends as one without a fault."""
    assert not list(out.rglob("*.tmp"))
    done = {one.name: one for one in RunFolder(out).trainings() if one.state == "done"}
    ended = restart()
    after = {one.name: one for one in RunFolder(out).trainings() if one.state == "done"}
    assert {name: after[name] for name in done} == done
    assert {name: one.weights_sha256 for name, one in after.items()} == {
        name: weights(undisturbed.folder)[name] for name in after
    }
    for models in ended.metrics.values():
        assert models == {name: undisturbed.metrics["val"][name] for name in models}


def test_a_disk_that_is_full_at_any_file_loses_nothing(
    dataset: MultiLabelDataset, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file in turn, by turns when it is opened, half written, synced and renamed."""
    stages = itertools.cycle(Disk.STAGES)
    for files in itertools.count():
        out = tmp_path / f"{files}"
        whole = partial(start, out, dataset)
        said = with_fault(monkeypatch, whole, files, next(stages), errno.ENOSPC)
        if said is None:
            break
        assert said == (
            f"the run in {out} stopped: No space left on device. Put that right and start it again: it goes "
            "on from the last state that it kept"
        )
        check_restart(out, whole, undisturbed)
    assert files > 30  # config to metrics, with all that a training writes three times


@pytest.mark.parametrize(
    ("files", "code"), [(3, errno.EACCES), (12, errno.EROFS), (19, errno.EIO), (26, errno.ESTALE)]
)
def test_a_disk_that_may_not_be_written_any_more_loses_nothing(
    dataset: MultiLabelDataset,
    undisturbed: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
    code: int,
) -> None:
    """Permission lost, mounted for reading only, a broken disk, a server of files that is gone."""
    whole = partial(start, tmp_path / "run", dataset)
    said = with_fault(monkeypatch, whole, files, "open", code)
    assert said is not None
    assert f"stopped: {os.strerror(code)}. Put that right" in said
    check_restart(tmp_path / "run", whole, undisturbed)


def test_a_link_to_nowhere_is_no_run_folder(dataset: MultiLabelDataset, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "unplugged")
    with pytest.raises(RunError, match=r"run cannot be written: .*; choose another with out="):
        start(tmp_path / "run", dataset)


def table_config(tmp_path: Path, *words: str) -> Config:
    return load_config([*RUN_WORDS, f"data={tmp_path / 'photos/labels.csv'}", f"out={tmp_path}/run", *words])


def test_images_that_are_links_to_nowhere_are_named_before_any_training(tmp_path: Path) -> None:
    write_table(tmp_path / "photos")
    photo = tmp_path / "photos" / "003.png"
    photo.unlink()
    photo.symlink_to(tmp_path / "unplugged" / "003.png")
    with pytest.raises(DataError, match=r"003\.png"):
        run(table_config(tmp_path))
    assert not (tmp_path / "run" / "baseline").exists()


def test_a_clock_that_jumps_changes_nothing(
    dataset: MultiLabelDataset, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_times = random.Random(0)

    def jumping() -> float:
        return random_times.choice([0.0, 1e9, 2e9, 4e9]) + random_times.random()

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jumping()))
    assert start(tmp_path / "run", dataset).metrics == undisturbed.metrics
    assert weights(tmp_path / "run") == weights(undisturbed.folder)
    assert start(tmp_path / "run", dataset).metrics == undisturbed.metrics


def test_a_second_run_on_the_same_folder_is_refused_and_the_first_one_ends_well(
    dataset: MultiLabelDataset, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    getitems = Views.__getitems__

    def meanwhile(self: Views, keys: Any) -> Any:
        if not refused:
            with pytest.raises(RunError) as caught:
                start(tmp_path / "run", dataset)
            refused.append(str(caught.value))
        return getitems(self, keys)

    monkeypatch.setattr(Views, "__getitems__", meanwhile)
    assert start(tmp_path / "run", dataset).metrics == undisturbed.metrics
    assert refused == [
        f"another process works in {tmp_path / 'run'}; wait for it, or choose another with out=…"
    ]


def test_a_loading_process_that_is_killed_is_one_message_and_a_restart_goes_on(
    tmp_path: Path, finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory runs out."""
    write_table(tmp_path / "photos")
    parent, getitems = os.getpid(), Views.__getitems__

    def killed_in_the_second_epoch(self: Views, keys: Any) -> Any:
        if self.augmentation is not None and keys[0][0] == 1 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return getitems(self, keys)

    config = table_config(tmp_path, "data.workers=1")
    with monkeypatch.context() as patch:
        patch.setattr(Views, "__getitems__", killed_in_the_second_epoch)
        with pytest.raises(
            RunError, match=r"stopped: a process that prepares images was killed, .* data\.workers"
        ):
            run(config)
    assert len(list((tmp_path / "run" / "baseline").glob("state-*.pt"))) == 1
    run(config, only=["baseline"])
    assert weights(tmp_path / "run")["baseline"] == weights(finished_run.folder)["baseline"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("allocate", [bytearray, torch.empty], ids=["python", "torch"])
def test_memory_that_runs_out_where_images_are_prepared_is_one_message_and_a_restart_goes_on(
    tmp_path: Path, finished_run: Run, monkeypatch: pytest.MonkeyPatch, workers: int, allocate: Any
) -> None:
    write_table(tmp_path / "photos")
    getitem = Views.__getitem__

    def too_large_in_the_second_epoch(self: Views, key: Any) -> Any:
        if self.augmentation is not None and key[0] == 1:
            allocate(2**60)  # more than any machine has
        return getitem(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(Views, "__getitem__", too_large_in_the_second_epoch)
        with pytest.raises(RunError, match=r"^memory has run out while images were prepared: set fewer data"):
            run(table_config(tmp_path, f"data.workers={workers}"))
    run(table_config(tmp_path), only=["baseline"])
    assert weights(tmp_path / "run")["baseline"] == weights(finished_run.folder)["baseline"]


def test_memory_that_runs_out_elsewhere_is_one_message(
    dataset: MultiLabelDataset, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: bytearray(2**60))
        with pytest.raises(
            RunError, match=r"stopped: memory has run out\. Put that right and start it again"
        ):
            start(tmp_path / "run", dataset)
    check_restart(tmp_path / "run", partial(start, tmp_path / "run", dataset), undisturbed)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MultiLabelDataset:
    """The tiny dataset as files, which nobody checks before the training."""
    monkeypatch.setattr(coterie.preflight, "check_images", lambda dataset, _: (dataset, []))
    return read_dataset(table_config(tmp_path, f"data={write_table(tmp_path / 'photos')}").data)


@pytest.mark.parametrize("position", range(8))
def test_a_picture_that_breaks_at_any_place_of_a_batch_is_named_and_the_steps_before_are_kept(
    tmp_path: Path, photos: MultiLabelDataset, position: int
) -> None:
    resume = ResumeConfig(steps=1)
    expected = make_trainer(tmp_path / "undisturbed", dataset=photos).run()
    trainer = make_trainer(tmp_path / "training", dataset=photos, resume=resume)
    broken = photos.images[list(trainer.data.training.sampler.batches(0))[2][position]]
    assert isinstance(broken, Path)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"^image .*{broken.name} cannot be read"):
        trainer.run()
    broken.write_bytes(whole)
    again = make_trainer(tmp_path / "training", dataset=photos, resume=resume)
    assert (again.state.epoch, again.state.step) == (0, 2)
    torch.manual_seed(99)
    assert equal_weights(again.run().best_weights, expected.best_weights)
