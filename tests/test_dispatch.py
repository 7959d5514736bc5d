"""Groups that workers do: their order, what is started again and how often, and what is told of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coterie.config import Config, TrainConfig
from coterie.dispatch import CRASH_FILE, Message, Worker, dispatch, do_group
from coterie.errors import RunError
from coterie.progress import Bars
from coterie.runfolder import Training
from coterie.training import Job

SETTINGS = TrainConfig()


def job(name: str) -> Job:
    return Job(Training(name, ("a",)), SETTINGS, "key")


class Scripted(Worker):
    """A worker that says what its script has for the names of its group, and then ends."""

    def __init__(self, jobs: Sequence[Job], folder: Path, bars: Bars, script: list[Message]) -> None:
        super().__init__(jobs, folder, bars)
        self.script = script
        self.stopped = False

    def listen(self) -> None:
        for message in self.script:
            self.take_in(message)
        self.end()
        self.died("it died")

    def stop(self) -> None:
        self.stopped = True


def results_of(
    groups: list[list[str]],
    scripts: dict[str, list[list[Message]]],
    folder: Path,
    *,
    slots: int = 1,
    retries: int = 1,
) -> tuple[list[Any], list[tuple[int, str]], str]:
    """What `dispatch` gives of workers that follow `scripts`, by the names of a group, one for each start;
    the starts with their slots, and what was printed.
    """
    console = Console(file=io.StringIO(), width=200)
    starts: list[tuple[int, str]] = []

    def start(jobs: Sequence[Job], slot: int) -> Scripted:
        name = " ".join(each.training.name for each in jobs)
        starts.append((slot, name))
        return Scripted(jobs, folder, Bars(console), scripts[name].pop(0))

    made = dispatch(
        [[job(name) for name in group] for group in groups],
        slots,
        retries,
        Bars(console),
        start,
        lambda _: None,
    )
    found = [
        (result.name, "done") if isinstance(result, Training) else (result[0].name, str(result[1]))
        for result in made
    ]
    assert isinstance(console.file, io.StringIO)
    return found, starts, console.file.getvalue()


def done(name: str) -> Message:
    return ("result", Training(name, ("a",), state="done"))


def test_the_trainings_of_all_workers_are_in_one_view(tmp_path: Path) -> None:
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=150))
    workers = {name: Scripted([job(name)], tmp_path, bars, []) for name in ("baseline", "student")}

    def shown() -> dict[str, float]:
        return {task.description: task.completed for task in bars.rich.tasks}

    for (name, worker), images in zip(workers.items(), (40, 30), strict=True):
        worker.take_in(("begin", name, 5, 100, 0))
        worker.take_in(("images", name, images))
    workers["baseline"].take_in(("images", "baseline", 2))
    assert shown() == {"baseline": 42, "student": 30}
    workers["baseline"].end()
    assert shown() == {"student": 30}


def test_groups_are_done_in_their_order_in_the_slots_there_are(tmp_path: Path) -> None:
    scripts = {name: [[done(name)]] for name in "abc"}
    found, starts, _ = results_of([["a"], ["b"], ["c"]], scripts, tmp_path, slots=2)
    assert found == [("a", "done"), ("b", "done"), ("c", "done")]
    assert starts[:2] == [(0, "a"), (1, "b")]
    assert starts[2][1] == "c"


def test_what_a_dead_worker_has_not_finished_is_started_again_each_by_itself(tmp_path: Path) -> None:
    scripts = {"a b c": [[done("b")]], "a": [[done("a")]], "c": [[done("c")]]}
    found, starts, printed = results_of([["a", "b", "c"]], scripts, tmp_path)
    assert found == [("b", "done"), ("a", "done"), ("c", "done")]
    assert [name for _, name in starts] == ["a b c", "a", "c"]
    assert "a: it died; it is started once more" in printed


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_training_is_started_again_as_often_as_retries_says(retries: int, tmp_path: Path) -> None:
    scripts: dict[str, list[list[Message]]] = {"a": [[] for _ in range(retries + 1)], "b": [[done("b")]]}
    found, starts, _ = results_of([["a"], ["b"]], scripts, tmp_path, retries=retries)
    assert found == [("a", "it died"), ("b", "done")]
    assert len(starts) == retries + 2


def test_a_worker_that_says_what_is_wrong_is_not_started_again(tmp_path: Path) -> None:
    scripts: dict[str, list[list[Message]]] = {"a b": [[done("a"), ("failed", "no such luck", None)]]}
    found, _, printed = results_of([["a", "b"]], scripts, tmp_path)
    assert found == [("a", "done"), ("b", "no such luck")]
    assert printed == ""


def test_a_crash_leaves_its_trace_in_the_folder_of_the_training(tmp_path: Path) -> None:
    scripts: dict[str, list[list[Message]]] = {"a": [[("failed", "KeyError: 1", "the whole trace")]]}
    found, _, _ = results_of([["a"]], scripts, tmp_path, retries=0)
    assert found == [("a", f"KeyError: 1 (all of it in {tmp_path / 'a' / CRASH_FILE})")]
    assert (tmp_path / "a" / CRASH_FILE).read_text() == "the whole trace"


def test_a_crash_behind_the_last_training_takes_nothing_back(tmp_path: Path) -> None:
    scripts: dict[str, list[list[Message]]] = {"a": [[done("a"), ("failed", "KeyError: 1", "a trace")]]}
    found, _, _ = results_of([["a"]], scripts, tmp_path)
    assert found == [("a", "done")]


def test_workers_are_stopped_when_nobody_asks_for_more(tmp_path: Path) -> None:
    workers: list[Scripted] = []

    def start(jobs: Sequence[Job], _: int) -> Scripted:
        workers.append(Scripted(jobs, tmp_path, Bars(Console(quiet=True)), []))
        return workers[-1]

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    given = dispatch([[job("a")], [job("b")]], 2, 1, Bars(Console(quiet=True)), start, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(given)
    assert [worker.stopped for worker in workers] == [True, True]


def test_a_group_sends_what_goes_wrong_as_words() -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error
            self.config = Config()

        def train(self, *_: object) -> list[Training]:
            raise self.error

    def sent(error: Exception) -> Message:
        messages: list[Message] = []
        broken: Any = Broken(error)
        do_group(broken, [job("a")], (), 0, messages.append)
        (message,) = messages
        return message

    assert sent(RunError("what to do")) == ("failed", "what to do", None)
    assert sent(OSError(28, "No space left on device")) == ("failed", "No space left on device", None)
    assert sent(MemoryError())[:2] == ("failed", "memory has run out")
    kind, text, trace = sent(KeyError(1))
    assert (kind, text) == ("failed", "KeyError: 1")
    assert "Traceback" in trace
