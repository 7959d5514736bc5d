"""Trainings in processes of their own: the same weights, and what happens when one of them fails."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from coterie.api import fit
from coterie.config import load_config
from coterie.dispatch import CRASH_FILE
from coterie.errors import ConfigError, RunError
from coterie.pipeline import Run, run
from coterie.runfolder import RunFolder
from coterie.sidebyside import _Member, _Processes, send_or_end
from tests.tiny import (
    CLASS_NAMES,
    RUN_SETTINGS,
    RUN_WORDS,
    SIDE,
    Net,
    Steady,
    make_dataset,
    sized,
    write_table,
)

TWO = ("baseline", "teachers/co-occurrence-0")


class Failing(Net):
    """A `Net` whose training on some classes alone is killed or raises: always, or until `mark` exists. Of
    several processes, in the last.
    """

    def __init__(self, num_classes: int, how: str, mark: Path | None = None) -> None:
        super().__init__(num_classes)
        self.how = how
        self.mark = mark

    def forward(self, images: Tensor) -> Tensor:
        is_last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
        fails = self.training and self.head.out_features < len(CLASS_NAMES) and is_last
        if fails and not (self.mark and self.mark.exists()):
            if self.mark is not None:
                self.mark.touch()
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "memory":
                torch.empty(2**60)  # more than any machine has
            raise ZeroDivisionError("no such luck")
        return super().forward(images)


def start(folder: Path, builder: Any = Net, only: Any = None, **settings: Any) -> tuple[Run, str]:
    """A run of two jobs at once in `folder`, and what it printed."""
    chosen = RUN_SETTINGS | {"jobs": 2, "out": str(folder), "model": {"image_size": SIDE}} | settings
    console = Console(file=io.StringIO(), width=200)
    made = run(
        load_config(settings=chosen), dataset=make_dataset(), builder=builder, only=only, console=console
    )
    assert isinstance(console.file, io.StringIO)
    return made, console.file.getvalue()


def states(folder: Path) -> dict[str, str]:
    return {training.name: training.state for training in RunFolder(folder).trainings()}


def test_trainings_side_by_side_give_the_weights_of_those_one_after_the_other(tmp_path: Path) -> None:
    made, printed = start(tmp_path / "run")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    alone, _ = start(tmp_path / "alone", jobs=1)
    torch.set_num_threads(threads)
    assert made.metrics == alone.metrics
    hashes = [
        [(training.name, training.weights_sha256) for training in RunFolder(one.folder).trainings()]
        for one in (made, alone)
    ]
    assert hashes[0] == hashes[1]
    assert "teachers/dis-occurrence-1: val mAP" in printed


def test_two_processes_do_each_training_together_and_leave_the_files_of_one(tmp_path: Path) -> None:
    # views that come again, so that the student's processes share what its teachers say of them
    settings = {"student": {"views": 1}, "together": 3, "train": RUN_SETTINGS["train"] | {"batch_size": 5}}
    made, printed = start(tmp_path / "run", Steady, jobs=1, processes=2, **settings)
    alone, expected = start(tmp_path / "alone", Steady, jobs=1, **settings)
    assert files_in(made.folder) == files_in(alone.folder)
    assert saying(printed) == saying(expected)
    for split, models in alone.metrics.items():
        for model, metrics in models.items():
            assert made.metrics[split][model]["mAP"] == pytest.approx(metrics["mAP"], abs=0.01)
    # the number of processes is no other run: nothing is trained again
    _, again = start(tmp_path / "run", Steady, jobs=1, **settings)
    assert again.count("done before") == 6


def saying(printed: str) -> list[str]:
    """Which trainings and the like the lines are about; not which process has asked the teachers."""
    about = [line.split(": ")[0] for line in printed.splitlines() if ": " in line]
    return [what for what in about if what != "teachers"]


def files_in(folder: Path) -> list[str]:
    """The names of the files, without what hangs on the time or is a hash."""
    names = {re.sub(r"/[0-9a-f]{16}/", "/", str(path.relative_to(folder))) for path in folder.rglob("*")}
    return sorted(name for name in names if not re.search("[0-9a-f]{16}", name))


def test_one_of_several_processes_that_dies_or_fails_ends_the_others_with_one_message(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    made, printed = start(tmp_path / "run", partial(Failing, how="kill", mark=mark), TWO, jobs=1, processes=2)
    assert [states(made.folder)[name] for name in TWO] == ["done", "done"]
    assert printed.count("one of its 2 processes ended by SIGKILL, as it does when memory runs out") == 1
    with pytest.raises(RunError, match="ZeroDivisionError: no such luck") as caught:
        start(tmp_path / "failed", partial(Failing, how="raise"), TWO, jobs=1, processes=2)
    assert str(caught.value).startswith("1 of 2 trainings failed")
    assert str(caught.value).count("\n") == 1


def test_a_process_that_dies_is_started_once_more(tmp_path: Path) -> None:
    builder = partial(Failing, how="kill", mark=tmp_path / "mark")
    made, printed = start(tmp_path / "run", builder, TWO)
    assert [states(made.folder)[name] for name in TWO] == ["done", "done"]
    assert "its process ended by SIGKILL, as it does when memory runs out; it is started once more" in printed


def test_a_training_that_fails_twice_is_named_when_the_others_are_finished(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(RunError, match="1 of 2 trainings failed; the others are finished") as caught:
        start(tmp_path / "run", partial(Failing, how="raise"), TWO)
    assert "teachers/co-occurrence-0: ZeroDivisionError: no such luck (all of it in" in str(caught.value)
    assert "no such luck" in (tmp_path / "run" / TWO[1] / CRASH_FILE).read_text()
    assert [states(tmp_path / "run")[name] for name in TWO] == ["done", "pending"]
    mark.touch()
    _, printed = start(tmp_path / "run", partial(Failing, how="raise", mark=mark), TWO)
    assert "baseline: done before" in printed
    assert [states(tmp_path / "run")[name] for name in TWO] == ["done", "done"]


def test_a_training_without_memory_says_what_to_change_and_the_others_are_finished(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="1 of 2 trainings failed; the others are finished") as caught:
        start(tmp_path / "run", partial(Failing, how="memory"), TWO)
    assert "does not fit into the memory of cpu; set a smaller train.batch_size (now 8)" in str(caught.value)
    assert [states(tmp_path / "run")[name] for name in TWO] == ["done", "pending"]
    _, printed = start(tmp_path / "run", only=TWO)
    assert "baseline: done before" in printed
    assert [states(tmp_path / "run")[name] for name in TWO] == ["done", "done"]


def test_a_training_that_diverges_is_not_tried_twice(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"baseline: the loss of baseline is (nan|inf) in epoch 1"):
        start(tmp_path / "run", only=TWO, train=RUN_SETTINGS["train"] | {"lr": 1e30})


def test_a_builder_that_no_other_process_can_import_is_refused_before_any_work(tmp_path: Path) -> None:
    def local(num_classes: int) -> nn.Module:
        return Net(num_classes)

    with pytest.raises(ConfigError, match=r"that another process can import.* or use jobs=1"):
        fit(make_dataset(), model=sized(local), out=tmp_path / "run", jobs=2, **RUN_SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from coterie import fit\nfrom tests.tiny import RUN_SETTINGS, Net, make_dataset, sized\n"
        f"fit(make_dataset(), model=sized(Net), out={str(tmp_path / 'run')!r}, jobs=2, **RUN_SETTINGS)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert "RunError: a process for a training ended before it began" in ended.stderr


def test_processes_end_with_the_run_that_started_them_without_a_word(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    words = [*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}", "jobs=2", "train.epochs=100000"]
    command = f"import sys; sys.argv[1:] = {['run', *words]!r}; from coterie.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not all(list((tmp_path / "run" / name).glob("state-*.pt")) for name in TWO):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    # its processes have the same end of the pipe: it is at its end when the last of them is
    assert process.communicate()[1] == ""


def test_a_process_that_nobody_listens_to_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    theirs, ours = multiprocessing.Pipe(duplex=False)
    send_or_end(ours, ("note", "all is well"))
    assert (theirs.recv(), ends) == (("note", "all is well"), [])
    theirs.close()
    send_or_end(ours, ("note", "anybody there?"))
    assert ends == [1]


def test_a_process_killed_in_the_middle_of_a_message_is_one_that_died() -> None:
    class Killed:
        exitcode = -signal.SIGKILL

        def join(self) -> None: ...

    connection, theirs = multiprocessing.Pipe(duplex=False)
    killed: Any = Killed()
    worker: Any = object.__new__(_Processes)
    worker.unfinished, worker.failure, worker.has_begun = ["a job"], "", True
    worker._members, worker._stack = [_Member(killed, connection)], ExitStack()
    theirs.send((0.0, ("note", "long")))
    with os.fdopen(os.dup(connection.fileno()), "rb") as reading:
        whole = os.read(reading.fileno(), 1000)
    os.write(theirs.fileno(), whole[:-1])
    theirs.close()
    worker.listen()
    assert worker.ended
    assert worker.crashed
    assert worker.failure.startswith("its process ended by SIGKILL")
