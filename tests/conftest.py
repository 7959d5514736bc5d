"""What several tests share."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coterie.config import load_config
from coterie.pipeline import Run, run
from tests.tiny import RUN_WORDS, write_table


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws from torch does not depend on the tests before it."""
    torch.manual_seed(0)


def shared_data() -> Path:
    """The folder of measuring data: `COTERIE_DATA`, else `../shared/data`; skips where it is absent."""
    folder = Path(os.environ.get("COTERIE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no measuring data at {folder}; set COTERIE_DATA")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `tests.tiny:Net` on a table, in a folder named run; to change it, take `run_copy`."""
    folder = tmp_path_factory.mktemp("finished")
    table = write_table(folder / "photos")
    return run(load_config([*RUN_WORDS, f"data={table}", f"out={folder / 'run'}"]))


@pytest.fixture
def run_copy(finished_run: Run, tmp_path: Path) -> Run:
    """The finished run in a folder of its own."""
    copied = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    config = finished_run.config.model_copy(update={"out": copied})
    return replace(finished_run, folder=copied, config=config)
