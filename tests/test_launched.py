"""Runs whose processes somebody else has started: one of them has the run, and one says what is wrong."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from coterie.ablation import ablate
from coterie.config import Config, load_config
from coterie.engine import make_engine
from coterie.errors import ConfigError
from coterie.models.factory import make_factory
from coterie.pipeline import run
from coterie.ranks import Meeting
from coterie.runfolder import RunFolder
from tests.tiny import RUN_SETTINGS, RUN_WORDS, SIDE, Net, Steady, make_dataset, write_table

VARIABLES = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


class FailingSecond(Net):
    """A `Net` whose training fails in the second process."""

    def __init__(self, num_classes: int, how: str) -> None:
        super().__init__(num_classes)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        if self.training and os.environ.get("RANK") == "1":
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("no such luck")
        return super().forward(images)


def settings(folder: Path) -> dict[str, Any]:
    return RUN_SETTINGS | {"out": str(folder), "model": {"image_size": SIDE}}


def be_one(environment: dict[str, str], folder: Path, builder: Any, only: Any) -> None:
    """One of the processes of a run: what it has printed, and what has come out, is in a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    console = Console(file=io.StringIO(), width=200)
    try:
        made = run(
            load_config(settings=settings(folder / "run")),
            dataset=make_dataset(),
            builder=builder,
            only=only,
            console=console,
        )
        result: Any = {"metrics": made.metrics, "leaning": made.leaning, "folder": str(made.folder)}
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
    assert isinstance(console.file, io.StringIO)
    content = {"result": result, "printed": console.file.getvalue()}
    (folder / f"{environment['RANK']}.json").write_text(json.dumps(content))


def start(folder: Path, builder: Any, only: Any = None) -> tuple[list[dict[str, Any]], list[int | None]]:
    """What two processes that do a run together have left, and their exit statuses."""
    meeting = Meeting(2)
    multiprocessing.set_forkserver_preload(["coterie.sidebyside"])
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=be_one, args=(meeting.environment(rank, rank), folder, builder, only))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    files = [folder / f"{rank}.json" for rank in range(2)]
    contents = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    return contents, [process.exitcode for process in processes]


def test_one_of_the_processes_has_the_run_and_all_have_its_results(tmp_path: Path) -> None:
    (first, second), exits = start(tmp_path, Steady)
    alone = run(load_config(settings=settings(tmp_path / "alone")), dataset=make_dataset(), builder=Steady)
    assert exits == [0, 0]
    assert second == {"result": first["result"], "printed": ""}
    assert first["result"]["folder"] == str(tmp_path / "run")
    assert "student: val mAP" in first["printed"]
    assert [training.state for training in RunFolder(tmp_path / "run").trainings()] == ["done"] * 6
    for split, models in alone.metrics.items():
        for model, metrics in models.items():
            found = first["result"]["metrics"][split][model]["mAP"]
            assert found == pytest.approx(metrics["mAP"], abs=0.01)


def test_one_that_fails_says_why_and_the_other_leaves_without_a_word(tmp_path: Path) -> None:
    (first, second), _ = start(tmp_path, partial(FailingSecond, how="raise"), ("baseline",))
    assert first["result"] == "SystemExit: 1"
    assert second["result"] == "ZeroDivisionError: no such luck"


def test_where_one_is_killed_the_other_says_so(tmp_path: Path) -> None:
    (first, second), exits = start(tmp_path, partial(FailingSecond, how="kill"), ("baseline",))
    assert exits == [0, -signal.SIGKILL]
    assert second == {}
    assert first["result"].startswith("RunError: one of the 2 processes of the run ended")


def test_torchrun_gives_the_weights_of_processes_that_a_run_starts_itself(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    words = [*RUN_WORDS, f"data={table}"]
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "coterie", "run", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *command, f"out={tmp_path / 'run'}", "--only", "baseline"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("baseline: val mAP") == 1
    run(load_config([*words, f"out={tmp_path / 'own'}", "processes=2"]), only=("baseline",))
    one, other = (RunFolder(tmp_path / name).trainings()[0].weights_sha256 for name in ("run", "own"))
    assert one == other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jobs=2"], "jobs=2, but all processes that have been started do one training together"),
        (["processes=3"], "processes=3, but 2 have been started; leave it out"),
        (["distill.generator=0.1"], "distill.generator looks at whole batches, and processes=2 share each"),
        (["engine=ray"], "engine=ray starts its processes itself; start the run without torchrun"),
    ],
)
def test_settings_that_ask_for_other_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    config = load_config(["model=tests.tiny:Net", *words])
    with pytest.raises(ConfigError, match=message):
        make_engine(config).prepare(make_factory(config.model))


def test_an_ablation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="set processes=N, without torchrun"):
        ablate(Config())
