"""Tables of images and labels, and what is said about the ones that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coterie.data.splits import ensure_splits, filter_classes
from coterie.data.table import read_table
from coterie.errors import ConfigError, DataError
from tests.conftest import shared_data

EXTENSION = ("csv", "tsv", "txt", "parquet")


def write(
    folder: Path,
    text: str,
    name: str = "labels.csv",
    images: str = "a.jpg b.jpg c.jpg",
    encoding: str = "utf-8",
) -> Path:
    """A table, and a file for each of `images`."""
    for image in images.split():
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    table = folder / name
    table.write_bytes(text.encode(encoding))
    return table


def error(table: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        read_table(table, **settings)  # type: ignore[arg-type]
    return str(caught.value)


def test_joined_labels_become_columns_sorted_by_name(tmp_path: Path) -> None:
    table = write(tmp_path, "image,labels,split\na.jpg,dog;cat,train\nb.jpg,cat,val\nc.jpg,,test\n")
    data = read_table(table)
    assert data.class_names == ("cat", "dog")
    assert data.targets.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert data.targets.dtype == "int8"
    assert data.splits.tolist() == ["train", "val", "test"]
    assert data.image_ids == ("a.jpg", "b.jpg", "c.jpg")
    assert list(data.images) == [tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"]
    assert data.name == "labels.csv"
    assert data.notes == ("1 image has no label",)


def test_class_columns_keep_their_order_and_hold_all_three_targets(tmp_path: Path) -> None:
    table = write(tmp_path, "image,zebra,ant,bee\na.jpg,1,0,-1\nb.jpg,True,FALSE,\nc.jpg,0.0,1.0,-1.0\n")
    data = read_table(table)
    assert data.class_names == ("zebra", "ant", "bee")
    assert data.targets.tolist() == [[1, 0, -1], [1, 0, -1], [0, 1, -1]]
    assert data.notes == ("1 empty cell is read as unknown",)


def test_empty_cells_without_any_zero_are_an_error_since_absent_would_be_unknown(tmp_path: Path) -> None:
    message = error(write(tmp_path, "image,ant,bee\na.jpg,1,\nb.jpg,,1\n"))
    assert "holds a 0, but 2 cells are empty" in message
    assert "write 0 where a class is absent" in message


@pytest.mark.parametrize("extension", EXTENSION)
def test_every_format_reads_alike(tmp_path: Path, extension: str) -> None:
    rows = {"image": ["a.jpg", "b.jpg"], "split": ["train", "val"], "labels": ["cat;dog", "NA"]}
    table = write(tmp_path, "", f"labels.{extension}")
    if extension == "parquet":
        pq.write_table(pa.table(rows), table)
    else:
        mark = "," if extension == "csv" else "\t"
        table.write_text("\n".join(mark.join(row) for row in [list(rows), *zip(*rows.values(), strict=True)]))
    data = read_table(table)
    assert data.class_names == ("NA", "cat", "dog")
    assert data.targets.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert data.splits.tolist() == ["train", "val"]


def test_a_txt_table_without_tabs_is_read_by_commas(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "image,labels\na.jpg,cat;dog\n", "list.txt")).class_names == (
        "cat",
        "dog",
    )


def test_parquet_labels_may_be_lists_whose_items_are_not_split(tmp_path: Path) -> None:
    table = write(tmp_path, "", "labels.parquet", images="1 2 3")
    pq.write_table(pa.table({"image": [1, 2, 3], "labels": [["a;b", " c "], None, ["c", "c", ""]]}), table)
    data = read_table(table)
    assert data.class_names == ("a;b", "c")
    assert data.targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert data.image_ids == ("1", "2", "3")


@pytest.mark.parametrize("cells", [("['cat', 'dog']", "[]", "['dog']"), ('["cat", "dog"]', "", "[ 'dog' ]")])
def test_lists_that_pandas_wrote_as_text_are_read_as_lists(tmp_path: Path, cells: tuple[str, ...]) -> None:
    quoted = ('"' + cell.replace('"', '""') + '"' for cell in cells)
    rows = "".join(f"{name}.jpg,{cell}\n" for name, cell in zip("abc", quoted, strict=True))
    data = read_table(write(tmp_path, "image,labels\n" + rows))
    assert data.class_names == ("cat", "dog")
    assert data.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize("cell", ["['cat' 'dog']", "[cat, dog]", "['cat', 5]", "['cat'], ['dog']"])
def test_other_texts_in_brackets_are_names_as_they_stand(tmp_path: Path, cell: str) -> None:
    data = read_table(write(tmp_path, f"image,labels\na.jpg,\"{cell}\"\nb.jpg,['emu']\n"))
    assert data.class_names == tuple(sorted(("['emu']", cell)))


def test_parquet_class_columns_may_be_numbers_booleans_and_missing(tmp_path: Path) -> None:
    table = write(tmp_path, "", "labels.parquet")
    columns = {
        "image": ["a.jpg", "b.jpg", "c.jpg"],
        "whole": [1, 0, -1],
        "truth": [True, False, None],
        "real": [1.0, float("nan"), 0.0],
        "__index_level_0__": [5, 6, 7],
    }
    pq.write_table(pa.table(columns), table)
    data = read_table(table)
    assert data.class_names == ("whole", "truth", "real")
    assert data.targets.tolist() == [[1, 1, 1], [0, 0, -1], [-1, -1, 0]]


def test_a_folder_named_like_a_column_adds_none(tmp_path: Path) -> None:
    folder = tmp_path / "split=train"
    table = write(folder, "", "labels.parquet")
    pq.write_table(pa.table({"image": ["a.jpg"], "labels": ["cat"]}), table)
    assert read_table(table).splits.tolist() == [""]


@pytest.mark.parametrize("label", ["NA", "null", "None", "nan", "N/A", "true", "1"])
def test_words_that_other_readers_take_for_missing_are_labels(tmp_path: Path, label: str) -> None:
    assert read_table(write(tmp_path, f"image,labels\na.jpg,{label}\n")).class_names == (label,)


def test_image_names_stay_text(tmp_path: Path) -> None:
    data = read_table(write(tmp_path, "image,labels\n001,cat\n1e3,cat\n", images="001 1e3"))
    assert data.image_ids == ("001", "1e3")


def test_commas_quotes_line_breaks_and_unicode_in_labels_survive(tmp_path: Path) -> None:
    text = 'image,labels\na.jpg,"chair, small;5"" disc"\nb.jpg,"two\nlines"\nc.jpg,naïve 猫\u2028x\n'
    data = read_table(write(tmp_path, text))
    assert data.class_names == ('5" disc', "chair, small", "naïve 猫\u2028x", "two\nlines")
    assert data.targets.sum(axis=0).tolist() == [1, 1, 1, 1]


def test_class_columns_keep_odd_names(tmp_path: Path) -> None:
    data = read_table(write(tmp_path, 'image,"chair, small",null,猫\na.jpg,1,0,1\n'))
    assert data.class_names == ("chair, small", "null", "猫")


def test_space_around_labels_and_repeated_labels_do_not_count(tmp_path: Path) -> None:
    data = read_table(write(tmp_path, "image , labels\n a.jpg , cat ; dog;; cat \nb.jpg,cat\n"))
    assert data.class_names == ("cat", "dog")
    assert data.targets.tolist() == [[1, 1], [1, 0]]
    assert data.image_ids == ("a.jpg", "b.jpg")


@pytest.mark.parametrize("text", ["image,labels\r\na.jpg,cat\r\n\r\n,\r\n", "image,labels\na.jpg,cat"])
def test_line_ends_and_empty_rows_do_not_matter(tmp_path: Path, text: str) -> None:
    data = read_table(write(tmp_path, text))
    assert (data.image_ids, data.class_names) == (("a.jpg",), ("cat",))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert len(read_table(write(tmp_path, "image,labels\na.jpg,cat\n", encoding="utf-8-sig"))) == 1


def test_columns_and_delimiter_can_be_named(tmp_path: Path) -> None:
    table = write(tmp_path, "file,tags,fold\na.jpg,cat|dog,train\n")
    data = read_table(table, image_column="file", labels_column="tags", split_column="fold", delimiter="|")
    assert data.class_names == ("cat", "dog")
    assert data.splits.tolist() == ["train"]


def test_a_delimiter_that_divides_nothing_is_noted(tmp_path: Path) -> None:
    data = read_table(write(tmp_path, "image,labels\na.jpg,cat|dog\nb.jpg,cat\n"))
    assert data.notes == (
        "no image has two labels, but some labels hold '|'; "
        "is data.delimiter, now ';', the mark between labels?",
    )


def test_an_empty_delimiter_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.delimiter is empty"):
        read_table(write(tmp_path, "image,labels\na.jpg,cat\n"), delimiter="")


def test_splits_are_empty_without_a_column(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "image,labels\na.jpg,cat\nb.jpg,cat\n")).splits.tolist() == ["", ""]


def test_usual_names_of_splits_are_understood_and_others_kept(tmp_path: Path) -> None:
    names = ["Train", "training", "valid", "Validation", "dev", "TEST", "test_shifted", "Extra", "Unlabeled"]
    rows = "".join(f"{i}.jpg,cat,{name}\n" for i, name in enumerate(names))
    images = " ".join(f"{i}.jpg" for i in range(len(names)))
    data = read_table(write(tmp_path, "image,labels,split\n" + rows, images=images))
    read = ["train", "train", "val", "val", "val", "test", "test_shifted", "Extra", "unlabelled"]
    assert data.splits.tolist() == read
    assert data.notes == (
        "split 'training' is read as 'train'",
        "split 'valid' is read as 'val'",
        "split 'Validation' is read as 'val'",
        "split 'dev' is read as 'val'",
        "split 'Unlabeled' is read as 'unlabelled'",
    )


def test_images_lie_beside_the_table_or_in_image_root(tmp_path: Path) -> None:
    table = write(tmp_path / "tables", "image,labels\nx/a.jpg,cat\n", images="../pictures/x/a.jpg")
    assert read_table(table, image_root=tmp_path / "pictures").images[0] == tmp_path / "pictures/x/a.jpg"


def test_absolute_image_paths_stand_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    table = write(tmp_path / "tables", f"image,labels\n{tmp_path / 'a.jpg'},cat\n")
    assert read_table(table).images[0] == tmp_path / "a.jpg"


def test_given_classes_close_the_list_and_set_the_order(tmp_path: Path) -> None:
    table = write(tmp_path, "image,labels\na.jpg,cat;dog\n")
    data = read_table(table, class_names=["dog", "emu", "cat"])
    assert data.class_names == ("dog", "emu", "cat")
    assert data.targets.tolist() == [[1, 0, 1]]


def test_a_label_outside_the_given_classes_names_image_line_and_neighbour(tmp_path: Path) -> None:
    table = write(tmp_path, "image,labels\na.jpg,cat\nb.jpg,cat;dining table;x\n")
    assert error(table, class_names=["cat", "diningtable"]) == (
        f"label 'dining table' of image b.jpg (line 3 of {table}) is not one of the 2 classes "
        "(nor 1 other label); did you mean 'diningtable'?"
    )


def test_given_classes_choose_columns(tmp_path: Path) -> None:
    table = write(tmp_path, "image,width,ant,bee\na.jpg,640,1,0\n")
    data = read_table(table, class_names=["bee", "ant"])
    assert data.class_names == ("bee", "ant")
    assert data.targets.tolist() == [[0, 1]]
    assert data.notes == ("1 column is none of the classes and not read: 'width'",)
    message = error(table, class_names=["ants"])
    assert "no column for 'ants' of the 1 classes; add it, or " in message
    assert message.endswith("; did you mean 'ant'?")


def test_a_bad_value_in_a_class_column_names_column_image_and_line(tmp_path: Path) -> None:
    message = error(write(tmp_path, "image,ant,width\na.jpg,1,0\nb.jpg,0,640\n"))
    assert message.startswith("column 'width' of image b.jpg (line 3 of")
    assert "is '640', but a class column holds 1, 0, or -1" in message
    assert "remove 'width' where it is none" in message


def test_a_labels_column_of_another_name_is_named_as_the_remedy(tmp_path: Path) -> None:
    message = error(write(tmp_path, "image,tags\na.jpg,cat;dog\n"))
    assert "column 'tags' of image a.jpg (line 2" in message
    assert "give it as data.labels_column where it holds label names" in message


def test_lists_in_a_class_column_are_a_bad_value(tmp_path: Path) -> None:
    table = write(tmp_path, "", "labels.parquet")
    pq.write_table(pa.table({"image": ["a.jpg"], "tags": [["cat"]]}), table)
    assert "column 'tags' of image a.jpg (row 1 of" in error(table)


def test_a_class_column_without_a_name_is_told_from_a_class(tmp_path: Path) -> None:
    message = error(write(tmp_path, ",image,ant\n0,a.jpg,1\n"))
    assert "column 1 of" in message
    assert "index=False" in message


def test_a_table_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "", "labels.csv")
    assert (
        error(tmp_path / "label.csv")
        == f"table {tmp_path / 'label.csv'} is not there; did you mean 'labels.csv'?"
    )
    assert "is not there" in error(tmp_path / "nowhere" / "labels.csv")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty; it needs a header"),
        ("\n\n", "is empty; it needs a header"),
        ("image,labels\n", "has a header but no rows"),
        ("image,labels\n,\n", "has a header but no rows"),
        ("image,labels\na.jpg,\n", "no image of"),
        ("image,ant\na.jpg,0\n", "no image of"),
        ("image,split\na.jpg,train\n", "neither a column 'labels' nor columns of classes"),
        ("image,labels\na.jpg,cat,dog\n", "line 2 of"),
        (
            "image,labels\na.jpg,cat,dog\n",
            "has 3 cells, but the header has 2; put a cell that holds a comma in",
        ),
        ("image,labels\na.jpg\n", "has 1 cell, but the header has 2"),
        ('image,labels\nb.jpg,cat\na.jpg,"cat\n', "cannot be read from line 3 on"),
        ("image,labels,labels\na.jpg,cat,dog\n", "stand twice: 'labels'"),
        ("images,labels\na.jpg,cat\n", "its columns are 'images', 'labels', and data.image_column names"),
        ("images,labels\na.jpg,cat\n", "image paths; did you mean 'images'?"),
        ("image;labels\na.jpg;cat\n", "separate the columns by commas"),
        ("image,labels\na.jpg,cat\n,dog\n ,dog\n", "column 'image' of"),
        ("image,labels\na.jpg,cat\n,dog\n ,dog\n", "is empty in line 3, line 4"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, part: str) -> None:
    assert part in error(write(tmp_path, text))


def test_line_numbers_count_lines_inside_quotes(tmp_path: Path) -> None:
    assert "is empty in line 4;" in error(write(tmp_path, 'image,labels\na.jpg,"two\nlines"\n,cat\n'))


def test_a_file_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    table = write(tmp_path, "image,labels\na.jpg,café\n", encoding="latin-1")
    assert error(table) == (
        f"table {table} is not UTF-8 text (byte 0xe9 at position 22); save it as 'CSV UTF-8'"
    )


@pytest.mark.parametrize("name", ["labels.xlsx", "labels", "labels.csv.gz"])
def test_another_format_names_the_known_ones(tmp_path: Path, name: str) -> None:
    assert "must end in .csv, .tsv, .txt, .parquet" in error(write(tmp_path, "x", name))


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").mkdir()
    assert "is a folder; name the file in it" in error(tmp_path / "labels.csv")


def test_a_damaged_parquet_file_is_an_error_about_data(tmp_path: Path) -> None:
    assert "cannot be read" in error(write(tmp_path, "image,labels\n", "labels.parquet"))


def test_pictures_inside_a_table_are_not_paths(tmp_path: Path) -> None:
    table = write(tmp_path, "", "labels.parquet")
    pq.write_table(pa.table({"image": [b"\xff\xd8"], "labels": ["cat"]}), table)
    assert "column 'image' holds bytes, not paths" in error(table)


@pytest.mark.parametrize(("labels", "kind"), [([{"id": 1}], "dict"), ([b"cat"], "bytes"), ([[0.5]], "float")])
def test_labels_that_are_not_names_are_refused(tmp_path: Path, labels: list[object], kind: str) -> None:
    table = write(tmp_path, "", "labels.parquet")
    pq.write_table(pa.table({"image": ["a.jpg"], "labels": labels}), table)
    assert f"row 1 of {table}: column 'labels' holds {kind}, not label names" in error(table)


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg", "x/../a.jpg"])
def test_an_image_in_two_rows_names_both_lines(tmp_path: Path, again: str) -> None:
    table = write(
        tmp_path, f"image,labels\na.jpg,cat\nb.jpg,cat\n{again},dog\n", images="a.jpg b.jpg x/c.jpg"
    )
    message = error(table)
    assert f"1 image of {table} in two rows: '{again}' in line 2 and line 4" in message
    assert "put all labels of an image in one row" in message


def test_an_image_in_two_splits_names_both(tmp_path: Path) -> None:
    message = error(write(tmp_path, "image,labels,split\na.jpg,cat,train\n./a.jpg,cat,test\n"))
    assert "'./a.jpg' in split 'train' (line 2) and in split 'test' (line 3)" in message


def test_a_folder_linked_under_another_name_holds_the_same_images(tmp_path: Path) -> None:
    table = write(tmp_path, "image,labels,split\nx/a.jpg,cat,train\ny/a.jpg,cat,test\n", images="x/a.jpg")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    assert "in two splits" in error(table)


def test_a_real_table_of_4500_photographs() -> None:
    table = shared_data() / "corel5k" / "labels.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    data = read_table(table)
    assert (len(data), data.num_classes) == (4500, 260)
    assert {name: len(data.indices(name)) for name in ("train", "val", "test")} == {
        "train": 3600,
        "val": 400,
        "test": 500,
    }
    assert data.notes == ("7 images have no label",)
    assert int((data.targets.sum(axis=1) == 0).sum()) == 7
    assert ensure_splits(data, 0.1, 0.1, seed=0) is data
    assert filter_classes(data, 50).num_classes == 63
