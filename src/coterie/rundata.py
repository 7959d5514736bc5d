"""What a run learned from, as far as later looks need it: classes, splits, co-occurrence; no image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array

from coterie.data.dataset import MultiLabelDataset
from coterie.errors import DataError, RunError
from coterie.files import atomic_write
from coterie.labels import CooccurrenceGraph
from coterie.preparation import training_graph
from coterie.runfolder import read_keyed
from coterie.untrusted import parse_json

DATA_FILE = "data.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunData:
    """The data of a run: `images` of each split, the hash of which image is in which, the training graph."""

    name: str
    split_hash: str
    images: dict[str, int]
    notes: tuple[str, ...]
    graph: CooccurrenceGraph


def keep_data(run: Path, key: str, dataset: MultiLabelDataset) -> None:
    """Write what `read_data` reads, unless it is there under the same `key`."""
    path = run / DATA_FILE
    if read_keyed(path, key) is not None:
        return
    graph = training_graph(dataset)
    rows, columns = np.triu(graph.counts).nonzero()
    content = {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "name": dataset.name,
        "split_hash": dataset.split_hash(),
        "images": {split: len(dataset.indices(split)) for split in dataset.split_names},
        "notes": dataset.notes,
        "class_names": dataset.class_names,
        "class_counts": graph.class_counts.tolist(),
        # [i, j, images with both] of the pairs that are on an image together, i < j
        "pairs": np.stack([rows, columns, graph.counts[rows, columns]], axis=1).tolist(),
    }
    atomic_write(path, json.dumps(content, ensure_ascii=False))


def read_data(run: Path) -> RunData:
    """The data of the run in `run`; RunError where its file is missing or damaged."""
    path = run / DATA_FILE
    remedy = "the `coterie run` command of the run, given again, writes it and trains nothing anew"
    try:
        content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"it is not of schema version {SCHEMA_VERSION}")
        names = tuple(content["class_names"])
        pairs = np.array(content["pairs"], np.int64).reshape(-1, 3)
        upper = coo_array((pairs[:, 2], (pairs[:, 0], pairs[:, 1])), (len(names), len(names))).toarray()
        graph = CooccurrenceGraph(upper + upper.T, np.array(content["class_counts"]), names)
        notes = tuple(content["notes"])
        return RunData(content["name"], content["split_hash"], dict(content["images"]), notes, graph)
    except FileNotFoundError:
        raise RunError(f"{run} has no {DATA_FILE}: {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it: {remedy}") from None
