"""What comes before a training: the groups of each branch, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.config import Config, load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.diagnostics import describe_partition, seed_agreement
from coterie.preparation import (
    branch_kind,
    branch_weights,
    diagnose_partitions,
    make_partition,
    make_partitions,
    training_graph,
)

BRANCHES = ("co-occurrence", "dis-occurrence")


@pytest.fixture(scope="module")
def dataset() -> MultiLabelDataset:
    """Forty classes in five themes, no two alike, on 400 pictures."""
    rng = np.random.default_rng(0)
    theme = rng.integers(5, size=400)
    probability = 0.05 + 0.4 * (theme[:, None] == np.arange(40) % 5) * rng.random(40)
    targets = (rng.random((400, 40)) < probability).astype(np.int8)
    targets[:40] |= np.eye(40, dtype=np.int8)
    return MultiLabelDataset(
        images=np.zeros((400, 1, 1, 3), np.uint8),
        targets=targets,
        class_names=tuple(f"c{number}" for number in range(40)),
        splits=np.array(["train"] * 300 + ["val"] * 100),
        image_ids=tuple(map(str, range(400))),
    )


def config(*words: str) -> Config:
    return load_config(["k=4", *words])


def test_the_graph_is_of_the_training_split_alone(dataset: MultiLabelDataset) -> None:
    assert np.array_equal(training_graph(dataset).class_counts, dataset.targets[:300].sum(axis=0))


def test_random_groups_have_the_sizes_of_the_real_ones_and_not_their_members(
    dataset: MultiLabelDataset,
) -> None:
    real = make_partitions(config(), dataset)
    random = make_partitions(config("partition.random=same-sizes"), dataset)
    for kind in BRANCHES:
        assert sorted(random[kind].sizes) == sorted(real[kind].sizes)
        assert random[kind].kind == "random"
        assert seed_agreement([random[kind], real[kind]])["mean"] < 0.2


def test_random_groups_of_equal_sizes_differ_by_one_label_at_most(dataset: MultiLabelDataset) -> None:
    made = make_partitions(config("partition.random=equal-sizes"), dataset)
    sizes = {kind: partition.sizes for kind, partition in made.items()}
    assert all(max(found) - min(found) <= 1 for found in sizes.values())
    assert made["co-occurrence"].groups != made["dis-occurrence"].groups


def test_the_random_groups_of_each_branch_and_seed_are_drawn_on_their_own(
    dataset: MultiLabelDataset,
) -> None:
    graph = training_graph(dataset)
    settings = config("k=1", "partition.random=same-sizes")
    drawn = {make_partition(settings, graph, kind, seed).seed for kind in BRANCHES for seed in range(5)}
    assert len(drawn) == 10


def test_random_groups_come_from_the_seed(dataset: MultiLabelDataset) -> None:
    def groups(seed: int) -> object:
        made = make_partitions(config("partition.random=same-sizes", f"seed={seed}"), dataset)
        return [partition.groups for partition in made.values()]

    assert groups(1) == groups(1)
    assert groups(1) != groups(2)


def test_with_one_group_there_is_one_branch_whatever_a_is() -> None:
    for a in (0, 0.3, 1):
        assert branch_weights(config("k=1", f"distill.a={a}")) == {"co-occurrence": 1.0}
    assert branch_weights(config("distill.a=0.3")) == {"co-occurrence": 0.3, "dis-occurrence": 0.7}
    assert list(branch_weights(config("distill.a=0"))) == ["dis-occurrence"]


def test_every_repeat_is_a_branch_of_its_own_with_its_part_of_the_weight() -> None:
    assert branch_weights(config("distill.a=0.3", "partition.repeats=2")) == {
        "co-occurrence": 0.15,
        "dis-occurrence": 0.35,
        "co-occurrence.2": 0.15,
        "dis-occurrence.2": 0.35,
    }
    assert branch_weights(config("k=1", "partition.repeats=2")) == {
        "co-occurrence": 0.5,
        "co-occurrence.2": 0.5,
    }
    assert list(branch_weights(config("distill.a=1", "partition.repeats=3"))) == [
        "co-occurrence",
        "co-occurrence.2",
        "co-occurrence.3",
    ]


def test_the_name_of_a_branch_has_its_kind_and_number() -> None:
    assert branch_kind("dis-occurrence") == ("dis-occurrence", 1)
    assert branch_kind("co-occurrence.12") == ("co-occurrence", 12)


@pytest.mark.parametrize("words", [(), ("partition.random=same-sizes",), ("partition.random=equal-sizes",)])
def test_repeats_keep_the_first_groups_and_other_pairs_together(
    dataset: MultiLabelDataset, words: tuple[str, ...]
) -> None:
    once = make_partitions(config(*words), dataset)
    made = make_partitions(config(*words, "partition.repeats=3"), dataset)
    assert {kind: made[kind] for kind in BRANCHES} == once
    for kind in BRANCHES:
        three = [made[kind], made[f"{kind}.2"], made[f"{kind}.3"]]
        assert seed_agreement(three)["mean"] < 0.1
        assert seed_agreement(three)["lowest"] < 0.1
    assert made["co-occurrence.2"].groups != made["dis-occurrence.2"].groups


def test_partitions_are_described_with_the_agreement_of_seeds(dataset: MultiLabelDataset) -> None:
    settings = config("seed=3")
    graph = training_graph(dataset)
    partitions = make_partitions(settings, dataset)
    described = diagnose_partitions(settings, dataset, partitions, repeats=3)
    assert list(described) == list(BRANCHES)
    for kind in BRANCHES:
        same_method = [make_partition(settings, graph, kind, seed) for seed in (3, 4, 5)]
        assert same_method[0] == partitions[kind]
        assert described[kind] == describe_partition(graph, partitions[kind]) | {
            "agreement": {"seeds": [3, 4, 5], **seed_agreement(same_method)}
        }


def test_one_seed_has_nothing_to_agree_with(dataset: MultiLabelDataset) -> None:
    partitions = make_partitions(config(), dataset)
    described = diagnose_partitions(config(), dataset, partitions, repeats=1)
    assert described["co-occurrence"]["agreement"] is None
