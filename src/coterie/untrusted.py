"""JSON and YAML that anybody may have written: plain values, or a ValueError that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml

from coterie.errors import repeated, shortened

LONGEST_YAML = 2**21  # characters: a list of 20,000 classes has a fourth of that
MOST_NODES = 1_000_000  # of YAML, where each alias counts as what it stands for
LARGEST_NUMBER = 2**64

Pairs = Callable[[list[tuple[str, Any]]], Any]


def parse_json(text: str | bytes, pairs: Pairs | None = None) -> Any:
    """The values in a text of JSON; `pairs` makes the objects, as in `json.loads`.

    ValueError where it is none, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def parse_yaml(text: str, unique: bool = False) -> Any:
    """The plain values in a text of YAML: no tag makes another object than YAML's own.

    `unique`: a key that stands twice is an error. ValueError where it is no YAML, refers to itself, holds a
    number above 2^64, or would unfold to more than can be meant.
    """
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has more than {LONGEST_YAML:,} characters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _unfolded(node, {}, unique)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    # What a tag that does not fit its value raises differs: `!!int ''` is an IndexError.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without numbers that nobody writes: they take long to show."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if abs(number) >= LARGEST_NUMBER:
            raise ValueError(f"a number in line {node.start_mark.line + 1} is beyond 2^64")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _unfolded(node: yaml.Node, known: dict[int, int | None], unique: bool) -> int:
    """How many nodes there are below `node`, aliases counted as often as they stand."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise ValueError(f"what begins in line {node.start_mark.line + 1} holds itself")
        return count
    known[id(node)] = None
    count = 1
    if isinstance(node, yaml.MappingNode):
        if unique:
            _check_unique(node)
        children = [child for pair in node.value for child in pair]
    else:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
    for child in children:
        count += _unfolded(child, known, unique)
        if count > MOST_NODES:
            raise ValueError(f"its aliases unfold to more than {MOST_NODES:,} values")
    known[id(node)] = count
    return count


def _check_unique(node: yaml.MappingNode) -> None:
    """ValueError where a key stands twice: loading takes the last of them."""
    keys = [str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if twice := repeated(keys):
        raise ValueError(f"{shortened(twice)} stand twice")
