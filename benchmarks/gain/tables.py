"""The tables of docs/results.md, from the numbers that `python -m benchmarks.gain` wrote."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import Any

from benchmarks.gain import unlabelled
from benchmarks.markdown import table

SHOWN = (
    *("baseline", "compute-run", "psd", "k1", "k1-repeated", "random-equal", "squared-error"),
    *("baseline-asl", "paper"),
)  # in the README
# What is wanted: mAP over the baseline, the lower end of its interval, and percent of what the teachers gain.
LEAST_GAIN, LEAST_LOW, LEAST_KEPT = 2.0, 1.0, 60.0

Content = dict[str, Any]


def search_table(content: Content) -> str:
    """Every choice of a search, with what was taken at the end."""
    lines = []
    in_force = dict(word.split("=", 1) for word in content["words"])  # of a key, the last word
    for trial in content["trials"]:
        values = ", ".join(f"{value:.2f}" for value in trial["val"].values())
        taken = dict(word.split("=", 1) for word in trial["words"]).items() <= in_force.items()
        mark = "**" if taken else ""
        lines.append([trial["step"], trial["choice"], f"{mark}{trial['mean']:.2f}{mark}", values])
    return table(["step", "choice", "val mAP", "by seed"], lines)


def ideas_table(content: Content) -> str:
    """Every idea beside its prediction; what it gains beyond the baseline, where any was offered to that."""
    was_offered = any(idea.get("beyond") is not None for idea in content["ideas"])
    lines = [
        [
            idea["title"],
            " ".join(f"`{word}`" for word in idea["words"]),
            f"{idea['predicted']:+.1f}: {idea['because']}",
            f"{idea['gain']:+.2f}",
            ", ".join(f"{value:+.2f}" for value in idea["differences"].values()),
            *([_beyond(idea)] if was_offered else []),
            "yes" if idea["helps"] else "no",
        ]
        for idea in content["ideas"]
    ]
    offered = ["beyond the baseline's"] if was_offered else []
    return table(["idea", "settings", "predicted", "val mAP", "by seed", *offered, "kept"], lines)


def _beyond(idea: Content) -> str:
    return "" if idea["beyond"] is None else f"{idea['beyond']:+.2f}"


def settings_of(content: Content) -> str:
    """The settings of what was measured, those that hold for every row and those that were searched."""
    return f"`{' '.join((*content['settings'], *content.get('words', ())))}`"


def rows_table(content: Content) -> str:
    """The measured rows: mAP, how far it is ahead of the baseline's, and leaning on companions."""
    names = dict.fromkeys(record["row"] for record in content["rows"])
    headings = ["row", "test mAP", "- baseline", f"{_other_split(content).replace('_', ' ')} mAP"]
    return table(
        [*headings, "leaning: recall", "false positives", "minutes, all seeds"], _lines(content, names)
    )


def _lines(content: Content, names: Iterable[str]) -> list[list[str]]:
    """The lines of the rows with these names, the ensemble of baselines behind the baseline."""
    of_row = {(record["row"], record["split"]): record for record in content["rows"]}
    other = _other_split(content)
    lines = []
    for name in names:
        test, second = of_row[name, "test"], of_row[name, other]
        lines.append(
            [
                test["title"],
                f"{test['mAP']:.2f} ± {test['mAP_sd']:.2f}",
                _difference(test["difference"], test["difference_low"], test["difference_high"]),
                f"{second['mAP']:.2f}",
                *(f"{test[f'leaning_{what}']:+.1f}" for what in ("recall", "false_positives")),
                f"{test['seconds'] / 60:.0f}",
            ]
        )
        if name == "baseline" and "ensemble" in content["by_seed"]["test"]:
            lines.append(_ensemble_line(content, other))
    return lines


def _other_split(content: Content) -> str:
    """The split beside test: the shifted one of the scenes, else validation."""
    return "test_shifted" if "test_shifted" in content["by_seed"] else "val"


def unlabelled_table(content: Content) -> str:
    """Half of the labels, with the other half of the images and without."""
    lines = [
        [
            record["title"],
            f"{record['mAP']:.2f} ± {record['mAP_sd']:.2f}",
            ""
            if record["row"] == unlabelled.LEFT_OUT
            else _difference(record["difference"], *record["interval"]),
        ]
        for record in content["rows"]
    ]
    return table(["row", "test mAP", f"- {unlabelled.TITLES[unlabelled.LEFT_OUT]}"], lines)


def gain_table(content: Content) -> str:
    """A few of the measured rows: test mAP, and how far it is ahead of the baseline's."""
    measured = {record["row"] for record in content["rows"]}
    lines = [line[:3] for line in _lines(content, [name for name in SHOWN if name in measured])]
    return table(["row", "test mAP", "- baseline"], lines)


def compared_table(content: Content) -> str:
    """One row less another, on each test split."""
    titles = {record["row"]: record["title"] for record in content["rows"]}
    titles["ensemble"] = _ensemble_title(content)
    splits = [split for split in content["by_seed"] if split.startswith("test")]
    pairs = dict.fromkeys((record["row"], record["other"]) for record in content["compared"])
    lines = []
    for row, other in pairs:
        found = [compared(content, row, other, split) for split in splits]
        differences = [_difference(record["difference"], *record["interval"]) for record in found]
        lines.append([titles[row], titles[other], *differences])
    return table(["row", "less", *(f"{split.replace('_', ' ')} mAP" for split in splits)], lines)


def _ensemble_title(content: Content) -> str:
    return f"an ensemble of {content['size']} baselines"


def _ensemble_line(content: Content, other: str) -> list[str]:
    test, second = ([*content["by_seed"][split]["ensemble"].values()] for split in ("test", other))
    record = compared(content, "ensemble", "baseline")
    return [
        _ensemble_title(content),
        f"{mean(test):.2f}",  # no deviation: ensembles of a few seeds share members
        _difference(record["difference"], *record["interval"]),
        f"{mean(second):.2f}",
        *("", "", ""),
    ]


def claims(content: Content) -> str:
    """What is wanted of the recommended recipe, and what was measured."""
    (gain,) = (record for record in content["rows"] if record["row"] == "psd" and record["split"] == "test")
    low, high = gain["difference_low"], gain["difference_high"]
    measured = {record["other"] for record in content["compared"] if record["row"] == "psd"}
    lines = [
        [
            "over the baseline at its best",
            f"at least {LEAST_GAIN:+.1f}, interval above {LEAST_LOW:+.1f}",
            _difference(gain["difference"], low, high),
            _reached(gain["difference"] >= LEAST_GAIN and low > LEAST_LOW),
        ]
    ]
    for other, title, is_certain in (
        ("k1", "over one teacher of all labels", True),
        ("random-equal", "over random groups of equal sizes", True),
        ("random", "over random groups of the same sizes", True),
        ("compute-run", "over a baseline with the compute of the run", False),
    ):
        wanted = "interval above 0" if is_certain else "not under it on average"
        if other not in measured:
            lines.append([title, wanted, "not measured yet", ""])
            continue
        record = compared(content, "psd", other)
        low, high = record["interval"]
        reached = low > 0 if is_certain else record["difference"] >= 0
        lines.append([title, wanted, _difference(record["difference"], low, high), _reached(reached)])
    kept = content["kept"]["test"]
    lines.append(
        [
            "of what both ensembles together gain, the student keeps",
            f"at least {LEAST_KEPT:.0f} %",
            "they gain nothing" if kept is None else f"{kept:.0f} %",
            _reached(kept is not None and kept >= LEAST_KEPT),
        ]
    )
    return table(["test mAP of the recommended recipe", "wanted", "measured", ""], lines)


def compared(content: Content, row: str, other: str, split: str = "test") -> Content:
    """The record of one row less another."""
    (record,) = (
        record
        for record in content["compared"]
        if (record["row"], record["other"], record["split"]) == (row, other, split)
    )
    return dict(record)


def _difference(value: float, low: float | None, high: float | None) -> str:
    between = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"{value:+.2f}{between}"


def _reached(is_so: bool) -> str:
    return "reached" if is_so else "**not reached**"
