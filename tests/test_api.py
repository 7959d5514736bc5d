"""The way in from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import coterie
from coterie import CoterieError, evaluate, fit, load_classifier
from coterie.config import load_config
from coterie.data.reading import read_dataset
from coterie.errors import ConfigError, DataError
from coterie.pipeline import Run
from tests.tiny import RUN_SETTINGS, SIDE, Net, make_dataset, sized, write_table

ONE_EPOCH = RUN_SETTINGS | {"train": {"epochs": 1}}


def test_a_model_of_your_own_is_trained_and_used(tmp_path: Path) -> None:
    # images of 224 pixels: what a model gets that does not say what it takes
    dataset = make_dataset()
    run = fit(dataset, model=lambda num_classes: Net(num_classes), out=tmp_path / "run", **ONE_EPOCH)
    assert run.student.checkpoint.preprocessing.image_size == 224
    dataset.load_image(0).save(tmp_path / "photo.png")
    (prediction,) = run.student.predict([tmp_path / "photo.png"])
    assert set(prediction.scores) == set(dataset.class_names)


def test_a_builder_may_ask_for_the_class_names(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def build(num_classes: int, class_names: tuple[str, ...]) -> Net:
        asked.append(class_names)
        return Net(num_classes)

    run = fit(make_dataset(), sized(build), out=tmp_path / "run", **ONE_EPOCH)
    assert run.student.checkpoint.preprocessing.image_size == SIDE
    assert {len(names) for names in asked} == {4, 2}


def test_the_name_of_a_model_and_its_settings_are_those_of_the_config(tmp_path: Path) -> None:
    settings = {"name": "test_resnet", "image_size": 32}
    train = {"epochs": 1, "batch_size": 8}
    run = fit(make_dataset(), settings, k=1, out=tmp_path / "run", device="cpu", train=train)
    assert run.config.model.image_size == 32
    # a model that coterie builds needs no builder to be loaded
    student = load_classifier(tmp_path / "run")
    image = make_dataset().load_image(0)
    assert student.scores([image]).tolist() == run.student.scores([image]).tolist()


def test_a_path_stands_for_a_table(finished_run: Run, tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    settings = RUN_SETTINGS | {"augment": finished_run.config.augment.model_dump()}
    run = fit(table, {"name": "tests.tiny:Net", "image_size": SIDE}, out=tmp_path / "run", **settings)
    assert run.metrics == finished_run.metrics


def test_problems_are_errors_of_the_package(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv is not there"):
        fit(tmp_path / "labels.csv")
    with pytest.raises(ConfigError, match=r"no setting 'train\.epoch'; did you mean 'train\.epochs'"):
        fit(make_dataset(), train={"epoch": 3})
    assert issubclass(DataError, CoterieError)


def test_evaluate_gives_the_metrics_of_the_run(finished_run: Run) -> None:
    predictors = {"baseline": finished_run.baseline, "student": finished_run.student}
    dataset = read_dataset(finished_run.config.data)
    results = evaluate(predictors, dataset, "test", finished_run.config)
    assert results == {"test": {name: finished_run.metrics["test"][name] for name in predictors}}


def test_evaluate_takes_the_threshold_of_each_classifier_or_the_one_given(finished_run: Run) -> None:
    dataset = read_dataset(finished_run.config.data)
    config = load_config(["threshold=0.9"])
    own = evaluate({"student": finished_run.student}, dataset, "test", config)
    assert own["test"]["student"] == finished_run.metrics["test"]["student"]
    given = evaluate({"student": finished_run.student}, dataset, "test", config, threshold=0.0)
    assert given["test"]["student"]["CR"] == 100


def test_evaluate_puts_classes_in_order_and_leaves_further_ones_out(finished_run: Run) -> None:
    dataset = read_dataset(finished_run.config.data)
    further = np.ones((len(dataset), 1), np.int8)
    others = type(dataset)(
        images=dataset.images,
        targets=np.hstack([dataset.targets[:, ::-1], further]),
        class_names=(*dataset.class_names[::-1], "purple"),
        splits=dataset.splits,
        image_ids=dataset.image_ids,
    )
    results = evaluate({"student": finished_run.student}, others, "test", finished_run.config)
    assert results["test"]["student"] == finished_run.metrics["test"]["student"]


def test_evaluate_refuses_data_without_a_class_of_the_model(finished_run: Run) -> None:
    dataset = read_dataset(finished_run.config.data).with_classes(["red", "blue", "stripes"])
    with pytest.raises(DataError, match=r"has no class 'green'.*its classes are 'red', 'blue', 'stripes'"):
        evaluate({"student": finished_run.student}, dataset, "test", finished_run.config)


def test_a_run_can_be_given_to_load_config_again(finished_run: Run) -> None:
    # the file names code of the test's own model, which nobody runs who does not name it too
    again = load_config(["model=tests.tiny:Net"], recipe=finished_run.folder / "config.yaml")
    assert again == finished_run.config


def test_every_public_name_is_there() -> None:
    for name in coterie.__all__:
        assert getattr(coterie, name).__name__ == name
    assert set(coterie.__all__) <= set(dir(coterie))
    assert not hasattr(coterie, "no_such_name")
