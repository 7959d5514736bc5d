"""Which images a report shows, and which label of each."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.logits import SplitLogits
from coterie.report.pictures import chosen_images, describe_image, ranking_errors

NAMES = ("a", "b", "c", "d")


def split_logits(baseline: np.ndarray, student: np.ndarray, targets: np.ndarray) -> SplitLogits:
    ids = tuple(f"{number}.png" for number in range(len(targets)))
    models = {"baseline": baseline.astype(np.float32), "student": student.astype(np.float32)}
    return SplitLogits("test", "key", NAMES, ids, targets.astype(np.int8), models)


def test_ranking_errors_are_pairs_in_the_wrong_order() -> None:
    logits = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3], [1, 2, 3, 4], [5, 1, 1, 1]], np.float32)
    targets = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, -1, 0], [1, 1, 1, 1], [-1, 1, -1, -1]], np.int8)
    assert ranking_errors(logits, targets).tolist() == [0, 0.25, 1, 0, 0]


def test_ranking_errors_agree_with_a_plain_count_over_several_blocks() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5000, 6)).astype(np.float32)
    targets = rng.integers(-1, 2, (5000, 6)).astype(np.int8)
    found = ranking_errors(logits, targets)
    for row in (0, 4095, 4096, 4999):
        pairs = [
            logits[row, absent] > logits[row, present]
            for present in np.flatnonzero(targets[row] == 1)
            for absent in np.flatnonzero(targets[row] == 0)
        ]
        assert found[row] == pytest.approx(np.mean(pairs) if pairs else 0)


def test_images_are_chosen_by_what_the_student_does_better_and_worse() -> None:
    right, wrong, half = [2, 1, 0, -1], [-1, 0, 1, 2], [1, -1, 0, -2]
    targets = np.tile([1, 1, 0, 0], (4, 1))
    logits = split_logits(
        baseline=np.array([wrong, right, half, right]),
        student=np.array([right, wrong, right, right]),
        targets=targets,
    )
    assert chosen_images(logits, most=6) == {"corrected": [0, 2], "worse": [1], "hardest": [1]}
    assert chosen_images(logits, most=1)["corrected"] == [0]


def test_an_image_says_its_labels_scores_and_decisions() -> None:
    logits = split_logits(
        np.array([[-1.0, 2.0, 0.5, -3.0]]), np.array([[1.0, 2.0, -0.5, -2.0]]), np.array([[1, 1, 0, -1]])
    )
    described = describe_image(logits, 0, "corrected", 0.5)
    assert described["id"] == "0.png"
    assert [label["name"] for label in described["labels"]] == ["b", "a", "c"]  # d is unknown
    a = described["labels"][1]
    assert a["present"]
    assert (a["baseline_predicted"], a["student_predicted"]) == (False, True)
    assert a["student"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert described["explained"] == "a"
    assert describe_image(logits, 0, "worse", 0.5)["explained"] == "b"
    assert describe_image(logits, 0, "hardest", 0.5)["explained"] == "a"
