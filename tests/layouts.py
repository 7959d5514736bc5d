"""Small datasets in the layouts in which the large ones are distributed, with generated pictures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from coterie.data.dataset import MultiLabelDataset
from tests.tiny import CLASS_NAMES, make_dataset

# (class, whether the object is a crowd or difficult)
Object = tuple[str, bool]


def pixels_of(number: int) -> npt.NDArray[np.uint8]:
    """Noise [8, 8, 3] that differs from that of other numbers."""
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def save_picture(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(number)).save(path)


def picture_bytes(number: int = 0) -> bytes:
    """The bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(number)).save(buffer, "PNG")
    return buffer.getvalue()


def instances(
    images: Mapping[str, Sequence[Object]], class_names: Sequence[str], first_id: int = 1
) -> dict[str, Any]:
    """The content of an instances file: ids of categories with gaps, as COCO has them, and outlines."""
    category = {name: 3 * position + 2 for position, name in enumerate(class_names)}
    numbers = {name: first_id + position for position, name in enumerate(images)}
    objects = [(name, label, crowd) for name, found in images.items() for label, crowd in found]
    return {
        "info": {"year": 2014},
        "licenses": [],
        "images": [{"id": numbers[name], "file_name": name, "height": 8, "width": 8} for name in images],
        "annotations": [
            {
                "id": position,
                "image_id": numbers[name],
                "category_id": category[label],
                "iscrowd": int(crowd),
                "segmentation": {"counts": [1, 2], "size": [8, 8]} if crowd else [[0.5, 1.5, 2.5, 3.5]],
                "bbox": [0, 0, 4, 4],
                "area": 16.0,
            }
            for position, (name, label, crowd) in enumerate(objects)
        ],
        "categories": [{"id": category[name], "name": name, "supercategory": "x"} for name in class_names],
    }


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_coco(
    folder: Path,
    splits: Mapping[str, Mapping[str, Sequence[Object]]],
    class_names: Sequence[str] = ("zebra", "ant", "cat"),
    year: str = "2014",
    images: str | None = "",
) -> Path:
    """annotations/instances_{split}{year}.json, and pictures in `images`/{split}{year} unless it is None."""
    number = 0
    for split, content in splits.items():
        values = instances(content, class_names, first_id=number + 1)
        write_json(folder / "annotations" / f"instances_{split}{year}.json", values)
        for name in content:
            number += 1
            if images is not None:
                save_picture(folder / images / f"{split}{year}" / name, number)
    return folder


def write_tiny_coco(folder: Path) -> Path:
    """The tiny dataset as COCO 2017: its train and val images in train, its test images in val."""
    dataset = make_dataset()
    splits: dict[str, dict[str, list[tuple[str, bool]]]] = {"train": {}, "val": {}}
    for index in np.flatnonzero(dataset.splits != "test_shifted").tolist():
        split = "val" if dataset.splits[index] == "test" else "train"
        name = dataset.image_ids[index]
        splits[split][name] = [(label, False) for label in labels_of(dataset, index)]
        (folder / f"{split}2017").mkdir(parents=True, exist_ok=True)
        dataset.load_image(index).save(folder / f"{split}2017" / name)
    return write_coco(folder, splits, CLASS_NAMES[::-1], year="2017", images=None)


def labels_of(dataset: MultiLabelDataset, index: int) -> list[str]:
    return [dataset.class_names[column] for column in np.flatnonzero(dataset.targets[index] == 1)]


def write_nuswide(
    folder: Path,
    splits: Mapping[str, Mapping[str, Sequence[int]]],
    class_names: Sequence[str],
    pictures: Iterable[str] = (),
) -> Path:
    """The official lists, with backslashes and Windows line ends; `pictures` lie in Flickr/."""
    lists, labels = folder / "ImageList", folder / "Groundtruth" / "TrainTestLabels"
    lists.mkdir(parents=True)
    labels.mkdir(parents=True)
    (folder / "Concepts81.txt").write_text("\n".join(class_names) + "\n")
    for split, content in splits.items():
        rows = np.array(list(content.values())).reshape(len(content), -1)
        names = "".join(f"{name} \r\n" for name in content)
        (lists / f"{split.title()}Imagelist.txt").write_bytes(names.replace("/", "\\").encode())
        for column, name in enumerate(class_names):
            text = "".join(f"{value}\r\n" for value in rows[:, column])
            (labels / f"Labels_{name}_{split.title()}.txt").write_bytes(text.encode())
    for number, name in enumerate(pictures):
        save_picture(folder / "Flickr" / name, number)
    return folder


def write_voc(
    folder: Path, splits: Mapping[str, Mapping[str, Sequence[Object] | None]], year: int = 2007
) -> Path:
    """VOCdevkit/VOC{year}; an image whose objects are None is listed without annotation and picture."""
    root = folder / "VOCdevkit" / f"VOC{year}"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    number = 0
    for split, content in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in content))
        for name, objects in content.items():
            number += 1
            if objects is not None:
                xml = "".join(_voc_object(label, difficult) for label, difficult in objects)
                text = f"<annotation><filename>{name}.jpg</filename>{xml}</annotation>"
                (root / "Annotations" / f"{name}.xml").write_text(text)
                save_picture(root / "JPEGImages" / f"{name}.jpg", number)
    return folder


def _voc_object(label: str, difficult: bool) -> str:
    part = "<part><name>head</name></part>"  # VOC marks the parts of persons: they are no objects
    return f"<object><name>{label}</name><difficult>{int(difficult)}</difficult>{part}</object>"


def write_tar(path: Path, members: Iterable[tuple[str, bytes | str | tarfile.TarInfo]]) -> Path:
    """A tar archive of (name, content); a TarInfo stands for a member without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
