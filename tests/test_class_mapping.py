"""Classes of a dataset and of a model that do not have the same names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coterie.class_mapping import Measured, map_classes, read_mapping, same_classes
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import ConfigError, DataError

DATA = ("bus", "cat", "coupe", "van", "wolf")
MODEL = ("car", "truck", "cat", "dog", "bird")


def dataset(targets: list[list[int]]) -> MultiLabelDataset:
    n = len(targets)
    return MultiLabelDataset(
        images=np.zeros((n, 2, 2, 3), np.uint8),
        targets=np.array(targets, np.int8),
        class_names=DATA,
        splits=np.array(["test"] * n),
        image_ids=tuple(map(str, range(n))),
    )


def test_several_classes_of_the_data_are_one_where_any_is_present() -> None:
    mapping = map_classes({"van": "car", "coupe": "car", "wolf": "dog"}, DATA, MODEL)
    assert mapping.names == ("car", "dog")
    assert mapping.unmapped_dataset == ("bus", "cat")
    assert mapping.unmapped_model == ("truck", "cat", "bird")
    #         bus cat coupe van wolf
    targets = [[1, 1, 0, 0, 1], [0, 0, 1, -1, 0], [0, 0, -1, 0, -1], [0, 0, 0, 1, 0]]
    mapped = mapping.dataset_of(dataset(targets))
    assert mapped.class_names == ("car", "dog")
    assert mapped.targets.tolist() == [[0, 1], [1, 0], [-1, -1], [1, 0]]


def test_several_classes_of_the_model_are_one_with_the_greatest_score() -> None:
    mapping = map_classes({"bus": ["car", "truck"], "van": ["car", "truck"], "cat": "cat"}, DATA, MODEL)
    assert mapping.measured == (
        Measured("bus or van", ("bus", "van"), ("car", "truck")),
        Measured("cat", ("cat",), ("cat",)),
    )
    scores = np.array([[0.1, 0.9, 0.3, 0.4, 0.5], [0.6, 0.2, 0.7, 0.4, 0.5]])
    assert mapping.scores_of(scores, MODEL).tolist() == [[0.9, 0.3], [0.6, 0.7]]
    assert mapping.thresholds_of((0.5, 0.5, 0.2, 0.5, 0.5), MODEL) == (0.5, 0.2)
    with pytest.raises(ConfigError, match="'bus or van' is scored by 'car', 'truck', which have"):
        mapping.thresholds_of((0.5, 0.4, 0.2, 0.5, 0.5), MODEL)


def test_classes_of_the_same_name_are_in_the_order_of_the_model() -> None:
    mapping = same_classes(("dog", "cat", "emu"), MODEL)
    assert mapping.names == ("cat", "dog")
    assert (mapping.unmapped_dataset, mapping.unmapped_model) == (("emu",), ("car", "truck", "bird"))
    with pytest.raises(DataError, match="no class of the same name: 'emu' in the data, 'car'"):
        same_classes(("emu",), MODEL)


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ({}, "the mapping of classes is empty"),
        ({"vann": "car"}, "names 'vann', which is no class of the data; did you mean 'van'"),
        ({"van": "cars"}, "names 'cars', which is no class of the model; did you mean 'car'"),
        ({"van": []}, "gives 'van' no class of the model"),
        ({"van": ["car", "car"]}, "or one twice"),
        ({"van": ["car", "truck"], "bus": "car"}, "uses 'car' of the model alone and together with others"),
    ],
)
def test_a_mapping_that_does_not_fit_is_told(pairs: dict[str, str | list[str]], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        map_classes(pairs, DATA, MODEL)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", 'data,model\n"a, b",cat\n"c ""d""",dog\r\n\nvan,car\nvan,truck\n', None),
        ("a.json", '{"a, b": "cat", "c \\"d\\"": ["dog"], "van": ["car", "truck"]}', None),
        ("a.yaml", '"a, b": cat\nc "d": [dog]\nvan:\n- car\n- truck\n', None),
        ("a.yml", "\ufeffé: ü\n", {"é": ("ü",)}),
    ],
)
def test_mappings_are_read(
    tmp_path: Path, name: str, text: str, expected: dict[str, tuple[str, ...]] | None
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    read = read_mapping(tmp_path / name)
    lists = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in read.items()}
    assert lists == (expected or {"a, b": ("cat",), 'c "d"': ("dog",), "van": ("car", "truck")})


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.txt", "", "by a .csv, .json or .yaml file, or by 'same', not by"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"a": "b", "a": "c"}', "'a' stand twice"),
        ("a.yaml", "a: b\na: c\n", "'a' stand twice"),
        ("a.json", "[]", "must have a class of the data and one of the model"),
        ("a.yaml", "a: yes", "must have a class of the data and one of the model"),
        ("a.yaml", "", "must have a class of the data and one of the model"),
        ("a.csv", "van,car\n", "its first line must be data,model"),
        ("a.csv", "data,model\nvan\n", "row 2 has 1 cells, not 2"),
        ("a.csv", 'data,model\n"van,car\n', "cannot be read"),
    ],
)
def test_a_file_that_is_no_mapping_is_told(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_mapping(tmp_path / name)


def test_a_mapping_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no mapping of classes at"):
        read_mapping(tmp_path / "none.csv")
