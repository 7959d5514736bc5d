"""The states of a training under way: two are kept, and what is damaged is left out."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.errors import RunError
from coterie.states import PATTERN, States, read_state, remove_states


def states(folder: Path, key: str = "key") -> tuple[States, list[str]]:
    """The states in a folder, and what they say."""
    notes: list[str] = []
    return States(folder, key, notes.append), notes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path, key: str = "key") -> int | None:
    content = states(folder, key)[0].newest()
    return None if content is None else content["number"]


def fill(folder: Path, *steps: int, key: str = "key") -> States:
    made, _ = states(folder, key)
    for step in steps:
        made.keep(step, {"number": step, "weights": torch.full((100,), float(step))})
    return made


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2, 10)
    assert names(tmp_path) == ["state-00000002.pt", "state-00000010.pt"]
    content = states(tmp_path)[0].newest()
    assert content is not None
    assert content["number"] == 10
    assert torch.equal(content["weights"], torch.full((100,), 10.0))


def test_every_damage_is_noticed_and_the_one_before_is_used(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    path = tmp_path / "state-00000002.pt"
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            assert read_state(path) is None
    path.write_bytes(whole + b"0")
    made, notes = states(tmp_path)
    content = made.newest()
    assert content is not None
    assert content["number"] == 1
    said = "state-00000002.pt damaged and left out; it goes on from state-00000001.pt"
    assert notes == [f"{tmp_path.name}: {said}"]
    made.keep(3, {"number": 3})
    assert names(tmp_path) == ["state-00000001.pt", "state-00000003.pt"]


def test_where_both_are_damaged_the_training_begins_anew(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    for path in tmp_path.glob(PATTERN):
        path.write_bytes(b"")
    made, notes = states(tmp_path)
    assert made.newest() is None
    assert notes == [
        f"{tmp_path.name}: state-00000002.pt, state-00000001.pt damaged and left out; it begins anew"
    ]


def test_a_state_that_would_run_code_is_none(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    fill(tmp_path).keep(1, {"number": Harmful()})
    assert newest(tmp_path) is None
    assert not (tmp_path / "made").exists()


def test_those_of_another_key_are_not_used_and_go_with_the_first_that_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, 500, 600, key="old")
    made, notes = states(tmp_path)
    assert made.newest() is None
    assert notes == []
    made.keep(3, {"number": 3})
    assert names(tmp_path) == ["state-00000003.pt"]


def test_a_full_disk_leaves_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fill(tmp_path, 1, 2)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        made.keep(3, {"number": 3})
    assert names(tmp_path) == ["state-00000001.pt", "state-00000002.pt"]
    assert newest(tmp_path) == 2


def test_one_that_may_not_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 1, 2)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"state .*state-00000002\.pt cannot be read: Permission denied"):
        newest(tmp_path)


def test_when_the_training_is_finished_they_go(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    (tmp_path / "diverged.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text("")
    remove_states(tmp_path)
    assert names(tmp_path) == ["log.jsonl"]
