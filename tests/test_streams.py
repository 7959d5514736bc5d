"""A run over shards: from an index as from memory, stopped or not, the same weights."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from coterie.cli.app import app
from coterie.config import load_config
from coterie.data.shards import TarImage
from coterie.errors import CoterieError
from coterie.pipeline import run
from coterie.rundata import read_data
from coterie.runfolder import RunFolder
from tests.layouts import write_tar
from tests.tiny import CLASS_NAMES, RUN_WORDS, make_dataset

WINDOWS = ("data.webdataset.window=10", "data.webdataset.block=2", "data.cache_gb=0")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The tiny dataset in three shards of training and one of each other split."""
    data, folder = make_dataset(), tmp_path / "shards"
    for split in data.split_names:
        for number, part in enumerate(np.array_split(data.indices(split), 3 if split == "train" else 1)):
            members: list[tuple[str, bytes | str | tarfile.TarInfo]] = []
            for position in part:
                file = io.BytesIO()
                Image.fromarray(np.asarray(data.images[position])).save(file, "PNG")
                labels = [CLASS_NAMES[column] for column in np.flatnonzero(data.targets[position])]
                members.append((f"{position:03d}.png", file.getvalue()))
                members.append((f"{position:03d}.json", json.dumps({"labels": labels})))
            write_tar(folder / f"{split}-{number:03d}.tar", members)
    return folder


def words(shards: Path, name: str, *more: str) -> list[str]:
    return [*RUN_WORDS, f"data={shards}", f"out={shards.parent / name}", *WINDOWS, *more]


def weights(run_folder: Path) -> dict[str, str]:
    return {training.name: training.weights_sha256 for training in RunFolder(run_folder).trainings()}


def test_from_an_index_and_from_memory_a_run_is_the_same(shards: Path) -> None:
    run(load_config(words(shards, "memory")))
    index = f"data.webdataset.index={shards.parent / 'index'}"
    result = CliRunner().invoke(app, ["run", *words(shards, "mapped", index)])
    assert result.exit_code == 0, result.output
    assert weights(shards.parent / "mapped") == weights(shards.parent / "memory")
    one, other = (read_data(shards.parent / name) for name in ("mapped", "memory"))
    assert one.split_hash == other.split_hash
    assert np.array_equal(one.graph.counts, other.graph.counts)
    # where the index lies changes nothing, and nothing is trained again
    again = CliRunner().invoke(app, ["run", *words(shards, "mapped")])
    assert again.exit_code == 0, again.output
    assert "student: done before" in again.output


def test_a_run_that_loses_its_shards_goes_on_where_it_was(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = f"data.webdataset.index={shards.parent / 'index'}"
    config = load_config(words(shards, "whole", index, "resume.steps=1"))
    run(config)
    stopped = load_config(words(shards, "stopped", index, "resume.steps=1"))
    plain, reads = TarImage.read, 0

    def failing(image: TarImage) -> bytes:
        nonlocal reads
        reads += 1
        # every picture once for the check, then batches of 8: in the second epoch's second batch
        if reads == 60 + 24 + 12 + 13:
            raise OSError("the network is gone")
        return plain(image)

    monkeypatch.setattr(TarImage, "read", failing)
    with pytest.raises(CoterieError, match="the network is gone"):
        run(stopped)
    run(stopped)
    assert weights(shards.parent / "stopped") == weights(shards.parent / "whole")


def test_another_window_is_another_training(shards: Path) -> None:
    config = load_config(words(shards, "one", "train.epochs=1"))
    run(config, only=["baseline"])
    before = weights(shards.parent / "one")["baseline"]
    other = load_config([*words(shards, "one", "train.epochs=1"), "data.webdataset.window=24"])
    with pytest.raises(CoterieError, match=r"data\.webdataset\.window: 10 -> 24"):
        run(other, only=["baseline"])
    run(other, only=["baseline"], update=True)
    assert weights(shards.parent / "one")["baseline"] != before
