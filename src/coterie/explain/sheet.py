"""Sheets of pictures and maps: what `coterie explain` draws."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from coterie import fonts
from coterie.data.dataset import UnreadableImage
from coterie.errors import ConfigError, counted
from coterie.explain.colours import heat_colours
from coterie.explain.columns import Column, Models
from coterie.explain.explainer import TOP, ClassMap, best_classes
from coterie.files import atomic_write
from coterie.predictor import as_image, class_columns

CELL = 208  # side in pixels of the square that a picture is fitted into
GAP = 14
TEXT = 15  # size of text in pixels
LINE = 25  # height of a line of text
INK, PALE, PAPER = (28, 28, 30), (110, 110, 115), (255, 255, 255)
MOST_ROWS = 150  # of one sheet: about as high as an image that viewers open
STRENGTH = 0.85  # how far the colour covers the picture where a map is 1
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf")


@dataclass(frozen=True)
class Cell:
    """A picture and what stands under it; without a picture only the words."""

    caption: str
    image: Image.Image | None = None


@dataclass(frozen=True)
class Block:
    """The rows of one picture, under its name."""

    name: str
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def height(self) -> int:
        """Of its pictures: they all have one size."""
        return max(cell.image.height for row in self.rows for cell in row if cell.image is not None)


@dataclass(frozen=True)
class Failure:
    """A picture that could not be read, and why."""

    path: Path
    reason: str


def write_sheets(
    models: Models,
    pictures: Sequence[Path],
    out: Path,
    classes: Sequence[str] | None = None,
    top: int = TOP,
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[Path], list[Failure]]:
    """Draw the maps of `classes`, by default of the `top` best of each picture, and write them: one sheet to
    a file `out`, one for each picture to a folder. `progress` is called after each picture.

    What was written, and the pictures that cannot be read. ConfigError for a class that the main model does
    not know, for a file of another format, and for more rows than a sheet has room for.
    """
    known = models.main.predictor.class_names
    if classes is not None:
        class_columns(known, classes)
    to_file = bool(out.suffix) and not out.is_dir()
    if to_file and out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out} must end in {', '.join(SUFFIXES)}, or be a folder")
    rows_of_one = 1
    if len(models.columns) > 1:
        rows_of_one = min(top, len(known)) if classes is None else len(classes)
    if to_file and rows_of_one * len(pictures) > MOST_ROWS:
        raise ConfigError(
            f"{counted(len(pictures), 'picture')} would take {rows_of_one * len(pictures):,} rows, and a "
            f"sheet has room for {MOST_ROWS}; name a folder with --out, for a sheet of each picture"
        )
    headings = ("picture", *(column.title for column in models.columns)) if len(models.columns) > 1 else ()
    footnote = f"{models.main.method} maps, each scaled by itself; grey does not speak for the class"
    blocks: list[Block] = []
    written: list[Path] = []
    failures: list[Failure] = []
    taken: set[str] = set()
    for path in pictures:
        try:
            block = make_block(models, path, classes, top)
        except UnreadableImage as error:
            failures.append(Failure(path, error.reason))
        else:
            if to_file:
                blocks.append(block)
            else:
                sheet = draw_sheet([block], headings, footnote)
                written.append(_save(sheet, out / _free_name(path, taken)))
        progress()
    if blocks:
        written.append(_save(draw_sheet(blocks, headings, footnote), out))
    return written, failures


def make_block(models: Models, path: Path, classes: Sequence[str] | None = None, top: int = TOP) -> Block:
    """The cells of one picture: a row for each class, with a cell for each model; of one model one row."""
    image = as_image(path)
    if classes is None:
        classes = best_classes(models.main.predictor, image, top)
    thumbnail = fitted(image)
    of_models = [_map_cells(column, image, thumbnail, classes) for column in models.columns]
    picture = Cell("", thumbnail)
    if len(of_models) == 1:
        return Block(path.name, ((picture, *of_models[0]),))
    first, *others = zip(*of_models, strict=True)
    return Block(path.name, ((picture, *first), *((Cell(""), *row) for row in others)))


def fitted(image: Image.Image, side: int = CELL) -> Image.Image:
    """The picture with its longer edge `side` pixels: a small one is enlarged, for its map to be seen."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)


def overlay(image: Image.Image, heat: npt.NDArray[np.float32]) -> Image.Image:
    """The picture in grey, and over it the map float32 [H, W] of its size, in colours whose lightness rises
    evenly. What is 0 stays grey.
    """
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32) / 255
    colours = heat_colours(heat)
    cover = STRENGTH * heat[..., None]
    mixed = grey * (1 - cover) + colours * cover
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def draw_sheet(blocks: Sequence[Block], headings: Sequence[str] = (), footnote: str = "") -> Image.Image:
    """The blocks one under the other, with `headings` over their columns and a `footnote` at the end."""
    across = max(len(row) for block in blocks for row in block.rows)
    width = GAP + across * (CELL + GAP)
    height = 2 * GAP + LINE * (2 if headings else 1)
    height += sum(LINE + GAP + len(block.rows) * (block.height + LINE) for block in blocks)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for number, heading in enumerate(headings):
        _write(draw, (_left(number), top), heading, CELL, INK, bold=True)
    top += LINE if headings else 0
    for block in blocks:
        _write(draw, (GAP, top), block.name, width - 2 * GAP, PALE)
        top += LINE
        for row in block.rows:
            for number, cell in enumerate(row):
                if cell.image is not None:
                    sheet.paste(cell.image, (_left(number), top))
                _write(draw, (_left(number), top + block.height + 2), cell.caption, CELL, INK)
            top += block.height + LINE
        top += GAP
    _write(draw, (GAP, top), footnote, width - 2 * GAP, PALE)
    return sheet


def _map_cells(
    column: Column, image: Image.Image, thumbnail: Image.Image, classes: Sequence[str]
) -> list[Cell]:
    """The cells of a column, one for each class; a model is asked once for all classes that it explains."""
    explainers = {name: column.find(name) for name in classes}
    maps: dict[str, ClassMap] = {}
    for explainer in set(explainers.values()):
        if explainer is not None:
            maps |= explainer.maps(image, [name for name in classes if explainers[name] is explainer])
    return [
        Cell(f"{name} {maps[name].score:.2f}", overlay(thumbnail, maps[name].heat(*thumbnail.size)))
        if name in maps
        else Cell(f"does not know {name}")
        for name in classes
    ]


def _left(number: int) -> int:
    return GAP + number * (CELL + GAP)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    colour: tuple[int, int, int],
    bold: bool = False,
) -> None:
    """One line of text, no wider than `width`."""
    left, top = place
    baseline = top + _font(fonts.built_in_font(bold)).getmetrics()[0]
    for path, part in fonts.runs(_shortened(text, width, bold), bold):
        draw.text((left, baseline), part, fill=colour, font=_font(path), anchor="ls")
        left += round(_font(path).getlength(part))


def _shortened(text: str, width: int, bold: bool = False) -> str:
    """The text on one line, cut in the middle where it is wider than `width` pixels: its end has a score."""
    text = " ".join("".join(c for c in text if c not in fonts.VARIATION_SELECTORS).split())
    shown, keep = text, len(text)
    while keep > 2 and sum(_font(path).getlength(part) for path, part in fonts.runs(shown, bold)) > width:
        keep -= 1
        tail = min(keep // 2, 8)
        shown = f"{text[: keep - tail].rstrip()}…{text[len(text) - tail :]}"
    return shown


@functools.cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), TEXT)


def _free_name(picture: Path, taken: set[str]) -> str:
    """The name of a picture's sheet; numbered where pictures of several folders share a name."""
    number, name = 1, f"{picture.stem}.png"
    while name in taken:
        number += 1
        name = f"{picture.stem}-{number}.png"
    taken.add(name)
    return name


def _save(sheet: Image.Image, path: Path) -> Path:
    content = io.BytesIO()
    form = Image.registered_extensions()[path.suffix.lower()]
    sheet.save(content, format=form)
    atomic_write(path, content.getvalue())
    return path
