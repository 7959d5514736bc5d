"""What is told about a dataset: numbers against a case counted by hand and against a plain count."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from coterie.config import load_config
from coterie.data.reading import read_dataset, with_splits
from coterie.inspection import (
    Inspection,
    Pair,
    SplitFacts,
    inspect_data,
    inspection_lines,
    inspection_tables,
)
from tests.layouts import picture_bytes, save_picture, write_coco, write_json, write_tar


def write(folder: Path, rows: str, pictures: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(pictures.split()):
        save_picture(folder / name, number)
    (folder / "labels.csv").write_text("image,split,ant,bee,cat\n" + rows)
    return folder / "labels.csv"


ROWS = """a.png,train,1,1,0
b.png,train,1,1,-1
c.png,train,1,0,0
d.png,train,0,0,0
e.png,val,1,0,1
f.png,test,0,1,-1
"""


def inspected(*words: str, **settings: object) -> Inspection:
    return inspect_data(load_config(words), **settings)  # type: ignore[arg-type]


def test_the_facts_of_a_small_table(tmp_path: Path) -> None:
    found = inspected(f"data={write(tmp_path, ROWS, 'a.png b.png e.png')}", "partition.root=1")
    assert (found.name, found.format, found.class_names) == ("labels.csv", "table", ("ant", "bee", "cat"))
    assert found.splits == {
        "train": SplitFacts(4, missing=2, unlabelled=1, cardinality=5 / 4, density=5 / 11, unknown=1),
        "val": SplitFacts(1, missing=0, unlabelled=0, cardinality=2, density=2 / 3, unknown=0),
        "test": SplitFacts(1, missing=1, unlabelled=0, cardinality=1, density=1 / 2, unknown=1),
        "all": SplitFacts(6, missing=3, unlabelled=1, cardinality=8 / 6, density=8 / 16, unknown=2),
    }
    assert found.positives["ant"] == {"train": 3, "val": 1, "test": 0, "all": 4}
    assert found.unknown["cat"] == {"train": 1, "val": 0, "test": 1, "all": 2}
    assert found.without_positives("train") == ["cat"]
    assert found.missing == ("c.png", "d.png", "f.png")
    # Of three ants two are with a bee, of two bees both with an ant; other pairs are not in train.
    assert found.pairs == (Pair("ant", "bee", 2, 2 / 3, 1.0, affinity=(2 / 3 + 1) / 2),)
    assert found.twice == ()


def test_the_hash_is_that_of_the_split_of_a_run(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,,{n % 2},{n % 3 % 2},1\n" for n in range(40))
    table = write(tmp_path, rows, " ".join(f"{n}.png" for n in range(40)))
    config = load_config([f"data={table}", "seed=3"])
    whole = inspect_data(config)
    assert list(whole.splits) == ["train", "val", "test", "all"]
    assert whole.split_hash == with_splits(read_dataset(config.data), config).split_hash()
    assert whole.split_hash_of_found == whole.split_hash
    assert inspect_data(load_config([f"data={table}", "seed=4"])).split_hash != whole.split_hash
    (tmp_path / "7.png").unlink()
    skipping = load_config([f"data={table}", "seed=3", "data.on_missing=skip"])
    part = inspect_data(skipping)
    assert part.split_hash == whole.split_hash
    assert part.split_hash_of_found == with_splits(read_dataset(skipping.data), skipping).split_hash()
    assert f"split of the images found: {part.split_hash_of_found}" in inspection_lines(part)


def test_the_classes_are_those_of_a_run(tmp_path: Path) -> None:
    found = inspected(f"data={write(tmp_path, ROWS)}", "data.min_positives=2")
    assert found.class_names == tuple(found.positives) == ("ant", "bee")
    assert any("1 of 3 classes have fewer than 2 train images" in note for note in found.notes)


def test_data_without_train_are_shown_as_they_are(tmp_path: Path) -> None:
    found = inspected(f"data={write(tmp_path, 'a.png,test,1,1,0' + chr(10))}")
    assert list(found.splits) == ["test", "all"]
    assert [pair.first for pair in found.pairs] == ["ant"]


def test_pairs_are_the_strongest_first_and_as_many_as_asked_for(tmp_path: Path) -> None:
    rows = "a.png,train,1,1,1\nb.png,train,1,1,0\nc.png,train,0,1,1\nd.png,val,0,1,0\n"
    words = (f"data={write(tmp_path, rows)}",)
    found = inspected(*words, pairs=10).pairs
    assert [(pair.first, pair.second, pair.images) for pair in found] == [
        ("ant", "bee", 2),
        ("bee", "cat", 2),
        ("ant", "cat", 1),
    ]
    assert [pair.affinity for pair in found] == sorted((pair.affinity for pair in found), reverse=True)
    assert inspected(*words, pairs=1).pairs == found[:1]
    assert inspected(*words, pairs=0).pairs == ()


def test_a_pair_on_a_few_images_comes_after_a_frequent_one(tmp_path: Path) -> None:
    # the only ant is with a cat; of 30 bees five are
    rows = "v.png,val,0,0,0\na.png,train,1,0,1\n"
    rows += "".join(f"{number}.png,train,0,1,{int(number < 5)}\n" for number in range(30))
    found = inspected(f"data={write(tmp_path, rows)}", pairs=10).pairs
    assert [(pair.first, pair.second, pair.images) for pair in found] == [
        ("bee", "cat", 5),
        ("ant", "cat", 1),
    ]
    assert found[0].affinity < found[1].affinity


def test_a_file_in_two_splits_is_reported(tmp_path: Path) -> None:
    content = {"a.png": [("cat", False)]}
    train = content | {f"{number}.png": [("ant", False)] for number in range(9)}
    write_coco(tmp_path, {"train": train, "val": content}, images=None)
    save_picture(tmp_path / "a.png")
    found = inspected(f"data={tmp_path}")
    assert found.twice == (("train2014/a.png", "val2014/a.png"),)
    assert found.twice_across == 1
    assert any(
        line.startswith("twice: 1 image, 1 of them in two splits:") for line in inspection_lines(found)
    )


def test_pictures_of_the_same_bytes_are_looked_for_where_asked(tmp_path: Path) -> None:
    table = write(tmp_path, ROWS, "a.png b.png c.png d.png e.png")
    (tmp_path / "f.png").write_bytes((tmp_path / "b.png").read_bytes())
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "c.png").unlink()
    assert inspected(f"data={table}").twice == ()
    found = inspected(f"data={table}", same_content=True)
    assert found.twice == (("a.png", "d.png"), ("b.png", "f.png"))
    assert found.twice_across == 1


def test_pictures_in_shards_and_in_memory_are_compared_too(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [(f"{n}.png", picture_bytes(n // 2)) for n in range(4)]
    members += [(f"{n}.txt", "cat;ant") for n in range(4)]
    write_tar(tmp_path / "test.tar", members)
    found = inspected(f"data={tmp_path}", same_content=True)
    assert found.twice == (("test.tar/0.png", "test.tar/1.png"), ("test.tar/2.png", "test.tar/3.png"))
    scenes = ("data.scenes.train=4", "data.scenes.val=2", "data.scenes.test=2", "data.scenes.test_shifted=2")
    assert inspected(*scenes, "data.scenes.size=16", same_content=True).twice == ()


def test_everything_is_printed_and_written(tmp_path: Path) -> None:
    found = inspected(f"data={write(tmp_path, ROWS, 'a.png')}")
    console = Console(width=100, record=True, file=io.StringIO())
    for table in inspection_tables(found):
        console.print(table)
    text = console.export_text()
    rows = [line.split() for line in text.splitlines()]
    assert ["train", "4", "1", "3", "1", "1.25", "0.4545", "1"] in rows
    assert ["ant", "3", "1", "0", "4", "0"] in rows
    assert ["cat", "0", "1", "0", "1", "2"] in rows
    lines = list(inspection_lines(found))
    assert "without positives in train: 1 class: 'cat'" in lines
    assert any(line.startswith("missing: 5 of 6 images are not there: 'b.png', 'c.png'") for line in lines)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["splits"]["all"]["cardinality"] == 8 / 6
    assert plain["without_positives"] == {"train": ["cat"], "val": ["bee"], "test": ["ant", "cat"], "all": []}


def test_a_hundred_thousand_images_that_are_not_there_take_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [{"id": n, "file_name": f"{n:06d}.jpg"} for n in range(100_000)]
    annotations = [
        {"image_id": n // 3, "category_id": int(c)} for n, c in enumerate(rng.integers(1, 81, 300_000))
    ]
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, 81)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    write_json(tmp_path / "annotations" / "instances_train2017.json", values)
    start = time.process_time()
    found = inspected(f"data={tmp_path}")
    assert len(found.missing) == found.splits["all"].images == 100_000
    assert found.splits["all"].missing == 100_000
    assert time.process_time() - start < 60
