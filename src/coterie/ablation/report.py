"""The report of an ablation: one table over all seeds as text, CSV and a plot, and every number as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coterie.ablation.rows import BASELINE, Row
from coterie.errors import RunError
from coterie.files import atomic_write
from coterie.progress import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
REPORT_FILE, TABLE_FILE, CSV_FILE, PLOT_FILE = (
    f"ablation.{suffix}" for suffix in ("json", "md", "csv", "png")
)


EXPLANATION = """\
mAP in percent: mean ± standard deviation (n - 1) over the seeds. *- baseline*: the same of the differences,
seed by seed; in brackets the 95 % interval of their mean, over images (bootstrap) and seeds (t). A cell says
n where it is of fewer seeds. *leaning*: what a present companion adds to recall and to false positives, in
percent, on average over the strongest pairs of labels. *minutes* of training over all seeds; *of them added*:
without what the rows above need too."""


class Interval(NamedTuple):
    """Between these two, in mAP, lies the mean over seeds of a row's difference to the baseline."""

    low: float
    high: float


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) over `n` seeds; None where there are too few for it."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Outcome:
    """What one row gave at one seed: metrics and leaning by split, and the seconds of each training it needs,
    by the training's key.
    """

    row: str
    seed: int
    run: str
    metrics: dict[str, dict[str, float | None]]
    leaning: dict[str, dict[str, dict[str, Any]]]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """A row that could not be had at one seed, and why."""

    row: str
    seed: int
    message: str

    def __str__(self) -> str:
        return f"{self.row} at seed {self.seed}: {self.message}"


@dataclass(frozen=True)
class Ablation:
    """The rows and seeds of an ablation, what came out, and what failed.

    `intervals`: of the differences to the baseline, by split and row, in a finished ablation.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...]
    intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)

    def raise_failures(self) -> None:
        """RunError that names every row that failed, where there is one."""
        if self.failures:
            reasons = "\n".join(map(str, self.failures))
            raise RunError(f"some rows failed, and the others are done:\n{reasons}")

    @property
    def splits(self) -> list[str]:
        """The measured splits, in their order."""
        return list(dict.fromkeys(split for outcome in self.outcomes for split in outcome.metrics))

    def values(self, row: str, split: str) -> dict[int, float]:
        """The mAP of a row on a split, by seed, where there is one."""
        found = {
            outcome.seed: outcome.metrics.get(split, {}).get("mAP")
            for outcome in self.outcomes
            if outcome.row == row
        }
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, row: str, split: str) -> Spread:
        """The mAP of a row on a split over the seeds."""
        return spread(self.values(row, split).values())

    def difference(self, row: str, split: str) -> Spread:
        """The row's mAP less the baseline's at the same seed, over the seeds that have both."""
        own, reference = self.values(row, split), self.values(BASELINE.name, split)
        return spread(own[seed] - reference[seed] for seed in own if seed in reference)

    def leaning(self, row: str, split: str, what: str) -> float | None:
        """The mean over seeds of a difference in `leaning_summary`: of "recall" or "false_positives"."""
        found = [
            outcome.leaning[split][what]["difference"]
            for outcome in self.outcomes
            if outcome.row == row and split in outcome.leaning
        ]
        return spread(value for value in found if value is not None).mean

    def costs(self) -> dict[str, tuple[float, float]]:
        """Of each row the seconds of training over all seeds: of all that it needs, and of what the rows
        above it do not need. The second ones add up to what the ablation took.
        """
        counted: set[str] = set()
        costs = {}
        for row in self.rows:
            needed: dict[str, float] = {}
            for outcome in self.outcomes:
                needed |= outcome.seconds if outcome.row == row.name else {}
            costs[row.name] = (
                sum(needed.values()),
                sum(seconds for key, seconds in needed.items() if key not in counted),
            )
            counted |= needed.keys()
        return costs


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of `values`."""
    known = list(values)
    return Spread(mean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


def summary(ablation: Ablation) -> list[dict[str, Any]]:
    """A record for each row and split: mAP, difference to the baseline, leaning, cost; None where unknown."""
    costs = ablation.costs()
    records = []
    for row in ablation.rows:
        seconds, added = costs[row.name]
        for split in ablation.splits:
            own, difference = ablation.spread(row.name, split), ablation.difference(row.name, split)
            low, high = ablation.intervals.get(split, {}).get(row.name, (None, None))
            records.append(
                {
                    "row": row.name,
                    "title": row.title,
                    "split": split,
                    "seeds": own.n,
                    "mAP": own.mean,
                    "mAP_sd": own.sd,
                    "difference_seeds": difference.n,
                    "difference": difference.mean,
                    "difference_sd": difference.sd,
                    "difference_low": low,
                    "difference_high": high,
                    "leaning_recall": ablation.leaning(row.name, split, "recall"),
                    "leaning_false_positives": ablation.leaning(row.name, split, "false_positives"),
                    "seconds": seconds,
                    "added_seconds": added,
                }
            )
    return records


def table_cells(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the one table, as text; leaning is on the first test split, else on val."""
    splits, costs, n = ablation.splits, ablation.costs(), len(ablation.seeds)
    shown = next((split for split in splits if split.startswith("test")), "val")
    headings = ["row", ""]
    for split in splits:
        headings += [f"{split} mAP", f"{split} - baseline"]
    headings += ["leaning: recall", "leaning: false positives", "minutes", "of them added"]
    lines = []
    for row in ablation.rows:
        accuracy = [cell for split in splits for cell in _accuracy_cells(ablation, row, split, n)]
        minutes = [f"{seconds / 60:.1f}" for seconds in costs[row.name]]
        lines.append([row.name, row.title, *accuracy, *_leaning_cells(ablation, row, shown), *minutes])
    return headings, lines


def as_markdown(ablation: Ablation) -> str:
    """The table, what its columns are, and what failed."""
    headings, lines = table_cells(ablation)
    rules = ["---" if number < 2 else "---:" for number in range(len(headings))]
    table = "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in (headings, rules, *lines))
    seeds = ", ".join(map(str, ablation.seeds))
    failed = "".join(f"\n- {failure}" for failure in ablation.failures)
    return f"# Ablation over seeds {seeds}\n\n{table}\n\n{EXPLANATION}\n" + (
        f"\nFailed:\n{failed}\n" if failed else ""
    )


def as_csv(ablation: Ablation) -> str:
    """`summary` as CSV; unknown values are empty."""
    records = summary(ablation)
    file = io.StringIO()
    if records:
        writer = csv.DictWriter(file, records[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return file.getvalue()


def as_json(ablation: Ablation) -> str:
    """Every number of every row, seed and split, and the summary."""
    content = {"schema_version": SCHEMA_VERSION, **asdict(ablation), "summary": summary(ablation)}
    return json.dumps(content, indent=1, ensure_ascii=False)


def plot(ablation: Ablation) -> Figure:
    """A panel for each split: the mean mAP of each row with its standard deviation, the seeds as small dots,
    the baseline's mean as a line.
    """
    from matplotlib.figure import Figure

    splits, rows = ablation.splits, ablation.rows
    figure = Figure(figsize=(3 + 3.5 * len(splits), 1.2 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for panel, split in zip(panels, splits, strict=True):
        for position, row in enumerate(rows):
            values = ablation.values(row.name, split).values()
            own = spread(values)
            if own.mean is None:
                continue
            panel.plot([*values], [position] * own.n, ".", color="0.2", markersize=4, zorder=3)
            panel.errorbar(own.mean, position, xerr=own.sd, fmt="o", color="C0", markersize=5, capsize=3)
        reference = ablation.spread(BASELINE.name, split).mean
        if reference is not None:
            panel.axvline(reference, color="0.5", linestyle="--", linewidth=1)
        panel.set_xlabel(f"{split} mAP")
    panels[0].set_yticks(range(len(rows)), [row.title for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def write_tables(ablation: Ablation, out: Path) -> None:
    """The report as JSON, Markdown and CSV."""
    for name, text in (
        (REPORT_FILE, as_json(ablation)),
        (TABLE_FILE, as_markdown(ablation)),
        (CSV_FILE, as_csv(ablation)),
    ):
        atomic_write(out / name, text)


def write_plot(ablation: Ablation, out: Path) -> None:
    """The report as a picture, where anything was measured."""
    if ablation.splits:
        file = io.BytesIO()
        plot(ablation).savefig(file, format="png", dpi=150)
        atomic_write(out / PLOT_FILE, file.getvalue())


def show_report(ablation: Ablation, out: Path, console: Console) -> None:
    """Print a table for each split, narrow enough for a terminal, and where the rest is."""
    costs, n = ablation.costs(), len(ablation.seeds)
    for split in ablation.splits:
        table = Table(
            title=Text(split), title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
        )
        table.add_column("row", no_wrap=True)
        for heading in ("mAP", "-\nbaseline", "leaning:\nrecall", "false\npositives", "minutes\n(added)"):
            table.add_column(heading, justify="right")
        for row in ablation.rows:
            table.add_row(
                Text(row.name),
                *_accuracy_cells(ablation, row, split, n),
                *_leaning_cells(ablation, row, split),
                "{:.1f} ({:.1f})".format(*(seconds / 60 for seconds in costs[row.name])),
            )
        console.print(table)
    files = ", ".join((TABLE_FILE, CSV_FILE, PLOT_FILE, REPORT_FILE))
    say(console, f"{out} holds the report: {files}")


def _accuracy_cells(ablation: Ablation, row: Row, split: str, seeds: int) -> list[str]:
    accuracy = _cell(ablation.spread(row.name, split), seeds)
    if row == BASELINE:
        return [accuracy, ""]
    difference = _cell(ablation.difference(row.name, split), seeds, sign="+")
    if found := ablation.intervals.get(split, {}).get(row.name):
        difference += f" [{found.low:+.2f}, {found.high:+.2f}]"
    return [accuracy, difference]


def _leaning_cells(ablation: Ablation, row: Row, split: str) -> list[str]:
    values = [ablation.leaning(row.name, split, what) for what in ("recall", "false_positives")]
    return ["-" if value is None else f"{value:+.1f}" for value in values]


def _cell(value: Spread, seeds: int, sign: str = "") -> str:
    if value.mean is None:
        return "-"
    spread_ = "" if value.sd is None else f" ± {value.sd:.2f}"
    few = "" if value.n == seeds else f" (n = {value.n})"
    return f"{value.mean:{sign}.2f}{spread_}{few}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
