"""Predictions as rows: chosen labels of a picture, in several formats, written so that an interruption loses
little.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TextIO

import pyarrow
import pyarrow.parquet
from pydantic import TypeAdapter

from coterie.errors import DataError, RunError
from coterie.files import content_hash, lock
from coterie.formats import Format
from coterie.predictor import Picture, Prediction, Predictor, class_columns
from coterie.untrusted import parse_json

SCHEMA_VERSION = 1  # of unfinished predictions
LINE_ENDS = "\x85\u2028\u2029"  # which JSON leaves as they are, and readers of lines take for ends
ROWS_IN_GROUP = 10_000  # of a Parquet file: what is in memory at once
DIGITS = 6
PARQUET_SCHEMA = pyarrow.schema(
    [
        ("image", pyarrow.string()),
        ("labels", pyarrow.list_(pyarrow.string())),
        ("scores", pyarrow.list_(pyarrow.float32())),
        ("error", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class Row:
    """What is said of one picture: scores of the chosen labels, best first, or why it could not be read."""

    image: str
    labels: dict[str, float]
    error: str | None = None


_ROW = TypeAdapter(Row)


@dataclass(frozen=True)
class Selection:
    """Which labels are given: those above `threshold` (None: the checkpoint's), or the `top` best, whatever
    their scores where no `threshold` is named; of `classes` alone, where they are.
    """

    threshold: float | None = None
    top: int | None = None
    classes: tuple[str, ...] | None = None

    def check(self, class_names: Sequence[str]) -> None:
        """ConfigError where a class is none of the model's, or none is chosen."""
        if self.classes is not None:
            class_columns(class_names, self.classes)

    def row(self, prediction: Prediction) -> Row:
        """The row of a prediction that was made with `threshold`."""
        chosen: Sequence[str] = prediction.labels
        if self.top is not None and self.threshold is None:
            chosen = prediction.ranked()
        if self.classes is not None:
            chosen = [label for label in chosen if label in self.classes]
        labels = {label: round(prediction.scores[label], DIGITS) for label in chosen[: self.top]}
        return Row(_encodable(prediction.image), labels, prediction.error)


@dataclass
class Tally:
    """How many pictures there were, how many of them cannot be read, and the first of those."""

    pictures: int = 0
    failed: int = 0
    first: Row | None = None

    def add(self, row: Row) -> None:
        self.pictures += 1
        if row.error is not None:
            self.failed += 1
            self.first = self.first or row


def predict_rows(
    predictor: Predictor, pictures: Iterable[Picture], selection: Selection, tally: Tally
) -> Iterator[Row]:
    """The rows of the pictures, one by one, each counted in `tally`."""
    for prediction in predictor.stream(pictures, threshold=selection.threshold):
        row = selection.row(prediction)
        tally.add(row)
        yield row


def predict_to_file(
    predictor: Predictor,
    pictures: Iterable[Picture],
    selection: Selection,
    out: Path,
    format: Format,
    on_row: Callable[[], object] = lambda: None,
) -> Tally:
    """Write the rows of the pictures to `out`, which appears when all are done.

    Until then they are in a file beside it, OUT.partial. Called again, rows are kept as long as they are
    those of the same pictures in the same order, and the others are made. Without a picture nothing is
    written. RunError where OUT.partial is of another model or selection, or another process writes to it.
    `on_row` is called for each picture, kept or new.
    """
    if out.is_dir():
        raise DataError(f"--out {out} is a folder; name a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    tally = Tally()
    with _opened(partial, _key(predictor, selection)) as (file, start):
        to_do = _not_yet_done(file, pictures, tally, on_row)
        for row in predict_rows(predictor, to_do, selection, tally):
            file.write(_json_line(row).encode())
            on_row()
        if not tally.pictures:
            partial.unlink()
            return tally
        file.seek(start)
        unfinished = out.with_name(f".{out.name}.tmp")  # half a table would look like a whole one
        try:
            _convert(_rows_in(file), format, unfinished)
            unfinished.replace(out)
        finally:
            unfinished.unlink(missing_ok=True)
        partial.unlink()
    return tally


def write_rows(rows: Iterable[Row], format: Format, file: TextIO) -> None:
    """Write rows as text: table, csv or jsonl."""
    {Format.TABLE: _write_table, Format.CSV: _write_csv, Format.JSONL: _write_jsonl}[format](rows, file)


def _write_table(rows: Iterable[Row], file: TextIO) -> None:
    """A line for each picture, for people: nothing in a name can begin another line."""
    for row in rows:
        shown = ", ".join(f"{_quoted(label)} {score:.2f}" for label, score in row.labels.items()) or "-"
        print(f"{_printable(row.image)}: {_printable(row.error or shown)}", file=file)


def _write_csv(rows: Iterable[Row], file: TextIO) -> None:
    """A line for each label of a picture, one without a label for a picture that has none."""
    writer = csv.writer(file, lineterminator="\n")
    careful = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["image", "label", "score", "error"])
    for row in rows:
        lines = [[row.image, label, f"{score:.{DIGITS}f}", ""] for label, score in row.labels.items()]
        if row.error or not row.labels:
            lines.append([row.image, "", "", row.error or ""])
        for line in lines:  # the module leaves a bare carriage return without quotes, but ends lines at it
            (careful if "\r" in "".join(line) else writer).writerow(line)


def _write_jsonl(rows: Iterable[Row], file: TextIO) -> None:
    for row in rows:
        file.write(_json_line(row))


def write_parquet(rows: Iterable[Row], path: Path) -> None:
    """Write rows as Parquet: image, labels and scores as lists, error or null."""
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, PARQUET_SCHEMA) as writer:
        while group := list(islice(rows, ROWS_IN_GROUP)):
            columns = [
                [row.image for row in group],
                [list(row.labels) for row in group],
                [list(row.labels.values()) for row in group],
                [row.error for row in group],
            ]
            arrays = map(pyarrow.array, columns, PARQUET_SCHEMA.types)
            writer.write_table(pyarrow.Table.from_arrays(list(arrays), schema=PARQUET_SCHEMA))


def _convert(rows: Iterable[Row], format: Format, path: Path) -> None:
    if format is Format.PARQUET:
        write_parquet(rows, path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        write_rows(rows, format, file)


def _key(predictor: Predictor, selection: Selection) -> str:
    """A hash of what the row of a picture depends on, beside the picture."""
    checkpoint = predictor.checkpoint
    return content_hash(
        {
            "weights": checkpoint.weights_sha256,
            "class_names": checkpoint.class_names,
            "preprocessing": asdict(checkpoint.preprocessing),
            "thresholds": predictor.thresholds,
            "temperature": checkpoint.temperature,
            "selection": asdict(selection),
        }
    )


@contextmanager
def _opened(path: Path, key: str) -> Iterator[tuple[IO[bytes], int]]:
    """The file of unfinished rows behind its first line, which holds the key, and the place of that."""
    path.touch()
    with path.open("r+b") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise RunError(
                f"another process writes to {path}; wait for it, or choose another --out"
            ) from None
        header = json.dumps({"predictions": SCHEMA_VERSION, "key": key}).encode() + b"\n"
        found, holds_rows = file.readline(), bool(file.read(1))
        if found != header and holds_rows:
            raise RunError(
                f"{path} holds unfinished predictions of another checkpoint or with other options: give the "
                "command that it is of, remove it, or choose another --out"
            )
        if found != header:  # new, or stopped before the first row
            file.seek(0)
            file.truncate()
            file.write(header)
        file.seek(len(header))
        yield file, len(header)


def _not_yet_done(
    file: IO[bytes], pictures: Iterable[Picture], tally: Tally, on_row: Callable[[], object]
) -> Iterator[Picture]:
    """The pictures from the first on whose row is not the next one in `file`, which is cut off there."""
    remaining = iter(pictures)
    end = file.tell()
    for picture in remaining:
        row = _parsed(file.readline())
        if row is None or row.image != _encodable(str(picture)):
            remaining = chain([picture], remaining)
            break
        end = file.tell()
        tally.add(row)
        on_row()
    file.seek(end)
    file.truncate()
    yield from remaining


def _rows_in(file: IO[bytes]) -> Iterator[Row]:
    for line in file:
        yield Row(**parse_json(line))


def _parsed(line: bytes) -> Row | None:
    """The row in a line; None where it is not whole, or is none that was written here."""
    try:
        row = _ROW.validate_python(parse_json(line))
        return row if _json_line(row).encode() == line else None
    except (ValueError, TypeError):
        return None


def _json_line(row: Row) -> str:
    content = {"image": row.image, "labels": row.labels} | ({"error": row.error} if row.error else {})
    line = json.dumps(content, ensure_ascii=False)
    for mark in LINE_ENDS:
        line = line.replace(mark, f"\\u{ord(mark):04x}")
    return line + "\n"


def _encodable(name: str) -> str:
    """A name of a file as text that can be written: bytes that are no UTF-8 as \\x…."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _printable(text: str) -> str:
    """On one line, and without what a terminal would take for a command."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _quoted(label: str) -> str:
    """In quotes where it could be taken for two labels."""
    return json.dumps(label, ensure_ascii=False) if any(mark in label for mark in ',"') else label
