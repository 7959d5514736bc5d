"""What can fail in a run, tried before its first training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from torch import nn

from coterie.errors import DataError, RunError
from coterie.preflight import BYTES_A_SCORE, check_measured, check_space
from coterie.runfolder import Training
from tests.tiny import make_dataset


def test_the_states_of_all_that_are_under_way_at_once_need_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(100, 100, bias=False)  # 40 kB
    trainings = [Training(f"teachers/co-occurrence-{index}", ("a",)) for index in range(4)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 1_400_000))
    check_space(tmp_path, model, trainings, at_once=2)  # 4 + 2 * 15 times the weights
    for at_once in (3, 4, 5):
        with pytest.raises(RunError, match=r"needs about 0\.00 GB in .* and the disk has 0\.00 GB free"):
            check_space(tmp_path, model, trainings, at_once)
    check_space(tmp_path, model, trainings[:2], at_once=5)


def test_a_measured_split_that_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset()  # val: 12 images of 4 classes
    bytes_of = {"SC_PAGE_SIZE": 12 * 4, "SC_PHYS_PAGES": BYTES_A_SCORE}
    monkeypatch.setattr(os, "sysconf", bytes_of.__getitem__)
    check_measured(dataset)
    bytes_of["SC_PHYS_PAGES"] -= 1
    with pytest.raises(DataError, match=r"split 'val' has 12 images of 4 classes.* by its shards, or"):
        check_measured(dataset)
