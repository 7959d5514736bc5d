"""Splits by a seed, and the classes that stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from coterie.data.columns import LabelLists
from coterie.data.dataset import MultiLabelDataset
from coterie.data.splits import check_labels, ensure_splits, filter_classes, stratified_split, taught_images
from coterie.errors import ConfigError, DataError

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def long_tail(images: int = 1000, classes: int = 20) -> npt.NDArray[np.int8]:
    """Targets [N, C] whose classes hold from half of the images down to 2 in 100; a tenth has no label."""
    rng = np.random.default_rng(0)
    targets = rng.random((images, classes)) < np.geomspace(0.5, 0.02, classes)
    targets[::10] = False
    return targets.astype(np.int8)


def dataset(targets: npt.ArrayLike, splits: list[str] | str) -> MultiLabelDataset:
    values = np.asarray(targets, dtype=np.int8)
    n, c = values.shape
    return MultiLabelDataset(
        images=np.zeros((n, 2, 2, 3), np.uint8),
        targets=values,
        class_names=tuple(f"class{i}" for i in range(c)),
        splits=np.array([splits] * n if isinstance(splits, str) else splits),
        image_ids=tuple(f"{i}.jpg" for i in range(n)),
        name="toy",
    )


def sizes(data: MultiLabelDataset) -> dict[str, int]:
    return {name: len(data.indices(name)) for name in data.split_names}


def test_every_class_is_in_every_split_near_its_fraction() -> None:
    targets = long_tail()
    splits = stratified_split(targets, FRACTIONS, seed=0)
    for name, fraction in FRACTIONS.items():
        expected = fraction * targets.sum(axis=0)
        assert np.abs(targets[splits == name].sum(axis=0) - expected).max() <= 2.5
        assert targets[splits == name].any(axis=0).all()
        assert abs((splits == name).mean() - fraction) < 0.01


def test_rare_classes_are_spread_better_than_by_chance() -> None:
    targets = np.zeros((400, 20), np.int8)
    for column in range(20):
        targets[column * 20 : column * 20 + 10, column] = 1  # ten positives each
    splits = stratified_split(targets, FRACTIONS, seed=5)
    for name, count in {"train": 8, "val": 1, "test": 1}.items():
        assert targets[splits == name].sum(axis=0).tolist() == [count] * 20


def test_one_seed_gives_one_split_and_another_seed_another() -> None:
    targets = long_tail()
    first = stratified_split(targets, FRACTIONS, seed=1)
    assert (first == stratified_split(targets, FRACTIONS, seed=1)).all()
    assert (first != stratified_split(targets, FRACTIONS, seed=2)).mean() > 0.1


def test_a_seed_means_the_same_split_everywhere() -> None:
    splits = stratified_split(
        np.eye(4, dtype=np.int8).repeat(3, axis=0), {"train": 0.67, "val": 0.33}, seed=7
    )
    assert [name[0] for name in splits] == list("tvttvtvttvtt")


def plain_parts(targets: npt.NDArray[np.int8], shares: list[float], seed: int) -> list[int]:
    """Iterative stratification step by step, with everything counted anew before each."""
    random = np.random.RandomState(seed)
    everyone = np.arange(len(targets))
    free = random.permutation(everyone).tolist()
    parts = np.full(len(targets), -1)

    def lacking(images: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """How many of `images` each part still lacks."""
        placed = np.array([(parts[images] == part).sum() for part in range(len(shares))])
        return np.asarray((np.array(shares) * len(images) - placed).round(9))

    def any_of(choices: npt.NDArray[np.int64]) -> int:
        return int(choices[random.choice(len(choices))] if len(choices) > 1 else choices[0])

    while free:
        counts = (targets[free] == 1).sum(axis=0)
        images = everyone
        if counts.any():
            rarest = any_of(np.flatnonzero(counts == counts[counts > 0].min()))
            images = np.flatnonzero(targets[:, rarest] == 1)
        for image in [image for image in free if image in images]:
            best = np.flatnonzero(lacking(images) == lacking(images).max())
            parts[image] = any_of(best[lacking(everyone)[best] == lacking(everyone)[best].max()])
            free.remove(image)
    return parts.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [[0.8, 0.1, 0.1], [0.75, 0.25], [0.25, 0.25, 0.25, 0.25]])
def test_splits_are_those_of_the_plain_algorithm(shares: list[float], seed: int) -> None:
    targets = long_tail(90, 12)
    targets[np.random.default_rng(seed).random(targets.shape) < 0.1] = -1
    names = [f"part {part}" for part in range(len(shares))]
    splits = stratified_split(targets, dict(zip(names, shares, strict=True)), seed)
    assert splits.tolist() == [names[part] for part in plain_parts(targets, shares, seed)]


def test_unknown_targets_count_as_absent() -> None:
    targets = long_tail()
    unknown = np.where((targets == 0) & (np.arange(len(targets)) % 3 == 0)[:, None], -1, targets).astype(
        np.int8
    )
    assert (
        stratified_split(unknown, FRACTIONS, seed=0) == stratified_split(targets, FRACTIONS, seed=0)
    ).all()


@pytest.mark.parametrize("classes", [0, 1])
def test_targets_of_one_class_or_none_can_be_split(classes: int) -> None:
    splits = stratified_split(np.ones((100, classes), np.int8), FRACTIONS, seed=0)
    assert [int((splits == name).sum()) for name in FRACTIONS] == [80, 10, 10]


@pytest.mark.parametrize(
    "fractions",
    [
        {},
        {"train": 0.8, "val": 0.1},
        {"train": 1.0, "val": 0.0},
        {"train": 1.2, "val": -0.2},
        {"train": float("nan")},
    ],
)
def test_fractions_are_positive_and_sum_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive and sum to 1"):
        stratified_split(long_tail(), fractions, seed=0)


def test_too_few_images_for_a_split_are_an_error() -> None:
    with pytest.raises(DataError, match=r"3 images are too few .* 'val', 'test' would be empty"):
        stratified_split(np.ones((3, 2), np.int8), FRACTIONS, seed=0)


def test_images_without_splits_are_split_by_fractions() -> None:
    data = ensure_splits(dataset(long_tail(), ""), val_fraction=0.1, test_fraction=0.2, seed=0)
    found = sizes(data)
    assert set(found) == {"train", "val", "test"}
    assert found["train"] == pytest.approx(700, abs=10)
    assert found["test"] == pytest.approx(200, abs=10)
    assert data.notes == (
        f"no splits given: {found['train']} train, {found['val']} val, {found['test']} test, "
        "drawn with seed 0, stratified by class",
    )


def test_a_test_fraction_of_zero_makes_no_test_split_and_is_noted() -> None:
    data = ensure_splits(dataset(long_tail(), ""), 0.2, 0, seed=0)
    assert set(sizes(data)) == {"train", "val"}
    assert data.notes[1:] == ("no test split: results are on val, which also chose the best epoch",)


def test_a_missing_val_split_is_taken_from_train_alone() -> None:
    before = dataset(long_tail(), ["train"] * 800 + ["test_shifted"] * 200)
    data = ensure_splits(before, val_fraction=0.1, test_fraction=0.1, seed=0)
    assert (data.splits[800:] == "test_shifted").all()
    parts = stratified_split(long_tail()[:800], {"train": 0.9, "val": 0.1}, seed=0)
    assert data.splits[:800].tolist() == parts.tolist()
    assert (before.splits[:800] == "train").all()
    val = len(data.indices("val"))
    assert val == pytest.approx(80, abs=5)
    assert sizes(data) == {"train": 800 - val, "val": val, "test_shifted": 200}
    assert data.notes == (
        f"no val split: {val} of 800 train images are val, drawn with seed 0, stratified by class",
    )


def test_a_missing_test_split_stays_missing_and_is_noted() -> None:
    data = ensure_splits(dataset(long_tail(), ["train"] * 900 + ["val"] * 100), 0.1, 0.1, seed=0)
    assert sizes(data) == {"train": 900, "val": 100}
    assert data.notes == ("no test split: results are on val, which also chose the best epoch",)


def test_complete_splits_are_left_alone() -> None:
    data = dataset(long_tail(), ["train"] * 800 + ["val"] * 100 + ["test"] * 100)
    assert ensure_splits(data, 0.1, 0.1, seed=0) is data


def test_a_split_of_another_name_is_noted_with_the_name_it_resembles() -> None:
    data = dataset(np.ones((4, 2)), ["train", "val", "test", "tset"])
    note = "split 'tset' is neither train, val nor a test split: not used; did you mean 'test'?"
    assert ensure_splits(data, 0.1, 0.1, seed=0).notes == (note,)


def test_unlabelled_images_stay_and_splits_are_drawn_among_the_others() -> None:
    targets = long_tail()
    splits = np.where(np.arange(len(targets)) % 4 == 0, "unlabelled", "")
    data = ensure_splits(dataset(targets, splits.tolist()), 0.1, 0.1, seed=0)
    assert (data.splits == "unlabelled").tolist() == (splits == "unlabelled").tolist()
    assert (data.targets[splits == "unlabelled"] == -1).all()
    others = splits == ""
    assert (data.targets[others] == targets[others]).all()
    alone = ensure_splits(dataset(targets[others], ""), 0.1, 0.1, seed=0)
    assert data.splits[others].tolist() == alone.splits.tolist()
    assert data.notes == (
        "250 unlabelled images: what the teachers say of them is for the student to learn",
        *alone.notes,
    )
    assert taught_images(data).tolist() == [
        index for index, split in enumerate(data.splits) if split in ("train", "unlabelled")
    ]


def test_val_is_drawn_from_train_beside_unlabelled_images() -> None:
    data = ensure_splits(
        dataset(long_tail(), ["train"] * 800 + ["unlabelled"] * 100 + ["test"] * 100), 0.1, 0.1, seed=0
    )
    assert sizes(data)["unlabelled"] == 100
    assert sizes(data)["train"] + sizes(data)["val"] == 800
    assert (data.targets[800:900] == -1).all()


def test_unlabelled_images_alone_are_no_data_to_train_on() -> None:
    with pytest.raises(DataError, match="toy has no train images; its splits are 'unlabelled'"):
        ensure_splits(dataset(np.ones((4, 2)), "unlabelled"), 0.1, 0.1, seed=0)


def test_unlabelled_images_of_shards_are_refused() -> None:
    arrays: dict[str, npt.NDArray[np.integer]] = {
        "label_edges": np.arange(5),
        "labels": np.array([0, 1, 0, 1], np.int32),
    }
    data = dataset(np.ones((4, 2)), ["train", "val", "test", "unlabelled"])
    with pytest.raises(
        DataError, match=r"1 image of toy in the split 'unlabelled', which shards with an index"
    ):
        ensure_splits(replace(data, targets=LabelLists(arrays, 2)), 0.1, 0.1, seed=0)


def test_splits_for_some_images_only_are_an_error_that_names_the_others() -> None:
    with pytest.raises(
        DataError, match=r"2 of 4 images of toy have no split: '1\.jpg', '3\.jpg'; give every image"
    ):
        ensure_splits(dataset(np.ones((4, 2)), ["train", "", "val", ""]), 0.1, 0.1, seed=0)


def test_splits_without_train_are_an_error() -> None:
    with pytest.raises(DataError, match="toy has no train images; its splits are 'test'"):
        ensure_splits(dataset(np.ones((4, 2)), "test"), 0.1, 0.1, seed=0)


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (float("nan"), 0)])
def test_fractions_out_of_range_are_a_wrong_setting(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_fraction"):
        ensure_splits(dataset(long_tail(), ""), val, test, seed=0)


def four_classes() -> MultiLabelDataset:
    """Positives in train: 3, 2, 1, 0; class3 has its positives in test."""
    targets = [[1, 1, 1, 0], [1, 1, -1, -1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
    return dataset(targets, ["train", "train", "train", "val", "test"])


def test_classes_are_kept_by_their_train_positives_and_images_all_stay() -> None:
    data = filter_classes(four_classes(), 2)
    assert data.class_names == ("class0", "class1")
    assert data.targets.tolist() == [[1, 1], [1, 1], [1, 0], [1, 1], [0, 0]]
    assert data.notes == ("2 of 4 classes have fewer than 2 train images and are left out",)


def test_zero_positives_keep_every_class() -> None:
    data = four_classes()
    assert filter_classes(data, 0) is data
    assert filter_classes(data, 1).class_names == ("class0", "class1", "class2")


def test_fewer_than_two_classes_left_are_an_error_that_names_what_would_do() -> None:
    with pytest.raises(
        DataError, match=r"1 of 4 classes of toy have 3 train .* second most frequent class has 2"
    ):
        filter_classes(four_classes(), 3)
    with pytest.raises(DataError, match="0 of 4 classes of toy have 4 train"):
        filter_classes(four_classes(), 4)


def test_a_negative_number_of_positives_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match=r"data\.min_positives is -1"):
        filter_classes(four_classes(), -1)


def test_a_class_without_positives_in_train_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"1 of 4 classes .* in train: 'class3'; data\.min_positives=1 leaves them out"
    ):
        check_labels(four_classes())


def test_a_class_without_positives_in_val_or_test_is_a_note() -> None:
    assert check_labels(filter_classes(four_classes(), 1)) == (
        "1 of 3 classes have no positive in val and are left out of its means: 'class2'",
        "2 of 3 classes have no positive in test and are left out of its means: 'class0', 'class1'",
    )


@pytest.mark.parametrize(("there", "absent"), [("train", "val"), ("val", "train")])
def test_train_and_val_must_hold_images(there: str, absent: str) -> None:
    with pytest.raises(DataError, match=f"toy has no {absent} images; its splits are '{there}'"):
        check_labels(dataset(np.ones((2, 2)), there))
