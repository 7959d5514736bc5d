"""Valid files made into nearly valid ones: bytes, words and values are cut, swapped, repeated, made odd."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

WORDS = re.compile(rb"[\w.+-]+")
LARGEST = 2**20  # bytes of a mutated file
ODD_BYTES = (
    *(b"", b"0", b"-1", b"1", b"2", b"9" * 19, b"9" * 400, b"1e999", b"-0.0", b"NaN", b"Infinity"),
    *(b"0x7fffffff", b"null", b"true", b"[]", b"{}", b'""', b"\x00", b"\xff\xfe", b"\\ud800", b"\\u0000"),
    *(b"\r", b"\n", b"\t", b'"', b"'", b"`", b",", b";", b":", b"=", b"#", b"&a ", b"*a", b"<<: "),
    *(b"!!int ''", b"!!python/name:os ", b"{0..9}", b"<!DOCTYPE a []>", b"&#0;", b"]]>", b"base: "),
    *(b"[" * 3000, b"{a: " * 1000, b'{"a":' * 3000, b"<a>" * 3000, b"a" * 5000, b" " * 5000),
    *(b"../../outside", b"/etc/passwd", b"/dev/zero", b"~", b"%s", b"model", b"train", b"test"),
    *("\u202e\u0130\u1e9e\ufeff".encode(), "\U0001f600".encode()),
)
DEEP: Any = json.loads("[" * 200 + "]" * 200)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**18, 0.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "\x00", "\ud800", "../x", "/etc/passwd", "a" * 5000),
    *("module:function", "nan", "1", [], {}, [None], [[]], [{}], {"": None}, {"a": {}}, DEEP, [1] * 300),
)
NUMBER = st.integers(0, 2**20)
Operation = tuple[str, int, int, int]
KINDS = (
    *("cut", "flip", "byte", "insert", "word", "swap", "delete", "repeat", "splice"),
    *("value", "drop", "key"),  # of JSON
)


def operations() -> st.SearchStrategy[list[Operation]]:
    """One to four changes: a kind, and three numbers that say where and what."""
    return st.lists(st.tuples(st.sampled_from(KINDS), NUMBER, NUMBER, NUMBER), min_size=1, max_size=4)


def mutated(content: bytes, changes: list[Operation]) -> bytes:
    """The content after the changes, in their order."""
    for change in changes:
        content = _changed(content, *change)[:LARGEST]
    return content


def _changed(content: bytes, kind: str, where: int, what: int, more: int) -> bytes:
    if kind in ("value", "drop", "key"):
        return _changed_json(content, kind, where, what)
    place = where % (len(content) + 1)
    if kind == "cut":
        return content[:place]
    if kind == "flip" and content:
        changed = bytearray(content)
        changed[where % len(content)] ^= 1 << what % 8
        return bytes(changed)
    if kind == "byte" and content:
        changed = bytearray(content)
        changed[where % len(content)] = what % 256
        return bytes(changed)
    if kind == "insert":
        return content[:place] + ODD_BYTES[what % len(ODD_BYTES)] + content[place:]
    if kind == "delete":
        return content[:place] + content[place + 1 + what % 64 :]
    if kind == "repeat":
        part = content[place : place + 1 + what % 256]
        return content[:place] + part * (1 + more % 50) + content[place:]
    if kind == "splice" and content:
        start = what % len(content)
        part = content[start : start + 1 + more % 256]
        return content[:place] + part + content[place + len(part) :]
    words = list(WORDS.finditer(content))
    if kind in ("word", "swap") and words:
        first = words[where % len(words)]
        second = words[what % len(words)]
        new = second[0] if kind == "swap" else ODD_BYTES[what % len(ODD_BYTES)]
        return content[: first.start()] + new + content[first.end() :]
    return content


def _changed_json(content: bytes, kind: str, where: int, what: int) -> bytes:
    """A value made odd, an entry dropped, or a key that stands twice, where the content is JSON."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places = [place for place in _places(values) if place]
    if not places:
        return content
    *above, last = places[where % len(places)]
    holder = values
    for key in above:
        holder = holder[key]
    if kind == "value":
        holder[last] = ODD_VALUES[what % len(ODD_VALUES)]
    elif kind == "drop":
        del holder[last]
    elif isinstance(holder, dict):
        names = list(holder)
        text = json.dumps(values)
        return text.replace(json.dumps(names[what % len(names)]), json.dumps(last), 1).encode()
    else:
        holder.append(holder[last])
    try:
        return json.dumps(values).encode()
    except RecursionError:
        return content


def _places(values: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value is, of nested lists and mappings; of long lists the first few."""
    found = [above]
    if len(above) > 6:
        return found
    if isinstance(values, dict):
        for key, value in list(values.items())[:40]:
            found += _places(value, (*above, key))
    elif isinstance(values, list):
        for position, value in enumerate(values[:10]):
            found += _places(value, (*above, position))
    return found
