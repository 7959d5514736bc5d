"""JSON and YAML of strangers: plain values, or a ValueError with a reason, in little time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coterie.untrusted import LONGEST_YAML, parse_json, parse_yaml

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{after}: &{after} [*{before}, *{before}]\n"
    for before, after in zip("abcdefghijklmnopqrstu", "bcdefghijklmnopqrstuv", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{after}: &{after} {{<<: [*{before}, *{before}]}}\n"
    for before, after in zip("abcdefghijklmnopqrstu", "bcdefghijklmnopqrstuv", strict=True)
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: [1, 2.5, yes, null, x]", {"a": [1, 2.5, True, None, "x"]}),
        ("base: &b {x: 1}\nother: {<<: *b, y: 2}", {"base": {"x": 1}, "other": {"x": 1, "y": 2}}),
        ("a: &a [1]\nb: [*a, *a]", {"a": [1], "b": [[1], [1]]}),
        ("a: 1\na: 2", {"a": 2}),
        (f"a: {2**64 - 1}", {"a": 2**64 - 1}),
        ("", None),
    ],
)
def test_plain_values_come_as_they_are(text: str, values: Any) -> None:
    assert parse_yaml(text) == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "unfold to more than 1,000,000 values"),
        (MERGES, "unfold to more than 1,000,000 values"),
        ("a: &a [*a]", "holds itself"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: " + "9" * 3000, "beyond 2"),
        ("a: 0x" + "f" * 100, "beyond 2"),
        ("!!int ''", "index"),
        ("!!bool maybe", "maybe"),
        ("!!timestamp x", "NoneType"),
        ("a: 1\nb: [", "expected"),
        ("{[1, 2]: 3}", "unhashable"),
        ("x" * (LONGEST_YAML + 1), "characters"),
    ],
)
def test_what_cannot_be_meant_is_a_value_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_no_tag_makes_an_object_or_runs_a_function(tmp_path: Path) -> None:
    for tag in ("python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"):
        with pytest.raises(ValueError, match="could not determine a constructor"):
            parse_yaml(f"!!{tag} [{tmp_path / 'made'}]")
    assert not (tmp_path / "made").exists()


def test_a_key_that_stands_twice_is_told_where_it_matters() -> None:
    with pytest.raises(ValueError, match="'a' stand twice"):
        parse_yaml("b: {a: 1, a: 2}", unique=True)


def test_json_nested_too_deeply_is_a_value_error() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
