"""What TensorBoard shows of a training, also of one that was stopped."""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coterie.scalars import ScalarLog


def shown(folder: Path) -> list[tuple[int, float]]:
    """The steps and the values of "loss" as TensorBoard reads them."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("loss")]


def test_tensorboard_reads_every_value(tmp_path: Path) -> None:
    with closing(ScalarLog(tmp_path / "log", 1)) as log:
        for step in (1, 2, 3):
            log.add(step, {"loss": step / 2, "lr": 0.1})
        assert shown(tmp_path / "log") == [(1, 0.5), (2, 1.0), (3, 1.5)]  # while it goes on


def test_a_step_that_is_done_again_after_a_stop_is_shown_once_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first, now in ((1, 2e9), (3, 1e9), (2, 0.0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with closing(ScalarLog(tmp_path, first)) as log:
            for step in range(first, 5):
                log.add(step, {"loss": float(10 * first + step)})
    assert shown(tmp_path) == [(1, 11.0), (2, 22.0), (3, 23.0), (4, 24.0)]


def test_a_full_disk_is_an_error_where_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(ScalarLog(tmp_path, 1)) as log:
        monkeypatch.setattr(log._records, "write", full)
        with pytest.raises(OSError, match="No space left"):
            log.add(1, {"loss": 1.0})
