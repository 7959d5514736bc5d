"""What benchmarks.gain writes of measured rows: ensembles, differences with intervals, folds as one."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from benchmarks import page
from benchmarks.gain.folds import measure_folds, over_folds
from benchmarks.gain.protocol import Protocol
from benchmarks.gain.rows import ENSEMBLE, baseline_ensembles, write_rows
from sklearn.metrics import average_precision_score

from coterie.ablation import Ablation, Row
from coterie.ablation.intervals import resamples_of
from coterie.ablation.report import Outcome
from coterie.intervals import paired_interval, resampled_map
from coterie.logits import LogitsWriter

BASELINE = Row("baseline", "baseline", model="baseline")
PSD = Row("psd", "both branches (PSD)", model="student")
IMAGES, CLASSES = 80, 3
WORDS = ("train.lr=2e-3", "train.epochs=32", "distill.w=0.9")
Logits = npt.NDArray[np.float32]
TARGETS = (np.random.default_rng(5).random((IMAGES, CLASSES)) < 0.3).astype(np.int8)


def logits_of(row: str, seed: int) -> Logits:
    """Made-up logits that know something of the targets, the student's more."""
    rng = np.random.default_rng([len(row), seed])
    told = {"baseline": 0.5, "psd": 1.0}[row]
    return (told * TARGETS + rng.normal(size=TARGETS.shape)).astype(np.float32)


def mean_ap(logits: Logits) -> float:
    """By scikit-learn, in percent."""
    return 100 * float(
        np.mean([average_precision_score(TARGETS[:, c], logits[:, c]) for c in range(CLASSES)])
    )


def measured(folder: Path, seeds: Sequence[int]) -> Ablation:
    """Finished rows with a run for each, which holds their logits on test."""
    dataset: Any = SimpleNamespace(
        indices=lambda _: [*range(IMAGES)],
        class_names=("a", "b", "c"),
        image_ids=[str(number) for number in range(IMAGES)],
    )
    outcomes = []
    for row in (BASELINE, PSD):
        for seed in seeds:
            run = folder / f"{row.name}-s{seed}"
            logits = logits_of(row.name, seed)
            writer = LogitsWriter(run, "key", dataset)
            writer.put("test", row.model, torch.from_numpy(logits), torch.from_numpy(TARGETS))
            writer.finish()
            outcomes.append(Outcome(row.name, seed, str(run), {"test": {"mAP": mean_ap(logits)}}, {}, {}))
    return Ablation((BASELINE, PSD), tuple(seeds), tuple(outcomes), ())


def test_an_ensemble_is_the_mean_of_the_baselines_from_its_seed_on(tmp_path: Path) -> None:
    seeds = (3, 5, 8)
    ensembles = baseline_ensembles(measured(tmp_path, seeds), "test", size=2)
    for seed, members in {3: (3, 5), 5: (5, 8), 8: (8, 3)}.items():
        together = np.mean([logits_of("baseline", member) for member in members], axis=0)
        assert ensembles.map[seed] == pytest.approx(mean_ap(together))
    resampled = [ensembles.resampled[ENSEMBLE, seed] for seed in seeds]
    # they share members: how far they differ is no other draw of seeds, so that each has the mean of all
    assert all(np.array_equal(resampled[0], each) for each in resampled)
    assert resampled[0][0] == pytest.approx(np.mean([*ensembles.map.values()]))


def test_the_file_of_rows_holds_what_the_page_shows_and_what_it_was_measured_with(tmp_path: Path) -> None:
    found = measured(tmp_path, (0, 1, 2))
    write_rows(tmp_path, "rows", found, ("k=3", "distill.w=0.9"), size=3)
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["settings"] == ["k=3", "distill.w=0.9"]
    assert content["measured_on"]["torch"] == torch.__version__
    assert content["measured_on"]["threads"] == torch.get_num_threads()
    maps = {row: [mean_ap(logits_of(row, seed)) for seed in (0, 1, 2)] for row in ("baseline", "psd")}
    ensemble = mean_ap(cast(Logits, np.mean([logits_of("baseline", seed) for seed in (0, 1, 2)], axis=0)))
    by_seed = content["by_seed"]["test"]
    assert [*by_seed["psd"].values()] == pytest.approx(maps["psd"])
    assert [*by_seed["ensemble"].values()] == pytest.approx([ensemble] * 3)
    (gain,) = (record for record in content["rows"] if record["row"] == "psd")
    assert gain["difference"] == pytest.approx(np.mean(maps["psd"]) - np.mean(maps["baseline"]))
    compared = {(record["row"], record["other"]): record for record in content["compared"]}
    assert compared.keys() == {("psd", "ensemble"), ("ensemble", "baseline")}
    over_ensemble = compared["psd", "ensemble"]
    assert over_ensemble["difference"] == pytest.approx(np.mean(maps["psd"]) - ensemble)
    together = np.mean([logits_of("baseline", seed) for seed in (0, 1, 2)], axis=0)
    *students, of_ensemble = (
        resampled_map(logits, TARGETS, resamples=resamples_of(TARGETS.size))
        for logits in (*(logits_of("psd", seed) for seed in (0, 1, 2)), together)
    )
    assert over_ensemble["interval"] == pytest.approx(paired_interval(students, [of_ensemble] * 3), abs=1e-6)
    assert content["kept"] == {"test": None}  # no teachers were measured


def test_of_fewer_seeds_than_members_no_ensemble_is_made(tmp_path: Path) -> None:
    write_rows(tmp_path, "rows", measured(tmp_path, (0, 1)), (), size=3)
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["by_seed"]["test"].keys() == {"baseline", "psd"}
    assert content["compared"] == []


@dataclass(frozen=True)
class Folded(Protocol):
    """A protocol that trains nothing: the student gains 1, 2, ... over the baseline, by the fold; `asked`:
    the table, seeds, rows and splits of each measurement.
    """

    asked: list[tuple[str, tuple[int, ...], list[str], Counter[str]]] = field(default_factory=list)

    def measured(self, *arguments: Any, **others: Any) -> Ablation:
        name, words, rows, names = arguments
        assert words == WORDS
        assert others.keys() == {"table"}
        with others["table"].open(newline="") as file:
            splits = Counter(row["split"] for row in csv.DictReader(file))
        self.asked.append((name, self.seeds, [*names, *(row.name for row in rows)], splits))
        fold = int(name.removeprefix("fold-"))
        outcomes = [
            Outcome(row.name, seed, "", {"test": {"mAP": 50.0 + gain}}, {}, {})
            for row, gain in ((BASELINE, 0.0), (PSD, fold + 1.0))
            for seed in self.seeds
        ]
        return Ablation((BASELINE, PSD), self.seeds, tuple(outcomes), ())


def test_folds_have_tables_and_seeds_of_their_own_and_stand_in_one_file(tmp_path: Path) -> None:
    table = tmp_path / "corel5k" / "labels.csv"
    table.parent.mkdir()
    lines = [f"{number}.jpg,{'test' if number < 100 else 'train'},a" for number in range(1000)]
    table.write_text("\n".join(["image,split,labels", *lines]))
    protocol = Folded(tmp_path, tmp_path)
    measure_folds(protocol, WORDS, ("baseline", "k1-six"), seeds=2)
    assert [each[:2] for each in protocol.asked] == [
        ("fold-0", (0, 5)), ("fold-1", (1, 6)), ("fold-2", (2, 7)), ("fold-3", (3, 8)), ("fold-4", (4, 9)),
    ]  # fmt: skip
    # what is claimed is of PSD and its teachers: they are measured whatever rows are chosen
    assert protocol.asked[0][2] == ["baseline", "psd", "all-teachers", "k1-six"]
    assert all(each[3] == {"test": 200, "val": 400, "train": 400} for each in protocol.asked)
    content = json.loads((tmp_path / "folds.json").read_text())
    assert content["seeds"] == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert content["settings"] == [*protocol.settings, *WORDS]
    (gain,) = (record for record in content["rows"] if record["row"] == "psd")
    assert (gain["difference"], gain["difference_seeds"]) == (3.0, 10)
    # of the folds' means 1 to 5: their deviation is 1.5811, the quantile of t with four degrees 2.7764
    # and each measures an image for two that it learns from
    half = 2.7764 * 1.5811 * (1 / 5 + 1 / 2) ** 0.5
    assert (gain["difference_low"], gain["difference_high"]) == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert "ensemble" not in content["by_seed"]["test"]


def test_the_published_intervals_of_the_folds_are_those_of_their_maps() -> None:
    content = json.loads((page.NUMBERS / "folds.json").read_text())
    maps = content["by_seed"]["test"]
    outcomes = tuple(
        Outcome(row, int(seed), "", {split: {"mAP": value}}, {}, {})
        for split, of_split in content["by_seed"].items()
        for row, values in of_split.items()
        for seed, value in values.items()
    )
    for split in content["by_seed"]:
        of_split = tuple(outcome for outcome in outcomes if split in outcome.metrics)
        pooled = Ablation(tuple(Row(name, name) for name in maps), tuple(content["seeds"]), of_split, ())
        between = over_folds(pooled, split, share=900 / 3200)  # each fifth of 4,500 images, 400 to validate
        compared = [record for record in content["compared"] if record["split"] == split]
        gains = [r for r in content["rows"] if r["split"] == split and r["row"] != "baseline"]
        assert compared
        assert gains
        for record in compared:
            assert between(record["row"], record["other"]) == pytest.approx(record["interval"])
        for record in gains:
            interval = record["difference_low"], record["difference_high"]
            assert between(record["row"], "baseline") == pytest.approx(interval)
