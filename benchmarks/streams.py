"""Memory and time of data that memory does not hold: `python -m benchmarks.streams [rows|pictures|reading]`.

`rows`: an index of millions of images without a picture, made up by Zipf's law as in labels_at_scale.py,
goes through all that a run does with it but decoding: opened, hashed, compared, counted, partitioned,
ordered, drawn in batches. `pictures`: the same of real shards of tiny JPEGs, which are decoded too.
`reading`: how fast pictures as large as photographs are read from shards that are in no cache, as they are
stored, in windows, and at random. Each size is measured in a process of its own: printed are the seconds of
each step, the peak of all memory and of what no file is behind, and by how many bytes an image these grew.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from benchmarks.labels_at_scale import make_targets
from benchmarks.pictures import write_photographs
from coterie.config import load_config
from coterie.data import webdataset
from coterie.data.check import check_images
from coterie.data.dataset import MultiLabelDataset, StoredImages, content_of
from coterie.data.loading import EpochSampler, ImageBatches, ResizedImages, Views
from coterie.data.order import AsTheyAre, Order, Shuffled, ShuffledBlocks, training_order
from coterie.data.overlap import find_twins
from coterie.data.shards import ShardPart, make_part
from coterie.data.transforms import Preprocessing
from coterie.labels import CooccurrenceGraph
from coterie.preparation import make_partitions, prepare_data, training_graph
from coterie.threads import in_threads

SHARD, VAL = 10_000, 20_000  # images of a shard, and of val
BATCHES, BATCH = 2_000, 64
PHOTOGRAPHS = 20_000
MOST_GROWTH = 64  # bytes an image of memory that no file is behind
Result = TypeVar("Result")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("rows", "pictures", "reading"), default="rows")
    parser.add_argument(
        "--images", type=int, nargs="+", help="sizes; 1,000,000 and 10,000,000, of pictures a fiftieth"
    )
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=5, help="groups of the partitions; 0: make none")
    parser.add_argument(
        "--folder", type=Path, help="where the shards go; by default where temporary files do"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)  # what a measured process does
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.what == "reading":
            return measure_reading(Path(folder))
        sizes = options.images or ([1_000_000, 10_000_000] if options.what == "rows" else [20_000, 200_000])
        peaks = [measure_size(Path(folder) / str(size), size, options) for size in sizes]
    grown = np.diff(np.array(peaks), axis=0)[-1] / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else (0.0, 0.0)
    print(f"\nfrom one size to the next: {grown[0]:.0f} bytes an image more, {grown[1]:.0f} of them no file")
    return 0 if grown[1] <= MOST_GROWTH else 1


def measure_size(folder: Path, images: int, options: argparse.Namespace) -> tuple[float, float]:
    """Print the steps for one size; the peaks of a process that finds the index there."""
    (folder / "shards").mkdir(parents=True)
    write = write_pictures if options.what == "pictures" else write_names
    write(folder / "shards", images, options.classes)
    peaks = (0.0, 0.0)
    for step in ("index", "use"):
        command = [sys.executable, "-m", "benchmarks.streams", options.what, "--step", step]
        command += ["--folder", str(folder), "--classes", str(options.classes), "--k", str(options.k)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks = found["peak"], found["anonymous"]
        whole, own = (peak / 2**20 for peak in peaks)
        print(f"\n{images:,} images, {step}: peak {whole:,.0f} MiB, {own:,.0f} of it no file")
        for name, (seconds, peak, anonymous) in found["steps"].items():
            print(
                f"  {name:34} {seconds:8.1f} s {peak / 2**20:8,.0f} MiB {anonymous / 2**20:8,.0f}", flush=True
            )
    files = [path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file()]
    print(f"  index: {sum(files) / images:.0f} bytes an image in {len(files)} files")
    return peaks


class Steps:
    """The seconds of each step, and the memory up to its end: all, and what no file is behind."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[float, float, float]] = {}
        self._anonymous, self._stop = 0.0, Event()
        self._watch = Thread(target=self._sample, daemon=True)
        self._watch.start()

    def __call__(self, name: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        self._look()
        self.steps[name] = time.perf_counter() - start, status("VmHWM"), self._anonymous
        return result

    def result(self) -> dict[str, Any]:
        self._stop.set()
        self._watch.join()
        return {"steps": self.steps, "peak": status("VmHWM"), "anonymous": self._anonymous}

    def _sample(self) -> None:  # the kernel keeps the peak of all memory, not of this part
        while not self._stop.wait(0.02):
            self._look()

    def _look(self) -> None:
        self._anonymous = max(self._anonymous, status("RssAnon"))


def status(name: str) -> float:
    """A number of bytes that the kernel keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def read(options: argparse.Namespace) -> MultiLabelDataset:
    folder: Path = options.folder
    return prepare_data(load_config(words(folder)))


def words(folder: Path) -> list[str]:
    return [f"data={folder}/shards", f"data.webdataset.index={folder}/index", "data.official_val=val"]


def index(options: argparse.Namespace) -> dict[str, Any]:
    """The first reading: every shard is looked at."""
    steps = Steps()
    if options.what == "rows":
        webdataset._read_shard = made_up(options.classes)
    steps("index of all shards", lambda: read(options))
    return steps.result()


def use(options: argparse.Namespace) -> dict[str, Any]:
    """What a run does that finds the index there."""
    steps = Steps()
    config = load_config([*words(options.folder), f"k={max(1, options.k)}", "device=cpu"])
    data = steps("open, check labels and splits", lambda: prepare_data(config))
    steps("fingerprint", data.fingerprint)
    steps("hash of the split", data.split_hash)
    graph = steps("graph of the training split", lambda: training_graph(data))
    steps("graph from shards, added up", lambda: check_parts(data, graph))
    if options.k:
        steps("partitions of both branches", lambda: make_partitions(config, data))
    if options.what == "pictures":
        steps("every picture decoded once", lambda: check_images(data))
    steps("training images that are measured", lambda: find_twins(data))
    train = data.indices("train")
    order = steps("order of an epoch", lambda: training_order(data, train, 0, 65_536, 64))
    sampler = EpochSampler(train, BATCH, shuffle=True, order=order)
    steps("an epoch of batches, positions", lambda: sum(1 for _ in sampler.batches(0)))
    steps("the last batch, as after a kill", lambda: next(sampler.batches(1, len(sampler) - 1)))
    drawn_targets = (data.targets[batch] for batch in some(sampler))
    steps(f"{BATCHES:,} batches of targets", lambda: sum(len(targets) for targets in drawn_targets))
    if options.what == "pictures":
        images = ResizedImages(data, Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        batches = ImageBatches(Views(images), sampler)
        count = min(BATCHES, len(sampler))
        drawn = zip(range(count), batches.epoch(2), strict=False)
        steps(f"{count:,} batches of pictures", lambda: sum(1 for _ in drawn))
    return steps.result()


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"index": index, "use": use}


def some(sampler: EpochSampler) -> Iterator[np.ndarray]:
    """The first batches of an epoch, one at a time."""
    for _, batch in zip(range(BATCHES), sampler.batches(2), strict=False):
        yield batch


def check_parts(data: MultiLabelDataset, whole: CooccurrenceGraph) -> None:
    """The graphs of a few runs of shards, added up, must be that of all."""
    parts = np.array_split(data.indices("train"), 3)
    graphs = (CooccurrenceGraph.from_targets(data.targets_at(part), data.class_names) for part in parts)
    total = next(graphs)
    for graph in graphs:
        total = total + graph
    if not np.array_equal(total.counts, whole.counts):
        raise AssertionError("graphs of parts do not add up to that of the whole")


def shard_names(images: int) -> Iterator[tuple[str, int]]:
    """(name, images) of the shards of training and validation."""
    val = min(VAL, images // 10)
    for split, total in (("train", images - val), ("val", val)):
        for start in range(0, total, SHARD):
            yield f"{split}-{start // SHARD:05d}.tar", min(SHARD, total - start)


def write_names(folder: Path, images: int, classes: int) -> None:
    """Files with the names of shards, whose size says how many images are made up."""
    for name, number in shard_names(images):
        with (folder / name).open("wb") as file:
            file.truncate(number)
    write_class_names(folder, classes)


def write_class_names(folder: Path, classes: int) -> None:
    (folder / "classnames.txt").write_text("".join(f"label {number:05}\n" for number in range(classes)))


def made_up(classes: int) -> Callable[..., ShardPart]:
    """What stands for the reading of a shard: labels, names and places as photographs would have them."""

    def read_shard(shard: Path, *_: object) -> ShardPart:
        images, number = shard.stat().st_size, int(shard.stem[-5:]) + 10**6 * shard.stem.startswith("val")
        rng = np.random.default_rng(number)
        targets = make_targets(images, classes, part=number + 1)
        if shard.stem == "train-00000":  # so that every class has an image
            targets = targets.tolil()
            for label in range(classes):
                targets[label % images, label] = 1
            targets = targets.tocsr()
        sizes = rng.integers(50_000, 200_000, images)
        offsets = np.cumsum(sizes + 2048) - sizes
        ends = rng.integers(2**63, size=images)
        pictures = [
            (b"%09d.jpg" % row, int(offset), int(size), int(end))
            for row, (offset, size, end) in enumerate(zip(offsets, sizes, ends, strict=True))
        ]
        edges, columns = targets.indptr, targets.indices
        names = [f"label {label:05}" for label in range(classes)]
        labels = [[names[label] for label in columns[a:b]] for a, b in pairwise(edges)]
        return make_part(pictures, labels, [shard.stem[:-6]] * images, "json", [])

    return read_shard


def write_pictures(folder: Path, images: int, classes: int) -> None:
    """Shards of JPEGs of 32 pixels, no two alike, with a json of label numbers."""
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(64):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
        kinds.append(file.getvalue())
    for count, (name, number) in enumerate(shard_names(images)):
        targets = make_targets(number, classes, part=count + 1)
        with tarfile.open(folder / name, "w") as archive:
            for row in range(number):
                labels = targets.indices[targets.indptr[row] : targets.indptr[row + 1]].tolist()
                labels += [*range(row, classes, number)] if count == 0 else []
                unique = kinds[row % len(kinds)] + b"%d %d" % (count, row)  # behind its end, no decoder looks
                for extension, content in (
                    ("jpg", unique),
                    ("json", json.dumps({"labels": labels}).encode()),
                ):
                    info = tarfile.TarInfo(f"{row:06d}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    write_class_names(folder, classes)


def measure_reading(folder: Path) -> int:
    """Print how fast photographs are read from shards in three orders, nothing in the cache at the start."""
    (folder / "photographs").mkdir()
    write_photographs(folder / "photographs", 50)
    pictures = [path.read_bytes() for path in sorted((folder / "photographs").iterdir())]
    shards = []
    for start in range(0, PHOTOGRAPHS, 1000):
        shards.append(folder / f"train-{start // 1000:03d}.tar")
        with tarfile.open(shards[-1], "w") as archive:
            for row in range(1000):
                for extension, content in (("jpg", pictures[row % len(pictures)]), ("txt", b"a")):
                    info = tarfile.TarInfo(f"{row:06d}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        with shards[-1].open("rb") as file:
            os.fsync(file.fileno())
    data = webdataset.read_webdataset(str(folder))
    assert isinstance(data.images, StoredImages)
    indices, edges = np.arange(len(data)), data.images.archive_edges()
    orders: dict[str, Order] = {
        "as they are stored": AsTheyAre(indices),
        "blocks of 64 in windows of 4,096": ShuffledBlocks(indices, 0, edges, 4096, 64),
        "at random": Shuffled(indices, 0),
    }
    for name, order in orders.items():
        for shard in shards:  # out of the cache
            with shard.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        positions = (position for part in order.parts(0) for position in part.tolist())
        size = sum(in_threads(lambda position: len(content_of(data.images[position])), positions))
        seconds = time.perf_counter() - begun
        speed, rate = len(data) / seconds, size / seconds / 1e6
        print(f"{name:34} {speed:10,.0f} images/s {rate:8,.0f} MB/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
