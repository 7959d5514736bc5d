"""The built-in scenes: what a label means, and which labels keep company where."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from coterie.data import scenes
from coterie.data.dataset import MultiLabelDataset
from coterie.data.scenes import CLASS_NAMES, DIGIT_SHARES, THEMES, SceneSizes, make_scenes
from coterie.labels import CooccurrenceGraph, partition_labels

SPLITS = ("train", "val", "test", "test_shifted")


@functools.cache
def drawn(theme_share: float = 0.85) -> MultiLabelDataset:
    """Many small scenes, for their labels."""
    return make_scenes(SceneSizes(1500, 20, 20, 1500), image_size=16, theme_share=theme_share)


def graph(dataset: MultiLabelDataset, split: str) -> CooccurrenceGraph:
    return CooccurrenceGraph.from_targets(dataset.targets[dataset.indices(split)], dataset.class_names)


def company(dataset: MultiLabelDataset, split: str) -> float:
    """Mean over pairs of one theme, over the mean of pairs across themes: how often two come together."""
    counts = graph(dataset, split).counts
    theme = np.array([next(i for i, names in enumerate(THEMES) if name in names) for name in CLASS_NAMES])
    same = theme[:, None] == theme
    apart = ~same
    np.fill_diagonal(same, False)
    return float(counts[same].mean() / counts[apart].mean())


def test_themes_are_a_partition_of_the_classes() -> None:
    assert sorted(name for names in THEMES for name in names) == sorted(CLASS_NAMES)


def test_the_digit_images_of_splits_are_disjoint() -> None:
    pools = {split: scenes._digits_of(split) for split in DIGIT_SHARES}
    for digit in range(10):
        seen = [{image.tobytes() for image in pool[digit]} for pool in pools.values()]
        assert all(len(images) >= 10 for images in seen)
        assert len(set.union(*seen)) == sum(len(images) for images in seen)


def test_a_dataset_of_scenes_has_the_sizes_asked_for() -> None:
    dataset = make_scenes(SceneSizes(5, 2, 3, 4), image_size=32)
    assert dataset.split_names == SPLITS
    assert [len(dataset.indices(split)) for split in SPLITS] == [5, 2, 3, 4]
    assert isinstance(dataset.images, np.ndarray)
    assert dataset.images.shape == (14, 32, 32, 3)
    assert dataset.class_names == CLASS_NAMES
    assert dataset.image_ids[5] == "scene-val-00005"
    assert set(dataset.targets.ravel().tolist()) == {0, 1}
    assert (dataset.targets.sum(axis=1) >= 1).all()


@pytest.mark.parametrize("size", [16, 17, 23, 40, 97])
def test_every_size_of_picture_can_be_composed(size: int) -> None:
    dataset = make_scenes(SceneSizes(6, 1, 1, 1), image_size=size)
    assert isinstance(dataset.images, np.ndarray)
    assert dataset.images.shape[1:] == (size, size, 3)


def test_one_seed_gives_the_same_pixels_and_another_does_not() -> None:
    first, again, other = (make_scenes(SceneSizes(4, 2, 2, 2), seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint() == again.fingerprint()
    assert not np.array_equal(np.asarray(first.images), np.asarray(other.images))


def test_a_split_does_not_depend_on_the_sizes_of_the_others() -> None:
    small, large = make_scenes(SceneSizes(3, 2, 4, 2)), make_scenes(SceneSizes(7, 3, 4, 1))
    for split, number in (("train", 3), ("val", 2), ("test", 4), ("test_shifted", 1)):
        a, b = small.indices(split)[:number], large.indices(split)[:number]
        assert np.array_equal(np.asarray(small.images)[a], np.asarray(large.images)[b])
        assert np.array_equal(small.targets[a], large.targets[b])


def test_splits_hold_different_pictures_of_labels_drawn_anew() -> None:
    dataset = make_scenes(SceneSizes(20, 20, 20, 20), image_size=16)
    assert len({np.asarray(dataset.load_image(index)).tobytes() for index in range(80)}) == 80
    assert len({dataset.targets[dataset.indices(split)].tobytes() for split in SPLITS}) == 4


def test_labels_of_a_theme_keep_company_in_train_and_not_in_the_shifted_test() -> None:
    assert company(drawn(), "train") > 5
    assert company(drawn(), "test_shifted") == pytest.approx(1, abs=0.35)


def test_a_theme_share_of_one_keeps_themes_apart_and_of_zero_mixes_them() -> None:
    themed = graph(drawn(1.0), "train")
    for names in THEMES:
        others = [index for index, name in enumerate(CLASS_NAMES) if name not in names]
        assert not themed.counts[[CLASS_NAMES.index(name) for name in names]][:, others].any()
    assert company(drawn(0.0), "train") == pytest.approx(1, abs=0.35)


def test_classes_are_about_as_frequent_in_the_shifted_test_as_in_train() -> None:
    train, shifted = (graph(drawn(), split).class_counts / 1500 for split in ("train", "test_shifted"))
    assert train.min() > 0.03
    assert np.corrcoef(train, shifted)[0, 1] > 0.8
    assert train.mean() == pytest.approx(shifted.mean(), rel=0.1)
    assert np.abs(train - shifted).max() < 0.1


def test_co_occurrence_groups_of_train_are_the_themes() -> None:
    partition = partition_labels(graph(drawn(), "train"), len(THEMES), "co-occurrence")
    assert {frozenset(names) for names in partition.group_names} == {frozenset(names) for names in THEMES}


def test_a_label_is_painted_in_its_ink() -> None:
    """In pictures of one label, red ink has more red than blue on average, and blue ink the reverse."""
    dataset = make_scenes(SceneSizes(400, 1, 1, 1))
    redness: dict[str, list[float]] = {"red": [], "blue": []}
    for index in dataset.indices("train"):
        names = [name for name, target in zip(CLASS_NAMES, dataset.targets[index], strict=True) if target]
        if len(names) == 1:
            red, _, blue = np.asarray(dataset.load_image(int(index))).astype(float).mean(axis=(0, 1))
            redness[names[0].split()[0]].append(red - blue)
    assert np.mean(redness["red"]) > np.mean(redness["blue"]) + 3
