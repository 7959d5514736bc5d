"""What is fuzzed: for each kind of file a valid one, and what reads it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import timm
import torch
from PIL import Image
from safetensors.torch import save

from coterie.ablation.rows import read_rows
from coterie.checkpoint import (
    INFO_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    describe_architecture,
    load_model,
    save_checkpoint,
)
from coterie.class_mapping import map_classes, read_mapping
from coterie.config import DataConfig, ModelConfig, as_words, load_config, read_config, validate_config
from coterie.data.dataset import MultiLabelDataset, open_image
from coterie.data.presence import missing_images, repeated_images
from coterie.data.reading import read_dataset
from coterie.evaluation import evaluation_config
from coterie.export.hub import write_hub_folder
from coterie.formats import Format
from coterie.labels import CooccurrenceGraph, Partition, partition_labels
from coterie.models.factory import ModelFactory
from coterie.models.weights import load_backbone_weights, read_state_dict
from coterie.models.word_vectors import count_dimensions, read_word_vectors
from coterie.pipeline import run
from coterie.predictions import Selection, predict_to_file
from coterie.predictor import load_classifier
from coterie.published import import_cpsd, read_class_names
from coterie.report.reading import read_run
from coterie.runfolder import RunFolder
from coterie.sources import find_pictures, listed_paths
from coterie.store import Store
from tests.fuzzing import kept
from tests.layouts import picture_bytes, write_coco, write_json, write_nuswide, write_tar, write_voc
from tests.tiny import RUN_WORDS, Net, write_table

NAMES = ("ant", "cat", "zebra")
VOC_OBJECTS = {"train": {"a": [("cat", False), ("ant", True)]}, "val": {"b": [("ant", False)]}}
COCO_OBJECTS = {
    "train": {"a.png": [("cat", False), ("ant", True)], "b.png": [("zebra", False)]},
    "val": {"c.png": [("ant", False)]},
}


@dataclass(frozen=True)
class Target:
    """`make` writes valid files into a folder, `read` reads them; `files` are those to change, as a pattern.

    `starts_wrong`: already the first files are refused, since right ones are too large. `mend`: brings hashes
    and checksums up to date, so that what lies behind them is reached too.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: str = "**/*"
    mend: Callable[[Path], object] | None = None
    starts_wrong: bool = False


def _dataset(name: str = ".", **settings: Any) -> Callable[[Path], object]:
    """Reads a dataset below the folder, and does with it what a run does before it looks at a picture."""

    def read(folder: Path) -> MultiLabelDataset:
        dataset = read_dataset(DataConfig(source=str(folder / name), **settings))
        dataset.fingerprint() if not len(missing_images(dataset)) else dataset.split_hash()
        repeated_images(dataset)
        json.dumps([dataset.class_names, dataset.image_ids, dataset.notes], ensure_ascii=False).encode()
        return dataset

    return read


def _write_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _make_parquet(folder: Path) -> None:
    table = pyarrow.table(
        {"image": ["a.png", "b.png"], "labels": [["cat"], ["ant", "cat"]], "split": ["train", "val"]}
    )
    pyarrow.parquet.write_table(table, folder / "labels.parquet")


def _make_nuswide_csv(folder: Path) -> None:
    text = "filepath,label,split_name\na.jpg,\"['cat', 'ant']\",train\nb.jpg,['cat'],val\n"
    (folder / "nus.csv").write_text(text)


def _make_shards(folder: Path) -> None:
    json_members: list[tuple[str, bytes | str]] = []
    for number in range(2):
        entry = json.dumps({"labels": ["cat", 1][: number + 1], "split": "train"})
        json_members += [(f"{number}.png", picture_bytes(number)), (f"{number}.json", entry)]
    write_tar(folder / "train.tar", json_members)
    (folder / "classnames.txt").write_text("\n".join(NAMES))


def _make_text_shards(folder: Path) -> None:
    members: list[tuple[str, bytes | str]] = [("a.png", picture_bytes(1)), ("a.txt", "cat;ant")]
    members += [("b.png", picture_bytes(2)), ("b.txt", "zebra")]
    write_tar(folder / "test.tar", members)


def _mend_shards(folder: Path) -> None:
    """The checksum of every block that may be a header."""
    for shard in folder.glob("*.tar"):
        content = bytearray(shard.read_bytes())
        for start in range(0, len(content) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
            block = content[start : start + tarfile.BLOCKSIZE]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        shard.write_bytes(content)


def _rows() -> Any:
    """Two pictures and their labels as the library `datasets` has them."""
    import datasets

    datasets.disable_progress_bars()
    labels = datasets.List(datasets.ClassLabel(names=list(NAMES)))
    features = datasets.Features({"image": datasets.Image(), "labels": labels})
    pictures = [{"bytes": picture_bytes(number), "path": None} for number in range(2)]
    return datasets.Dataset.from_dict({"image": pictures, "labels": [[0, 2], [1]]}, features=features)


RECIPE = """# A recipe
base: [demo]
k: 3
data: {source: photos, class_names: [cat, dog], min_positives: 2, val_fraction: .2}
model: {name: resnet18, options: {drop_path_rate: 0.1}, mean: [.5, .5, .5]}
train: &train {epochs: 3, lr: 1.0e-3, ema: null}
student: {<<: *train, views: 2}
augment: {flip: 0.5, cutout: 0.25}
"""


def _read_recipe(folder: Path) -> None:
    config = load_config(recipe=folder / "mine.yaml")
    config.run_folder()
    validate_config(config.to_values())
    as_words(config)


def _read_words(folder: Path) -> None:
    text = (folder / "words.txt").read_text(encoding="utf-8", errors="replace")
    config = load_config(line for line in text.splitlines() if line and not line.startswith("recipe="))
    as_words(config)


WORDS = """data=photos/labels.csv
data.class_names=[cat, dog]
k=3
train={epochs: 4, lr: .01}
model.options={drop_path_rate: 0.1}
model.mean=[0.5, 0.5, 0.5]
distill.a=.25
augment.view_seed=null
student.epochs=3
"""


def _make_checkpoint(folder: Path) -> None:
    factory = ModelFactory(ModelConfig(name="test_resnet", image_size=32))
    config = load_config(["model=test_resnet"]).to_values()
    checkpoint = Checkpoint(
        "student", NAMES, describe_architecture(factory), factory.preprocessing, 0.5, {}, config
    )
    save_checkpoint(folder, factory.build(NAMES), checkpoint)


def _mend_checkpoint(folder: Path) -> None:
    """The hash of the weights in the description, where that is JSON still."""
    path = folder / INFO_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["weights_sha256"] = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
        path.write_text(json.dumps(content))
    except (ValueError, TypeError, RecursionError, UnicodeError):
        return


def _read_checkpoint(folder: Path) -> None:
    model, checkpoint = load_model(folder)
    checkpoint.class_thresholds()
    evaluation_config(checkpoint, ["data=labels.csv"])
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))


@cache
def _backbone() -> Any:
    return timm.create_model("test_resnet", num_classes=0)


def _make_weights(folder: Path) -> None:
    state = {"state_dict": _backbone().state_dict(), "epoch": 3}
    torch.save(state, folder / "weights.pth")
    torch.save({"a.weight": torch.zeros(2, 2)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "weights.safetensors").write_bytes(save(_backbone().state_dict()))


def _read_weights(folder: Path) -> None:
    for name in ("old.pth", "weights.pth", "weights.safetensors"):
        read_state_dict(folder / name)
    load_backbone_weights(_backbone(), folder / "weights.pth")
    load_backbone_weights(_backbone(), folder / "weights.safetensors")


def _make_released(folder: Path) -> None:
    state = {"module.features.4.0.conv2.weight": torch.zeros(64, 64, 3, 3), "classify.bias": torch.zeros(3)}
    torch.save(state, folder / "released.ckpt")


def _read_released(folder: Path) -> None:
    import_cpsd(folder / "released.ckpt", folder / "out", NAMES)


def _make_partition(folder: Path) -> None:
    graph = CooccurrenceGraph(
        np.ones((4, 4), np.int64) - np.eye(4, dtype=np.int64), np.full(4, 5), tuple("abcd")
    )
    partition_labels(graph, 2).save(folder / "co.json")


@cache
def finished_folder() -> Path:
    """A finished run of the tiny model, made once."""
    folder = Path(mkdtemp(prefix="coterie-fuzz-"))
    table = write_table(folder / "photos")
    return run(load_config([*RUN_WORDS, f"data={table}", f"out={folder / 'run'}"])).folder


def _make_run(folder: Path) -> None:
    shutil.copytree(finished_folder(), folder / "run")
    for heavy in (folder / "run").rglob("tensorboard"):
        shutil.rmtree(heavy)


def _read_run(folder: Path) -> None:
    run_folder = RunFolder(folder / "run")
    read_config(folder / "run" / "config.yaml")
    run_folder.inputs()
    finished = read_run(folder / "run")
    for training in finished.trainings:
        finished.history(training.name)
        run_folder.is_done(training, training.key)
    for split in finished.splits:
        logits = finished.logits(split)
        np.stack([np.array(array) for array in logits.models.values()]).sum()


class _Enough(Exception):
    """What ends a prediction in its middle."""


def _predict(folder: Path, most: int) -> None:
    """Write what the student says of three pictures, or of so many of them that it stops before the end."""
    predictor = load_classifier(finished_folder(), model=Net)

    def pictures() -> Iterator[Path]:
        yield from sorted(folder.glob("*.png"))[:most]
        if most < 3:
            raise _Enough

    predict_to_file(predictor, pictures(), Selection(), folder / "out.csv", Format.CSV)


def _make_partial(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture_bytes(number))
    with suppress(_Enough):
        _predict(folder, 2)


def _make_measured(folder: Path) -> None:
    shutil.copytree(finished_folder() / "student", folder / "run" / "student")
    shutil.copy(finished_folder() / "metrics.json", folder / "run")


def _write_card(folder: Path) -> None:
    shutil.rmtree(folder / "card", ignore_errors=True)
    write_hub_folder(folder / "run" / "student", folder / "card")


def _read_list(folder: Path) -> None:
    with (folder / "list.txt").open("rb") as file:
        for path in listed_paths(file):
            Path(path).suffix.encode("utf-8", "surrogateescape")


def _make_store(folder: Path) -> None:
    store = Store(folder / "store")
    store.prepare()
    training = RunFolder(finished_folder()).trainings()[0]
    training = replace(training, key="a" * 64)
    store.put(training, finished_folder() / training.name)


def _read_store(folder: Path) -> None:
    store = Store(folder / "store")
    (key,) = ("a" * 64,)
    store.find(key)


def _make_words(folder: Path) -> None:
    np.savez(folder / "words.npz", vectors=np.ones((3, 4), np.float32), class_names=np.array(NAMES))
    np.savez_compressed(folder / "packed.npz", vectors=np.ones((3, 4)), class_names=np.array(NAMES))
    (folder / "words.txt").write_text("3 4\n" + "".join(f"{name} 1 2.5 -3 4e-2\n" for name in NAMES))


def _read_word_vectors(folder: Path) -> None:
    for name in ("words.npz", "packed.npz", "words.txt"):
        read_word_vectors(folder / name, NAMES)
        count_dimensions(folder / name)


def _make_mapping(folder: Path) -> None:
    pairs = {"ant": "insect", "cat": ["cat", "lion"]}
    write_json(folder / "map.json", pairs)
    (folder / "map.yaml").write_text("ant: insect\ncat: [cat, lion]\n")
    (folder / "map.csv").write_text("data,model\nant,insect\ncat,cat\ncat,lion\n")


def _read_mapping(folder: Path) -> None:
    for name in ("map.json", "map.yaml", "map.csv"):
        map_classes(read_mapping(folder / name), NAMES, ("insect", "cat", "lion"))


IMAGE_KINDS: dict[str, dict[str, Any]] = {
    "jpg": {},
    "png": {},
    "gif": {},
    "webp": {},
    "bmp": {},
    "tif": {"compression": "tiff_lzw"},
    "ppm": {},
    "jp2": {},
    "tga": {},
    "pcx": {},
    "ico": {"sizes": [(16, 16)]},
    "sgi": {},
    "avif": {},
    "qoi": {},
}


def _make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, options in IMAGE_KINDS.items():
        buffer = io.BytesIO()
        with_exif = {"exif": exif} if suffix in ("jpg", "png", "webp") else {}
        try:
            image.save(buffer, Image.registered_extensions()[f".{suffix}"], **options, **with_exif)
        except (OSError, KeyError):  # a format that this Pillow does not write
            continue
        (folder / f"a.{suffix}").write_bytes(buffer.getvalue())
    Image.fromarray(rng.integers(0, 65535, (8, 8), dtype=np.uint16)).save(folder / "deep.png")
    image.convert("P").save(folder / "palette.png", transparency=3)


def _mend_images(folder: Path) -> None:
    """The checksums of PNG."""
    import zlib

    for path in folder.glob("*.png"):
        content = bytearray(path.read_bytes())
        start = 8
        while start + 12 <= len(content):
            (length,) = struct.unpack(">I", content[start : start + 4])
            end = start + 8 + length
            if end + 4 > len(content):
                break
            content[end : end + 4] = struct.pack(">I", zlib.crc32(content[start + 4 : end]))
            start = end + 4
        path.write_bytes(content)


def _read_images(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        open_image(path)
    list(find_pictures([folder]))


TARGETS: dict[str, Target] = {
    "table": Target(
        _write_text(
            "labels.csv", 'image,split,labels\na.png,train,cat;ant\n"b,c.png",val,\nd.png,test,cat\n'
        ),
        _dataset("labels.csv"),
    ),
    "table-of-lists": Target(
        _write_text("labels.csv", "image,labels\na.png,\"['cat', 'ant']\"\nb.png,['cat']\n"),
        _dataset("labels.csv"),
    ),
    "table-of-classes": Target(
        _write_text("labels.tsv", "image\tcat\tant\na.png\t1\t0\nb.png\t-1\t1.0\nc.png\t\ttrue\n"),
        _dataset("labels.tsv"),
    ),
    "parquet": Target(_make_parquet, _dataset("labels.parquet")),
    "coco": Target(lambda folder: write_coco(folder, COCO_OBJECTS, images=None), _dataset()),
    "voc": Target(lambda folder: write_voc(folder, VOC_OBJECTS), _dataset(), "**/*.[tx][xm][tl]"),
    "nuswide": Target(
        lambda folder: write_nuswide(
            folder,
            {"train": {"x\\a_1.jpg": [1, 0], "b_2.jpg": [0, 1]}, "test": {"c_3.jpg": [1, 1]}},
            ["cat", "ant"],
        ),
        _dataset(),
    ),
    "nuswide-csv": Target(_make_nuswide_csv, _dataset("nus.csv")),
    "shards": Target(_make_shards, _dataset(), mend=_mend_shards),
    "text-shards": Target(_make_text_shards, _dataset(), mend=_mend_shards),
    "saved": Target(lambda folder: _rows().save_to_disk(folder / "saved"), _dataset("saved")),
    "saved-parquet": Target(
        lambda folder: _rows().to_parquet(folder / "rows.parquet"),
        _dataset("rows.parquet", format="huggingface"),
    ),
    "recipe": Target(_write_text("mine.yaml", RECIPE), _read_recipe),
    "words": Target(_write_text("words.txt", WORDS), _read_words),
    "rows": Target(
        _write_text(
            "rows.yaml", "mine: [k=2, distill.a=1]\nother: {words: [k=1], model: student, title: x}\n"
        ),
        lambda folder: read_rows(folder / "rows.yaml"),
    ),
    "checkpoint": Target(_make_checkpoint, _read_checkpoint, mend=_mend_checkpoint),
    "weights": Target(_make_weights, _read_weights),
    "released": Target(_make_released, _read_released, "*.ckpt", starts_wrong=True),
    "partition": Target(_make_partition, lambda folder: Partition.load(folder / "co.json")),
    "run": Target(_make_run, _read_run, "**/*.[jyn][sapo]*"),
    "store": Target(_make_store, _read_store, "**/*.json"),
    "state": Target(kept.make_state, kept.read_state, "**/state-*.pt", mend=kept.mend_state),
    "arrays": Target(kept.make_arrays, kept.read_arrays, "*/*.bin", mend=kept.mend_arrays),
    "index": Target(kept.make_index, kept.read_index, "index/**/*.*", mend=kept.mend_index),
    "storage": Target(
        lambda folder: kept.make_storage(folder, finished_folder()), kept.read_storage, "storage/**/*"
    ),
    "predictions": Target(_make_partial, lambda folder: _predict(folder, 3), "*.partial"),
    "card": Target(_make_measured, _write_card, "run/**/*.json"),
    "list": Target(_write_text("list.txt", "a.png\nfolder/b.jpg\r\n\nhttps://a.b/c.png\n"), _read_list),
    "word-vectors": Target(_make_words, _read_word_vectors),
    "class-mapping": Target(_make_mapping, _read_mapping),
    "class-names": Target(
        _write_text("classes.txt", "cat\nant\n"), lambda folder: read_class_names(folder / "classes.txt")
    ),
    "images": Target(_make_images, _read_images, mend=_mend_images),
}
