"""What can fail in a run, tried before its first training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch import nn

from coterie.errors import RunError
from coterie.preflight import check_space
from coterie.runfolder import Training


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
