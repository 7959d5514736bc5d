"""One target against changed files: whatever comes, it is a result or a CoterieError with a message."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from coterie.errors import CoterieError
from tests.fuzzing.mutations import Operation, mutated, operations
from tests.fuzzing.targets import Target

LONGEST_MESSAGE = 20_000  # characters: more helps nobody


def outcome(target: Target, folder: Path) -> str | None:
    """None for a valid result, the message of a CoterieError; AssertionError for one without a message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder)
    except CoterieError as error:
        message = str(error)
    else:
        return None
    assert message.strip(), "an error without a message"
    assert len(message) < LONGEST_MESSAGE, "a message that nobody reads"
    return message


def fuzz(
    target: Target,
    folder: Path,
    examples: int,
    number: int | None = None,
    watch: Callable[[Path, bytes], AbstractContextManager[object]] = lambda _path, _content: nullcontext(),
) -> None:
    """Try so many changes of the target's files in `folder`; raises what a reader raises that is no
    CoterieError, for the smallest change that does so.

    `number` is the seed; without one the changes are the same each time. `watch` is told every file, and
    is around its reading.
    """
    target.make(folder)
    whole = {path: path.read_bytes() for path in sorted(folder.glob(target.files)) if path.is_file()}
    assert whole, target.files
    problem = outcome(target, folder)
    assert problem is None or target.starts_wrong, problem

    @settings(
        max_examples=examples,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(st.sampled_from(sorted(whole)), operations(), st.booleans())
    def attempt(path: Path, changes: list[Operation], mend: bool) -> None:
        path.write_bytes(mutated(whole[path], changes))
        try:
            if mend and target.mend is not None:
                target.mend(folder)
            with watch(path, path.read_bytes()):
                outcome(target, folder)
        finally:
            for other, content in whole.items():
                if mend or other == path:
                    other.parent.mkdir(parents=True, exist_ok=True)
                    other.write_bytes(content)

    (attempt if number is None else seed(number)(attempt))()
