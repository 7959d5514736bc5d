"""A short run of `python -m benchmarks.fuzz`, the same each time, and every case that the long ones found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coterie.pipeline import Run
from tests.fuzzing import targets
from tests.fuzzing.fuzzing import fuzz, outcome
from tests.fuzzing.mutations import KINDS, ODD_BYTES, mutated
from tests.fuzzing.targets import TARGETS, Target

CASES = Path(__file__).parent / "cases"
EXAMPLES = 12


@pytest.fixture(autouse=True)
def _the_run_of_other_tests(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "finished_folder", lambda: finished_run.folder)


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_gives_a_result_or_one_message(name: str, tmp_path: Path) -> None:
    fuzz(TARGETS[name], tmp_path, EXAMPLES)


@pytest.mark.parametrize(
    "case", sorted(CASES.glob("*/*")), ids=lambda case: f"{case.parent.name}-{case.name}"
)
def test_what_was_found_once_stays_mended(case: Path, tmp_path: Path) -> None:
    target = TARGETS[case.parent.name]
    target.make(tmp_path)
    for file in case.rglob("*"):
        if file.is_file():
            shutil.copyfile(file, tmp_path / file.relative_to(case))
    outcome(target, tmp_path)


def test_a_reader_that_fails_otherwise_is_found_by_a_small_change(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        int((folder / "number.txt").read_bytes())

    target = Target(lambda folder: (folder / "number.txt").write_text("12"), read)
    with pytest.raises(ValueError, match="invalid literal"):
        fuzz(target, tmp_path, 50)


def test_every_kind_of_change_changes_something() -> None:
    content = b'{"a": [1, 2], "b": {"c": "d"}}'
    for kind in KINDS:
        changed = [mutated(content, [(kind, place, what, 1)]) for place in range(1, 9) for what in range(20)]
        assert any(one != content for one in changed), kind
    assert mutated(b"a 1", [("word", 1, ODD_BYTES.index(b"NaN"), 0)]) == b"a NaN"
    assert mutated(content, [("value", 1, 0, 0)]) == b'{"a": [null, 2], "b": {"c": "d"}}'
    assert mutated(content, [("drop", 0, 0, 0)]) == b'{"b": {"c": "d"}}'
