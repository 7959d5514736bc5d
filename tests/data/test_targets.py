"""From objects, names of labels and names of splits to targets."""

from __future__ import annotations

import pytest

from coterie.config import Doubtful
from coterie.data.targets import split_notes, targets_of_names, targets_of_objects, usual_split
from coterie.errors import DataError


@pytest.mark.parametrize(("doubtful", "value"), [("positive", 1), ("ignore", -1), ("negative", 0)])
def test_one_object_that_is_certain_outweighs_doubtful_ones(doubtful: Doubtful, value: int) -> None:
    images, classes = [0, 0, 0, 1], [2, 2, 0, 1]
    targets = targets_of_objects((3, 3), images, classes, [True, False, True, False], doubtful)
    assert targets.tolist() == [[value, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert targets.dtype == "int8"


def test_no_objects_are_all_absent() -> None:
    assert targets_of_objects((1, 2), [], [], [], "positive").tolist() == [[0, 0]]


def test_names_become_columns_sorted_or_as_given() -> None:
    labels = [["dog", "cat"], [], ["cat"]]
    targets, classes = targets_of_names(labels, None, str)
    assert (targets.tolist(), classes) == ([[1, 1], [0, 0], [1, 0]], ["cat", "dog"])
    targets, classes = targets_of_names(labels, ("dog", "emu", "cat"), str)
    assert (targets.tolist(), classes) == ([[1, 0, 1], [0, 0, 0], [0, 0, 1]], ["dog", "emu", "cat"])


def test_a_name_outside_the_given_classes_is_told_with_its_place() -> None:
    with pytest.raises(DataError) as caught:
        targets_of_names([["cat"], ["dgo", "emu"]], ("cat", "dog"), lambda row: f"in row {row}")
    assert str(caught.value) == (
        "label 'dgo' of image in row 1 is not one of the 2 classes (nor 1 other label); did you mean 'dog'?"
    )


def test_splits_get_their_usual_names() -> None:
    written = ("TRAIN", "Validation", "test_shifted", "Extra")
    assert [usual_split(name) for name in written] == ["train", "val", "test_shifted", "Extra"]
    assert split_notes(written) == ["split 'Validation' is read as 'val'"]
