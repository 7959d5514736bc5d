"""From `data.source` to a dataset: which format lies there, its reader, and what all have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from coterie.config import Config, DataConfig
from coterie.data.check import check_images
from coterie.data.coco import read_coco
from coterie.data.dataset import UNLABELLED, MultiLabelDataset
from coterie.data.huggingface import is_saved, read_huggingface
from coterie.data.nuswide import csv_in, has_official_lists, is_nuswide_csv, read_nuswide
from coterie.data.presence import check_apart, check_presence, missing_images, without_missing
from coterie.data.scenes import SceneSizes, make_scenes
from coterie.data.sparse import are_labelled
from coterie.data.splits import ensure_splits
from coterie.data.table import TABLE_SUFFIXES, read_table
from coterie.data.voc import read_voc, voc_folders
from coterie.data.webdataset import read_webdataset
from coterie.errors import ConfigError, DataError, counted, did_you_mean, shortened

# What the published val is used as, where the data publish no labelled test and where they do.
OFFICIAL_VAL: dict[str, tuple[str, str]] = {
    "coco": ("test", "val"),
    "nuswide": ("test", "val"),
    "voc": ("test", "train"),
}
# As the papers that are compared with have it.
DROPS_UNLABELLED = ("coco", "nuswide")
LAYOUTS = (
    "annotations/instances_….json (COCO), ImageList/ or a CSV of filepath, label and split_name (NUS-WIDE), "
    "ImageSets/Main/ or VOCdevkit/ (VOC), dataset_dict.json or Parquet (Hugging Face), .tar (WebDataset)"
)


def read_dataset(config: DataConfig, seed: int = 0) -> MultiLabelDataset:
    """The dataset that the settings name, whether its images are there or not; `seed` makes the scenes.

    The published val is what `data.official_val` says; images without a label are kept or dropped. Raises
    CoterieError where the data are not as the format has them.
    """
    name = format_of(config)
    if config.image_root is not None and not config.image_root.is_dir():
        raise DataError(
            f"data.image_root {config.image_root} is not a folder; name the one that image paths start from"
        )
    dataset = _read_scenes(config, seed) if name == "scenes" else READERS[name](config)
    dataset = _with_classes(dataset, config)
    dataset = _with_official_val(dataset, name, config)
    return _without_unlabelled(dataset, name, config)


def with_splits(dataset: MultiLabelDataset, config: Config) -> MultiLabelDataset:
    """The dataset with the splits of a run, each image in one of them and there.

    Splits are drawn before missing images are left out: whoever lacks other images has the same splits.
    """
    missing = missing_images(dataset)
    check_presence(dataset, missing, config.data.on_missing)
    dataset = ensure_splits(dataset, config.data.val_fraction, config.data.test_fraction, config.seed)
    check_apart(dataset)
    return without_missing(dataset, missing)


def read_split(config: Config, split: str, drawn: bool = True) -> MultiLabelDataset:
    """The images of one split alone, each of them readable.

    `drawn`: the splits are those of a run on these data. Else a split that the data lack is drawn, and where
    no image has a split, all are of this one.
    """
    dataset = read_dataset(config.data, config.seed)
    if not drawn and dataset.split_names == ("",):
        note = f"no splits given: all {len(dataset):,} images are measured"
        splits = np.full(len(dataset), split)
        dataset = replace(dataset, splits=splits, notes=(*dataset.notes, note))
    elif drawn or split not in dataset.split_names:
        dataset = ensure_splits(dataset, config.data.val_fraction, config.data.test_fraction, config.seed)
    dataset = dataset.subset(dataset.indices(split))
    missing = missing_images(dataset)
    check_presence(dataset, missing, config.data.on_missing)
    checked, _ = check_images(without_missing(dataset, missing), config.data.on_corrupt)
    return checked


def format_of(config: DataConfig) -> str:
    """`data.format`, or by default the format of what lies at `data.source`; DataError where it is none."""
    path = Path(config.source)
    if config.format in ("coco", "nuswide", "voc") and not path.exists():
        raise DataError(f"there is nothing at {path}{_like(path)}")
    if config.format != "auto":
        return config.format
    if config.source == "scenes":
        return "scenes"
    if path.is_dir():
        return _format_of_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".tar" or (not path.exists() and any(mark in config.source for mark in "*?{")):
        return "webdataset"
    if suffix == ".parquet" and _holds_pictures(path, config.image_column):
        return "huggingface"
    if suffix in TABLE_SUFFIXES:
        return "nuswide" if is_nuswide_csv(path) else "table"
    if not path.exists():
        raise DataError(
            f"there is nothing at {path}: data.source is 'scenes', a table or a folder of images and labels, "
            f"and a dataset of the Hugging Face Hub needs data.format=huggingface{_like(path)}"
        )
    if suffix == ".json":
        return "coco"
    raise DataError(
        f"{path} is no file that is known: a table ends in {', '.join(TABLE_SUFFIXES)}, annotations of COCO "
        "in .json, a shard in .tar (not .tar.gz)"
    )


def _format_of_folder(path: Path) -> str:
    layouts: dict[str, Callable[[], bool]] = {
        "coco": lambda: _holds(path, "annotations/*.json", "instances_*.json"),
        "nuswide": lambda: has_official_lists(path) or csv_in(path) is not None,
        "voc": lambda: bool(voc_folders(path)),
        "huggingface": lambda: is_saved(path) or _holds(path, "*.parquet", "data/*.parquet"),
        "webdataset": lambda: _holds(path, "*.tar", "*/*.tar"),
    }
    for name, lies_there in layouts.items():
        if lies_there():
            return name
    names = sorted(entry.name for entry in path.iterdir())
    tables = [name for name in names if Path(name).suffix.lower() in TABLE_SUFFIXES]
    if tables:
        raise DataError(f"{path} is a folder with {shortened(tables)}; name a table: data={path / tables[0]}")
    raise DataError(
        f"folder {path} holds {shortened(names) or 'nothing'}; expected is a table, or one of {LAYOUTS}. "
        "Name the folder that holds it"
    )


def _holds(folder: Path, *patterns: str) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _holds_pictures(path: Path, image_column: str) -> bool:
    """Whether a Parquet file has pictures in its column of images, and not paths."""
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, ValueError, pyarrow.ArrowException):
        return False  # the reader of tables says why
    return image_column in schema.names and pyarrow.types.is_struct(schema.field(image_column).type)


def _like(path: Path) -> str:
    return did_you_mean(
        path.name, [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    )


def _read_scenes(config: DataConfig, seed: int) -> MultiLabelDataset:
    scenes = config.scenes
    sizes = SceneSizes(scenes.train, scenes.val, scenes.test, scenes.test_shifted)
    return make_scenes(sizes, image_size=scenes.size, theme_share=scenes.theme_share, seed=seed)


def _read_table(config: DataConfig) -> MultiLabelDataset:
    return read_table(
        config.source,
        image_root=config.image_root,
        delimiter=config.delimiter,
        image_column=config.image_column,
        labels_column=config.labels_column,
        split_column=config.split_column,
        class_names=config.class_names,
    )


def _read_coco(config: DataConfig) -> MultiLabelDataset:
    coco = config.coco
    return read_coco(config.source, image_root=config.image_root, year=coco.year, crowd=coco.crowd)


def _read_nuswide(config: DataConfig) -> MultiLabelDataset:
    return read_nuswide(config.source, image_root=config.image_root)


def _read_voc(config: DataConfig) -> MultiLabelDataset:
    voc = config.voc
    return read_voc(config.source, image_root=config.image_root, year=voc.year, difficult=voc.difficult)


def _read_huggingface(config: DataConfig) -> MultiLabelDataset:
    return read_huggingface(
        config.source,
        configuration=config.huggingface.configuration,
        revision=config.huggingface.revision,
        image_root=config.image_root,
        image_column=config.image_column,
        labels_column=config.labels_column,
        split_column=config.split_column,
        class_names=config.class_names,
    )


def _read_webdataset(config: DataConfig) -> MultiLabelDataset:
    return read_webdataset(
        config.source,
        image=config.webdataset.image,
        labels=config.webdataset.labels,
        labels_column=config.labels_column,
        split_column=config.split_column,
        delimiter=config.delimiter,
        class_names=config.class_names,
        index=config.webdataset.index,
    )


READERS: dict[str, Callable[[DataConfig], MultiLabelDataset]] = {
    "table": _read_table,
    "coco": _read_coco,
    "nuswide": _read_nuswide,
    "voc": _read_voc,
    "huggingface": _read_huggingface,
    "webdataset": _read_webdataset,
}


def _with_classes(dataset: MultiLabelDataset, config: DataConfig) -> MultiLabelDataset:
    """The dataset with the classes of `data.class_names`, and a note on those that are not read."""
    if config.class_names is None:
        return dataset
    unread = [name for name in dataset.class_names if name not in config.class_names]
    chosen = dataset.with_classes(config.class_names)
    if not unread:
        return chosen
    note = f"{counted(len(unread), 'class is', 'classes are')} not in data.class_names: {shortened(unread)}"
    return replace(chosen, notes=(*chosen.notes, note))


def _with_official_val(dataset: MultiLabelDataset, name: str, config: DataConfig) -> MultiLabelDataset:
    names = dataset.split_names
    has_test = any(split.startswith("test") for split in names)
    use = config.official_val or OFFICIAL_VAL.get(name, ("val", "val"))[has_test]
    if "val" not in names or use == "val":
        return dataset
    if use == "test" and has_test:
        raise ConfigError(
            f"data.official_val is test, but {dataset.name} has a test split; take train or val for its val"
        )
    splits = np.where(dataset.splits == "val", use, dataset.splits)
    meaning = "the test split" if use == "test" else "a part of train"
    note = f"the published val is {meaning} (data.official_val={use})"
    return replace(dataset, splits=splits, notes=(*dataset.notes, note))


def drops_unlabelled(name: str, config: DataConfig) -> bool:
    """Whether images without a label are left out of data in the format `name`."""
    return (config.unlabelled or ("drop" if name in DROPS_UNLABELLED else "keep")) == "drop"


def _without_unlabelled(dataset: MultiLabelDataset, name: str, config: DataConfig) -> MultiLabelDataset:
    if not drops_unlabelled(name, config):
        return dataset
    labelled = are_labelled(dataset.targets) | (dataset.splits == UNLABELLED)
    if labelled.all():
        return dataset
    if not labelled.any():
        raise DataError(f"no image of {dataset.name} has a label; a training needs images with labels")
    dropped = dataset.subset(~labelled)
    numbers = {split: len(dropped.indices(split)) for split in dropped.split_names}
    counts = ", ".join(f"{number:,} {split}".rstrip() for split, number in numbers.items())
    note = (
        f"{len(dropped):,} of {len(dataset):,} images have no label and are dropped ({counts}); "
        "data.unlabelled=keep keeps them"
    )
    kept = dataset.subset(labelled)
    return replace(kept, notes=(*kept.notes, note))
