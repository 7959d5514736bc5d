"""Several runs of an ablation at once: the same numbers, every training once, and a process that dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from coterie.ablation import Ablation, Row, ablate
from coterie.config import Config, load_config
from coterie.errors import ConfigError
from coterie.models.factory import ModelBuilder
from tests.tiny import RUN_WORDS, Net, make_dataset, write_table

ROWS = ("baseline", "cgp", "psd", "all-teachers", "nan")
OWN = (Row("nan", "a student that diverges", ("student.lr=1e30",)),)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data") / "photos")


def compared(table: Path, out: Path, at_once: int) -> Ablation:
    return ablate(load_config([*RUN_WORDS, f"data={table}"]), ROWS, (0, 1), own=OWN, out=out, at_once=at_once)


def test_runs_at_once_give_the_numbers_of_runs_in_turn(table: Path, tmp_path: Path) -> None:
    # the run that diverges needs the teachers of the run as it is set, and waits for them
    at_once = compared(table, tmp_path / "at-once", 2)
    in_turn = compared(table, tmp_path / "in-turn", 1)
    assert [(outcome.row, outcome.seed) for outcome in at_once.outcomes] == [
        (row, seed) for seed in (0, 1) for row in ROWS[:-1]
    ]
    for one, other in zip(at_once.outcomes, in_turn.outcomes, strict=True):
        assert (one.row, one.metrics, one.leaning) == (other.row, other.metrics, other.leaning)
    assert at_once.intervals == in_turn.intervals
    for result in (at_once, in_turn):
        assert [(failure.row, failure.seed) for failure in result.failures] == [("nan", 0), ("nan", 1)]
        assert all("loss of student is" in failure.message for failure in result.failures)
    trained = [
        sorted(path.name for path in (tmp_path / name / "trainings").iterdir() if path.name[0] != ".")
        for name in ("at-once", "in-turn")
    ]
    assert trained[0] == trained[1]
    assert len(trained[0]) == 2 * (1 + 4 + 2)


def deadly(num_classes: int) -> Net:
    """A model that takes its process with it, unless that is the one of the tests."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return Net(num_classes)


def settings(name: str) -> Config:
    config = load_config([word for word in RUN_WORDS if not word.startswith("model=")])
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def test_a_process_that_dies_is_a_failure_of_its_rows(tmp_path: Path) -> None:
    config, out = settings(f"{__name__}:deadly"), tmp_path / "ablation"
    result = ablate(config, ["cgp"], [3], out=out, dataset=make_dataset(), builder=deadly, at_once=2)
    assert result.outcomes == ()
    assert {failure.row for failure in result.failures} == {"baseline", "cgp"}
    assert {failure.message for failure in result.failures} == {
        "its process ended by SIGKILL, as it does when memory runs out"
    }


def test_a_model_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    def local(num_classes: int) -> Net:
        return Net(num_classes)

    builder: ModelBuilder = local
    with pytest.raises(ConfigError, match=r"another process can have.*or do one run at a time"):
        ablate(
            settings("local"), ["cgp"], [3], out=tmp_path, dataset=make_dataset(), builder=builder, at_once=2
        )
