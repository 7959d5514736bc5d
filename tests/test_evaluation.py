"""Models measured side by side, and the table and notes that show it."""

from __future__ import annotations

import io
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from coterie.data.loading import ResizedImages
from coterie.data.transforms import Preprocessing
from coterie.evaluation import Results, evaluate_models, evaluation_splits, left_out_notes, results_table
from coterie.metrics import multilabel_metrics
from tests.tiny import CLASS_NAMES, SIDE, cpu_fabric, make_dataset


class ReadsTheColours(nn.Module):
    """Logits from the mean of each colour; of the stripes it knows nothing."""

    def forward(self, images: Tensor) -> Tensor:
        colours = images.mean(dim=(2, 3))
        return torch.cat([colours, torch.zeros(len(images), 1)], dim=1)


def shown(results: Results, title: str = "") -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(results, title))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def percentages(map_: float | None, **others: Any) -> dict[str, Any]:
    return {"mAP": map_, "CF1": 40.0, "OF1": 50.0, "classes_without_positives": []} | others


def test_each_image_of_a_split_counts_once_and_in_order() -> None:
    dataset = make_dataset()
    images = ResizedImages(dataset, Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    results = evaluate_models(
        {"one": ReadsTheColours()}, images, ["val", "test"], cpu_fabric(), threshold=0.4
    )
    test = dataset.subset(dataset.indices("test"))
    pixels = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in test.images])
    scores = ReadsTheColours()(images.preprocessing.normalize(pixels)).sigmoid()
    assert results["test"]["one"] == multilabel_metrics(scores, test.targets, 0.4, class_names=CLASS_NAMES)
    assert results["test"]["one"]["AP"][:3] == [100.0, 100.0, 100.0]


def test_logits_far_from_zero_keep_their_order() -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            colours = images.mean(dim=(2, 3))
            return torch.cat([colours, torch.zeros(len(images), 1)], dim=1) + 25

    images = ResizedImages(make_dataset(), Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    results = evaluate_models({"sure": Sure()}, images, ["test"], cpu_fabric())
    assert results["test"]["sure"]["AP"][:3] == [100.0, 100.0, 100.0]


def test_a_run_is_measured_on_val_and_every_test_split() -> None:
    names = ["train", "test_shifted", "extra", "val", "test"]
    assert evaluation_splits(names) == ["val", "test", "test_shifted"]


def test_the_table_shows_the_student_less_the_baseline() -> None:
    results = {"test": {"baseline": percentages(61.5), "student": percentages(63.25)}}
    (row,) = [line for line in shown(results).splitlines() if "test mAP" in line]
    assert row.split() == ["test", "mAP", "61.50", "63.25", "+1.75"]


def test_a_mean_over_no_class_is_a_dash() -> None:
    text = shown({"test": {"baseline": percentages(None), "student": percentages(60.0)}})
    (row,) = [line for line in text.splitlines() if "test mAP" in line]
    assert row.split() == ["test", "mAP", "-", "60.00", "-"]


def test_the_table_of_a_run_fits_into_80_columns() -> None:
    models = ("baseline", "CGP teachers", "DGP teachers", "all teachers", "student")
    text = shown({"test_shifted": {name: percentages(100.0) for name in models}})
    assert "…" not in text
    (row,) = [line for line in text.splitlines() if "test_shifted mAP" in line]
    assert row.split() == ["test_shifted", "mAP", *["100.00"] * 5, "+0.00"]


def test_names_with_brackets_are_shown_as_they_are() -> None:
    text = shown({"test [red]": {"a [b] :cat:": percentages(60.0)}}, title="[x] labels.csv")
    for name in ("[x] labels.csv", "test [red] mAP", "[b]", ":cat:"):
        assert name in text


def test_classes_that_the_means_leave_out_are_named() -> None:
    results = {
        "val": {"baseline": percentages(50.0)},
        "test": {"baseline": percentages(50.0, classes_without_positives=["cat", "dog"])},
    }
    assert left_out_notes(results) == ["test: without positives, and so left out of mAP: cat, dog"]
