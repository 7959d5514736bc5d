"""Images without labels: what the teachers say of them is for the student to learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coterie.config import load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.table import read_table
from coterie.errors import DataError
from coterie.measurement import evaluate_path
from coterie.pipeline import Run, run
from coterie.runfolder import RunFolder
from tests.tiny import RUN_WORDS, Net, change_line, make_dataset, write_table

NUMBER = 10


def with_unlabelled(split: str = "unlabelled", flipped: bool = False) -> MultiLabelDataset:
    """The tiny dataset with further images of `split`; `flipped`: with the opposite of their labels."""
    own, other = make_dataset(), make_dataset(seed=1).subset(np.arange(NUMBER))
    return replace(
        own,
        images=np.concatenate([own.images, other.images]),
        targets=np.concatenate([own.targets, 1 - other.targets if flipped else other.targets]),
        splits=np.array([*own.splits, *[split] * NUMBER]),
        image_ids=(*own.image_ids, *(f"more-{name}" for name in other.image_ids)),
    )


def trained(folder: Path, dataset: MultiLabelDataset, *words: str) -> Run:
    table = write_table(folder / "photos", dataset)
    return run(load_config([*RUN_WORDS, f"data={table}", f"out={folder / 'run'}", *words]))


def weights(made: Run) -> dict[str, str]:
    return {training.name: training.weights_sha256 for training in RunFolder(made.folder).trainings()}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("distill.cache=on", "student.views=2"),
        # the student starts from the baseline, and both learn the upper part on features that are kept
        ("student.start=baseline", "student.frozen=norm", "student.views=2", "distill.cache=on"),
    ],
)
def test_the_student_alone_learns_from_unlabelled_images_and_not_from_their_labels(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    without = trained(tmp_path / "without", make_dataset(), *words)
    made = trained(tmp_path / "with", with_unlabelled(), *words)
    before, after = weights(without), weights(made)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["student"]
    # a label that stands there all the same is not learned, and counts nowhere
    flipped = trained(tmp_path / "flipped", with_unlabelled(flipped=True), *words)
    assert weights(flipped) == after
    assert flipped.metrics == made.metrics


def test_unlabelled_images_are_told_of_and_not_measured(tmp_path: Path) -> None:
    made = trained(tmp_path, with_unlabelled())
    data = json.loads((made.folder / "data.json").read_text())
    assert data["images"] == {"train": 24, "val": 12, "test": 12, "test_shifted": 12, "unlabelled": NUMBER}
    assert (
        f"{NUMBER} unlabelled images: what the teachers say of them is for the student to learn"
        in data["notes"]
    )
    assert [*made.metrics] == ["val", "test", "test_shifted"]


def test_there_is_nothing_to_measure_on_unlabelled_images(tmp_path: Path) -> None:
    made = trained(tmp_path, with_unlabelled())
    with pytest.raises(DataError, match="the labels of split 'unlabelled' are not known"):
        evaluate_path(made.folder, (), "unlabelled", allow_overlap=True, builder=Net)


def test_runs_with_and_without_unlabelled_images_have_the_same_split() -> None:
    assert with_unlabelled().split_hash() == make_dataset().split_hash()
    assert with_unlabelled("train").split_hash() != make_dataset().split_hash()


def test_unlabelled_rows_are_not_told_of_as_images_without_a_label(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos", with_unlabelled())
    for row in ("more-000.png,,unlabelled", "more-001.png,,unlabelled"):
        change_line(table, row.partition(",")[0], row)
    notes = read_table(table).notes
    change_line(table, "000.png", "000.png,,train")
    more = read_table(table).notes
    assert [note for note in notes if "no label" in note] == ["1 image has no label"]
    assert [note for note in more if "no label" in note] == ["2 images have no label"]


def test_an_unlabelled_image_that_is_measured_too_stops_a_run(tmp_path: Path) -> None:
    dataset = make_dataset()
    table = write_table(tmp_path / "photos", dataset)
    measured = dataset.image_ids[int(dataset.indices("test")[0])]
    copied = tmp_path / "photos" / "copy.png"
    copied.write_bytes((tmp_path / "photos" / measured).read_bytes())
    with table.open("a", encoding="utf-8") as file:
        file.write("copy.png,,unlabelled\n")
    with pytest.raises(DataError, match=rf"'{measured}' \(test\) is 'copy.png' \(unlabelled\)"):
        run(load_config([*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}"]))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_class_that_only_unlabelled_images_show_is_no_class_to_train(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos", with_unlabelled())
    change_line(table, "more-000.png", "more-000.png,zebra,unlabelled")
    with pytest.raises(DataError, match=r"1 of 5 classes of .* have no positive in train: 'zebra'"):
        run(load_config([*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}"]))
