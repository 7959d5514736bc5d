"""The models that are looked at side by side: of a run baseline, a teacher of each branch, and student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coterie.checkpoint import INFO_FILE
from coterie.explain.explainer import Explainer, make_explainer
from coterie.predictor import Predictor, find_checkpoint, load_classifier
from coterie.preparation import branch_kind
from coterie.runfolder import MANIFEST_FILE, RunFolder

TEACHER_TITLES = {"co-occurrence": "CGP teacher", "dis-occurrence": "DGP teacher"}


@dataclass(frozen=True)
class Column:
    """One model of a sheet, or several that know different classes, as the teachers of a branch do.

    `find` gives what explains a class, None where no model of the column knows it.
    """

    title: str
    find: Callable[[str], Explainer | None]


@dataclass(frozen=True)
class Models:
    """The columns of a sheet; `main` is the last of them, whose classes are asked for."""

    main: Explainer
    columns: tuple[Column, ...]


def find_models(
    path: Path,
    against: Path | None = None,
    load: Callable[[Path], Predictor] = load_classifier,
    layer: str | None = None,
) -> Models:
    """The models to show for the run or checkpoint at `path`; a teacher is loaded when it is asked for.

    Of a run: the baseline, the teachers of each branch, the student, as far as they are trained. `against`, a
    checkpoint or a run (its baseline), comes first, in the place of the run's own baseline.
    """

    @cache
    def explainer(folder: Path) -> Explainer:
        return make_explainer(load(folder), layer)

    is_run = (path / MANIFEST_FILE).exists() and not (path / INFO_FILE).exists()
    last = find_checkpoint(path)
    if against is None and is_run and (path / "baseline" / INFO_FILE).exists():
        against = path
    main = explainer(last)
    columns = [Column("student" if is_run else last.resolve().name, _of_one(main))]
    if is_run:
        columns = _teachers(path, explainer) + columns
    if against is not None:
        baseline = explainer(find_checkpoint(against, "baseline"))
        columns = [Column("baseline", _of_one(baseline)), *columns]
    return Models(main, tuple(columns))


def _of_one(explainer: Explainer) -> Callable[[str], Explainer | None]:
    return lambda name: explainer if name in explainer.predictor.class_names else None


def _teachers(path: Path, explainer: Callable[[Path], Explainer]) -> list[Column]:
    """A column for each branch with trained teachers."""
    columns = []
    trainings = RunFolder(path).trainings()
    for branch in dict.fromkeys(training.branch for training in trainings if training.branch):
        kind, number = branch_kind(branch)
        folders = {
            name: path / training.name
            for training in trainings
            if training.branch == branch and (path / training.name / INFO_FILE).exists()
            for name in training.class_names
        }
        if folders:
            title = TEACHER_TITLES.get(kind, "teacher") + (f" {number}" if number > 1 else "")
            columns.append(Column(title, _of_several(folders, explainer)))
    return columns


def _of_several(
    folders: Mapping[str, Path], explainer: Callable[[Path], Explainer]
) -> Callable[[str], Explainer | None]:
    return lambda name: explainer(folders[name]) if name in folders else None
