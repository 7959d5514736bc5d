"""Time of `coterie inspect` on data as large as COCO 2014: `python -m benchmarks.readers [--images N]`.

The data are made up: an instances file with outlines, and WebDataset shards; no picture is real, and those of
COCO are not even there. Prints the processor seconds of reading alone and of the whole inspection.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from coterie.config import load_config
from coterie.data.reading import read_dataset
from coterie.inspection import inspect_data

# Of COCO 2014: images with labels, objects of an image; numbers of an outline so that the files are as large.
IMAGES, CLASSES, OBJECTS, OUTLINE = 122_218, 80, 7, 56
SAMPLES_A_SHARD = 10_000


def write_instances(folder: Path, images: int) -> Path:
    """annotations/instances_train2014.json for so many images, without pictures."""
    rng = np.random.default_rng(0)
    classes = rng.integers(1, CLASSES + 1, images * OBJECTS).tolist()
    outline = [[number + 0.25 for number in range(100, 100 + OUTLINE)]]
    content = {
        "images": [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg"} for n in range(images)],
        "annotations": [
            {"id": n, "image_id": n // OBJECTS, "category_id": c, "iscrowd": 0, "segmentation": outline}
            for n, c in enumerate(classes)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
    }
    path = folder / "annotations" / "instances_train2014.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return folder


def write_shards(folder: Path, images: int) -> Path:
    """Shards of samples of 1 KB and a list of names."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for start in range(0, images, SAMPLES_A_SHARD):
        with tarfile.open(folder / f"train-{start // SAMPLES_A_SHARD:03d}.tar", "w") as archive:
            for number in range(start, min(start + SAMPLES_A_SHARD, images)):
                labels = ";".join(f"class {c}" for c in rng.integers(CLASSES, size=3))
                for extension, data in (("jpg", b"x" * 1024), ("txt", labels.encode())):
                    info = tarfile.TarInfo(f"{number:06d}.{extension}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder


def measure(name: str, source: Path) -> None:
    config = load_config([f"data={source}"])
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 1e6
    start = time.process_time()
    images = len(read_dataset(config.data))
    reading = time.process_time() - start
    start = time.process_time()
    inspect_data(config)
    inspection = time.process_time() - start
    print(f"{name:10} {images:8,} {size:8,.0f} {reading:9.1f} {inspection:9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder) / "shards", images)
        coco = write_instances(Path(folder) / "coco", images)
        print(f"{'data':10} {'images':>8} {'MB':>8} {'read, s':>9} {'inspect':>9}")
        measure("shards", shards)
        measure("COCO", coco)


if __name__ == "__main__":
    main()
