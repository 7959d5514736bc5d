"""Word vectors are found by class name, in either format, or the message says which are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coterie.errors import ConfigError
from coterie.models.word_vectors import count_dimensions, read_word_vectors
from tests.conftest import shared_data

NAMES = ["cat", "dining table", "dog"]
VECTORS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9.5]])


def npz(folder: Path, **changed: object) -> Path:
    path = folder / "words.npz"
    content = {"vectors": VECTORS, "class_names": np.array(NAMES)} | changed
    np.savez(path, **{key: value for key, value in content.items() if value is not None})  # type: ignore[arg-type]
    return path


def text(folder: Path, content: str) -> Path:
    path = folder / "words.txt"
    path.write_text(content, encoding="utf-8")
    return path


GLOVE = "cat 1 2 3\ndining table 4 5 6\n\ndog 7 8 9.5\n"
FORMATS = {
    "glove": GLOVE,
    "word2vec": "3 3\n" + GLOVE,
    "names that end with a number": "route 66 1 1 1\n" + GLOVE,
    "ends of lines": GLOVE.replace("\n", " \r\n"),
}


@pytest.mark.parametrize("format", ["npz", *FORMATS])
def test_vectors_come_in_the_order_of_the_classes(tmp_path: Path, format: str) -> None:
    path = npz(tmp_path) if format == "npz" else text(tmp_path, FORMATS[format])
    words = read_word_vectors(path, ["dog", "cat", "dining table"])
    assert words.vectors.tolist() == [[7, 8, 9.5], [1, 2, 3], [4, 5, 6]]
    assert words.averaged == ()
    assert count_dimensions(path) == 3
    assert str(words) == f"{path.name}: vectors of 3 numbers for 3 classes"


def test_a_name_that_ends_with_a_number_is_found(tmp_path: Path) -> None:
    path = text(tmp_path, FORMATS["names that end with a number"])
    assert read_word_vectors(path, ["route 66"]).vectors.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("as_text", [True, False])
def test_a_class_of_several_words_is_their_mean_where_it_has_no_vector(tmp_path: Path, as_text: bool) -> None:
    path = text(tmp_path, GLOVE) if as_text else npz(tmp_path)
    words = read_word_vectors(path, ["cat dog", "dining table", "cat"])
    assert words.vectors.tolist() == [[4, 5, 6.25], [4, 5, 6], [1, 2, 3]]
    assert words.averaged == ("cat dog",)
    assert str(words).endswith("for 3 classes; the mean of their words for 'cat dog'")


@pytest.mark.parametrize("as_text", [True, False])
def test_classes_without_a_vector_are_told_with_the_nearest_names(tmp_path: Path, as_text: bool) -> None:
    path = text(tmp_path, GLOVE) if as_text else npz(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_word_vectors(path, ["dog", "diningtable", "cats", "xyz", "cat mouse", "dogs"])
    assert str(caught.value) == (
        f"word vectors {path} lack 5 of the 6 classes: 'diningtable' (nearest: 'dining table'), 'cats' "
        "(nearest: 'cat'), 'xyz' and 2 more. Add their vectors under these names, or leave "
        "model.word_vectors out to learn them"
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"vectors": None},
            r"must hold `vectors` and `class_names`; 'vectors' is not among its 'class_names'",
        ),
        ({"vectors": VECTORS[:2]}, r"one row of `vectors` for each of its 3 names, got float64 .* \[2, 3\]"),
        ({"vectors": VECTORS[0]}, r"one row of `vectors` for each of its 3 names, got float64 .* \[3\]"),
        ({"vectors": np.array([["a"], ["b"], ["c"]])}, r"got <U1 of the shape \[3, 1\]"),
        ({"class_names": np.array(["cat", "dog", "cat"])}, "name 'cat' more than once"),
        ({"class_names": np.array(NAMES, dtype=object)}, "cannot be read as an npz file: Object arrays"),
        ({"vectors": VECTORS * np.nan}, "hold values that are no numbers, for 'cat'"),
    ],
)
def test_an_npz_of_another_content_is_told(tmp_path: Path, changed: dict[str, object], expected: str) -> None:
    path = npz(tmp_path, **changed)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_word_vectors(path, ["cat"])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"cat 1 2 3\n", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_npz_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"word vectors {path} cannot be read as an npz file: "):
        read_word_vectors(path, ["cat"])


def test_an_array_in_the_place_of_an_npz_is_told(tmp_path: Path) -> None:
    path = tmp_path / "words.npz"
    with path.open("wb") as file:
        np.save(file, VECTORS)
    with pytest.raises(ConfigError, match="cannot be read as an npz file: "):
        read_word_vectors(path, ["cat"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "must be an npz file, or text with a name and its numbers in each line"),
        ("image,labels\na.png,cat\n", "must be an npz file, or text"),
        ("dog 1 2 3\ncat 1 two 3\n" + GLOVE, "the line of 'cat' must be a name and 3 numbers"),
    ],
)
def test_a_text_of_another_content_is_told(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read_word_vectors(text(tmp_path, content), ["cat"])


def test_a_broken_line_is_told_where_it_is_needed(tmp_path: Path) -> None:
    lines = "".join(f"word{number} 1 2 3\n" for number in range(200))
    path = text(tmp_path, lines + "cat 1 two 3\ndog 1 2\n" + "bee 4 5 6\n")
    assert read_word_vectors(path, ["bee"]).vectors.tolist() == [[4, 5, 6]]
    for name in ("cat", "dog"):
        with pytest.raises(ConfigError, match=f"the line of '{name}' must be a name and 3 numbers"):
            read_word_vectors(path, [name])


@pytest.mark.parametrize("name", ["no.npz", "no.txt"])
def test_a_file_that_is_not_there_is_told(tmp_path: Path, name: str) -> None:
    expected = f"^word vectors {tmp_path / name} are not there; name a file with model.word_vectors=FILE$"
    with pytest.raises(ConfigError, match=expected):
        read_word_vectors(tmp_path / name, ["cat"])


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_word_vectors(tmp_path, ["cat"])


def test_the_vectors_of_the_datasets_are_found_by_their_class_names() -> None:
    labels = shared_data() / "labels"
    with np.load(labels / "coco2014_train_counts.npz") as content:
        names = [str(name) for name in content["class_names"]]
    with np.load(labels / "glove300_coco.npz") as content:
        vectors = dict(zip(content["class_names"].tolist(), content["vectors"], strict=True))
    chosen = names[60:50:-1]
    words = read_word_vectors(labels / "glove300_coco.npz", chosen)
    np.testing.assert_array_equal(words.vectors, np.stack([vectors[name] for name in chosen]))
    assert count_dimensions(labels / "glove300_coco.npz") == 300
    with pytest.raises(
        ConfigError, match=r"lack 1 of the 81 classes: 'table' \(nearest: 'vegetable|lack 1 of"
    ):
        read_word_vectors(labels / "glove300_coco.npz", [*names, "table"])
