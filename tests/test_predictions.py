"""Rows of predictions: no name breaks a format, and an interruption costs little and changes nothing."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from coterie.errors import ConfigError, DataError, RunError
from coterie.formats import Format
from coterie.pipeline import Run
from coterie.predictions import (
    Row,
    Selection,
    Tally,
    predict_rows,
    predict_to_file,
    write_parquet,
    write_rows,
)
from coterie.predictor import Prediction, Predictor
from tests.tiny import CLASS_NAMES

AWKWARD = ("a, b", 'the "c"', "d\ne", "f\r", "<b>g</b>", "é\u2028\x85h", "=1+1", "\x1b[31m", "日本")
ROWS = [
    Row("plain.jpg", {name: round(0.9 - place / 100, 6) for place, name in enumerate(AWKWARD)}),
    Row('a, "b"\n.jpg', {}),
    Row("c\u2028\r.jpg", {}, 'it is broken, "very"\nmuch'),
]


def text_of(format: Format, rows: list[Row] = ROWS) -> str:
    file = io.StringIO(newline="")
    write_rows(rows, format, file)
    return file.getvalue()


def test_csv_reads_back_whatever_the_names() -> None:
    read = list(csv.reader(io.StringIO(text_of(Format.CSV), newline="")))
    assert read == [
        ["image", "label", "score", "error"],
        *([ROWS[0].image, label, f"{score:.6f}", ""] for label, score in ROWS[0].labels.items()),
        [ROWS[1].image, "", "", ""],
        [ROWS[2].image, "", "", ROWS[2].error],
    ]


def test_jsonl_reads_back_whatever_the_names_and_however_lines_are_told() -> None:
    lines = text_of(Format.JSONL).splitlines()  # at U+2028 and U+0085, too
    assert list(map(json.loads, lines)) == [
        {"image": ROWS[0].image, "labels": ROWS[0].labels},
        {"image": ROWS[1].image, "labels": {}},
        {"image": ROWS[2].image, "labels": {}, "error": ROWS[2].error},
    ]


def test_a_table_has_a_line_for_each_picture_whatever_the_names() -> None:
    lines = text_of(Format.TABLE).splitlines()
    assert lines == [
        r'plain.jpg: "a, b" 0.90, "the \"c\"" 0.89, d\ne 0.88, f\r 0.87, <b>g</b> 0.86, é\u2028\x85h 0.85, '
        r"=1+1 0.84, \x1b[31m 0.83, 日本 0.82",
        r'a, "b"\n.jpg: -',
        r'c\u2028\r.jpg: it is broken, "very"\nmuch',
    ]


def test_parquet_reads_back_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.predictions.ROWS_IN_GROUP", 2)
    write_parquet(ROWS, tmp_path / "rows.parquet")
    file = pyarrow.parquet.ParquetFile(tmp_path / "rows.parquet")
    assert file.num_row_groups == 2
    read = file.read().to_pylist()
    assert [row["image"] for row in read] == [row.image for row in ROWS]
    assert [row["labels"] for row in read] == [list(row.labels) for row in ROWS]
    assert read[0]["scores"] == pytest.approx(list(ROWS[0].labels.values()))
    assert [row["error"] for row in read] == [None, None, ROWS[2].error]


def test_nothing_is_a_format_too(tmp_path: Path) -> None:
    write_parquet([], tmp_path / "rows.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").num_rows == 0
    assert text_of(Format.CSV, []) == "image,label,score,error\n"


def test_the_name_of_a_file_says_its_format() -> None:
    names = ("a.csv", "a.JSONL", "b.parquet", "c.txt")
    assert [Format.of(Path(name)) for name in names] == ["csv", "jsonl", "parquet", "table"]
    assert Format.of(None) == Format.TABLE


def test_a_selection_gives_the_best_of_its_classes() -> None:
    made = Prediction("x", {"ant": 0.2, "bee": 0.9, "cat": 0.7}, ("bee", "cat"))
    assert list(Selection().row(made).labels) == ["bee", "cat"]
    assert list(Selection(top=1).row(made).labels) == ["bee"]
    assert list(Selection(top=3).row(made).labels) == ["bee", "cat", "ant"]
    assert list(Selection(classes=("cat", "ant")).row(made).labels) == ["cat"]
    above = replace(made, labels=("bee", "cat"))
    assert list(Selection(threshold=0.2, top=1).row(above).labels) == ["bee"]
    assert list(Selection(threshold=0.2, top=3).row(above).labels) == ["bee", "cat"]
    assert list(Selection(top=1, classes=("cat", "ant")).row(made).labels) == ["cat"]
    assert Selection().row(replace(made, image="\udcff.png")).image == "\\xff.png"


def test_a_selection_of_no_class_or_an_unknown_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="name at least one class"):
        Selection(classes=()).check(CLASS_NAMES)
    with pytest.raises(ConfigError, match="the model has no class 'gren'; did you mean 'green'"):
        Selection(classes=("red", "gren")).check(CLASS_NAMES)
    with pytest.raises(ConfigError, match="name at least one class"):
        Selection(classes=("",)).check(CLASS_NAMES)
    with pytest.raises(ConfigError, match="more than once: 'red'"):
        Selection(classes=("red", "red")).check(CLASS_NAMES)


@pytest.fixture
def photos(finished_run: Run, tmp_path: Path) -> list[Path]:
    """Ten pictures, one of them broken."""
    folder = Path(finished_run.config.data.source).parent
    copies = [Path(shutil.copy(folder / f"{number:03d}.png", tmp_path)) for number in range(10)]
    copies[3].write_bytes(b"no picture")
    return copies


@pytest.fixture
def predictor(finished_run: Run) -> Predictor:
    return finished_run.student


class Stop(Exception):
    """What ends a prediction in its middle."""


def stopping(photos: list[Path], after: int) -> Iterator[Path]:
    yield from photos[:after]
    raise Stop


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures in a batch."""
    stream = Predictor.stream
    monkeypatch.setattr(
        Predictor,
        "stream",
        lambda self, pictures, threshold: stream(self, pictures, threshold=threshold, batch_size=2),
    )


def expected(predictor: Predictor, photos: list[Path], selection: Selection) -> str:
    return text_of(Format.JSONL, list(predict_rows(predictor, photos, selection, Tally())))


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("cut", [0, 1, 30])
@pytest.mark.usefixtures("small_batches")
def test_what_was_interrupted_goes_on_and_ends_alike(
    predictor: Predictor, photos: list[Path], tmp_path: Path, format: Format, cut: int
) -> None:
    selection = Selection(top=2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_to_file(predictor, photos, selection, whole, format)
    with pytest.raises(Stop):
        predict_to_file(predictor, stopping(photos, 8), selection, out, format)
    assert not out.exists()
    partial = tmp_path / "out.partial"
    content = partial.read_bytes()
    assert content.count(b"\n") > 2
    partial.write_bytes(content[: len(content) - cut])  # in the middle of a line
    computed: list[str] = []
    counted: list[None] = []
    tally = predict_to_file(
        predictor, seen(photos, computed), selection, out, format, lambda: counted.append(None)
    )
    assert out.read_bytes() == whole.read_bytes()
    assert (tally.pictures, tally.failed, len(counted)) == (10, 1, 10)
    assert tally.first is not None
    assert tally.first.image == str(photos[3])
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {"out"}


def seen(photos: list[Path], names: list[str]) -> Iterator[Path]:
    for photo in photos:
        names.append(photo.name)
        yield photo


@pytest.mark.usefixtures("small_batches")
def test_what_is_written_is_not_computed_again(
    predictor: Predictor, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(Stop):
        predict_to_file(predictor, stopping(photos, 10), Selection(), out, Format.JSONL)
    kept = (tmp_path / "out.jsonl.partial").read_bytes().count(b"\n") - 1
    assert kept >= 4
    decoded: list[Path] = []
    pixels = Predictor._pixels

    def decode(self: Predictor, picture: Path) -> object:
        decoded.append(picture)
        return pixels(self, picture)

    monkeypatch.setattr(Predictor, "_pixels", decode)
    predict_to_file(predictor, photos, Selection(), out, Format.JSONL)
    assert sorted(decoded) == photos[kept:]


@pytest.mark.parametrize(
    "labels", [b"3", b"null", b'{"red": "high"}', b'{"red": null}', b'{"red\\ud800": 0.5}', b"[" * 100_000]
)
def test_a_row_that_nobody_has_written_is_made_anew(
    predictor: Predictor, photos: list[Path], tmp_path: Path, labels: bytes
) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(Stop):
        predict_to_file(predictor, stopping(photos, 0), Selection(), out, Format.CSV)
    with (tmp_path / "out.csv.partial").open("ab") as file:
        file.write(b'{"image": %s, "labels": %s}\n' % (json.dumps(str(photos[0])).encode(), labels))
    predict_to_file(predictor, photos, Selection(), out, Format.CSV)
    rows = list(predict_rows(predictor, photos, Selection(), Tally()))
    assert out.read_text(encoding="utf-8") == text_of(Format.CSV, rows)


@pytest.mark.usefixtures("small_batches")
def test_pictures_that_came_or_went_in_between_are_seen(
    predictor: Predictor, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    for now in (photos[:2] + photos[5:], [photos[9], *photos[:9]], photos[:1], photos * 2):
        with pytest.raises(Stop):
            predict_to_file(predictor, stopping(photos, 10), Selection(top=1), out, Format.JSONL)
        predict_to_file(predictor, now, Selection(top=1), out, Format.JSONL)
        assert out.read_text(encoding="utf-8") == expected(predictor, now, Selection(top=1))


@pytest.mark.usefixtures("small_batches")
def test_unfinished_predictions_of_something_else_are_kept(
    predictor: Predictor, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(Stop):
        predict_to_file(predictor, stopping(photos, 10), Selection(), out, Format.CSV)
    before = (tmp_path / "out.csv.partial").read_bytes()
    tuned = Predictor(predictor.model, replace(predictor.checkpoint, thresholds=(0.1, 0.2, 0.3, 0.4)))
    for other, selection in (
        (predictor, Selection(top=1)),
        (predictor, Selection(0.2)),
        (tuned, Selection()),
    ):
        with pytest.raises(
            RunError, match=r"out\.csv\.partial holds unfinished predictions of another check"
        ):
            predict_to_file(other, photos, selection, out, Format.CSV)
    assert (tmp_path / "out.csv.partial").read_bytes() == before
    assert not out.exists()


def test_an_unfinished_file_without_rows_is_nobodys(
    predictor: Predictor, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    for left in ('{"predictions": 1, "key": "another"}\n', '{"predi', ""):
        (tmp_path / "out.jsonl.partial").write_text(left)
        predict_to_file(predictor, photos, Selection(), out, Format.JSONL)
        assert out.read_text(encoding="utf-8") == expected(predictor, photos, Selection())


def test_two_do_not_write_to_one_file(predictor: Predictor, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with (tmp_path / "out.csv.partial").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process writes to"):
            predict_to_file(predictor, photos, Selection(), out, Format.CSV)


def test_what_was_there_stays_until_all_is_done(
    predictor: Predictor, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("of yesterday")
    with pytest.raises(Stop):
        predict_to_file(predictor, stopping(photos, 5), Selection(), out, Format.CSV)
    assert out.read_text() == "of yesterday"
    predict_to_file(predictor, photos, Selection(), out, Format.CSV)
    assert out.read_text().startswith("image,label,score,error\n")


def test_no_picture_writes_nothing(predictor: Predictor, tmp_path: Path) -> None:
    assert predict_to_file(predictor, [], Selection(), tmp_path / "out.csv", Format.CSV) == Tally()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(predictor: Predictor, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; name a file"):
        predict_to_file(predictor, photos, Selection(), tmp_path, Format.CSV)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        predict_to_file(predictor, photos, Selection(), tmp_path / "file" / "out.csv", Format.CSV)
