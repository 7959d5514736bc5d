"""What stands of measured numbers in the README and in docs/results.md.

    python -m benchmarks.page [OUT] [--fewer]

copies the numbers that benchmarks.gain or benchmarks.demo left in OUT into docs/results, and renews what
stands between the marks of both pages. Without OUT they are renewed from the numbers that are there. Numbers
of fewer rows or seeds than those that are there are refused but for `--fewer`: a call for some rows alone
must not take the place of all.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import demo
from benchmarks.gain import folds, series, tables, unlabelled
from coterie.files import atomic_write

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "results.md", ROOT / "README.md")
NUMBERS = ROOT / "docs" / "results"
MARKED = re.compile(r"(<!-- (?P<name>[\w-]+): by benchmarks\.page -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--fewer", action="store_true", help="take numbers of fewer rows or seeds")
    arguments = parser.parse_args()
    if (out := arguments.out) is not None:
        files = [out / f"{name}.json" for name in sorted({file for _, file in BLOCKS.values()})]
        found = [path for path in files if path.exists()]
        if not found:
            print(f"there are no numbers in {out}", file=sys.stderr)
            return 2
        missing = [line for path in found for line in lost(path, NUMBERS / path.name)]
        if missing and not arguments.fewer:
            print("\n".join([*missing, "--fewer takes them all the same"]), file=sys.stderr)
            return 2
        NUMBERS.mkdir(exist_ok=True)
        for path in found:
            shutil.copyfile(path, NUMBERS / path.name)
    for path in PAGES:
        atomic_write(path, renewed(path.read_text(encoding="utf-8"), NUMBERS))
    return 0


def lost(new: Path, old: Path) -> Iterator[str]:
    """What the numbers in `old` have and those in `new` have not: rows, ideas, runs and seeds."""
    if not old.exists():
        return
    before, after = (held(json.loads(path.read_text(encoding="utf-8"))) for path in (old, new))
    if missing := before - after:
        yield f"{new} has not all that {old} has: {', '.join(sorted(missing))}"


def held(content: Any) -> set[str]:
    """What numbers are there, by name."""
    rows = {f"row {record['row']}" for record in content.get("rows", ())}
    ideas = {f"idea {idea['name']}" for idea in content.get("ideas", ())}
    seeds = {*content.get("seeds", ()), *(each["seed"] for each in content.get("runs", ()))}
    return rows | ideas | {f"seed {seed}" for seed in seeds}


def renewed(page: str, numbers: Path) -> str:
    """The page with the text between its marks made anew from the files in `numbers`."""

    def block(found: re.Match[str]) -> str:
        make, file = BLOCKS[found["name"]]
        path = numbers / f"{file}.json"
        text = make(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else "Not measured yet."
        return f"{found[1]}{text}\n{found[3]}"

    return MARKED.sub(block, page)


BLOCKS: dict[str, tuple[Callable[[Any], str], str]] = {
    "claims": (tables.claims, "rows"),
    "claims-of-folds": (tables.claims, folds.NAME),
    "compared-of-folds": (tables.compared_table, folds.NAME),
    "rows": (tables.rows_table, "rows"),
    "gain": (tables.gain_table, "rows"),
    "compared": (tables.compared_table, "rows"),
    "compared-of-scenes": (tables.compared_table, "scenes"),
    "search-baseline": (tables.search_table, "search-baseline"),
    "search-student": (tables.search_table, "search-student"),
    "settings": (tables.settings_of, "rows"),
    "ideas": (tables.ideas_table, "ideas"),
    # the same rows on another processor, where baselines at the cost of others ended by patience
    "claims-before": (tables.claims, "rows-before"),
    # of an earlier protocol, at the commit that the page names
    "last-fire-rows": (tables.rows_table, "last-fire-rows"),
    "last-fire-settings": (tables.settings_of, "last-fire-ideas"),
    "last-fire-ideas": (tables.ideas_table, "last-fire-ideas"),
    "demo-run": (demo.run_table, demo.NAME),
    "demo-seeds": (demo.seeds_table, demo.NAME),
    unlabelled.NAME: (tables.unlabelled_table, unlabelled.NAME),
    **{name: (tables.search_table, name) for name in map(series.search_name, series.BACKBONES)},
    **{name: (tables.rows_table, name) for name in ("sweeps", folds.NAME, *series.names())},
}


if __name__ == "__main__":
    sys.exit(main())
