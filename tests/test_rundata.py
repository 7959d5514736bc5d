"""What a run keeps of its data is what the data are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coterie.errors import RunError
from coterie.files import file_sha256
from coterie.pipeline import Run
from coterie.preparation import training_graph
from coterie.rundata import DATA_FILE, PAIRS_FILE, keep_data, read_data
from tests.tiny import make_dataset


def test_a_run_keeps_its_splits_and_its_training_graph(finished_run: Run) -> None:
    dataset = make_dataset()
    data = read_data(finished_run.folder)
    assert data.name == "labels.csv"
    assert data.images == {"test": 12, "test_shifted": 12, "train": 24, "val": 12}
    assert data.notes == ("1 image has no label",)
    expected = training_graph(dataset.with_classes(data.graph.class_names))
    assert np.array_equal(data.graph.counts, expected.counts)
    assert np.array_equal(data.graph.class_counts, expected.class_counts)
    assert expected.counts.any()
    assert data.split_hash == dataset.split_hash()


def test_it_is_written_again_only_under_another_key(tmp_path: Path) -> None:
    keep_data(tmp_path, "one", make_dataset(0))
    keep_data(tmp_path, "one", make_dataset(1))
    assert np.array_equal(read_data(tmp_path).graph.counts, training_graph(make_dataset(0)).counts)
    keep_data(tmp_path, "two", make_dataset(1))
    assert np.array_equal(read_data(tmp_path).graph.counts, training_graph(make_dataset(1)).counts)


def test_a_damaged_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no data\.json: the `coterie run` command"):
        read_data(tmp_path)
    keep_data(tmp_path, "key", make_dataset())
    path = tmp_path / DATA_FILE
    whole = path.read_text()
    content = json.loads(whole)
    for text in (
        whole[: len(whole) // 2],
        json.dumps(content | {"schema_version": 0}),
        json.dumps(content | {"pairs_sha256": "0"}),
        json.dumps(content | {"class_counts": [0, 0, 0, 0]}),
        "[]",
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=r"data\.json is damaged \(.*remove it"):
            read_data(tmp_path)


@pytest.mark.parametrize("pairs", [[[0, 9, 1]], [[0, 1]], [[0, 1, -1]]])
def test_pairs_that_cannot_be_are_one_message(tmp_path: Path, pairs: list[list[int]]) -> None:
    keep_data(tmp_path, "key", make_dataset())
    np.save(tmp_path / PAIRS_FILE, np.array(pairs))
    path = tmp_path / DATA_FILE
    content = json.loads(path.read_text()) | {"pairs_sha256": file_sha256(tmp_path / PAIRS_FILE)}
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"data\.json is damaged \(.*remove it"):
        read_data(tmp_path)


def test_pairs_that_are_gone_are_written_again(tmp_path: Path) -> None:
    keep_data(tmp_path, "key", make_dataset())
    (tmp_path / PAIRS_FILE).unlink()
    with pytest.raises(RunError, match=r"has no pairs\.npy"):
        read_data(tmp_path)
    keep_data(tmp_path, "key", make_dataset())
    assert np.array_equal(read_data(tmp_path).graph.counts, training_graph(make_dataset()).counts)
