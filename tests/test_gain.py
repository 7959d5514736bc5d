"""The protocol of docs/results.md: what a search takes, which ideas help, the tables of its numbers."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.gain import tables, unlabelled
from benchmarks.gain.__main__ import main
from benchmarks.gain.folds import folded, over_folds, seeds_of, together
from benchmarks.gain.ideas import IDEAS, Idea, Tried, kept_words, try_ideas
from benchmarks.gain.protocol import Protocol, split_to_search
from benchmarks.gain.rows import kept, own_rows
from benchmarks.gain.search import Search, Step, search_baseline, search_student, student_steps, value_of
from benchmarks.gain.series import BACKBONES, HEADS, NEW_VIEWS, adapted_to, allowed, measure_backbones, varied
from benchmarks.gain.unlabelled import LEFT_OUT, halved, steps_kept

from coterie.ablation import Ablation, Row
from coterie.ablation.report import Outcome
from coterie.config import load_config

BASELINE = Row("baseline", "baseline", model="baseline")


def found(maps: dict[Row, dict[int, float]], split: str = "val") -> Ablation:
    """A finished ablation with this mAP of each row at each seed."""
    outcomes = tuple(
        Outcome(row.name, seed, "", {split: {"mAP": value}}, {}, {})
        for row, values in maps.items()
        for seed, value in values.items()
    )
    seeds = tuple(next(iter(maps.values())))
    return Ablation(tuple(maps), seeds, outcomes, ())


@dataclass(frozen=True)
class Fake(Protocol):
    """A protocol whose val mAP is what `value` makes of the settings, and that trains nothing."""

    best: dict[str, float] = field(default_factory=dict)

    def searched(
        self, words: Iterable[str], rows: Sequence[Row], seeds: Sequence[int] | None = None
    ) -> Ablation:
        assert seeds is None
        return found(
            {
                row: {
                    seed: self.value(dict(word.split("=") for word in (*words, *row.words)))
                    for seed in self.search_seeds
                }
                for row in rows
            }
        )

    def value(self, settings: dict[str, str]) -> float:
        return 50 + sum(self.best.get(f"{key}={value}", 0.0) for key, value in settings.items())


def test_a_search_goes_on_with_the_best_of_each_step(tmp_path: Path) -> None:
    protocol = Fake(tmp_path, tmp_path, best={"a=2": 1.0, "b=1": 0.5, "b=2": -0.5})
    search = Search(protocol, "baseline", ("a=0",))
    steps = (
        Step("first", {"one": ("a=1",), "two": ("a=2",)}),
        Step("second", {"worse": ("b=2",)}),
        Step("third", {"better": ("b=1",)}),
    )
    words = []
    for step in steps:
        search.take(step)
        words.append(search.words)
    assert words == [("a=0", "a=2"), ("a=0", "a=2"), ("a=0", "a=2", "b=1")]
    assert [trial.choice for trial in search.trials if trial.taken] == ["better"]
    assert [trial.mean for trial in search.trials] == [50, 51, 50.5, 51.5]
    search.write()
    written = json.loads((tmp_path / "search-baseline.json").read_text())
    assert written["words"] == ["a=0", "a=2", "b=1"]
    assert [trial["val"] for trial in written["trials"]][-1] == {"0": 51.5, "1": 51.5}


def test_a_search_that_is_at_its_end_is_read_where_its_settings_are_the_same(tmp_path: Path) -> None:
    best = {"train.loss=bce": 1.0, "train.lr=2e-3": 1.0}
    found = search_baseline(Fake(tmp_path, tmp_path, best=best))
    assert [value_of(f"train.{key}", found) for key in ("epochs", "lr", "loss")] == ["32", "2e-3", "bce"]
    student = search_student(Fake(tmp_path, tmp_path, best=best | {"distill.w=0.9": 1.0}), found)
    assert student == (*found, "distill.w=0.9")
    other = Fake(tmp_path, tmp_path, best={"train.lr=5e-4": 1.0, "distill.w=0.7": 1.0})
    assert search_baseline(other) == found
    assert search_student(other, found) == student
    elsewhere = replace(other, words=("k=4",))
    assert value_of("train.lr", again := search_baseline(elsewhere)) == "5e-4"
    assert value_of("distill.w", search_student(elsewhere, again)) == "0.7"
    assert search_baseline(replace(elsewhere, best={})) == again
    fewer = replace(elsewhere, best={}, search_seeds=(0,))
    assert value_of("train.lr", search_baseline(fewer)) == "1e-3"  # no rate is better than another


@pytest.mark.parametrize(
    ("best", "rates"),
    [
        ({}, 4),
        ({"train.lr=5e-4": 1.0}, 4),
        ({"train.lr=2e-3": 1.0, "train.lr=4e-3": 0.9}, 5),
        ({"train.lr=2e-3": 1.0, "train.lr=4e-3": 1.1, "train.lr=8e-3": 1.2, "train.lr=1.6e-2": 1.3}, 8),
    ],
)
def test_a_rate_at_the_end_of_those_tried_is_doubled(
    tmp_path: Path, best: dict[str, float], rates: int
) -> None:
    found = search_baseline(Fake(tmp_path, tmp_path, best=best))
    assert value_of("train.lr", found) == (max(best, key=best.__getitem__)[9:] if best else "1e-3")
    trials = json.loads((tmp_path / "search-baseline.json").read_text())["trials"]
    assert len([trial for trial in trials if trial["step"] == "rate"]) == rates


@pytest.mark.parametrize(
    ("gains", "epochs", "tried"),
    [({}, 8, 1), ({16: 0.29}, 8, 1), ({16: 0.31, 32: 0.5}, 16, 2), ({16: 1, 32: 2, 64: 4}, 64, 3)],
)
def test_epochs_are_doubled_until_that_gains_too_little(
    tmp_path: Path, gains: dict[int, float], epochs: int, tried: int
) -> None:
    best = {f"train.epochs={number}": gain for number, gain in gains.items()}
    search = Search(Fake(tmp_path, tmp_path, epochs=8, best=best), "baseline", ("train.epochs=8",))
    search.take(Step("rate", {"lr": ("train.lr=1e-3",)}))
    assert search.lengthen() == epochs
    assert len(search.trials) == 1 + tried
    assert value_of("train.epochs", search.words) == str(epochs)


def test_a_baseline_that_is_better_with_fewer_epochs_has_fewer(tmp_path: Path) -> None:
    found = search_baseline(Fake(tmp_path, tmp_path, best={"baseline.epochs=16": 0.1}))
    assert value_of("baseline.epochs", found) == value_of("teacher.epochs", found) == "16"
    assert value_of("train.epochs", found) == "32"
    longer = search_baseline(Fake(tmp_path / "other", tmp_path / "other", best={"baseline.epochs=16": -0.1}))
    assert not [word for word in longer if word.startswith("baseline.")]


def test_searches_have_the_same_classes_and_more_images_to_validate() -> None:
    rows = [
        {"image": f"{number}.jpg", "split": "train" if number % 10 else "val", "labels": labels}
        for number in range(400)
        for labels in ["sky;sun" if number % 4 == 0 else "sky;rare" if number % 40 == 1 else "sky"]
    ]
    searched = split_to_search(rows)
    assert [row["image"] for row in searched] == [row["image"] for row in rows]
    assert Counter(row["split"] for row in searched) == {"train": 300, "val": 100}
    # 40 images with sun are of validation, so that 60 were to train; "rare" has 10 of them
    assert {row["labels"] for row in searched} == {"sky;sun", "sky"}
    assert searched == split_to_search(rows)


def test_half_of_the_training_images_lose_their_labels() -> None:
    labels = ["a;b" if number < 55 else "a" for number in range(120)]  # 55 of b, of which 49 are to train
    rows = [
        {"image": str(number), "split": "val" if number < 6 else "train", "labels": text}
        for number, text in enumerate(labels)
    ]
    made = halved(rows, "unlabelled")
    assert [row["image"] for row in made] == [row["image"] for row in rows]
    assert [row["split"] for row in made[:10]] == ["val"] * 6 + ["train", "unlabelled"] * 2
    assert Counter(row["split"] for row in made) == {"val": 6, "train": 57, "unlabelled": 57}
    assert {row["labels"] for row in made} == {"a"}


def test_on_half_of_the_images_every_training_has_its_steps() -> None:
    words = ("train.epochs=32", "baseline.epochs=8", "baseline.epochs=16")
    others = ("baseline.epochs=32", "teacher.epochs=64", "baseline.patience=16", "teacher.patience=16")
    assert steps_kept(words, halves=2) == ("student.epochs=64", *others)
    assert steps_kept(words, halves=1) == ("student.epochs=32", *others)
    assert steps_kept((*words, "student.epochs=64"), halves=2) == ("student.epochs=128", *others)


def test_each_image_is_measured_in_one_fold() -> None:
    labels = ["a;b" if number < 55 else "a" for number in range(123)]  # 55 of b, of which 49 are to train
    rows = [
        {"image": str(number), "split": "test" if number < 6 else "train", "labels": text}
        for number, text in enumerate(labels)
    ]
    images = {str(number) for number in range(123)}
    measured: list[str] = []
    validated = []
    for number in range(5):
        made = folded(rows, number, validated=10)
        assert {row["image"] for row in made} == images
        assert {row["labels"] for row in made} == {"a"}
        assert Counter(row["split"] for row in made)["val"] == 10
        test = [row["image"] for row in made if row["split"] == "test"]
        assert test != sorted(test, key=int)  # neighbours of one theme are not side by side in all folds
        measured += test
        validated.append({row["image"] for row in made if row["split"] == "val"})
    assert Counter(measured) == dict.fromkeys(images, 1)
    assert all(one.isdisjoint(other) for one, other in combinations(validated, 2))
    assert folded(rows, 0) == folded(rows, 0)


def test_folds_are_as_seeds_together() -> None:
    differences = {0: 1.0, 1: 2.0, 2: 4.0, 3: 1.5, 4: 0.5}
    folds = [
        found({BASELINE: {number: 40.0 + number}, Row("psd", ""): {number: 40.0 + number + difference}})
        for number, difference in differences.items()
    ]
    pooled = together(folds, share=0.25)
    assert pooled.seeds == (0, 1, 2, 3, 4)
    assert pooled.values("baseline", "val") == {number: 40.0 + number for number in differences}
    assert pooled.difference("psd", "val").mean == pytest.approx(1.8)
    # the sample standard deviation is 1.351, and the quantile of t with four degrees of freedom 2.776
    # the folds share images to learn from, four for each that they measure: 1 / 5 + 1 / 4 instead of 1 / 5
    half = 2.776 * 1.351 * 0.45**0.5
    assert pooled.intervals["val"]["psd"] == pytest.approx((1.8 - half, 1.8 + half), abs=1e-3)
    over = over_folds(pooled, "val", share=0.25)
    assert over("baseline", "psd") == pytest.approx((-1.8 - half, -1.8 + half), abs=1e-3)


def test_of_a_fold_the_mean_over_its_seeds_counts() -> None:
    """How far seeds of one fold differ is no other fold: two seeds alike must not narrow the interval."""
    assert [seeds_of(fold, 2) for fold in range(5)] == [(0, 5), (1, 6), (2, 7), (3, 8), (4, 9)]
    gains = {0: (0.0, 2.0), 1: (2.0, 2.0), 2: (3.0, 5.0), 3: (1.0, 2.0), 4: (0.0, 1.0)}
    folds = [
        found(
            {
                BASELINE: dict.fromkeys(seeds_of(fold, 2), 40.0),
                Row("psd", ""): {
                    seed: 40.0 + gain for seed, gain in zip(seeds_of(fold, 2), each, strict=True)
                },
            }
        )
        for fold, each in gains.items()
    ]
    pooled = together(folds, share=0.0)
    assert pooled.spread("psd", "val").n == 10
    assert pooled.difference("psd", "val").mean == pytest.approx(1.8)
    half = 2.776 * 1.351 / 5**0.5  # as with the means 1, 2, 4, 1.5 and 0.5 alone
    assert pooled.intervals["val"]["psd"] == pytest.approx((1.8 - half, 1.8 + half), abs=1e-3)


def test_a_fold_without_seeds_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.gain", "--fold-seeds", "0"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "a fold has one seed or more" in capsys.readouterr().err


def test_unlabelled_images_are_compared_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def ablation(psd: float) -> Ablation:
        return found({BASELINE: {0: 40.0, 1: 42.0}, Row("psd", ""): {0: psd, 1: psd + 2}}, "test")

    def resampled(each: Ablation, split: str) -> dict[tuple[str, int], Any]:
        """The same on all resampled images."""
        return {
            (row.name, seed): np.full(9, value)
            for row in each.rows
            for seed, value in each.values(row.name, split).items()
        }

    monkeypatch.setattr(unlabelled, "resampled_maps", resampled)
    content: Any = unlabelled.compared({LEFT_OUT: ablation(42.0), "unlabelled": ablation(43.0)})
    assert [(row["row"], row["mAP"], row["difference"]) for row in content["rows"]] == [
        ("baseline", 41.0, -2.0), (LEFT_OUT, 43.0, 0.0), ("unlabelled", 44.0, 1.0),
    ]  # fmt: skip
    lines = tables.unlabelled_table(json.loads(json.dumps(content))).splitlines()
    assert lines[2].startswith("| baseline on half of the images | 41.00 ± 1.41 | -2.00 [-2.00, -2.00]")
    assert lines[3].endswith("| PSD on half of the images | 43.00 ± 1.41 |  |")


def test_the_student_is_not_offered_the_loss_that_it_has() -> None:
    steps = student_steps(1e-3, ["train.lr=1e-3", "train.loss=bce"])
    losses = next(step for step in steps if step.name == "loss against the labels")
    assert list(losses.choices) == ["ASL, gamma- 2", "ASL, gamma- 4"]
    (rates,) = (step for step in steps if step.name == "rate")
    assert rates.choices == {"lr x 2": ("student.lr=0.002",), "lr x 4": ("student.lr=0.004",)}


def test_every_setting_of_the_protocol_is_one(tmp_path: Path) -> None:
    protocol = Protocol(tmp_path, tmp_path)
    words = ("train.epochs=32", "train.lr=1e-3", "train.loss=bce", "distill.w=0.8")
    for idea in IDEAS:
        load_config([*protocol.common(tmp_path / "labels.csv"), *words, *idea.words])
    for row in own_rows(words):
        load_config([*protocol.common(tmp_path / "labels.csv"), *words, *row.words])
    for further in (*HEADS.values(), *BACKBONES.values(), NEW_VIEWS):
        variant = varied(protocol, "other", *further)
        load_config([*variant.common(tmp_path / "labels.csv"), *words])
        assert variant.out == tmp_path / "other"
        assert variant.seeds == (0, 1, 2)
    names = [idea.name for idea in IDEAS]
    assert len(set(names)) == len(names)
    (paper,) = (row for row in own_rows(words) if row.name == "paper-rate")
    assert load_config(paper.words).student.lr == pytest.approx(1e-4)


def test_what_was_added_is_taken_back_where_a_row_is_without_it(tmp_path: Path) -> None:
    protocol = Protocol(tmp_path, tmp_path)
    searched = ("train.epochs=32", "train.lr=1e-3", "distill.w=0.8")
    kept = ("k=5", "student.epochs=64", "student.views=64", "distill.cache=off", "partition.repeats=2")
    rows = {row.name: row for row in own_rows(searched, kept, protocol.settings)}
    plain = load_config([*protocol.settings, *searched])
    added = (*protocol.settings, *searched, *kept)
    assert load_config([*added, *rows["two-branches"].words]) == plain
    paper = load_config([*added, *rows["paper"].words])
    assert (paper.k, paper.student.epochs, paper.student.views) == (3, 32, 7)
    assert paper.partition.co_method == "paper"
    own = {row.name: row for row in own_rows(searched)}
    assert own["two-branches"].words == ()


def test_with_all_layers_trained_no_part_freezes_them_or_limits_their_views(tmp_path: Path) -> None:
    whole = Protocol(tmp_path, tmp_path, whole=True)
    for further in (*HEADS.values(), *BACKBONES.values(), NEW_VIEWS):
        config = load_config([*varied(whole, "other", *further).settings, *allowed(whole, NEW_VIEWS)])
        assert (config.model.image_size, config.train.frozen, config.student.views) == (224, None, None)
    limited = {idea.name for idea in IDEAS if idea.limits_views}
    assert limited == {
        *("more-views", "more-views-baseline", "longer-views", "longer-views-baseline", "longer-16-views"),
    }


def test_a_rate_is_taken_to_another_baseline_by_its_ratio() -> None:
    found = ("train.epochs=32", "train.lr=1e-3")
    recommended = (*found, "student.lr=0.002", "distill.w=0.8")
    assert [*adapted_to((*recommended, "teacher.epochs=16"), found, ("train.epochs=8", "train.lr=3e-4"))] == [
        "student.lr=0.0006",
        "distill.w=0.8",
    ]


@dataclass(frozen=True)
class Recorded(Protocol):
    """A protocol that measures nothing; `asked`: the folder and the words of each call."""

    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def measured(self, *arguments: Any, **_: Any) -> Ablation:
        self.asked.append((self.out.name, tuple(arguments[1])))
        return found({BASELINE: {0: 50.0}}, "test")


def test_a_backbone_has_a_search_of_its_own_that_stands_beside_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"backbone-mobilenet-v2": "4e-4", "backbone-small-resnet": "1e-2"}

    found_before = []

    def search(variant: Protocol) -> tuple[str, ...]:
        found_before.append(variant.found_before("search-baseline"))
        variant.out.mkdir(exist_ok=True)
        variant.write("search-baseline", {"trials": rates[variant.out.name]})
        return (f"train.lr={rates[variant.out.name]}",)

    monkeypatch.setenv("COTERIE_DATA", "set here, so that it is not set for other tests")
    monkeypatch.setattr("benchmarks.gain.series.search_baseline", search)
    monkeypatch.setattr("benchmarks.gain.series.write_rows", lambda *_: None)
    protocol = Recorded(tmp_path, tmp_path)
    measure_backbones(protocol, ("train.lr=1e-3", "student.lr=2e-3"), ("train.lr=1e-3",))
    assert protocol.asked == [
        ("backbone-mobilenet-v2", ("train.lr=4e-4", "student.lr=0.0008")),
        ("backbone-small-resnet", ("train.lr=1e-2", "student.lr=0.02")),
    ]
    for name, rate in rates.items():
        content = json.loads((tmp_path / f"{name}-search.json").read_text())
        assert content["trials"] == rate
    # with no more than these files the search is known
    for name in rates:
        shutil.rmtree(tmp_path / name)
    measure_backbones(protocol, ("train.lr=1e-3", "student.lr=2e-3"), ("train.lr=1e-3",))
    assert found_before == [None, None, *({"trials": rate} for rate in rates.values())]


@dataclass(frozen=True)
class Measured(Protocol):
    """A protocol in which rows gain what `gains` says, by seed, and the baseline has the same at every one;
    `calls`: the ideas and the seeds of each measurement.
    """

    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calls: list[tuple[list[str], tuple[int, ...]]] = field(default_factory=list)

    def searched(
        self, words: Iterable[str], rows: Sequence[Row], seeds: Sequence[int] | None = None
    ) -> Ablation:
        assert words == ()
        assert rows[0].name == "as-set"
        seeds = tuple(seeds or ())
        self.calls.append(([row.name for row in rows[1:]], seeds))
        return found(
            {
                row: {seed: 50.0 + seed + self.gains.get(row.name, (0.0,) * 5)[seed] for seed in seeds}
                for row in (BASELINE, *rows)
            }
        )


def test_an_idea_helps_that_promises_something_and_holds_it_at_all_seeds(tmp_path: Path) -> None:
    differences = {
        "clear": (0.5, 0.4, 0.1, 0.6, 0.4),
        "small": (0.2, 0.2, 9.0, 9.0, 9.0),
        "falling": (3.0, 3.0, -3.0, -3.0, -3.0),
        "lucky": (0.5, 0.5, 2.0, -0.9, 0.1),  # mean 0.44, standard error 0.46
    }
    ideas = [Idea(name, name, (f"k={len(name)}",), 0.0, "no reason") for name in differences]
    protocol = Measured(tmp_path, tmp_path, gains=differences)
    calls = protocol.calls
    tried = try_ideas(protocol, (), ideas)
    assert calls == [([*differences], (0, 1)), (["clear", "falling", "lucky"], (0, 1, 2, 3, 4))]
    assert [each.helps for each in tried] == [True, False, False, False]
    assert [each.gain for each in tried] == pytest.approx([0.4, 0.2, -0.6, 0.44])
    assert kept_words(tried) == ("k=5",)
    written = json.loads((tmp_path / "ideas.json").read_text())
    assert [idea["helps"] for idea in written["ideas"]] == [True, False, False, False]
    assert written["ideas"][2]["differences"]["0"] == pytest.approx(3)
    # what is written is not measured again, but an idea that has changed is
    calls.clear()
    assert try_ideas(protocol, (), ideas[:2]) == tried[:2]
    assert calls == []
    changed = replace(ideas[0], words=("k=9",))
    assert try_ideas(protocol, (), [*ideas[1:], changed])[:3] == tried[1:]
    assert calls == [(["clear"], (0, 1)), (["clear"], (0, 1, 2, 3, 4))]
    assert try_ideas(protocol, (), ideas[1:]) == tried[1:]  # nothing else that was measured is lost
    assert len(calls) == 2


def test_an_idea_is_measured_with_what_it_does_to_the_baseline(tmp_path: Path) -> None:
    protocol = Measured(
        tmp_path, tmp_path, gains={"longer-views": (0.9,) * 5, "longer-views-baseline": (0.8,) * 5}
    )
    (idea,) = (idea for idea in IDEAS if idea.name == "longer-views")
    (tried,) = try_ideas(protocol, (), [idea])
    names = ["longer-views", "longer-views-baseline"]
    assert protocol.calls == [(names, (0, 1)), (names, (0, 1, 2, 3, 4))]
    assert tried.beyond == pytest.approx([0.1] * 5)
    assert not tried.helps
    # seeds at which the baseline was not measured say nothing
    assert Tried(idea, dict.fromkeys(range(5), 0.9), {0: 0.1, 1: 0.1}).beyond == pytest.approx([0.8] * 2)
    assert not Tried(idea, dict.fromkeys(range(5), 0.9)).helps


def test_of_ideas_that_change_the_same_setting_the_one_is_kept_that_gains_most() -> None:
    def tried(name: str, gain: float, *words: str, model: str = "student") -> Tried:
        return Tried(Idea(name, name, words, 0.0, "no reason", model), dict.fromkeys(range(3), gain))

    ideas = [
        tried("longer", 0.4, "student.epochs=64"),
        tried("longer-views", 0.6, "student.epochs=64", "student.views=64"),
        tried("weak", 0.2, "k=5"),
        tried("other", 0.5, "distill.a=0.3"),
        tried("of baseline", 0.9, "augment.cutout=0.3", model="baseline"),
    ]
    assert kept_words(ideas) == ("student.epochs=64", "student.views=64", "distill.a=0.3")


def test_what_helps_the_baseline_as_much_is_no_better_method(tmp_path: Path) -> None:
    gains = {
        "both": (0.8, 0.8, 0.8, 0.8, 0.8),
        "both-baseline": (0.6, 0.6, 0.7, 0.7, 0.7),
        "more": (0.8, 0.8, 0.8, 0.8, 0.9),
        "more-baseline": (0.3, 0.3, 0.3, 0.3, 0.3),
        "small": (0.1, 0.1, 9.0, 9.0, 9.0),
        "small-baseline": (0.9, 0.9, 9.0, 9.0, 9.0),
    }
    ideas = [
        Idea(
            name,
            name,
            ("k=5",),
            0.0,
            "no reason",
            "baseline" if "-" in name else "student",
            "" if "-" in name else f"{name}-baseline",
        )
        for name in gains
    ]
    protocol = Measured(tmp_path, tmp_path, gains=gains)
    tried = try_ideas(protocol, (), ideas)
    assert protocol.calls == [
        ([*gains], (0, 1)),
        (["both", "more", "both-baseline", "more-baseline"], (0, 1, 2, 3, 4)),
    ]
    assert [each.idea.name for each in tried if each.helps] == ["more"]
    written = json.loads((tmp_path / "ideas.json").read_text())["ideas"]
    assert [idea["helps"] for idea in written] == [False, False, True, False, False, False]
    assert [idea["beyond"] for idea in written] == [
        pytest.approx(0.14), None, pytest.approx(0.52), None, pytest.approx(-0.8), None,
    ]  # fmt: skip
    lines = tables.ideas_table({"ideas": written}).splitlines()
    assert lines[2].endswith("| +0.14 | no |")
    assert lines[3].endswith("|  | no |")
    assert lines[4].endswith("| +0.52 | yes |")


def test_two_seeds_are_too_few_to_keep_an_idea() -> None:
    idea = Idea("clear", "clear", (), 0.0, "no reason")
    assert not Tried(idea, {0: 5.0, 1: 5.1}).helps
    assert Tried(idea, {0: 5.0, 1: 5.1, 2: 5.0}).helps


def test_what_the_student_keeps_is_its_share_of_what_the_teachers_gain() -> None:
    rows = [BASELINE, Row("psd", ""), Row("all-teachers", "")]
    maps = dict(zip(rows, ({0: 50.0, 1: 52.0}, {0: 51.0, 1: 54.0}, {0: 52.0, 1: 54.0}), strict=True))
    assert kept(found(maps, "test"), "test") == pytest.approx(100 * 1.5 / 2)
    maps[rows[2]] = {0: 49.0, 1: 52.0}
    assert kept(found(maps, "test"), "test") is None  # of what they lose, nothing is kept
    assert "| they gain nothing | **not reached** |" in tables.claims(
        numbers((2.1, 1.1, 3.0), 61.0) | {"kept": {"test": None}}
    )


# The page


def record(row: str, difference: float, low: float, high: float) -> dict[str, Any]:
    return {
        **{"row": row, "title": row, "mAP": 60.0, "mAP_sd": 1.0, "seconds": 120.0},
        **{"leaning_recall": 3.0, "leaning_false_positives": 4.0},
        **{"difference": difference, "difference_low": low, "difference_high": high},
    }


def numbers(gain: tuple[float, float, float], kept_percent: float) -> dict[str, Any]:
    others = {
        "k1": (0.5, -0.1),
        "random-equal": (0.7, 0.1),
        "random": (0.8, -0.3),
        "compute-run": (0.9, -0.5),
    }
    rows = [record("baseline", 0, 0, 0), record("psd", *gain)]
    compared = [
        {"row": "psd", "other": other, "split": "test", "difference": value, "interval": [low, 2.0]}
        for other, (value, low) in others.items()
    ]
    ensemble = {"row": "ensemble", "other": "baseline", "split": "test", "difference": 2, "interval": [1, 3]}
    of_ensemble = {"val": dict.fromkeys("0123", 61.0), "test": {"0": 62.0, "1": 64.0, "2": 62.0, "3": 64.0}}
    return {
        "rows": [each | {"split": split} for each in rows for split in ("val", "test")],
        "compared": [*compared, ensemble],
        "size": 3,
        "by_seed": {split: {"ensemble": values} for split, values in of_ensemble.items()},
        "kept": {"test": kept_percent},
    }


def test_a_claim_that_does_not_hold_is_called_so() -> None:
    content = numbers((2.1, 1.1, 3.0), 61.0)
    lines = tables.claims(content).splitlines()[2:]
    assert [tuple(cell.strip() for cell in line.split("|")[1:4:2]) for line in lines] == [
        ("over the baseline at its best", "+2.10 [+1.10, +3.00]"),
        ("over one teacher of all labels", "+0.50 [-0.10, +2.00]"),
        ("over random groups of equal sizes", "+0.70 [+0.10, +2.00]"),
        ("over random groups of the same sizes", "+0.80 [-0.30, +2.00]"),
        ("over a baseline with the compute of the run", "+0.90 [-0.50, +2.00]"),
        ("of what both ensembles together gain, the student keeps", "61 %"),
    ]
    assert [line.rsplit("|", 2)[1].strip() for line in lines] == [
        "reached", "**not reached**", "reached", "**not reached**", "reached", "reached",
    ]  # fmt: skip
    under = [{**each, "difference": -0.1} for each in content["compared"] if each["other"] == "compute-run"]
    others = [each for each in content["compared"] if each["other"] != "compute-run"]
    assert "**not reached**" in tables.claims(content | {"compared": [*others, *under]}).splitlines()[6]
    for gain in ((1.9, 1.1, 3.0), (2.1, 0.9, 3.0)):
        assert "**not reached**" in tables.claims(numbers(gain, 61.0)).splitlines()[2]
    assert "**not reached**" in tables.claims(numbers((2.1, 1.1, 3.0), 59.9)).splitlines()[-1]


def test_a_claim_whose_row_is_not_measured_is_neither_reached_nor_not() -> None:
    content = numbers((2.1, 1.1, 3.0), 61.0)
    content["compared"] = [record for record in content["compared"] if record["other"] != "random"]
    (line,) = (line for line in tables.claims(content).splitlines() if "of the same sizes" in line)
    assert line.endswith("| not measured yet |  |")


def test_rows_are_compared_on_each_test_split() -> None:
    def pair(split: str, difference: float) -> dict[str, Any]:
        interval = [difference - 1, difference + 1]
        return {"row": "psd", "other": "k1", "split": split, "difference": difference, "interval": interval}

    content = {
        "rows": [record(name, 0, 0, 0) for name in ("psd", "k1")],
        "compared": [pair("val", 1.0), pair("test", 2.0), pair("test_shifted", 3.0)],
        "by_seed": {"val": {}, "test": {}, "test_shifted": {}},
        "size": 3,
    }
    heading, _, line = tables.compared_table(content).splitlines()
    assert heading == "| row | less | test mAP | test shifted mAP |"
    assert line == "| psd | k1 | +2.00 [+1.00, +3.00] | +3.00 [+2.00, +4.00] |"


def test_the_rows_stand_with_the_ensemble_behind_the_baseline() -> None:
    lines = tables.rows_table(numbers((2.1, 1.1, 3.0), 61.0)).splitlines()
    assert lines[2].startswith("| baseline | 60.00 ± 1.00 | +0.00 [+0.00, +0.00] | 60.00 | +3.0 | +4.0 | 2 |")
    assert lines[3].startswith("| an ensemble of 3 baselines | 63.00 | +2.00 [+1.00, +3.00] | 61.00 |")
    assert lines[4].startswith("| psd |")


def test_a_search_shows_as_taken_what_no_later_choice_has_replaced() -> None:
    trial = {"step": "s", "choice": "c", "val": {"0": 1.0}}
    words = (["lr=2", "loss=bce"], ["lr=1"], ["lr=2"])
    content = {
        "words": ["lr=2", "loss=asl", "lr=1"],
        "trials": [trial | {"words": each, "mean": float(number)} for number, each in enumerate(words)],
    }
    shown = [line.split(" | ")[2] for line in tables.search_table(content).splitlines()[2:]]
    assert shown == ["0.00", "**1.00**", "2.00"]
