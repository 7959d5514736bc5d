"""From `data.source` to a dataset: the built-in scenes or a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from coterie.config import Config, DataConfig
from coterie.data.check import check_images
from coterie.data.dataset import MultiLabelDataset
from coterie.data.scenes import SceneSizes, make_scenes
from coterie.data.splits import ensure_splits
from coterie.data.table import read_table


def read_dataset(config: DataConfig, seed: int = 0) -> MultiLabelDataset:
    """The dataset that the settings name; `seed` makes the scenes."""
    if config.source == "scenes":
        scenes = config.scenes
        sizes = SceneSizes(scenes.train, scenes.val, scenes.test, scenes.test_shifted)
        made = make_scenes(sizes, image_size=scenes.size, theme_share=scenes.theme_share, seed=seed)
        return made if config.class_names is None else made.with_classes(config.class_names)
    return read_table(
        Path(config.source),
        image_root=config.image_root,
        delimiter=config.delimiter,
        image_column=config.image_column,
        labels_column=config.labels_column,
        split_column=config.split_column,
        class_names=config.class_names,
    )


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
    checked, _ = check_images(dataset.subset(dataset.indices(split)), config.data.on_corrupt)
    return checked
