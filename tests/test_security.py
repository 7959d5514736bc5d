"""No file runs code, unfolds without end, or reaches beyond what was given: a hostile file for each kind."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import coterie
from coterie.ablation.rows import read_rows
from coterie.checkpoint import INFO_FILE, load_model
from coterie.config import load_config
from coterie.data.check import check_images
from coterie.data.coco import read_coco
from coterie.data.dataset import MOST_PIXELS, UnreadableImage, open_image
from coterie.data.huggingface import read_huggingface
from coterie.data.table import read_table
from coterie.data.voc import read_voc
from coterie.data.webdataset import find_shards, read_webdataset
from coterie.errors import CheckpointError, ConfigError, CoterieError, DataError, RunError
from coterie.logits import read_logits
from coterie.models.weights import read_state_dict
from coterie.models.word_vectors import read_word_vectors
from coterie.pipeline import Run
from coterie.predictor import Predictor
from coterie.published import import_cpsd
from coterie.sources import find_pictures
from tests.layouts import picture_bytes, save_picture, write_tar, write_voc

SOURCE = Path(coterie.__file__).parent
PLAIN: dict[str, Any] = {
    **{"kind": "coterie", "name": "test_resnet", "image_size": None, "drop_rate": 0.0, "options": {}},
    **{"head": "linear", "head_options": {}, "shrink": None},
}


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What code in a hostile file would make."""
    return tmp_path / "made"


def calls() -> list[tuple[str, str, ast.Call]]:
    """(file, name, call) of every call with a dotted name in the package."""
    return [
        (path.relative_to(SOURCE).as_posix(), ast.unparse(node.func), node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_every_loader_in_the_package_is_one_that_runs_no_code() -> None:
    forbidden = {"eval", "exec", "compile"}
    methods = {"extract", "extractall", "unpack_archive", "literal_eval", "Popen", "read_pickle", "system"}
    modules = ("pickle.", "marshal.", "shelve.", "joblib.", "subprocess.")
    loaders = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    seen = set()
    for file, name, call in calls():
        last = name.rpartition(".")[2]
        allowed = (file, name) == ("sidebyside.py", "pickle.dumps")
        wrong = name in forbidden or last in methods or name.startswith(modules)
        assert allowed or not wrong, (file, name)
        if name in loaders:
            keyword, value = loaders[name]
            given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg == keyword}
            assert given == {keyword: value}, (file, name)
            seen.add(name)
        owners = {
            "yaml": "untrusted.py",
            "json.loads": "untrusted.py",
            "ElementTree.parse": "data/voc.py",
            "Image.open": "data/dataset.py",
        }
        for what, owner in owners.items():
            mine = name == what or (
                what == "yaml" and name in ("yaml.load", "yaml.safe_load", "yaml.compose")
            )
            copies = ast.unparse(call).startswith("json.loads(json.dumps(")
            assert not mine or file == owner or copies, (file, name)
    assert seen == set(loaders)


@pytest.mark.parametrize("name", ["weights.pth", "weights.ckpt", "weights.bin"])
def test_a_pickle_in_the_place_of_weights_is_not_run(tmp_path: Path, made: Path, name: str) -> None:
    path = tmp_path / name
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"state_dict": {"a": torch.zeros(1)}, "evil": Evil(made)}, path)
        with pytest.raises(CheckpointError, match="those are never loaded"):
            read_state_dict(path)
        with pytest.raises(CheckpointError, match="those are never loaded"):
            import_cpsd(path, tmp_path / "out", ["cat"])
    assert not made.exists()


def test_a_pickle_in_an_npz_or_npy_is_not_run(tmp_path: Path, made: Path, run_copy: Run) -> None:
    objects = np.array([Evil(made)], dtype=object)
    path = tmp_path / "words.npz"
    np.savez(path, vectors=objects, class_names=np.array(["cat"]))
    with pytest.raises(ConfigError, match="cannot be read as an npz"):
        read_word_vectors(path, ["cat"])
    for name in ("student.npy", "targets.npy"):
        file = run_copy.folder / "logits" / "test" / name
        whole = file.read_bytes()
        np.save(file, objects, allow_pickle=True)
        with pytest.raises(RunError, match="are damaged"):
            read_logits(run_copy.folder, "test")
        file.write_bytes(whole)
    assert not made.exists()


@pytest.mark.parametrize("name", ["../../../secret.npy", "/{0}/secret.npy", "..", "", "targets.npy\0"])
def test_an_index_of_logits_reaches_no_file_elsewhere(run_copy: Run, tmp_path: Path, name: str) -> None:
    folder = run_copy.folder / "logits" / "test"
    (tmp_path / "secret.npy").write_bytes((folder / "student.npy").read_bytes())
    index = json.loads((folder / "index.json").read_text())
    index["models"]["student"] = name.format(tmp_path)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="are damaged"):
        read_logits(run_copy.folder, "test")


def test_an_array_that_says_it_is_larger_than_its_file_takes_no_memory(run_copy: Run) -> None:
    for name in ("student.npy", "targets.npy"):
        file = run_copy.folder / "logits" / "test" / name
        whole = file.read_bytes()
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)}
        )
        file.write_bytes(buffer.getvalue() + bytes(100))
        with pytest.raises(RunError, match="are damaged"):
            read_logits(run_copy.folder, "test")
        file.write_bytes(whole)


def hostile_module(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `evil_models` in the current folder, which makes a folder when it is imported."""
    (folder / "evil_models.py").write_text(
        f"import os\nos.mkdir({str(made)!r})\ndef build(num_classes): ...\n"
    )
    monkeypatch.chdir(folder)


def test_a_checkpoint_names_no_code_and_no_address(
    run_copy: Run, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_module(tmp_path, made, monkeypatch)
    folder = run_copy.folder / "student"
    content = json.loads((folder / INFO_FILE).read_text())
    for name in ("evil_models:build", "hf-hub:evil/model", "hf_hub:evil/model", "local-dir:/tmp", "hf://a/b"):
        content["architecture"] = PLAIN | {"name": name}
        (folder / INFO_FILE).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="there is no such model in timm"):
            load_model(folder)
    content["architecture"] = {"kind": "own", "builder": "evil_models:build"}
    (folder / INFO_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="loading runs no code by itself"):
        load_model(folder)
    assert not made.exists()


def test_a_checkpoint_brings_no_weights_from_elsewhere(run_copy: Run) -> None:
    folder = run_copy.folder / "student"
    content = json.loads((folder / INFO_FILE).read_text())
    for key, value in (
        ("checkpoint_path", "/etc/passwd"),
        ("pretrained_cfg", {"url": "x"}),
        ("pretrained", 1),
    ):
        content["architecture"] = PLAIN | {"options": {key: value}}
        (folder / INFO_FILE).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"model\.options cannot hold"):
            load_model(folder)


def test_a_recipe_or_a_file_of_rows_names_no_code(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_module(tmp_path, made, monkeypatch)
    for text in ("model: evil_models:build", "model: {name: evil_models:build}"):
        (tmp_path / "mine.yaml").write_text(text)
        (tmp_path / "based.yaml").write_text("base: mine.yaml\nk: 3")
        for name in ("mine.yaml", "based.yaml"):
            with pytest.raises(ConfigError, match=r"names code to run, model\.name=evil_models:build"):
                load_config([f"recipe={tmp_path / name}"])
    own = load_config([f"recipe={tmp_path / 'mine.yaml'}", "model=evil_models:build"])
    assert own.model.name == "evil_models:build"  # a person named it
    assert load_config([f"recipe={tmp_path / 'mine.yaml'}", "model=resnet18"]).model.name == "resnet18"
    for words in ("model=evil_models:build", "model.name=evil_models:build", "{model: evil_models:build}"):
        (tmp_path / "rows.yaml").write_text(json.dumps({"mine": [words.strip("{}").replace(": ", "=", 1)]}))
        with pytest.raises(ConfigError, match="a file does not name code to run"):
            read_rows(tmp_path / "rows.yaml")
    assert not made.exists()


def test_a_script_in_a_dataset_of_hugging_face_is_not_run(tmp_path: Path, made: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("photos.py", "__init__.py", "setup.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(made)!r})\n")
    with pytest.raises(CoterieError):
        read_huggingface(str(folder))
    with pytest.raises(CoterieError):
        read_huggingface(str(folder / "photos.py"))
    assert not made.exists()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_members_of_an_archive_are_read_in_place_whatever_they_are_called(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    save_picture(outside, 7)
    (tmp_path / "data").mkdir()
    names = ("../outside", f"{tmp_path}/outside", "deep/../../../outside")
    members: list[Any] = []
    for number, name in enumerate(names):
        members += [(f"{name}.png", picture_bytes(number)), (f"{name}.txt", "cat;dog" if number else "cat")]
    members += [
        ("link.jpg", link("link.jpg", str(outside), tarfile.SYMTYPE)),
        ("hard.jpg", link("hard.jpg", str(outside), tarfile.LNKTYPE)),
        ("pipe.jpg", link("pipe.jpg", "", tarfile.FIFOTYPE)),
        ("null.jpg", link("null.jpg", "", tarfile.CHRTYPE)),
    ]
    write_tar(tmp_path / "data" / "train.tar", members)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    dataset = read_webdataset(str(tmp_path / "data"))
    assert len(dataset) == 3
    assert "4 members are no plain files" in dataset.notes[0]
    for number in range(3):
        expected = Image.open(io.BytesIO(picture_bytes(number))).convert("RGB")
        assert dataset.load_image(number).tobytes() == expected.tobytes()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before  # nothing was unpacked


def test_headers_of_an_archive_that_lead_back_end(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.jpg")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)  # minus so many bytes, as GNU writes it
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "train.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(DataError, match="cannot be read as an uncompressed tar archive"):
        read_webdataset(str(tmp_path))


def test_a_pattern_that_stands_for_any_number_of_shards_is_refused() -> None:
    for pattern in ("{0..999999999999}.tar", "{0..9999}-{0..9999}.tar", "{a,b}" * 40 + ".tar"):
        with pytest.raises(DataError, match="stands for more than 1,000,000 shards"):
            find_shards(pattern)


def test_an_annotation_defines_no_entities(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": {"a": [("cat", False)]}})
    (path,) = tmp_path.rglob("a.xml")
    laughs = "".join(f'<!ENTITY l{number + 1} "{f"&l{number};" * 10}">' for number in range(9))
    outside = '<!ENTITY l9 SYSTEM "/etc/passwd">'
    for entities in (f'<!ENTITY l0 "ha">{laughs}', outside):
        for code in ("utf-8", "utf-16"):
            text = (
                f"<?xml version='1.0' encoding='{code}'?><!DOCTYPE a [{entities}]>"
                "<annotation><object><name>&l9;</name></object></annotation>"
            )
            path.write_bytes(text.encode(code))
            with pytest.raises(DataError, match="it has a document type"):
                read_voc(tmp_path)


def png(width: int, height: int) -> bytes:
    """A PNG of one colour that says it has that size, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(10_001, 10_000))
    assert MOST_PIXELS < 10_001 * 10_000
    assert path.stat().st_size < 2000
    return path


def peak(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_picture_of_too_many_pixels_is_refused_wherever_it_is_opened(bomb: Path, run_copy: Run) -> None:
    reason = "10,001 x 10,000 pixels, and at most 100,000,000 are decoded"
    with pytest.raises(UnreadableImage, match=reason):
        open_image(bomb)
    table = bomb.parent / "labels.csv"
    table.write_text("image,labels\nbomb.png,cat\n")
    with pytest.raises(DataError, match=reason):  # a training looks at every picture first
        check_images(read_table(table))
    predictor: Predictor = run_copy.student
    (prediction,) = predictor.stream(find_pictures([bomb]))
    assert prediction.error is not None
    assert reason in prediction.error
    opened = Image.open(bomb)  # by a person, not yet decoded
    (prediction,) = predictor.stream([opened])
    assert prediction.error is not None
    assert reason in prediction.error
    bomb.write_bytes(png(60_000, 60_000))
    with pytest.raises(UnreadableImage, match="pixels"):
        open_image(bomb)


def test_a_picture_of_sixteen_bits_is_brought_to_eight_in_little_memory(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 3000 * 2000).astype(np.uint16).reshape(2000, 3000)
    Image.fromarray(values).save(tmp_path / "deep.png")
    opened: list[Image.Image] = []
    assert peak(lambda: opened.append(open_image(tmp_path / "deep.png"))) < 4 * values.nbytes
    expected = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(opened[0])[..., 0], expected)


def test_a_picture_that_would_be_drawn_by_a_program_is_not_read(tmp_path: Path) -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n%%EOF\n"
    for name in ("a.jpg", "a.eps"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match="not a picture of a known format"):
            open_image(tmp_path / name)
    assert [path.name for path in find_pictures([tmp_path]) if isinstance(path, Path)] == ["a.jpg"]


def test_a_pipe_or_a_device_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(UnreadableImage, match="it is no file"):
            open_image(path)


def test_files_that_unfold_to_a_thousand_times_their_size_are_refused(tmp_path: Path) -> None:
    npz = tmp_path / "words.npz"
    with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("vectors.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": "<f4", "fortran_order": False, "shape": (10**5, 300)},
        )
        for _ in range(120):
            file.write(bytes(10**6))
    with pytest.raises(ConfigError, match="would unfold to 120,000,"):
        read_word_vectors(npz, ["cat"])
    torch.save({"a": torch.zeros(10)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    assert list(read_state_dict(tmp_path / "plain.pth")) == ["a"]
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state_dict(tmp_path / "packed.pth")


def test_a_parquet_file_of_more_rows_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    rows = 2_000_000
    column = pyarrow.array(["a.jpg"]).take(pyarrow.array(np.zeros(rows, np.int32)))
    path = tmp_path / "labels.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": column, "labels": column}), path)
    assert path.stat().st_size < rows / 100
    with pytest.raises(DataError, match="says that it has 2,000,000 rows"):
        read_table(path)


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat 1 2\n" + "x" * 2**21)
    with pytest.raises(ConfigError, match="a line of more than"):
        read_word_vectors(tmp_path / "words.txt", ["cat"])


def test_a_list_in_a_cell_is_matched_in_a_time_that_grows_with_its_length(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"image,labels\na.jpg,['cat'{' ' * 120_000}x\nb.jpg,['cat']\n")
    assert "b.jpg" in read_table(table).image_ids


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a\ud800.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
    }
    (tmp_path / "instances_train2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image ids .* are no text in Unicode: 'train2014/a\\ud800.jpg'"):
        read_coco(tmp_path)
