"""A run whose class names and file names try to break a page."""

from __future__ import annotations

import csv

import pytest

from coterie.config import load_config
from coterie.pipeline import Run, run
from tests.browser import page  # noqa: F401  (a fixture)
from tests.tiny import RUN_WORDS, make_dataset

ODD_NAMES = (
    "<script>alert(1)</script>\",'",
    "🦊 fox, Füchse",
    "</td>{{ 7 * 7 }}&amp;",
    "--> \u2028 <!-- ]]>",
)


@pytest.fixture(scope="session")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("odd")
    dataset = make_dataset()
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", *ODD_NAMES])
        for index, split in enumerate(dataset.splits):
            name = f'"><img src=x onerror=alert({index})>.png'
            dataset.load_image(index).save(folder / name)
            writer.writerow([name, split, *dataset.targets[index]])
    words = (*RUN_WORDS, f"data={folder / 'labels.csv'}", f"out={folder / 'run <b>'}", "k=1")
    return run(load_config(words))
