"""PASCAL VOC as it is distributed, and other data in its layout: XML annotations and lists of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from coterie.config import Doubtful
from coterie.data.dataset import MultiLabelDataset
from coterie.data.targets import targets_of_objects
from coterie.errors import ConfigError, DataError, either, listed, repeated, shortened

EXPECTED = "VOC's folders hold Annotations, ImageSets/Main and JPEGImages"
SPLITS = ("train", "val", "test")
LARGEST_ANNOTATION = 2**24  # bytes


def read_voc(
    path: str | Path,
    *,
    image_root: str | Path | None = None,
    year: int | None = None,
    difficult: Doubtful = "ignore",
) -> MultiLabelDataset:
    """The dataset of a VOCdevkit, or of one of its folders such as VOC2007.

    Splits are those of ImageSets/Main. A class is present where it has an object; `difficult` says what a
    class is of which an image has difficult objects only. Classes are sorted by name, as published. A test
    list without annotations, as VOC 2012 has it, is not read. Raises DataError that names the file.
    """
    folder = _year_folder(Path(path), year)
    images, notes = _annotated_images(folder)
    found = [_read_annotation(folder / "Annotations" / f"{image.name}.xml") for image in images]
    class_names = sorted({name for objects in found for name, _ in objects})
    if not class_names:
        raise DataError(f"no annotation in {folder / 'Annotations'} has an object; {EXPECTED}")
    column = {name: index for index, name in enumerate(class_names)}
    rows = [row for row, objects in enumerate(found) for _ in objects]
    objects_of_all = [one for objects in found for one in objects]
    pictures = Path(image_root) if image_root is not None else folder / "JPEGImages"
    return MultiLabelDataset(
        images=[pictures / f"{image.name}.jpg" for image in images],
        targets=targets_of_objects(
            (len(images), len(class_names)),
            rows,
            [column[name] for name, _ in objects_of_all],
            [is_difficult for _, is_difficult in objects_of_all],
            difficult,
        ),
        class_names=tuple(class_names),
        splits=np.array([image.split for image in images], dtype=np.str_),
        image_ids=tuple(f"{image.name}.jpg" for image in images),
        name=folder.resolve().name,
        notes=tuple(notes),
    )


def voc_folders(path: Path) -> list[Path]:
    """The folders of single years at `path`: itself, or below it or its VOCdevkit."""
    if (path / "ImageSets" / "Main").is_dir():
        return [path]
    devkit = path / "VOCdevkit" if (path / "VOCdevkit").is_dir() else path
    return sorted(entry.parents[1] for entry in devkit.glob("*/ImageSets/Main") if entry.is_dir())


@dataclass(frozen=True)
class _Listed:
    name: str
    split: str


def _year_folder(path: Path, year: int | None) -> Path:
    folders = voc_folders(path)
    if not folders:
        raise DataError(f"{path} is no VOCdevkit: {EXPECTED}, and none is below it")
    if year is not None:
        chosen = [folder for folder in folders if folder.resolve().name == f"VOC{year}"]
        if not chosen:
            names = [folder.resolve().name for folder in folders]
            raise ConfigError(f"data.voc.year is {year}, but {path} holds {listed(names)}")
        return chosen[0]
    if len(folders) > 1:
        names = [folder.name for folder in folders]
        example = names[0].removeprefix("VOC")
        raise ConfigError(f"{path} holds {either(names)}: choose, for instance data.voc.year={example}")
    return folders[0]


def _annotated_images(folder: Path) -> tuple[list[_Listed], list[str]]:
    """The images of ImageSets/Main with their splits, those with annotations; and notes on the rest."""
    lists = folder / "ImageSets" / "Main"
    names = {split: _names(lists / f"{split}.txt") for split in SPLITS if (lists / f"{split}.txt").is_file()}
    if not names:
        raise DataError(f"{lists} holds no train.txt, val.txt or test.txt; {EXPECTED}")
    twice = repeated(name for listed_names in names.values() for name in listed_names)
    if twice:
        raise DataError(f"images stand twice in the lists of {lists}: {shortened(twice)}; list each once")
    annotated = {file.stem for file in (folder / "Annotations").glob("*.xml")}
    images, notes = [], []
    for split, listed_names in names.items():
        lacking = [name for name in listed_names if name not in annotated]
        if len(lacking) == len(listed_names) and split == "test":
            notes.append(f"test.txt lists {len(lacking):,} images without annotations: it is not read")
            continue
        if lacking:
            raise DataError(
                f"{len(lacking):,} of {len(listed_names):,} images of {lists / f'{split}.txt'} have no XML "
                f"in {folder / 'Annotations'}: {shortened(lacking)}; unpack it again"
            )
        images += [_Listed(name, split) for name in listed_names]
    if not images:
        raise DataError(f"no image listed in {lists} has annotations; {EXPECTED}")
    return images, notes


def _names(path: Path) -> list[str]:
    try:
        return [words[0] for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; unpack it again") from None


class _PlainTree(ElementTree.TreeBuilder):
    """Elements of XML that defines nothing of its own: entities may unfold to any size."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:  # noqa: ARG002
        raise ValueError("it has a document type, which annotations of VOC have not")


def _read_annotation(path: Path) -> list[tuple[str, bool]]:
    """The class of each object of an image, and whether it is difficult."""
    try:
        if (size := path.stat().st_size) > LARGEST_ANNOTATION:
            raise ValueError(f"it has {size:,} bytes, too many for the objects of an image")
        parser = ElementTree.XMLParser(target=_PlainTree())
        objects = ElementTree.parse(path, parser).getroot().findall("object")
    # a code of characters that Python does not know is a LookupError
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"annotation {path} cannot be read: {error}; unpack it again") from None
    named = [
        (one.findtext("name", "").strip(), one.findtext("difficult", "").strip() == "1") for one in objects
    ]
    if not all(name for name, _ in named):
        raise DataError(f"an object in {path} has no name; unpack it again")
    return named
