"""Teachers' logits on the disk: whole and of the same inputs, or not there."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.array_store import HEADER_BYTES, Array, ArrayStore
from coterie.errors import RunError
from coterie.view_cache import ViewCache

ROWS, CLASSES = 7, 3
INPUTS = {"teachers": ["a", "b"]}
KINDS = ("co-occurrence", "dis-occurrence")
# processes that share what this one has imported
FORK = multiprocessing.get_context("fork")


def logits_of(view: int, kind: str) -> Array:
    """What the teachers of these tests say."""
    rng = np.random.default_rng([view, KINDS.index(kind)])
    return rng.normal(size=(ROWS, CLASSES)).astype(np.float32)


class Lessons:
    """Teachers that note which views they are asked for."""

    def __init__(self, during: Callable[[int], None] | None = None) -> None:
        self.loaded: list[tuple[str, ...]] = []
        self.asked: list[int] = []
        self.during = during

    def teach(self, kinds: tuple[str, ...]) -> Callable[[int], Iterator[Array]]:
        self.loaded.append(kinds)

        def answer(view: int) -> Iterator[Array]:
            self.asked.append(view)
            for start in (0, 4):
                yield np.stack([logits_of(view, kind)[start : start + 4] for kind in kinds])
                if self.during is not None:
                    self.during(view)

        return answer


def branch(folder: Path, kind: str = KINDS[0], **changes: Any) -> ArrayStore:
    values: dict[str, Any] = {"inputs": INPUTS | {"kind": kind}, "shape": (ROWS, CLASSES)} | changes
    return ArrayStore(folder, **values)


def cache(folder: Path, lessons: Lessons, *kinds: str) -> ViewCache:
    return ViewCache(
        {kind: branch(folder, kind) for kind in kinds or KINDS},
        lessons.teach,
        what="the teachers' logits",
        remedy="Choose another with cache_dir=…",
    )


def write(stored: ArrayStore, view: int, logits: Array) -> None:
    with stored.locked(view, wait=False), stored.writing(view) as put:
        put(logits)


def remains(folder: Path) -> list[str]:
    """The names of files that were not finished."""
    return [path.name for path in folder.rglob("*.part")]


def test_logits_come_back_as_they_were_made_and_teachers_are_asked_once(tmp_path: Path) -> None:
    lessons = Lessons()
    first = cache(tmp_path, lessons)
    assert first.missing(range(3)) == [0, 1, 2]
    counted: list[int] = []
    first.fill([0, 1], counted.append)
    assert counted == [4, 3, 4, 3]
    again = cache(tmp_path, lessons)
    for view in (0, 1):
        for found, kind in zip(again.view(view), KINDS, strict=True):
            assert np.array_equal(found, logits_of(view, kind))
    assert again.missing(range(3)) == [2]
    # loaded once for both views, and not again
    assert (lessons.loaded, lessons.asked) == ([KINDS], [0, 1])


def test_a_view_that_is_missing_is_made_when_it_is_wanted(tmp_path: Path) -> None:
    lessons = Lessons()
    (found,) = cache(tmp_path, lessons, KINDS[1]).view(5)
    assert np.array_equal(found, logits_of(5, KINDS[1]))
    assert lessons.asked == [5]


def test_a_branch_that_is_there_is_not_made_again_for_the_other(tmp_path: Path) -> None:
    cache(tmp_path, Lessons(), KINDS[0]).fill([0])
    lessons = Lessons()
    both = cache(tmp_path, lessons).view(0)
    assert lessons.loaded == [(KINDS[1],)]
    assert np.array_equal(both[0], logits_of(0, KINDS[0]))


def test_float16_rounds_by_no_more_than_it_says(tmp_path: Path) -> None:
    stored = branch(tmp_path, dtype="float16")
    write(stored, 0, logits_of(0, KINDS[0]))
    found = stored.read(0)
    assert found is not None
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, logits_of(0, KINDS[0]), rtol=5e-4)
    assert stored.nbytes == stored.path(0).stat().st_size == HEADER_BYTES + 2 * ROWS * CLASSES


@pytest.mark.parametrize("value", [np.nan, np.inf, 70000.0])
def test_logits_that_cannot_be_stored_are_an_error(tmp_path: Path, value: float) -> None:
    stored = branch(tmp_path, dtype="float16")

    def make(_: tuple[str, ...]) -> Callable[[int], Iterator[Array]]:
        return lambda _: iter([np.full((1, ROWS, CLASSES), value, dtype=np.float32)])

    asked = ViewCache({KINDS[0]: stored}, make, what="the features", remedy="Use another precision")
    with pytest.raises(RunError, match=r"the features cannot be kept: .*do not fit float16\. Use another"):
        asked.fill([0])
    assert stored.read(0) is None
    assert remains(tmp_path) == []


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 4),
        lambda path: os.truncate(path, path.stat().st_size + 4),
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, HEADER_BYTES - 100),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: flip(path, 10),
        lambda path: flip(path, HEADER_BYTES),
        lambda path: flip(path, path.stat().st_size - 1),
        lambda path: path.unlink(),
        lambda path: shutil.copyfile(path.with_name("0001.bin"), path),
    ],
    ids=[
        *("shorter", "longer", "empty", "half a header", "zeros", "another header", "a bit at the start"),
        *("a bit at the end", "gone", "of another view"),
    ],
)
def test_a_damaged_view_is_never_read_and_made_again(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    cache(tmp_path, Lessons(), KINDS[0]).fill([0, 1])
    damage(branch(tmp_path).path(0))
    assert branch(tmp_path).read(0) is None
    lessons = Lessons()
    (found,) = cache(tmp_path, lessons, KINDS[0]).view(0)
    assert np.array_equal(found, logits_of(0, KINDS[0]))
    assert lessons.asked == [0]


@pytest.mark.parametrize(
    "changes",
    [{"inputs": {"teachers": ["a", "c"]}}, {"shape": (ROWS, CLASSES + 1)}, {"dtype": "float16"}],
    ids=str,
)
def test_logits_of_other_inputs_are_not_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(branch(tmp_path), 0, logits_of(0, KINDS[0]))
    other = branch(tmp_path, **changes)
    assert other.read(0) is None
    # nor where somebody puts the file into the folder of the other inputs
    other.folder.mkdir()
    shutil.copyfile(branch(tmp_path).path(0), other.path(0))
    assert other.read(0) is None


def test_a_full_disk_is_one_clear_error_and_leaves_the_views_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = 0

    def sync(_: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 5:  # what the two branches are made from, two views of the first, one of the second
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    filled = cache(tmp_path, Lessons())
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(RunError, match=r"cannot be written to .*: No space left on device.*cache_dir"):
        filled.fill([0, 1, 2])
    monkeypatch.undo()
    assert remains(tmp_path) == []
    assert filled.missing(range(3)) == [1, 2]
    filled.fill([1, 2])
    assert filled.missing(range(3)) == []


def test_too_small_a_disk_is_said_before_the_teachers_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 8000))
    lessons = Lessons()
    cache(tmp_path, lessons, KINDS[0]).fill([0])
    with pytest.raises(RunError, match=r"the teachers' logits need .* GB in .* the disk has 0\.00 GB free"):
        cache(tmp_path, lessons).fill([0, 1])
    assert lessons.asked == [0]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written to .*file\. Choose another"):
        cache(tmp_path / "file", Lessons()).fill([0])


def test_an_error_in_the_middle_of_a_view_leaves_nothing_of_it(tmp_path: Path) -> None:
    def interrupt(view: int) -> None:
        if view == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, Lessons(interrupt)).fill([0, 1])
    assert remains(tmp_path) == []
    assert cache(tmp_path, Lessons()).missing([0, 1]) == [1]


def test_a_view_with_too_few_rows_does_not_appear(tmp_path: Path) -> None:
    stored = branch(tmp_path)
    with pytest.raises(ValueError, match=r"must be \(7, 3\)"):
        write(stored, 0, logits_of(0, KINDS[0])[:-1])
    assert not stored.path(0).exists()


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    here, there = FORK.Pipe()

    def killed_after_a_block(_: int) -> None:
        there.send("half")
        signal.pause()

    process = FORK.Process(target=lambda: cache(tmp_path, Lessons(killed_after_a_block)).fill([0]))
    process.start()
    assert here.poll(300)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(remains(tmp_path)) == 2
    assert cache(tmp_path, Lessons()).missing([0]) == [0]
    again = cache(tmp_path, Lessons())
    for found, kind in zip(again.view(0), KINDS, strict=True):
        assert np.array_equal(found, logits_of(0, kind))
    assert remains(tmp_path) == []


def filled_by_a_process(folder: Path, views: list[int], results: Connection) -> None:
    lessons = Lessons()
    cache(folder, lessons).fill(views)
    results.send(lessons.asked)


def test_processes_that_fill_at_once_share_the_work_and_read_the_same(tmp_path: Path) -> None:
    views = list(range(12))
    here, there = FORK.Pipe()
    processes = [FORK.Process(target=filled_by_a_process, args=(tmp_path, views, there)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    made = [view for _ in processes for view in here.recv()]
    assert sorted(made) == views  # each by one of them
    found = cache(tmp_path, Lessons())
    assert found.missing(views) == []
    for view in views:
        assert np.array_equal(found.view(view)[1], logits_of(view, KINDS[1]))


def test_what_another_is_making_is_waited_for_after_the_rest_is_done(tmp_path: Path) -> None:
    second_made = threading.Event()
    lessons = Lessons(lambda view: second_made.set() if view == 1 else None)
    filling = threading.Thread(target=cache(tmp_path, lessons, KINDS[0]).fill, args=([0, 1],))
    other = branch(tmp_path)
    with other.locked(0, wait=False):
        filling.start()
        assert second_made.wait(30)
        with other.writing(0) as put:
            put(logits_of(0, KINDS[0]))
    filling.join(30)
    assert not filling.is_alive()
    assert lessons.asked == [1]
    assert other.read(1) is not None
