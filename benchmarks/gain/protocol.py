"""What all parts of the protocol share: data, model, seeds, and where results are."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from coterie.ablation import Ablation, Row, ablate
from coterie.config import load_config
from coterie.files import atomic_write

# The lower layers of SqueezeNet stay as ImageNet left them, and what they make of seven views of each image
# is kept: the same for every row. The views are those of every seed; the student has seven of its own.
VIEWS = 7
FROZEN = (
    *("model.image_size=64", "train.frozen=backbone.features.10", f"train.views={VIEWS}"),
    "augment.view_seed=0",
    *("augment.flip=0.5", "augment.shift=0.1", "augment.cutout=0", "augment.randaugment=false"),
)
# For a GPU: nothing frozen, always a new view.
WHOLE = (
    *("model.image_size=224", "augment.flip=0.5", "augment.shift=0.1", "augment.cutout=0"),
    *("augment.randaugment=false", "precision=bf16"),
)
K = 3
PATIENCE = 8
COMMON = (
    *("model=squeezenet", f"k={K}", "train.ema=0.998", "train.batch_size=32"),
    # Some time after its best epoch a training by the labels alone only learns the images by heart.
    *(f"train.patience={PATIENCE}", "student.patience=null"),
)
OVER_RECIPE = ("precision=fp32",)  # of the demo, which leaves the precision to the machine
LEAST_IMAGES = 50  # training images of a class
Rows = list[dict[str, str]]  # of a table
SEARCH_SHARE = 0.25  # of the images of training and validation, those that a search validates on


@dataclass(frozen=True)
class Protocol:
    """Where data and results are, and how trainings are done. `epochs`: that the search begins with; `words`:
    further settings, of every row.
    """

    data: Path
    out: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    search_seeds: tuple[int, ...] = (0, 1)
    epochs: int = 32
    at_once: int = 1
    whole: bool = False
    words: tuple[str, ...] = ()
    console: Console = field(default_factory=Console, compare=False)

    @property
    def table(self) -> Path:
        return self.data / "corel5k" / "labels.csv"

    @property
    def weights(self) -> Path:
        return self.data / "weights" / "squeezenet1_1_imagenet_features.safetensors"

    @property
    def settings(self) -> tuple[str, ...]:
        """What is the same for every row, wherever the files are."""
        return (*COMMON, *(WHOLE if self.whole else FROZEN), *self.words)

    def common(self, table: Path, least: int = LEAST_IMAGES) -> list[str]:
        """The settings of every row, on the images of `table`; `least`: training images of a class."""
        return [
            f"data={table}",
            f"data.image_root={self.table.parent}",
            f"data.min_positives={least}",
            f"model.weights={self.weights}",
            f"cache_dir={self.out / 'cache'}",
            *self.settings,
        ]

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Leave `content` in OUT, with the settings that it was found with."""
        atomic_write(self._file(name), json.dumps({"settings": self.settings, **content}, indent=1))

    def found_before(self, name: str) -> dict[str, Any] | None:
        """What was left in OUT under the name, where it is of these settings."""
        if not (path := self._file(name)).exists():
            return None
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content if content.pop("settings") == list(self.settings) else None

    def _file(self, name: str) -> Path:
        return self.out / f"{name}.json"

    def variant(self, name: str, *words: str) -> Protocol:
        """The same protocol with further settings, and its results in a folder of their own."""
        return replace(self, out=self.out / name, words=(*self.words, *words))

    def searched(
        self, words: Iterable[str], rows: Sequence[Row], seeds: Sequence[int] | None = None
    ) -> Ablation:
        """`rows` compared on validation, on a table that has no test images."""
        settings = [*self.common(self.rewritten("search", split_to_search), least=0), *words]
        return self._compared("search", settings, rows, seeds or self.search_seeds)

    def measured(
        self,
        name: str,
        words: Iterable[str],
        rows: Sequence[Row],
        names: Sequence[str] = (),
        values: Mapping[str, Sequence[float]] | None = None,
        table: Path | None = None,
    ) -> Ablation:
        """`rows`, and those with `names` or `values` of `coterie ablate`, compared on validation and test, at
        all seeds; values of settings at those of the search, as they are many. `table`: one that was
        `rewritten`, with its own choice of classes.
        """
        seeds = self.search_seeds if values else self.seeds
        common = self.common(self.table) if table is None else self.common(table, least=0)
        return self._compared(name, [*common, *words], rows, seeds, names, values)

    def of_scenes(self, names: Sequence[str]) -> Ablation:
        """The rows with `names` over the recipe of the built-in scenes, with their shifted test set."""
        words = (f"cache_dir={self.out / 'cache'}", *OVER_RECIPE, *self.words)
        return self._compared("scenes", words, (), self.seeds, names, recipe="demo")

    def _compared(
        self,
        name: str,
        words: Sequence[str],
        rows: Sequence[Row],
        seeds: Sequence[int],
        names: Sequence[str] = (),
        values: Mapping[str, Sequence[float]] | None = None,
        recipe: str | None = None,
    ) -> Ablation:
        """The finished rows; RunError where one failed."""
        compared = ablate(
            load_config(words, recipe),
            [*names, *(row.name for row in rows)],
            seeds,
            values=values,
            own=rows,
            out=self.out / name,
            store=self.out / "trainings",
            update=True,
            at_once=self.at_once,
            console=self.console,
        )
        compared.raise_failures()
        return compared

    def rewritten(self, name: str, change: Callable[[Rows], Rows]) -> Path:
        """The table OUT/`name`.csv, of the rows that `change` makes of those of the data."""
        with self.table.open(newline="") as file:
            rows = change([*csv.DictReader(file)])
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = self.out / f"{name}.csv"
        atomic_write(path, text.getvalue())
        return path


def split_to_search(rows: Rows) -> Rows:
    """The images of training and validation, split anew, so that enough are validated on to tell one setting
    from another; the classes are those of the table.
    """
    rows = [row for row in frequent(rows) if row["split"] != "test"]
    order = np.random.default_rng(0).permutation(len(rows))
    to_validate = set(order[: round(SEARCH_SHARE * len(rows))].tolist())
    return [row | {"split": "val" if number in to_validate else "train"} for number, row in enumerate(rows)]


def frequent(rows: Rows, least: int = LEAST_IMAGES) -> Rows:
    """The rows of a table with the labels alone that have `least` training images."""
    counts = Counter(
        label for row in rows if row["split"] == "train" for label in set(row["labels"].split(";"))
    )
    return [
        row | {"labels": ";".join(label for label in row["labels"].split(";") if counts[label] >= least)}
        for row in rows
    ]
