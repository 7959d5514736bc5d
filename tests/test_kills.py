"""A run killed at chosen steps and writes ends as one never killed; `benchmarks.kills` does so at random."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.kills import WAYS, Runs

from coterie.files import atomic_write
from coterie.states import PATTERN

SHORT = ("train.epochs=2",)


def test_a_run_killed_at_steps_and_in_writes_ends_in_the_same_weights(tmp_path: Path) -> None:
    words = (*WAYS["in lockstep"], *SHORT)
    runs = Runs(tmp_path)
    assert runs.start("undisturbed", words)
    expected = runs.result("undisturbed")
    assert len(expected) == 7  # six trainings and the metrics
    # between two members of the group, in its first and its second epoch; then in that of the student
    for at_step in (3, 19, 12, 14):
        assert not runs.start("killed", words, at_step=at_step)
        assert runs.half_written("killed") == []
    assert len(list((tmp_path / "killed" / "student").glob(PATTERN))) == 2
    # of what a run writes before its trainings, and of states
    for at_write in (2, 7, 8):
        assert not runs.start("killed", words, at_write=at_write)
        assert list((tmp_path / "killed").rglob(".*.tmp"))
        assert runs.half_written("killed") == []
    assert runs.start("killed", words)
    assert runs.result("killed") == expected
    assert not list((tmp_path / "killed").rglob(PATTERN))
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "{"),
        ("baseline/log.jsonl", '{"epoch": 1}\n{"ep'),
        ("baseline/state-00000001.pt", "half"),
        ("logits/test/index.json", ""),
        ("teacher-logits/0/0000.bin", "{}"),
        ("baseline/checkpoint.json", '{"weights_sha256": "0"}'),
    ],
)
def test_what_is_half_written_is_found(tmp_path: Path, name: str, content: str) -> None:
    atomic_write(tmp_path / "run" / "baseline" / "model.safetensors", "weights")
    runs = Runs(tmp_path)
    assert runs.half_written("run") == []
    atomic_write(tmp_path / "run" / name, content)
    assert runs.half_written("run") == [f"run/{name}"]
