"""An ablation from end to end: every run of the plan, one after the other, and the report on all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from coterie.ablation.attempts import ERRORS_FILE, Reader, Setting, attempts_at_once, attempts_in_turn
from coterie.ablation.intervals import difference_intervals
from coterie.ablation.plan import Plan, make_plan, show_plan
from coterie.ablation.report import Ablation, Failure, Outcome, show_report, write_plot, write_tables
from coterie.ablation.rows import Row, choose_rows
from coterie.config import Config, read_config
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import ConfigError, RunError, repeated
from coterie.files import atomic_write
from coterie.models.factory import ModelBuilder
from coterie.preparation import prepare_data
from coterie.ranks import ranks_in
from coterie.runfolder import RunFolder, relevant_changes
from coterie.store import Store
from coterie.trainer import make_fabric

SETTINGS_FILE = "ablation.yaml"
SEEDS = 3


def ablate(
    config: Config,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    values: Mapping[str, Sequence[float]] | None = None,
    own: Sequence[Row] = (),
    out: Path | None = None,
    store: Path | None = None,
    plan_only: bool = False,
    update: bool = False,
    at_once: int = 1,
    dataset: MultiLabelDataset | None = None,
    builder: ModelBuilder | None = None,
    console: Console | None = None,
) -> Ablation:
    """Run the controls in `rows` at `seeds` and compare them with the baseline; leaves a report in `out`.

    `rows`, `values`, `own`: as in `choose_rows`. `seeds`: by default three, the config's the first. `store`:
    where finished trainings are kept that several rows share, by default in `out`. `plan_only`: print what
    is left to do, and do nothing. `update`: take up a folder of other settings. `at_once`: so many runs at
    the same time, each in a process of its own.
    The same call goes on where a stopped one was. What fails is kept in the result, and the rest goes on.
    Raises a CoterieError before any training where rows, settings or data do not fit.
    """
    if ranks_in(os.environ).are_several:
        raise ConfigError("an ablation starts its processes itself: set processes=N, without torchrun")
    console = console or Console(quiet=True)
    seeds = tuple(seeds if seeds is not None else range(config.seed, config.seed + SEEDS))
    if twice := repeated(map(str, seeds)):
        raise ConfigError(f"seed {twice[0]} stands twice; give each seed once")
    out = out or Path(f"{config.run_folder()}-ablation")
    store = store or out / "trainings"
    config = _shared(config.model_copy(update={"out": None, "seed": seeds[0]}), out)

    read = Reader(config.data, dataset)
    num_classes = prepare_data(config, read(seeds[0])).num_classes
    chosen = choose_rows(config, num_classes, rows, values, own)
    plan = make_plan(config, chosen, seeds, out, store, read, builder)
    show_plan(plan, console)
    if plan_only:
        return Ablation(plan.rows, plan.seeds, (), ())
    make_fabric(config)  # a device that is not there would fail every run
    with RunFolder(out).locked():
        _check_folder(out, config, update)
        atomic_write(out / SETTINGS_FILE, config.to_yaml())
        (out / ERRORS_FILE).unlink(missing_ok=True)
        Store(store).prepare()

        setting = Setting(out, store, read, builder, update)
        result = _run_all(plan, setting, at_once, console)
        result = replace(result, intervals=difference_intervals(result))
        write_tables(result, out)
        write_plot(result, out)
    show_report(result, out, console)
    return result


def _shared(config: Config, out: Path) -> Config:
    """What is computed once is kept where all rows find it: what teachers say to every view, and features."""
    distill = config.distill
    if distill.cache == "auto" and config.student.mixup == 0 and distill.relations == 0:
        distill = distill.model_copy(update={"cache": "on"})
    return config.model_copy(update={"distill": distill, "cache_dir": config.cache_dir or out})


def _run_all(plan: Plan, setting: Setting, at_once: int, console: Console) -> Ablation:
    """Do every run of the plan, and keep the report up to date."""
    order = {row.name: number for number, row in enumerate(plan.rows)}

    def place(result: Outcome | Failure) -> tuple[int, int]:
        return plan.seeds.index(result.seed), order[result.row]

    attempts = (
        attempts_in_turn(setting, plan.runs, console)
        if at_once == 1
        else attempts_at_once(setting, plan.runs, at_once, console)
    )
    result = Ablation(plan.rows, plan.seeds, (), ())
    for attempt in attempts:
        result = replace(
            result,
            outcomes=tuple(sorted((*result.outcomes, *attempt.outcomes), key=place)),
            failures=tuple(sorted((*result.failures, *attempt.failures), key=place)),
        )
        write_tables(result, setting.out)
    return result


def _check_folder(out: Path, config: Config, update: bool) -> None:
    """RunError where the folder holds something else, or an ablation of other settings, unless `update`."""
    if not (out / SETTINGS_FILE).exists():
        strangers = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise RunError(
                f"{out} holds other files ({strangers[0]}) and no ablation; choose another with --out"
            )
        return
    try:
        changes = relevant_changes(read_config(out / SETTINGS_FILE), config)
    except ConfigError as error:
        raise RunError(
            f"{out / SETTINGS_FILE} is damaged or of another version: {error}\n"
            "Choose another folder with --out"
        ) from None
    changes = [change for change in changes if not change.startswith("seed:")]
    if changes and not update:
        shown = "\n  ".join(changes)
        raise RunError(
            f"{out} is an ablation of other settings:\n  {shown}\n"
            "Use the same settings to go on with it, another folder (--out), or --update to train anew only "
            "what the change touches"
        )
