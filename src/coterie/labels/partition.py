"""Partitions of the classes into groups: made from a co-occurrence graph, saved and loaded as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coterie.errors import PartitionError, cut, did_you_mean, repeated, shortened
from coterie.files import atomic_write
from coterie.labels.anticlustering import balanced_anticlusters
from coterie.labels.graph import CooccurrenceGraph
from coterie.labels.objectives import Floats, Labels, check_groups, normalized_cut, share_inside
from coterie.labels.spectral import lowest_normalized_cut, near_equal_sizes, paper_cut
from coterie.untrusted import parse_json

SCHEMA_VERSION = 1
FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "method": str,
    "k": int,
    "root": (int, float),
    "seed": int,
    "objective": dict,
    "class_names": list,
    "groups": list,
}

# kind -> its methods, the default first
METHODS = {
    "co-occurrence": ("normalized-cut", "balanced-cut", "paper"),
    "dis-occurrence": ("balanced", "paper"),
    "random": ("shuffle",),
}


class Objective(NamedTuple):
    """What the partition was made to lower, and what it reached."""

    name: str
    value: float


@dataclass(frozen=True)
class Partition:
    """Groups of classes: disjoint, none empty, together all classes.

    `groups`: K tuples of class indices, kept sorted, and the groups by their first index.
    PartitionError names the class and the group where they are no partition.
    """

    groups: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    kind: str
    method: str
    root: float
    seed: int
    objective: Objective

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != len(self.class_names):
            raise PartitionError(f"class names stand twice: {shortened(repeated(self.class_names))}")
        _check_method(self.kind, self.method)
        check_groups(self.groups, self.class_names)
        ordered = sorted(tuple(sorted(int(index) for index in group)) for group in self.groups)
        object.__setattr__(self, "groups", tuple(ordered))

    @property
    def k(self) -> int:
        return len(self.groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self.groups)

    @property
    def group_names(self) -> tuple[tuple[str, ...], ...]:
        """The groups by class name."""
        return tuple(tuple(self.class_names[index] for index in group) for group in self.groups)

    def reordered(self, class_names: Sequence[str]) -> Partition:
        """The same groups for the same classes in another order; PartitionError where the classes differ."""
        if set(class_names) != set(self.class_names):
            differ = sorted(set(class_names) ^ set(self.class_names))
            raise PartitionError(f"the partition is of other classes; {shortened(differ)} on one side only")
        position = {name: index for index, name in enumerate(class_names)}
        groups = tuple(tuple(position[name] for name in names) for names in self.group_names)
        return replace(self, groups=groups, class_names=tuple(class_names))

    def save(self, path: str | Path) -> None:
        """Write the partition to `path` as JSON, groups by class name, in one step."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "method": self.method,
            "k": self.k,
            "root": self.root,
            "seed": self.seed,
            "objective": self.objective._asdict(),
            "class_names": self.class_names,
            "groups": self.group_names,
        }
        atomic_write(Path(path), json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Partition:
        """The partition saved at `path`; PartitionError names the file and what is wrong with it."""
        try:
            return _from_content(parse_json(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise PartitionError(f"partition {path} is not there") from None
        except OSError as error:
            raise PartitionError(f"partition {path} cannot be read: {error.strerror}") from None
        except PartitionError as error:
            raise PartitionError(f"partition {path}: {error}") from None
        except ValueError as error:
            raise PartitionError(
                f"partition {path} is not JSON, or was cut off ({error}); make the partition again"
            ) from None


def partition_labels(
    graph: CooccurrenceGraph,
    k: int,
    kind: str = "co-occurrence",
    method: str | None = None,
    root: float = 2.0,
    seed: int = 0,
    sizes: Sequence[int] | None = None,
    before: Sequence[Partition] = (),
) -> Partition:
    """K groups of the classes of `graph`; K = 1 is one group of all classes.

    "co-occurrence": the lowest N-cut found ("normalized-cut"), or the lowest of groups of near equal sizes
    ("balanced-cut"). "dis-occurrence": the lowest share of co-occurrence inside groups of bounded size
    ("balanced"). "paper" is the published construction of either, the same at every seed. "random": groups of
    `sizes`, or as equal as can be. A partition that goes with those `before` keeps together what they do not:
    "co-occurrence" cuts the affinity between their groups, "dis-occurrence" lowers the share of their pairs
    inside its groups beside that of the affinity, and "random" has no regard for them.
    The same seed gives the same groups of names, whatever the order of the classes.
    Raises PartitionError where k, kind, method, root or sizes are not possible.
    """
    from threadpoolctl import threadpool_limits  # here, not above: the command line need not wait

    c = graph.num_classes
    method = METHODS[kind][0] if method is None and kind in METHODS else method
    _check_method(kind, method)
    if not 1 <= k <= c:
        raise PartitionError(f"k = {k} groups cannot be made of {c} classes; choose k between 1 and {c}")
    if sizes is not None:
        _check_sizes(sizes, k, c, kind)
    if seed < 0:
        raise PartitionError(f"seed must be 0 or more, got {seed}")
    affinity = graph.affinity(root)

    # so that the order of the classes changes nothing
    by_name = sorted(range(c), key=graph.class_names.__getitem__)
    labels = np.zeros(c, np.int64)
    if k > 1:
        with threadpool_limits(1):  # several round otherwise, and mostly wait for each other
            order = np.ix_(by_name, by_name)
            pairs = _pairs(before, graph.class_names)[order] if before else None
            labels[by_name] = _labels(affinity[order], pairs, k, kind, method, seed, sizes)
    groups = tuple(tuple(np.flatnonzero(labels == group).tolist()) for group in range(k))
    if kind == "co-occurrence":
        objective = Objective("normalized cut", normalized_cut(affinity, groups))
    else:
        objective = Objective("share inside", share_inside(affinity, groups))
    return Partition(groups, graph.class_names, kind, str(method), root, seed, objective)


def _pairs(partitions: Sequence[Partition], class_names: Sequence[str]) -> Floats:
    """[C, C]: in how many of the partitions two classes are in one group; the diagonal is 0."""
    pairs = np.zeros((len(class_names), len(class_names)))
    for partition in partitions:
        for group in partition.reordered(class_names).groups:
            pairs[np.ix_(group, group)] += 1
    np.fill_diagonal(pairs, 0)
    return pairs


def _labels(
    affinity: Floats,
    pairs: Floats | None,
    k: int,
    kind: str,
    method: str | None,
    seed: int,
    sizes: Sequence[int] | None,
) -> Labels:
    """The group [C] of each class, where `pairs` [C, C] count how often classes were together before."""
    if kind == "random":
        numbers = np.repeat(np.arange(k), sizes) if sizes is not None else np.arange(len(affinity)) % k
        return np.random.default_rng(seed).permutation(numbers)
    if kind == "co-occurrence":
        if pairs is not None:
            affinity = np.where(pairs > 0, 0, affinity)
        if method == "paper":
            return paper_cut(affinity, affinity, k)
        bounds = near_equal_sizes(len(affinity), k) if method == "balanced-cut" else None
        return lowest_normalized_cut(affinity, k, seed, bounds)
    if method == "paper":
        apart = 1 - affinity if pairs is None else np.where(pairs > 0, 0, 1 - affinity)
        np.fill_diagonal(apart, 0)
        return paper_cut(apart, affinity, k)
    if pairs is not None and pairs.any():
        affinity = affinity / (affinity.sum() or 1) + pairs / pairs.sum()
    return balanced_anticlusters(affinity, k, seed)


def _check_method(kind: str, method: str | None) -> None:
    if kind not in METHODS:
        raise PartitionError(
            f"'{cut(kind)}' is no kind of partition; choose one of {shortened(tuple(METHODS))}"
            + did_you_mean(kind, METHODS)
        )
    if method not in METHODS[kind]:
        raise PartitionError(
            f"'{cut(str(method))}' is no method for a {kind} partition; "
            f"choose one of {shortened(METHODS[kind])}" + did_you_mean(str(method), METHODS[kind])
        )


def _check_sizes(sizes: Sequence[int], k: int, c: int, kind: str) -> None:
    if kind != "random":
        raise PartitionError(f"sizes belong to kind 'random', not to '{kind}'; leave them out")
    if len(sizes) != k or sum(sizes) != c or min(sizes) < 1:
        raise PartitionError(
            f"sizes {list(sizes)} do not fit: give {k} sizes, each 1 or more, that sum to {c} classes"
        )


def _from_content(content: Any) -> Partition:
    """The partition that a file's JSON describes; PartitionError says which part of it does not."""
    if not isinstance(content, dict):
        raise PartitionError("the file must hold one JSON object; make the partition again")
    found = content.get("schema_version")
    if found != SCHEMA_VERSION:
        raise PartitionError(
            f"its schema version is {found!r}, this version of coterie reads {SCHEMA_VERSION}; "
            "make the partition again"
        )
    for field, types in FIELDS.items():
        if field not in content:
            raise PartitionError(f"'{field}' is missing; make the partition again")
        if not isinstance(content[field], types):
            raise PartitionError(f"'{field}' has a wrong value: {content[field]!r}")
    objective = content["objective"]
    if not isinstance(objective.get("name"), str) or not isinstance(objective.get("value"), (int, float)):
        raise PartitionError(f"'objective' must have a name and a value, got {objective!r}")
    groups, names = content["groups"], content["class_names"]
    for what, listed in (("class_names", names), *((f"group {i}", group) for i, group in enumerate(groups))):
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise PartitionError(f"{what} must be a list of class names, got {listed!r}")
    if content["k"] != len(groups):
        raise PartitionError(f"k is {content['k']}, but there are {len(groups)} groups")
    position = {name: index for index, name in enumerate(names)}
    for number, group in enumerate(groups):
        for name in group:
            if name not in position:
                raise PartitionError(
                    f"group {number} holds '{name}', which is not one of the {len(names)} classes"
                    + did_you_mean(name, names)
                )
    return Partition(
        groups=tuple(tuple(position[name] for name in group) for group in groups),
        class_names=tuple(names),
        kind=content["kind"],
        method=content["method"],
        root=float(content["root"]),
        seed=content["seed"],
        objective=Objective(objective["name"], float(objective["value"])),
    )
