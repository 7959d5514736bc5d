"""The store of trainings: what is put comes back, and what is damaged never does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE, Checkpoint, save_checkpoint
from coterie.data.transforms import Preprocessing
from coterie.errors import RunError
from coterie.runfolder import Training
from coterie.store import ENTRY_FILE, Store
from coterie.trainer import LOG_FILE

KEY = "0123abcd"


def finish(folder: Path, key: str = KEY, seed: int = 0) -> Training:
    """A finished training of a linear layer in `folder`."""
    torch.manual_seed(seed)
    checkpoint = Checkpoint(
        "student",
        ("cat", "dog"),
        {"kind": "own", "builder": "tests:linear"},
        Preprocessing(16, (0, 0, 0), (1, 1, 1)),
        0.5,
        {},
        {},
    )
    written = save_checkpoint(folder, nn.Linear(3, 2), checkpoint)
    (folder / LOG_FILE).write_text('{"epoch": 1}\n')
    return Training(
        "student",
        ("cat", "dog"),
        state="done",
        key=key,
        weights_sha256=written.weights_sha256,
        best_epoch=3,
        val_map=71.5,
        seconds=2.5,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one training, finished in the folder run."""
    store = Store(tmp_path / "store")
    store.put(finish(tmp_path / "run"), tmp_path / "run")
    return store


def test_what_is_put_comes_back(store: Store, tmp_path: Path) -> None:
    done = finish(tmp_path / "run")
    assert store.find(KEY) == done
    taken = store.take(KEY, tmp_path / "other")
    assert taken is not None
    assert taken[0] == done
    assert taken[1].weights_sha256 == done.weights_sha256
    for name in (WEIGHTS_FILE, LOG_FILE):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert not list((tmp_path / "other").glob(".*"))


def test_a_training_is_there_once_on_the_disk(store: Store, tmp_path: Path) -> None:
    store.take(KEY, tmp_path / "other")
    files = {(tmp_path / name / WEIGHTS_FILE).stat().st_ino for name in ("run", f"store/{KEY}", "other")}
    assert len(files) == 1


def test_where_files_cannot_be_linked_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path / "store")
    store.put(finish(tmp_path / "run"), tmp_path / "run")
    assert store.take(KEY, tmp_path / "other") is not None
    content = (tmp_path / "run" / WEIGHTS_FILE).read_bytes()
    assert (tmp_path / "other" / WEIGHTS_FILE).read_bytes() == content
    assert (tmp_path / "other" / WEIGHTS_FILE).stat().st_nlink == 1


def test_another_key_is_not_there(store: Store, tmp_path: Path) -> None:
    assert store.find("another") is None
    assert store.take("another", tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def flip_a_bit(entry: Path) -> None:
    weights = entry / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # the store's file alone, not the run's
    weights.write_bytes(content)


def cut_the_weights_off(entry: Path) -> None:
    content = (entry / WEIGHTS_FILE).read_bytes()
    (entry / WEIGHTS_FILE).unlink()
    (entry / WEIGHTS_FILE).write_bytes(content[:-1])


def put_other_weights(entry: Path) -> None:
    other = entry.parent.parent / "other-run"
    finish(other, seed=1)
    for name in (WEIGHTS_FILE, INFO_FILE):
        shutil.copy(other / name, entry / f"{name}.new")
        (entry / f"{name}.new").replace(entry / name)


def name_another_key(entry: Path) -> None:
    content = json.loads((entry / ENTRY_FILE).read_text())
    content["training"]["key"] = "another"
    (entry / ENTRY_FILE).write_text(json.dumps(content))


def be_of_another_schema(entry: Path) -> None:
    content = json.loads((entry / ENTRY_FILE).read_text())
    (entry / ENTRY_FILE).write_text(json.dumps(content | {"schema_version": 99}))


DAMAGES: list[Callable[[Path], object]] = [
    flip_a_bit,
    cut_the_weights_off,
    put_other_weights,
    name_another_key,
    be_of_another_schema,
    lambda entry: (entry / WEIGHTS_FILE).unlink(),
    lambda entry: (entry / INFO_FILE).unlink(),
    lambda entry: (entry / INFO_FILE).write_text("{}"),
    lambda entry: (entry / ENTRY_FILE).unlink(),
    lambda entry: (entry / ENTRY_FILE).write_text('{"schema_version": 1, "trai'),
    lambda entry: (entry / ENTRY_FILE).write_text("[]"),
    lambda entry: (entry / ENTRY_FILE).write_text('{"schema_version": 1, "weights_bytes": 1, "training": 3}'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_training_is_not_taken_and_the_next_one_replaces_it(
    store: Store, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(store.path / KEY)
    assert store.take(KEY, tmp_path / "other") is None
    assert not (tmp_path / "other" / WEIGHTS_FILE).exists()
    done = finish(tmp_path / "run")
    store.put(done, tmp_path / "run")
    taken = store.take(KEY, tmp_path / "other")
    assert taken is not None
    assert taken[0] == done


def test_a_training_cut_off_is_seen_without_reading_its_weights(store: Store) -> None:
    cut_the_weights_off(store.path / KEY)
    assert store.find(KEY) is None


def test_a_log_that_is_gone_keeps_nobody_from_the_weights(store: Store, tmp_path: Path) -> None:
    done = finish(tmp_path / "run2", key="no log")
    (tmp_path / "run2" / LOG_FILE).unlink()
    store.put(done, tmp_path / "run2")
    assert store.take("no log", tmp_path / "other") is not None


def test_what_is_there_is_not_replaced(store: Store, tmp_path: Path) -> None:
    before = (store.path / KEY / WEIGHTS_FILE).read_bytes()
    store.put(finish(tmp_path / "run", seed=1), tmp_path / "run")
    assert (store.path / KEY / WEIGHTS_FILE).read_bytes() == before


def test_many_may_put_and_take_at_once(tmp_path: Path) -> None:
    done = {number: finish(tmp_path / f"run{number}") for number in range(6)}

    def put_and_take(number: int) -> Training:
        store = Store(tmp_path / "store")
        store.put(done[number], tmp_path / f"run{number}")
        taken = store.take(KEY, tmp_path / f"other{number}")
        assert taken is not None
        return taken[0]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(put_and_take, done)) == [done[0]] * 6
    assert [entry.name for entry in (tmp_path / "store").iterdir() if entry.name != ".lock"] == [KEY]


def test_what_a_killed_process_left_is_removed(store: Store) -> None:
    half = store.path / ".fedc.tmp"
    half.mkdir()
    (half / WEIGHTS_FILE).write_bytes(b"half")
    store.prepare()
    assert not half.exists()
    assert store.find(KEY) is not None


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the store of trainings .*file/store cannot be written: Not a dir"):
        Store(tmp_path / "file" / "store").prepare()
