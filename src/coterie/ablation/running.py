"""An ablation from end to end: every run of the plan, one after the other, and the report on all of them."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from coterie.ablation.intervals import difference_intervals
from coterie.ablation.plan import Plan, PlannedRun, make_plan, show_plan
from coterie.ablation.report import Ablation, Failure, Outcome, show_report, write_plot, write_tables
from coterie.ablation.rows import Row, choose_rows
from coterie.config import Config, read_config
from coterie.data.dataset import MultiLabelDataset
from coterie.data.reading import read_dataset
from coterie.errors import ConfigError, CoterieError, RunError, repeated
from coterie.evaluation import SHOWN
from coterie.files import atomic_write
from coterie.models.factory import ModelBuilder
from coterie.pipeline import Run, run
from coterie.preparation import prepare_data
from coterie.progress import say
from coterie.runfolder import Inputs, RunFolder, relevant_changes
from coterie.store import Store
from coterie.trainer import make_fabric

SETTINGS_FILE = "ablation.yaml"
ERRORS_FILE = "errors.log"
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
    dataset: MultiLabelDataset | None = None,
    builder: ModelBuilder | None = None,
    console: Console | None = None,
) -> Ablation:
    """Run the controls in `rows` at `seeds` and compare them with the baseline; leaves a report in `out`.

    `rows`, `values`, `own`: as in `choose_rows`. `seeds`: by default three, the config's the first. `store`:
    where finished trainings are kept that several rows share, by default in `out`. `plan_only`: print what
    is left to do, and do nothing. `update`: take up a folder of other settings.
    The same call goes on where a stopped one was. What fails is kept in the result, and the rest goes on.
    Raises a CoterieError before any training where rows, settings or data do not fit.
    """
    console = console or Console(quiet=True)
    seeds = tuple(seeds if seeds is not None else range(config.seed, config.seed + SEEDS))
    if twice := repeated(map(str, seeds)):
        raise ConfigError(f"seed {twice[0]} stands twice; give each seed once")
    out = out or Path(f"{config.run_folder()}-ablation")
    store = store or out / "trainings"
    config = _shared(config.model_copy(update={"out": None, "seed": seeds[0]}), out)

    @functools.lru_cache(maxsize=1)  # the data of one seed at a time: they may be large
    def read(seed: int) -> MultiLabelDataset:
        return read_dataset(config.data, seed) if dataset is None else dataset

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

        checked: dict[int, Inputs | None] = {}

        def do(planned: PlannedRun) -> Run:
            seed = planned.config.seed
            finished = run(
                planned.config,
                dataset=read(seed),
                builder=builder,
                update=update,
                only=planned.only,
                models=planned.models,
                store=store,
                checked=checked.get(seed),
                console=console,
            )
            # the runs of a seed have the same images: they are read once
            checked[seed] = RunFolder(planned.folder).inputs()
            return finished

        result = _run_all(plan, do, out, console)
        result = replace(result, intervals=difference_intervals(result))
        write_tables(result, out)
        write_plot(result, out)
    show_report(result, out, console)
    return result


def _shared(config: Config, out: Path) -> Config:
    """What is computed once is kept where all rows find it: what teachers say to every view, and features."""
    distill = config.distill
    if distill.cache == "auto":
        distill = distill.model_copy(update={"cache": "on"})
    return config.model_copy(update={"distill": distill, "cache_dir": config.cache_dir or out})


def _run_all(plan: Plan, do: Callable[[PlannedRun], Run], out: Path, console: Console) -> Ablation:
    """`do` every run of the plan, and keep the report up to date."""
    result = Ablation(plan.rows, plan.seeds, (), ())
    for number, planned in enumerate(plan.runs, 1):
        say(console, f"run {number} of {len(plan.runs)}: {planned.folder}, for {_names(planned)}")
        outcomes, failures = _attempt(planned, do, out, console)
        result = replace(
            result, outcomes=(*result.outcomes, *outcomes), failures=(*result.failures, *failures)
        )
        write_tables(result, out)
    return result


def _attempt(
    planned: PlannedRun, do: Callable[[PlannedRun], Run], out: Path, console: Console
) -> tuple[list[Outcome], list[Failure]]:
    """Do a run. Where that fails, each of its rows is tried by itself: a student that breaks must not cost
    the baseline of the same run.
    """
    try:
        return _outcomes(planned, do(planned)), []
    except Exception as error:
        if len(planned.needs) == 1:
            return [], [_failure(planned, error, out, console)]
    attempts = [_attempt(planned.of(row), do, out, console) for row in planned.needs]
    return (
        [outcome for outcomes, _ in attempts for outcome in outcomes],
        [failure for _, failures in attempts for failure in failures],
    )


def _outcomes(planned: PlannedRun, finished: Run) -> list[Outcome]:
    """What a run gave for each of its rows."""
    trainings = {training.name: training for training in RunFolder(planned.folder).trainings()}
    outcomes = []
    for row, needed in planned.needs.items():
        seconds = {trainings[each.name].key: trainings[each.name].seconds for each in needed}
        metrics = {
            split: {name: models[row.model][name] for name in SHOWN}
            for split, models in finished.metrics.items()
        }
        leaning = {
            split: {what: models[row.model][what] for what in ("recall", "false_positives")}
            for split, models in finished.leaning.items()
        }
        outcomes.append(
            Outcome(row.name, planned.config.seed, str(planned.folder), metrics, leaning, seconds)
        )
    return outcomes


def _failure(planned: PlannedRun, error: Exception, out: Path, console: Console) -> Failure:
    """What broke, said and kept; the traceback of what was not foreseen goes to a file."""
    message = str(error)
    if not isinstance(error, CoterieError):
        message = f"{type(error).__name__}: {message} (more in {out / ERRORS_FILE})"
        with (out / ERRORS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{planned.folder}\n{''.join(traceback.format_exception(error))}\n")
    say(console, f"{_names(planned)} failed: {message}")
    (row,) = planned.needs
    return Failure(row.name, planned.config.seed, message)


def _names(planned: PlannedRun) -> str:
    return f"{', '.join(row.name for row in planned.needs)} at seed {planned.config.seed}"


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
