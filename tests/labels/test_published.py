"""What is known of COCO 2014 and NUS-WIDE: published groups, their N-cuts, and shares to stay under."""

import json
from functools import cache

import numpy as np
import pytest

from coterie.labels import CooccurrenceGraph, normalized_cut, partition_labels
from tests.conftest import shared_data

PUBLISHED_CUTS = [
    ("coco2014", 2, 0.5711),
    ("coco2014", 3, 1.3904),
    ("coco2014", 5, 3.0296),
    ("coco2014", 8, 5.6819),
    ("coco2014", 13, 10.4658),
    ("nuswide81", 5, 3.1451),
    ("nuswide81", 8, 5.9115),
    ("nuswide81", 13, 10.6274),
]


@cache
def load_graph(dataset: str) -> CooccurrenceGraph:
    with np.load(shared_data() / "labels" / f"{dataset}_train_counts.npz") as file:
        return CooccurrenceGraph(file["counts"], file["class_counts"], tuple(file["class_names"].tolist()))


def published_groups(dataset: str) -> set[frozenset[str]]:
    text = (shared_data() / "labels" / f"published_cgp_{dataset}_k5.json").read_text(encoding="utf-8")
    return {frozenset(group) for group in json.loads(text)["groups"]}


@pytest.mark.parametrize(("dataset", "cut"), [("coco2014", 3.0296), ("nuswide81", 3.1451)])
def test_the_normalized_cut_of_the_published_groups(dataset: str, cut: float) -> None:
    graph = load_graph(dataset)
    groups = [[graph.class_names.index(name) for name in group] for group in published_groups(dataset)]
    assert normalized_cut(graph.affinity(), groups) == pytest.approx(cut, abs=5e-5)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 42, 12345])
@pytest.mark.parametrize("dataset", ["coco2014", "nuswide81"])
def test_the_papers_method_gives_the_published_groups_at_every_seed(dataset: str, seed: int) -> None:
    found = partition_labels(load_graph(dataset), 5, method="paper", seed=seed)
    assert {frozenset(names) for names in found.group_names} == published_groups(dataset)


@pytest.mark.parametrize(("dataset", "k", "cut"), [case for case in PUBLISHED_CUTS if case[1] in (2, 3, 8)])
def test_the_papers_method_gives_the_published_cuts(dataset: str, k: int, cut: float) -> None:
    first, second = (partition_labels(load_graph(dataset), k, method="paper", seed=seed) for seed in (0, 7))
    assert first.groups == second.groups
    assert first.objective.value == pytest.approx(cut, abs=5e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("dataset", "k", "cut"), PUBLISHED_CUTS)
def test_our_cut_is_at_most_the_published_one(dataset: str, k: int, cut: float, seed: int) -> None:
    found = partition_labels(load_graph(dataset), k, "co-occurrence", seed=seed)
    assert found.objective.name == "normalized cut"
    assert found.objective.value <= cut + 5e-5
    assert found.k == k


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("dataset", "k", "most"),
    [
        ("coco2014", 5, 0.150),
        ("coco2014", 8, 0.080),
        ("coco2014", 13, 0.040),
        ("nuswide81", 5, 0.125),
        ("nuswide81", 8, 0.062),
        ("nuswide81", 13, 0.028),
    ],
)
def test_labels_that_appear_together_are_kept_apart(dataset: str, k: int, most: float, seed: int) -> None:
    graph = load_graph(dataset)
    found = partition_labels(graph, k, "dis-occurrence", seed=seed)
    assert found.objective.name == "share inside"
    assert found.objective.value <= most
    assert min(found.sizes) >= graph.num_classes / k / 3
    assert max(found.sizes) <= graph.num_classes / k * 5 / 3
