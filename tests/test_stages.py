"""What the key of a training holds."""

from __future__ import annotations

import pytest

from coterie.config import STUDENT, describe_settings, load_config
from coterie.runfolder import Training
from coterie.stages import measured_models, training_key

TRAININGS = (
    Training("baseline", ("cat", "dog")),
    Training("teachers/co-occurrence-0", ("cat",), "co-occurrence", 0),
    Training(STUDENT, ("cat", "dog")),
)
SET = ("distill.baseline=0.3", "teacher.start=baseline", "student.views=2", "train.loss=bce")


def keys(*words: str) -> list[str]:
    """The keys of baseline, teacher and student."""
    config, others = load_config(words), [("baseline", "0"), ("teachers/co-occurrence-0", "1")]
    return [training_key(config, "data", {"weights": None}, training, others) for training in TRAININGS]


def test_what_was_trained_before_a_setting_came_keeps_its_key() -> None:
    assert [key[:12] for key in keys()] == ["d6cdf88bc4ea", "230bba0309b9", "404529cafd1f"]
    assert [key[:12] for key in keys(*SET)] == ["71013b910482", "313af7762520", "3d0619969e88"]


OF_DISTILLATION = ("distill.ap_power=1", "distill.w_end=0", "distill.relations=2", "distill.generator=0.01")


@pytest.mark.parametrize("word", [*OF_DISTILLATION, "student.mixup=0.2"])
def test_a_setting_of_the_student_that_came_later_is_in_its_key_alone(word: str) -> None:
    name = word.partition("=")[0]
    default = {key: value for key, value, _ in describe_settings()}[name.replace("student", "train")]
    assert keys(f"{name}={default}") == keys()
    assert keys(word)[:2] == keys()[:2]
    assert keys(word)[2] != keys()[2]


def test_what_is_outside_of_a_group_is_in_the_key_of_a_teacher_that_has_one() -> None:
    before = keys()
    for role in ("teacher", "train"):
        found = keys(f"{role}.outside=0.5")
        assert [key != other for key, other in zip(found, before, strict=True)] == [False, True, False]
    assert keys("teacher.outside=0") == before
    assert keys("teacher.outside=0.5", "k=1") == before


@pytest.mark.parametrize("word", ["k=3", "partition.co_method=paper", "partition.repeats=2"])
def test_groups_are_in_a_key_by_their_classes_alone(word: str) -> None:
    assert keys(word) == keys()


def test_the_teachers_of_all_repeats_of_a_kind_are_measured_as_one_model() -> None:
    co, dis = ("co-occurrence", "co-occurrence.2"), ("dis-occurrence", "dis-occurrence.2")
    measured = measured_models(load_config(["partition.repeats=2"]))
    assert measured == {
        "baseline": (),
        "CGP teachers": co,
        "DGP teachers": dis,
        "all teachers": (co[0], dis[0], co[1], dis[1]),
        "student": (),
    }
    alike = measured_models(load_config(["partition.repeats=2", "k=1"]))
    assert alike == {"baseline": (), "teacher": co, "student": ()}
    one_branch = measured_models(load_config(["distill.a=1"]))
    assert one_branch == {"baseline": (), "CGP teachers": co[:1], "student": ()}
