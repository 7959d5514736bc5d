"""What the audit of the pinned versions makes of pip-audit's answer."""

from __future__ import annotations

from typing import Any

from benchmarks.audit import verdict

SOUND: dict[str, Any] = {"name": "numpy", "version": "2.4.6", "vulns": []}
WEAK: dict[str, Any] = {
    "name": "pillow",
    "version": "9.0.0",
    "vulns": [{"id": "PYSEC-2022-10", "fix_versions": ["9.0.1", "9.1"]}, {"id": "X", "fix_versions": []}],
}
UNKNOWN: dict[str, Any] = {"name": "timm", "skip_reason": "Dependency not found"}


def test_a_known_weakness_fails_with_the_version_that_mends_it() -> None:
    status, lines = verdict([SOUND, WEAK, UNKNOWN])
    assert status == 1
    assert lines == [
        "pillow 9.0.0: PYSEC-2022-10, mended in 9.0.1, 9.1",
        "pillow 9.0.0: X, mended in no version yet",
        "note: nothing is known of timm",
        "2 versions looked up, 1 with a known weakness",
    ]


def test_versions_without_a_known_weakness_pass() -> None:
    assert verdict([SOUND]) == (0, ["1 versions looked up, 0 with a known weakness"])


def test_where_nothing_can_be_looked_up_nothing_is_claimed() -> None:
    for answer in ([], [UNKNOWN]):
        status, (line,) = verdict(answer)
        assert status == 0
        assert line.startswith("note: skipped, since no advisories can be reached")
