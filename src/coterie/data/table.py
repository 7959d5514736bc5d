"""Tables of images and labels: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet

from coterie.data.dataset import ABSENT, PRESENT, UNKNOWN, UNLABELLED, MultiLabelDataset
from coterie.data.presence import APART, places_of
from coterie.data.targets import split_notes, targets_of_names, usual_split
from coterie.errors import ConfigError, DataError, counted, cut, did_you_mean, listed, repeated, shortened

CELL_VALUES = {
    **dict.fromkeys(("1", "1.0", "true"), PRESENT),
    **dict.fromkeys(("0", "0.0", "false"), ABSENT),
    **dict.fromkeys(("-1", "-1.0", ""), UNKNOWN),
}

# A Parquet file of a few bytes can say that it has billions of rows. Those of a table differ.
FEW_ROWS, ROWS_A_BYTE = 100_000, 4

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")

# Names in quotes with commas between them: without the commas, Python takes two texts for one.
NAME_IN_TEXT = r"""(?:'[^'\\\n]*'|"[^"\\\n]*")"""
LIST_IN_TEXT = re.compile(rf"\[\s*(?:{NAME_IN_TEXT}\s*(?:,\s*{NAME_IN_TEXT}\s*)*)?\]")

Labels = tuple[npt.NDArray[np.int8], Sequence[str], list[str]]  # targets [N, C], class names, notes


def read_table(
    path: str | Path,
    *,
    image_root: str | Path | None = None,
    delimiter: str = ";",
    image_column: str = "image",
    labels_column: str = "labels",
    split_column: str = "split",
    class_names: Sequence[str] | None = None,
) -> MultiLabelDataset:
    """The dataset of a .csv, .tsv, .txt or .parquet table with one row for each image.

    With `labels_column`, each row names its labels, joined by `delimiter` or as a list; classes are sorted by
    name. Without it every other column is a class, in column order: 1/True present, 0/False
    absent, -1 or empty unknown. `class_names` closes the list of classes and sets their order. Image paths
    start from `image_root`, else from the table's folder; nobody looks whether the images are there. Without
    `split_column` all splits are "".
    Raises DataError that names the row where something is wrong.
    """
    if not delimiter:
        raise ConfigError(
            "data.delimiter is empty; give the text between two labels of an image, such as ';'"
        )
    table = _read_rows(Path(path))
    image_ids = _image_ids(table, image_column)
    root = Path(image_root) if image_root is not None else table.path.parent
    images = [root / name for name in image_ids]
    splits, split_notes = _splits(table, split_column)
    _check_each_image_once(table, image_ids, images, splits)
    if labels_column in table.columns:
        targets, classes, notes = _joined_labels(table, labels_column, delimiter, image_ids, class_names)
    else:
        described = (image_column, split_column)
        targets, classes, notes = _class_columns(table, described, labels_column, image_ids, class_names)
    of_split = np.array(splits, dtype=np.str_)
    positives = (targets == PRESENT).any(axis=1)
    if not positives.any():
        raise DataError(f"no image of {table.path} has a label; a training needs images with labels")
    without = int((~positives & (of_split != UNLABELLED)).sum())
    if without:
        notes = [*notes, counted(without, "image has no label", "images have no label")]
    return MultiLabelDataset(
        images=images,
        targets=targets,
        class_names=tuple(classes),
        splits=of_split,
        image_ids=tuple(image_ids),
        name=table.path.name,
        notes=(*split_notes, *notes),
    )


@dataclass(frozen=True)
class _Table:
    """The cells of a file, by column; `places[row]` is where messages say that a row stands."""

    path: Path
    columns: dict[str, list[Any]]
    places: list[str]

    def text(self, column: str) -> list[str]:
        return ["" if cell is None else str(cell).strip() for cell in self.columns[column]]


def _read_rows(path: Path) -> _Table:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(f"table {path} must end in {', '.join(TABLE_SUFFIXES)}; export it as one of these")
    if not path.is_file():
        why = "is a folder; name the file in it" if path.is_dir() else "is not there"
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"table {path} {why}{did_you_mean(path.name, beside)}")
    if path.stat().st_size == 0:
        raise DataError(f"table {path} is empty; it needs a header and a row for each image")
    try:
        table = _read_parquet(path) if suffix == ".parquet" else _read_text(path)
    except DataError:
        raise
    # ArrowExceptions, MemoryError, and UnicodeDecodeError of a name that is no text
    except (OSError, pyarrow.ArrowException, ValueError, MemoryError) as error:
        raise DataError(f"table {path} cannot be read: {error}; check the file or write it again") from None
    if not table.places:
        raise DataError(f"table {path} has a header but no rows; it needs a row for each image")
    return table


def _read_text(path: Path) -> _Table:
    # The csv module, not pandas: it makes no missing value of 'NA', no 1 of '001', and knows lines.
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise DataError(f"table {path} is not UTF-8 text ({byte}); save it as 'CSV UTF-8'") from None
    first_line = text.partition("\n")[0]
    tabs = path.suffix.lower() == ".tsv" or (path.suffix.lower() == ".txt" and "\t" in first_line)
    separator = "\t" if tabs else ","
    rows: list[list[str]] = []
    places: list[str] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):  # spreadsheets end files with rows of empty cells
                rows.append(row)
                places.append(f"line {line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"table {path} cannot be read from line {line} on: {error}; "
            "a cell that begins with a double quote must end with one"
        ) from None
    if not rows:
        raise DataError(f"table {path} is empty; it needs a header and a row for each image")
    header = [name.strip() for name in rows[0]]
    for row, place in zip(rows[1:], places[1:], strict=True):
        if len(row) != len(header):
            raise DataError(
                f"{place} of {path} has {counted(len(row), 'cell')}, but the header has {len(header)}; "
                f"put a cell that holds {'a tab' if tabs else 'a comma'} in double quotes"
            )
    return _Table(path, _by_name(path, header, list(zip(*rows[1:], strict=True))), places[1:])


def _read_parquet(path: Path) -> _Table:
    with pyarrow.parquet.ParquetFile(path) as file:
        rows, size = file.metadata.num_rows, path.stat().st_size
        if rows > max(FEW_ROWS, ROWS_A_BYTE * size):
            raise DataError(
                f"table {path} says that it has {rows:,} rows in {size:,} bytes, too many to name an image "
                "each; write it again"
            )
        content = file.read()
    kept = [i for i, name in enumerate(content.column_names) if not name.startswith("__index_level_")]
    names = [content.column_names[i].strip() for i in kept]
    columns = _by_name(path, names, [content.column(i).to_pylist() for i in kept])
    return _Table(path, columns, [f"row {row}" for row in range(1, content.num_rows + 1)])


def _by_name(path: Path, header: Sequence[str], columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    twice = repeated(name for name in header if name)
    if twice:
        raise DataError(f"columns of {path} stand twice: {shortened(twice)}; rename or remove one of each")
    return dict(zip(header, map(list, columns or [()] * len(header)), strict=True))


def _image_ids(table: _Table, image_column: str) -> list[str]:
    if image_column not in table.columns:
        names = list(table.columns)
        hint = did_you_mean(image_column, names)
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            hint = "; separate the columns by commas, or by tabs in a .tsv file"
        raise DataError(
            f"{table.path} has no column '{image_column}'; its columns are {shortened(names, 10)}, and "
            f"data.image_column names the column of image paths{hint}"
        )
    for cell, place in zip(table.columns[image_column], table.places, strict=True):
        if not isinstance(cell, str | int | None):
            raise DataError(
                f"{place} of {table.path}: column '{image_column}' holds {type(cell).__name__}, not paths; "
                "write the images to files and put their paths in the table, or try data.format=huggingface"
            )
    image_ids = table.text(image_column)
    empty = [place for name, place in zip(image_ids, table.places, strict=True) if not name]
    if empty:
        raise DataError(
            f"column '{image_column}' of {table.path} is empty in {listed(empty)}; "
            "give each row the path of its image"
        )
    return image_ids


def _splits(table: _Table, split_column: str) -> tuple[list[str], list[str]]:
    """The split of each row, and notes on names that are read as others."""
    if split_column not in table.columns:
        return [""] * len(table.places), []
    written = table.text(split_column)
    return [usual_split(name) for name in written], split_notes(written)


def _check_each_image_once(
    table: _Table, image_ids: Sequence[str], images: Sequence[Path], splits: Sequence[str]
) -> None:
    first: dict[str, int] = {}
    within, across = [], []
    for row, place in enumerate(places_of(images)):
        earlier = first.setdefault(place, row)
        if earlier == row:
            continue
        if splits[earlier] == splits[row]:
            within.append(f"'{image_ids[row]}' in {table.places[earlier]} and {table.places[row]}")
        else:
            across.append(
                f"'{image_ids[row]}' in split '{splits[earlier]}' ({table.places[earlier]}) "
                f"and in split '{splits[row]}' ({table.places[row]})"
            )
    if across:
        raise DataError(
            f"{counted(len(across), 'image')} of {table.path} in two splits: {listed(across)}; {APART}"
        )
    if within:
        raise DataError(
            f"{counted(len(within), 'image')} of {table.path} in two rows: {listed(within)}; "
            "put all labels of an image in one row"
        )


def _joined_labels(
    table: _Table, column: str, delimiter: str, image_ids: Sequence[str], class_names: Sequence[str] | None
) -> Labels:
    cells = table.columns[column]
    for cell, place in zip(cells, table.places, strict=True):
        odd = [part for part in (cell if isinstance(cell, list) else [cell]) if not _is_name(part)]
        if odd:
            raise DataError(
                f"{place} of {table.path}: column '{column}' holds {type(odd[0]).__name__}, not label names; "
                "write the names as text, or as lists of text"
            )
    cells = _lists_from_text(cells)
    labels_of_rows = [_labels_of_cell(cell, delimiter) for cell in cells]
    targets, classes = targets_of_names(
        labels_of_rows, class_names, lambda row: f"{image_ids[row]} ({table.places[row]} of {table.path})"
    )
    notes = []
    other = next((mark for mark in ";|," if _is_in_a_cell(cells, mark)), None)
    if other and not any(len(labels) > 1 for labels in labels_of_rows):
        notes.append(
            f"no image has two labels, but some labels hold '{other}'; "
            f"is data.delimiter, now '{delimiter}', the mark between labels?"
        )
    return targets, classes, notes


def _lists_from_text(cells: list[Any]) -> list[Any]:
    """The lists that cells such as "['clouds', 'sky']" stand for, as pandas writes them to a CSV.

    Cells as they are, unless all of those that hold something hold such a list.
    """
    written = {cell for cell in cells if isinstance(cell, str) and cell.strip()}
    if not written or not all(LIST_IN_TEXT.fullmatch(cell.strip()) for cell in written):
        return cells
    lists = {cell: [name[1:-1] for name in re.findall(NAME_IN_TEXT, cell)] for cell in written}
    return [lists.get(cell, cell) if isinstance(cell, str) else cell for cell in cells]


def _labels_of_cell(cell: object, delimiter: str) -> dict[str, None]:
    """The labels of a cell in their order, each once; None and empty pieces are no labels."""
    if _is_missing(cell):
        return {}
    pieces = cell if isinstance(cell, list) else str(cell).split(delimiter)
    names = (str(piece).strip() for piece in pieces if not _is_missing(piece))
    return dict.fromkeys(name for name in names if name)


def _is_name(part: object) -> bool:
    return isinstance(part, str | int) or _is_missing(part)


def _is_missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _is_in_a_cell(cells: Iterable[object], mark: str) -> bool:
    return any(isinstance(cell, str) and mark in cell for cell in cells)


def _class_columns(
    table: _Table,
    described: Sequence[str],
    labels_column: str,
    image_ids: Sequence[str],
    class_names: Sequence[str] | None,
) -> Labels:
    found = [name for name in table.columns if name not in described]
    classes = found if class_names is None else list(class_names)
    _check_class_columns(table, found, classes, labels_column)
    targets = np.empty((len(image_ids), len(classes)), dtype=np.int8)
    empty = 0
    for index, name in enumerate(classes):
        cells = table.columns[name]
        try:
            counts = Counter(cells)
        except TypeError:  # lists, in Parquet
            cells = [str(cell) for cell in cells]
            counts = Counter(cells)
        values = {cell: CELL_VALUES[text] for cell in counts if (text := _cell_text(cell)) in CELL_VALUES}
        if len(values) < len(counts):
            row = next(row for row, cell in enumerate(cells) if cell not in values)
            column, given = shortened([name]), shortened([cells[row]])
            raise DataError(
                f"column {column} of image {cut(image_ids[row])} ({table.places[row]} of {table.path}) is "
                f"{given}, but a class column holds 1, 0, or -1 for unknown; without a column "
                f"'{labels_column}' each other column is a class: remove {column} where it is none, or give "
                "it as data.labels_column where it holds label names"
            )
        targets[:, index] = [values[cell] for cell in cells]
        empty += sum(times for cell, times in counts.items() if _cell_text(cell) == "")
    if empty and not (targets == ABSENT).any():
        raise DataError(
            f"no class column of {table.path} holds a 0, but {counted(empty, 'cell is', 'cells are')} empty, "
            "which means unknown; write 0 where a class is absent"
        )
    notes = []
    unread = [name for name in found if name not in set(classes)]
    if unread:
        columns = counted(len(unread), "column is", "columns are")
        notes.append(f"{columns} none of the classes and not read: {shortened(unread)}")
    if empty:
        notes.append(f"{counted(empty, 'empty cell is', 'empty cells are')} read as unknown")
    return targets, classes, notes


def _check_class_columns(
    table: _Table, found: Sequence[str], classes: Sequence[str], labels_column: str
) -> None:
    if not classes:
        raise DataError(
            f"{table.path} has neither a column '{labels_column}' nor columns of classes; "
            "data.labels_column names the column of labels"
        )
    missing = [name for name in classes if name not in table.columns]
    if missing:
        raise DataError(
            f"{table.path} has no column for {shortened(missing)} of the {len(classes)} classes; add it, or "
            f"name labels in a column '{labels_column}'{did_you_mean(missing[0], found)}"
        )
    if "" in classes:
        number = list(table.columns).index("") + 1
        raise DataError(
            f"column {number} of {table.path} has no name, but without a column '{labels_column}' each other "
            "column is a class; name it or remove it (pandas writes such a column unless index=False)"
        )


def _cell_text(cell: object) -> str:
    return "" if _is_missing(cell) else str(cell).strip().lower()
