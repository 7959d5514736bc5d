"""The folder of a run: the lock, what may change, and what counts as done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from coterie.checkpoint import WEIGHTS_FILE, Checkpoint, save_checkpoint
from coterie.config import CONFIG_FILE, Config, load_config
from coterie.data.transforms import Preprocessing
from coterie.errors import RunError
from coterie.files import content_hash
from coterie.runfolder import MANIFEST_FILE, Inputs, RunFolder, Training, reset

NAMES = ("cat", "dog")
DATA = Inputs("data")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with a config and a manifest of two trainings."""
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.save_config(load_config(["seed=1"]))
        folder.write_manifest(DATA, [Training("baseline", NAMES), Training("student", NAMES)])
    return folder


def finish(folder: RunFolder, name: str, key: str, seed: int = 0) -> Training:
    """Put a checkpoint of a linear layer into the folder, and the training into the manifest as done."""
    torch.manual_seed(seed)
    checkpoint = Checkpoint(
        name,
        NAMES,
        {"kind": "own", "builder": "tests:linear"},
        Preprocessing(16, (0, 0, 0), (1, 1, 1)),
        threshold=0.5,
        metrics={},
        config={},
    )
    written = save_checkpoint(folder.path / name, nn.Linear(3, 2), checkpoint)
    done = Training(name, NAMES, state="done", key=key, weights_sha256=written.weights_sha256)
    folder.record(done)
    return done


def config(*words: str) -> Config:
    return load_config(["seed=1", *words])


def test_a_second_process_is_refused_until_the_first_ends(folder: RunFolder) -> None:
    with folder.locked(), pytest.raises(RunError, match="another process works in"), folder.locked():
        pass
    with folder.locked():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run cannot be written: Not a directory; choose another"):
        RunFolder(tmp_path / "file" / "run").locked().__enter__()


def test_a_changed_setting_is_named_with_both_values(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"\n  distill.w: 0.5 -> 0.7\n"):
        folder.check_config(config("distill.w=0.7"), DATA)
    folder.check_config(config("distill.w=0.7"), DATA, update=True)


def test_of_many_changed_settings_the_rest_is_counted(folder: RunFolder) -> None:
    sections = ("train", "baseline", "teacher", "student")
    changes = [f"{section}.epochs={number}" for number, section in enumerate(sections, 1)]
    changes += [f"{section}.lr=0.{number}" for number, section in enumerate(sections, 1)]
    with pytest.raises(RunError, match=r"\n  and 2 more\n"):
        folder.check_config(config(*changes, "k=2", "distill.w=0.7"), DATA)


def test_settings_that_change_no_result_may_differ(folder: RunFolder) -> None:
    folder.check_config(
        config(
            "out=elsewhere",
            "device=cpu",
            "data.workers=3",
            "data.cache_gb=0",
            "data=moved/labels.csv",
            "model.weights=moved.pt",
        ),
        DATA,
    )


def test_other_data_are_refused(folder: RunFolder) -> None:
    with pytest.raises(RunError, match="the images, labels or splits are others"):
        folder.check_config(config(), Inputs("other data"))


def test_other_weights_to_start_from_are_refused(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"the weights in model\.weights are others"):
        folder.check_config(config("model.weights=a.pt"), Inputs("data", "a hash"))


def test_other_word_vectors_are_refused_and_moved_ones_are_not(folder: RunFolder) -> None:
    words = ("model.head=transformer", "model.word_vectors=moved.npz")
    with pytest.raises(RunError, match=r"the vectors in model\.word_vectors are others") as caught:
        folder.check_config(config(*words), Inputs("data", words_sha256="a hash"))
    assert "moved.npz" not in str(caught.value)


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files \(thesis.txt\) and no run"):
        RunFolder(tmp_path).check_config(config(), DATA)


def test_hidden_files_do_not_make_a_folder_foreign(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    RunFolder(tmp_path).check_config(config(), DATA)


@pytest.mark.parametrize(
    "content",
    ["{half", "[]", '{"schema_version": 99}', '{"schema_version": 1, "trainings": [{"name": "x"}]}'],
)
def test_a_damaged_manifest_is_named(folder: RunFolder, content: str) -> None:
    (folder.path / MANIFEST_FILE).write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json cannot be used: .*another folder with out="):
        folder.trainings()


@pytest.mark.parametrize("content", ["seed: [", "no_such_setting: 1"])
def test_a_damaged_config_is_named(folder: RunFolder, content: str) -> None:
    (folder.path / CONFIG_FILE).write_text(content)
    with pytest.raises(RunError, match=r"config\.yaml is damaged or of another version"):
        folder.check_config(config(), DATA)


def test_the_manifest_keeps_what_is_recorded(folder: RunFolder) -> None:
    done = replace(finish(folder, "student", "key"), val_map=71.5, best_epoch=3, seconds=2.0)
    folder.record(done)
    assert folder.trainings() == [Training("baseline", NAMES), done]
    assert json.loads((folder.path / MANIFEST_FILE).read_text())["fingerprint"] == "data"
    assert reset(done) == Training("student", NAMES)


def test_done_means_the_same_key_and_the_same_weights(folder: RunFolder) -> None:
    done = finish(folder, "student", "key")
    assert folder.is_done(done, "key")
    assert not folder.is_done(done, "another key")
    assert not folder.is_done(reset(done), "key")
    assert not folder.is_done(replace(done, weights_sha256="0" * 64), "key")
    weights = folder.path / "student" / WEIGHTS_FILE
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert not folder.is_done(done, "key")
    weights.unlink()
    assert not folder.is_done(done, "key")


def test_trainings_are_set_aside_side_by_side(folder: RunFolder) -> None:
    for seed in range(3):
        folder.set_aside(finish(folder, "student", "0123456789", seed))
    archive = folder.path / "archive"
    assert sorted(entry.name for entry in archive.iterdir()) == [
        "student-01234567",
        "student-01234567-2",
        "student-01234567-3",
    ]
    assert len({(entry / WEIGHTS_FILE).read_bytes() for entry in archive.iterdir()}) == 3
    folder.set_aside(Training("baseline", NAMES))  # nothing there yet: nothing to keep


def test_trainings_that_are_no_longer_planned_are_set_aside(folder: RunFolder) -> None:
    finish(folder, "baseline", "aaaaaaaaaa")
    finish(folder, "student", "bbbbbbbbbb")
    folder.set_aside_others([Training("baseline", NAMES)])
    assert [entry.name for entry in (folder.path / "archive").iterdir()] == ["student-bbbbbbbb"]
    assert (folder.path / "baseline" / WEIGHTS_FILE).exists()


def test_half_written_files_of_a_killed_process_are_removed(folder: RunFolder) -> None:
    half = folder.path / "student" / ".last.pt.0a1b2c3d.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half")
    folder.remove_unfinished()
    assert not half.exists()
    assert (folder.path / MANIFEST_FILE).exists()


def test_a_half_written_file_that_its_own_process_removes_is_no_error(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [folder.path / f".state.{number}.tmp" for number in range(2)]
    for half in halves:
        half.touch()
    remove = Path.unlink

    def removed_by_another_too(path: Path, **options: bool) -> None:
        remove(path)
        remove(path, **options)

    monkeypatch.setattr(Path, "unlink", removed_by_another_too)
    folder.remove_unfinished()
    assert not any(half.exists() for half in halves)


def test_a_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
