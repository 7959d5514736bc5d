"""Splits by a seed, stratified for many labels, and the classes that are frequent enough to train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coterie.data.columns import LabelLists
from coterie.data.dataset import PRESENT, TAUGHT, UNKNOWN, UNLABELLED, MultiLabelDataset
from coterie.data.sparse import count_value, present_rows
from coterie.errors import ConfigError, DataError, counted, did_you_mean, shortened

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# One image after the other is put into a split: of more, that takes minutes.
MOST_STRATIFIED = 1_000_000
NO_TEST = "no test split: results are on val, which also chose the best epoch"


def stratified_split(
    targets: npt.NDArray[np.int8] | LabelLists, fractions: Mapping[str, float], seed: int
) -> npt.NDArray[np.str_]:
    """The split of each image [N] of `targets` [N, C], with every class near its fraction in every split.

    Iterative stratification (Sechidis et al., 2011); unknown targets count as absent. Sizes are near
    `fractions` times N, not exact. One seed gives one result. Raises ConfigError where fractions are not
    positive or do not sum to 1, and DataError where a split would be empty.
    """
    if not all(fraction > 0 for fraction in fractions.values()) or not math.isclose(
        sum(fractions.values()), 1
    ):
        parts = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise ConfigError(f"fractions of splits must be positive and sum to 1, got {parts or 'none'}")
    from scipy import sparse  # here, not above: the command line need not wait for it

    # RandomState, not default_rng: its numbers are the same in every version of NumPy, and so is the split.
    random = np.random.RandomState(seed)
    order = random.permutation(len(targets))
    names = np.array(list(fractions), dtype=np.str_)
    splits = np.empty(len(targets), dtype=names.dtype)
    if len(targets):
        present = sparse.vstack(list(present_rows(targets)), format="csr")
        splits[order] = names[_stratified_parts(present[order], np.array(list(fractions.values())), random)]
    empty = [name for name in fractions if not (splits == name).any()]
    if empty:
        raise DataError(
            f"{len(targets)} images are too few for splits of {dict(fractions)}: {shortened(empty)} would be "
            "empty; add images or take larger fractions"
        )
    return splits


def _stratified_parts(
    present: csr_array, shares: npt.NDArray[np.float64], random: np.random.RandomState
) -> npt.NDArray[np.int64]:
    """The part [N] of each image by iterative stratification of `present` [N, C] into parts of `shares` [P].

    The rarest class left gives its images, one by one, to the part that lacks most of it; of several such
    parts to the one that lacks most images, then to any. Images without labels come last.
    """
    n = present.shape[0]
    of_class = present.tocsc()  # its images in order
    left = np.diff(of_class.indptr)  # [C]: images of each class that have no part yet
    lacking_images, lacking = shares * n, np.outer(left, shares)  # [P], [C, P]
    parts = np.full(n, -1)

    def assign(image: int, wanted: npt.NDArray[np.float64]) -> None:
        best = np.flatnonzero(wanted == wanted.max())
        best = best[lacking_images[best] == lacking_images[best].max()]
        part = best[random.choice(len(best))] if len(best) > 1 else best[0]
        classes = present.indices[present.indptr[image] : present.indptr[image + 1]]
        parts[image] = part
        lacking_images[part] -= 1
        lacking[classes, part] -= 1
        left[classes] -= 1

    while left.any():
        rarest = np.flatnonzero(left == left[left > 0].min())
        class_ = rarest[random.choice(len(rarest))] if len(rarest) > 1 else rarest[0]
        images = of_class.indices[of_class.indptr[class_] : of_class.indptr[class_ + 1]]
        for image in images[parts[images] < 0].tolist():
            assign(image, lacking[class_])
    for image in np.flatnonzero(parts < 0).tolist():
        assign(image, lacking_images)
    return parts


def ensure_splits(
    dataset: MultiLabelDataset, val_fraction: float, test_fraction: float, seed: int
) -> MultiLabelDataset:
    """The dataset with splits train and val, and with notes about what was made.

    Without splits: train, val and test by fractions of all images (no test where `test_fraction` is 0). With
    train but no val: val is `val_fraction` of the train images. A dataset without test stays without. Images
    of the split "unlabelled" stay there, and their labels are unknown, whatever the data say.
    Raises ConfigError for fractions out of range, DataError where only some of the other images have a split,
    or none is in train.
    """
    if not (val_fraction > 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"data.val_fraction is {val_fraction:g} and data.test_fraction {test_fraction:g}; "
            "val must be above 0, test 0 or above, and their sum below 1"
        )
    is_other = dataset.splits != UNLABELLED
    if not is_other.all():
        dataset = _without_labels(dataset, ~is_other)
    without = dataset.splits == ""
    if without[is_other].all() and is_other.any():
        fractions = {
            "train": 1 - val_fraction - test_fraction,
            "val": val_fraction,
            **({"test": test_fraction} if test_fraction else {}),
        }
        others = np.flatnonzero(is_other)
        drawn = _drawn(dataset.targets if is_other.all() else dataset.targets_at(others), fractions, seed)
        made = replace(dataset, splits=_put(dataset.splits, others, drawn))
        sizes = ", ".join(f"{(made.splits == name).sum():,} {name}" for name in fractions)
        dataset = _noted(made, f"no splits given: {sizes}, drawn with seed {seed}, {_how(len(others))}")
        return dataset if test_fraction else _noted(dataset, NO_TEST)
    if without.any():
        ids = [dataset.image_ids[index] for index in np.flatnonzero(without).tolist()]
        raise DataError(
            f"{len(ids)} of {len(dataset)} images of {dataset.name} have no split: {shortened(ids)}; "
            "give every image a split, or none"
        )
    for name in dataset.split_names:
        if name not in ("train", "val", UNLABELLED) and not name.startswith("test"):
            hint = did_you_mean(name, ("train", "val", "test", UNLABELLED))
            dataset = _noted(
                dataset, f"split '{name}' is neither train, val nor a test split: not used{hint}"
            )
    if not (dataset.splits == "train").any():
        raise DataError(
            f"{dataset.name} has no train images; its splits are {shortened(dataset.split_names)}. "
            "Name one of them 'train'"
        )
    if not (dataset.splits == "val").any():
        dataset = _with_val_from_train(dataset, val_fraction, seed)
    if not any(name.startswith("test") for name in dataset.split_names):
        dataset = _noted(dataset, NO_TEST)
    return dataset


def taught_images(dataset: MultiLabelDataset) -> npt.NDArray[np.int64]:
    """Positions [n], ascending, of the images that a student learns from: those of train, and unlabelled
    ones, of which its teachers alone say something.
    """
    return np.flatnonzero(np.isin(dataset.splits, TAUGHT))


def learned_images(dataset: MultiLabelDataset, *, is_student: bool) -> npt.NDArray[np.int64]:
    """Positions [n], ascending, of the images that a training learns from: a student's, or another's, which
    has the labels alone.
    """
    return taught_images(dataset) if is_student else dataset.indices("train")


def _without_labels(dataset: MultiLabelDataset, unlabelled: npt.NDArray[np.bool_]) -> MultiLabelDataset:
    """The dataset with no label known of the images `unlabelled` [N]."""
    number = int(unlabelled.sum())
    if isinstance(dataset.targets, LabelLists):
        raise DataError(
            f"{counted(number, 'image')} of {dataset.name} in the split '{UNLABELLED}', which shards with an "
            "index, and very many of them, cannot have; leave out data.webdataset.index, or give a table"
        )
    targets = dataset.targets.copy()
    targets[unlabelled] = UNKNOWN
    return _noted(
        replace(dataset, targets=targets),
        f"{counted(number, 'unlabelled image')}: what the teachers say of them is for the student to learn",
    )


def _put(
    splits: npt.NDArray[np.str_], positions: npt.NDArray[np.int64], new: npt.NDArray[np.str_]
) -> npt.NDArray[np.str_]:
    """The splits with `new` ones at the positions; names of any length."""
    made = splits.astype(np.promote_types(splits.dtype, new.dtype))
    made[positions] = new
    return made


def _drawn(
    targets: npt.NDArray[np.int8] | LabelLists, fractions: Mapping[str, float], seed: int
) -> npt.NDArray[np.str_]:
    """The split of each image [N]: stratified, but for more images than that is done for, where every class
    that is not rare has its share by chance.
    """
    if len(targets) <= MOST_STRATIFIED:
        return stratified_split(targets, fractions, seed)
    order = np.random.RandomState(seed).permutation(len(targets))
    bounds = np.rint(np.cumsum(list(fractions.values())) * len(targets)).astype(np.int64)
    names = np.array(list(fractions), dtype=np.str_)
    splits = np.empty(len(targets), dtype=names.dtype)
    splits[order] = names[np.searchsorted(bounds, np.arange(len(targets)), side="right")]
    return splits


def _how(images: int) -> str:
    return "stratified by class" if images <= MOST_STRATIFIED else "at random"


def _with_val_from_train(dataset: MultiLabelDataset, val_fraction: float, seed: int) -> MultiLabelDataset:
    train = dataset.indices("train")
    parts = _drawn(dataset.targets_at(train), {"train": 1 - val_fraction, "val": val_fraction}, seed)
    splits = _put(dataset.splits, train, parts)
    taken = int((parts == "val").sum())
    return _noted(
        replace(dataset, splits=splits),
        f"no val split: {taken:,} of {len(train):,} train images are val, drawn with seed {seed}, "
        f"{_how(len(train))}",
    )


def filter_classes(dataset: MultiLabelDataset, min_positives: int) -> MultiLabelDataset:
    """The dataset with the classes that have `min_positives` positives or more in train; all images stay.

    Raises ConfigError for a negative number, DataError where fewer than two classes are left.
    """
    if min_positives < 0:
        raise ConfigError(f"data.min_positives is {min_positives}; it must be 0 (keep every class) or more")
    if min_positives == 0:
        return dataset
    positives = _positives(dataset, "train")
    kept = [
        name for name, count in zip(dataset.class_names, positives, strict=True) if count >= min_positives
    ]
    if len(kept) < 2:
        second = int(np.sort(positives)[-2:][0]) if len(positives) else 0
        raise DataError(
            f"{len(kept)} of {dataset.num_classes} classes of {dataset.name} have {min_positives:,} train "
            f"images or more, but two are needed; the second most frequent class has {second:,}: "
            "lower data.min_positives"
        )
    if len(kept) == dataset.num_classes:
        return dataset
    return _noted(
        dataset.with_classes(kept),
        f"{dataset.num_classes - len(kept)} of {dataset.num_classes} classes have fewer than "
        f"{min_positives:,} train images and are left out",
    )


def check_labels(dataset: MultiLabelDataset) -> tuple[str, ...]:
    """Notes on classes that a val or test split holds no positive of: they are left out of its means.

    Raises DataError where train or val has no images, or a class has no positive in train.
    """
    for split in ("train", "val"):
        if not (dataset.splits == split).any():
            raise DataError(
                f"{dataset.name} has no {split} images; its splits are {shortened(dataset.split_names)}. "
                f"Give some images the split '{split}', or no image a split to have splits made"
            )
    absent = _without_positives(dataset, "train")
    if absent:
        raise DataError(
            f"{len(absent)} of {dataset.num_classes} classes of {dataset.name} have no positive in train: "
            f"{shortened(absent)}; data.min_positives=1 leaves them out"
        )
    notes = []
    for split in dataset.split_names:
        absent = _without_positives(dataset, split) if split == "val" or split.startswith("test") else []
        if absent:
            notes.append(
                f"{len(absent)} of {dataset.num_classes} classes have no positive in {split} and are left "
                f"out of its means: {shortened(absent)}"
            )
    return tuple(notes)


def _positives(dataset: MultiLabelDataset, split: str) -> npt.NDArray[np.int64]:
    return count_value(dataset.targets_at(dataset.indices(split)), PRESENT)


def _without_positives(dataset: MultiLabelDataset, split: str) -> list[str]:
    return [dataset.class_names[index] for index in np.flatnonzero(_positives(dataset, split) == 0)]


def _noted(dataset: MultiLabelDataset, note: str) -> MultiLabelDataset:
    return replace(dataset, notes=(*dataset.notes, note))
