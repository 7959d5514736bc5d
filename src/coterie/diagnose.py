"""What a person sees of the diagnostics: a run's partitions and leaning, read from its folder, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coterie.diagnostics import DIAGNOSTICS_FILE, LEANING_FILE, PAIR_IMAGES, PARTITIONS, SCHEMA_VERSION
from coterie.errors import ConfigError, did_you_mean, shortened
from coterie.progress import say
from coterie.runfolder import read_results

PAIR_MODELS = ("baseline", "student")


def show_run(path: Path, split: str | None, pairs: int, console: Console) -> None:
    """Print the partitions of the run in `path`, the leaning of its models on `split`, by default on all, and
    that of the `pairs` strongest pairs.

    RunError where there is no measured run, ConfigError where it was not measured on `split`.
    """
    described = read_results(path, f"{PARTITIONS}/{DIAGNOSTICS_FILE}", SCHEMA_VERSION)["branches"]
    leaning = read_results(path, LEANING_FILE, SCHEMA_VERSION)
    splits = leaning["splits"]
    if split is not None and split not in splits:
        hint = did_you_mean(split, splits) or f"; it was on {shortened(tuple(splits))}"
        raise ConfigError(f"the run in {path} was not measured on split '{split}'{hint}")
    for branch, values in described.items():
        show_partition(branch, values, console)
    if not leaning["pairs"]:
        say(console, f"no leaning to show: no two labels are on {PAIR_IMAGES} training images together")
        return
    for name in splits if split is None else (split,):
        console.print(leaning_table(splits[name], f"{name}: leaning on companions, percent"))
        if pairs:
            console.print(pairs_table(splits[name], leaning["pairs"][:pairs], f"{name}: the strongest pairs"))


def show_partition(branch: str, described: Mapping[str, Any], console: Console) -> None:
    """Print the groups of one branch, as `diagnose_partitions` describes them."""
    method = "random groups" if described["kind"] == "random" else described["method"]
    table = Table(
        title=f"{branch} ({method}): normalized cut {described['normalized_cut']:.4f}, "
        f"{described['share_inside']:.1%} of the co-occurrence inside groups",
        title_justify="left",
    )
    for heading in ("group", "labels", "inside"):
        table.add_column(heading, justify="right")
    table.add_column("names")
    for index, group in enumerate(described["groups"]):
        inside = group["share_inside"]
        share = "-" if inside is None else f"{inside:.1%}"
        table.add_row(str(index), str(group["size"]), share, Text(", ".join(group["names"])))
    console.print(table)
    if agreement := described["agreement"]:
        seeds = ", ".join(map(str, agreement["seeds"]))
        say(
            console,
            f"agreement of seeds {seeds}: adjusted Rand index {agreement['mean']:.2f} on average, "
            f"{agreement['lowest']:.2f} at least",
        )


def leaning_table(models: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """A line for each model: means over pairs of recall and false positives, with and without companion."""
    table = _table(title)
    table.add_column("", no_wrap=True)
    for what in ("recall", "false positives"):
        for heading in (f"{what}\nwith", "\nwithout", "\ngap", "\npairs"):
            table.add_column(heading, justify="right")
    for name, summary in models.items():
        cells = []
        for what in ("recall", "false_positives"):
            means = summary[what]
            cells += [_percent(means["with"]), _percent(means["without"]), _percent(means["difference"], "+")]
            cells.append(str(means["pairs"]))
        table.add_row(Text(name), *cells)
    return table


def pairs_table(models: Mapping[str, Mapping[str, Any]], pairs: list[dict[str, Any]], title: str) -> Table:
    """A line for each pair and model: its four rates, each with the number of images that it is of."""
    table = _table(title, "label", "companion", "model")
    for heading in ("recall\nwith", "\nwithout", "false positives\nwith", "\nwithout"):
        table.add_column(heading, justify="right")
    for number, pair in enumerate(pairs):
        for name in PAIR_MODELS:
            if name in models:
                rates = models[name]["each"][number].values()
                cells = [f"{_percent(rate['percent'])} of {rate['of']}" for rate in rates]
                table.add_row(Text(pair["label"]), Text(pair["companion"]), Text(name), *cells)
    return table


def _table(title: str, *headings: str) -> Table:
    return Table(
        *headings, title=Text(title), title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1f}"
