"""A file is written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from coterie.files import atomic_write, lock

FORK = multiprocessing.get_context("fork")


def test_content_replaces_the_old_and_the_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.json"
    atomic_write(path, "ü\n")
    assert path.read_bytes() == b"\xc3\xbc\n"
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "x"
    atomic_write(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if stage == "fsync" else Path, stage, fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_during_the_write_finds_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    atomic_write(path, "old")
    found = []
    monkeypatch.setattr(os, "fsync", lambda _: found.append(path.read_text()))
    atomic_write(path, "new")
    assert found == ["old"]
    assert path.read_text() == "new"


def test_a_lock_ends_with_its_file_though_a_process_forked_meanwhile_lives_on(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    here, there = FORK.Pipe()
    with (tmp_path / "x").open("r+") as second, (tmp_path / "x").open("r+") as first:
        lock(first, wait=False)
        first.write("once")  # and not once more by the other process

        def close_and_live_on() -> None:
            first.close()
            there.send("closed")
            signal.pause()

        process = FORK.Process(target=close_and_live_on)
        process.start()
        try:
            assert here.poll(300)
            with pytest.raises(BlockingIOError):
                lock(second, wait=False)
            first.close()
            lock(second, wait=False)
            assert second.read() == "once"
        finally:
            process.kill()
            process.join()
