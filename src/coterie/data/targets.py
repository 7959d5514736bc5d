"""From what annotations say to targets: objects of a class, names of labels, names of splits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from coterie.config import Doubtful
from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN, UNLABELLED
from coterie.errors import DataError, counted, did_you_mean

SPLIT_ALIASES = {
    **{"training": "train", "valid": "val", "validation": "val", "dev": "val"},
    "unlabeled": UNLABELLED,
}
SPLIT_NAMES = ("train", "val", "test")

TARGET_OF_DOUBTFUL: dict[Doubtful, int] = {"positive": PRESENT, "ignore": UNKNOWN, "negative": ABSENT}


def targets_of_objects(
    shape: tuple[int, int],
    images: npt.ArrayLike,
    classes: npt.ArrayLike,
    doubtful: npt.ArrayLike,
    doubtful_are: Doubtful,
) -> npt.NDArray[np.int8]:
    """Targets of `shape` [N, C] from objects: the image, the class, and whether it is doubtful, of each.

    A class of which an image has only doubtful objects (crowds, difficult ones) is what `doubtful_are` says;
    one object that is not doubtful makes it present.
    """
    targets = np.full(shape, ABSENT, dtype=np.int8)
    images, classes = np.asarray(images, dtype=np.int64), np.asarray(classes, dtype=np.int64)
    doubtful = np.asarray(doubtful, dtype=np.bool_)
    targets[images[doubtful], classes[doubtful]] = TARGET_OF_DOUBTFUL[doubtful_are]
    targets[images[~doubtful], classes[~doubtful]] = PRESENT
    return targets


def targets_of_names(
    labels: Sequence[Collection[str]], class_names: Sequence[str] | None, where: Callable[[int], str]
) -> tuple[npt.NDArray[np.int8], list[str]]:
    """Targets [N, C] and classes from the names of each image's labels; classes are sorted by name.

    `class_names` closes the list of classes and sets their order. `where(row)` names an image in the
    DataError about a label that is none of them.
    """
    used = set().union(*labels)
    classes = sorted(used) if class_names is None else list(class_names)
    position = {name: index for index, name in enumerate(classes)}
    outside = used.difference(position)
    if outside:
        raise outside_of_classes(labels, outside, classes, where)
    targets = np.full((len(labels), len(classes)), ABSENT, dtype=np.int8)
    for row, names in enumerate(labels):
        targets[row, [position[name] for name in names]] = PRESENT
    return targets, classes


def outside_of_classes(
    labels: Sequence[Collection[str]],
    outside: Collection[str],
    classes: Sequence[str],
    where: Callable[[int], str],
) -> DataError:
    """What to say of the first of the images' `labels` that are `outside` of the classes."""
    row, label = next((row, name) for row, names in enumerate(labels) for name in names if name in outside)
    more = f" (nor {counted(len(outside) - 1, 'other label')})" if len(outside) > 1 else ""
    return DataError(
        f"label '{label}' of image {where(row)} "
        f"is not one of the {len(classes)} classes{more}{did_you_mean(label, classes)}"
    )


def usual_split(written: str) -> str:
    """train, val, test and unlabelled in any case, aliases of them, other names as they stand."""
    name = written.lower()
    return SPLIT_ALIASES.get(name, name if name in (*SPLIT_NAMES, UNLABELLED) else written)


def split_notes(written: Collection[str]) -> list[str]:
    """A note for each name of a split that is read as another one."""
    renamed = {name: usual_split(name) for name in dict.fromkeys(written)}
    return [f"split '{name}' is read as '{to}'" for name, to in renamed.items() if name.lower() != to.lower()]
