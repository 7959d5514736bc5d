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
from coterie.files import atomic_file, atomic_write, file_sha256
from coterie.labels import CooccurrenceGraph
from coterie.preparation import training_graph
from coterie.runfolder import read_keyed
from coterie.untrusted import parse_json

DATA_FILE = "data.json"
# [i, j, images with both] of the pairs that are on an image together, i < j: of 10,000 classes, millions.
PAIRS_FILE = "pairs.npy"
SCHEMA_VERSION = 2


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
    there = read_keyed(path, key)
    if there is not None and there.get("schema_version") == SCHEMA_VERSION and (run / PAIRS_FILE).is_file():
        return
    graph = training_graph(dataset)
    rows, columns = np.triu(graph.counts).nonzero()
    with atomic_file(run / PAIRS_FILE) as file:
        np.save(file, np.stack([rows, columns, graph.counts[rows, columns]], axis=1).astype("<i8"))
    content = {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "name": dataset.name,
        "split_hash": dataset.split_hash(),
        "images": {split: len(dataset.indices(split)) for split in dataset.split_names},
        "notes": dataset.notes,
        "class_names": dataset.class_names,
        "class_counts": graph.class_counts.tolist(),
        "pairs_sha256": file_sha256(run / PAIRS_FILE),
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
        if file_sha256(run / PAIRS_FILE) != content["pairs_sha256"]:
            raise ValueError(f"{PAIRS_FILE} is of other data")
        # mapped, so that an array that says it is larger than its file takes no memory
        mapped = np.load(run / PAIRS_FILE, mmap_mode="r", allow_pickle=False)
        pairs = mapped.astype(np.int64).reshape(-1, 3)
        upper = coo_array((pairs[:, 2], (pairs[:, 0], pairs[:, 1])), (len(names), len(names))).toarray()
        graph = CooccurrenceGraph(upper + upper.T, np.array(content["class_counts"]), names)
        notes = tuple(content["notes"])
        return RunData(content["name"], content["split_hash"], dict(content["images"]), notes, graph)
    except FileNotFoundError as error:
        raise RunError(f"{run} has no {Path(error.filename).name}: {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it: {remedy}") from None
