"""Sheets: which cells there are, what is coloured, and files that are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from coterie.errors import ConfigError
from coterie.explain import make_explainer
from coterie.explain import sheet as module
from coterie.explain.columns import Column, Models
from coterie.explain.sheet import (
    CELL,
    GAP,
    LINE,
    PAPER,
    Block,
    Cell,
    draw_sheet,
    fitted,
    make_block,
    overlay,
    write_sheets,
)
from tests.explain.models import predictor_of

NAMES = ("red", "green", "blue <b>$x^2$ & 'café'")


class Colours(nn.Module):
    """The logit of a class is the mean of its channel."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.pool(images)
        return pooled.mean(dim=(2, 3))


@pytest.fixture
def models() -> Models:
    """Three columns, the first of which knows the class red alone."""
    explainer = make_explainer(predictor_of(Colours(), NAMES, image_size=16))
    return Models(
        explainer,
        (
            Column("baseline", lambda name: explainer if name == "red" else None),
            Column("student", lambda _: explainer),
        ),
    )


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for name, colour in (("a", "red"), ("b", "lime")):
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", (40, 20), colour).save(paths[-1])
    return paths


def alone(models: Models) -> Models:
    return Models(models.main, models.columns[-1:])


def test_a_block_has_a_row_for_a_class_and_a_cell_for_a_model(models: Models, photos: list[Path]) -> None:
    block = make_block(models, photos[0], ["green", "red"])
    assert block.name == "a.png"
    assert [[cell.caption for cell in row] for row in block.rows] == [
        ["", "does not know green", "green 0.12"],
        ["", "red 0.88", "red 0.88"],
    ]
    assert [[cell.image is not None for cell in row] for row in block.rows] == [
        [True, False, True],
        [False, True, True],
    ]
    assert block.height == CELL // 2


def test_a_model_alone_has_its_classes_in_a_row_best_first(models: Models, photos: list[Path]) -> None:
    (row,) = make_block(alone(models), photos[1], top=2).rows
    assert [cell.caption for cell in row] == ["", "green 0.88", "red 0.12"]


def test_the_map_of_a_class_colours_where_it_is(models: Models, tmp_path: Path) -> None:
    pixels = np.full((100, 100, 3), 90, np.uint8)
    pixels[50:, 50:] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (row,) = make_block(alone(models), tmp_path / "a.png", ["red"]).rows
    assert row[1].image is not None
    seen = np.asarray(row[1].image).astype(int)
    assert np.ptp(seen[20, 20]) == 0  # grey
    red, green, blue = seen[-20, -20]
    assert min(red, green) > blue + 30  # pale yellow over it


def test_an_overlay_is_grey_at_0_and_nearly_the_colour_at_1() -> None:
    image = Image.new("RGB", (256, 1), (0, 0, 200))
    heat = np.linspace(0, 1, 256, dtype=np.float32)[None]
    seen = np.asarray(overlay(image, heat)).astype(int)[0]
    assert len(set(seen[0])) == 1
    lightness = seen @ np.array([0.299, 0.587, 0.114])
    assert bool((np.diff(lightness) > -1).all())
    assert lightness[-1] - lightness[0] > 150


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 500), (CELL, CELL // 2)), ((4, 8), (CELL // 2, CELL)), ((5000, 1), (CELL, 1))],
)
def test_a_picture_is_fitted_into_its_cell(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted(Image.new("RGB", size)).size == expected


def test_a_sheet_has_room_for_all_cells() -> None:
    cell = Cell("x", Image.new("RGB", (CELL, 100), "red"))
    block = Block("name", ((cell, cell), (cell, cell)))
    sheet = draw_sheet([block, block], ("picture", "student"), "footnote")
    assert sheet.width == GAP + 2 * (CELL + GAP)
    pixels = np.asarray(sheet)
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert red.sum() == 8 * CELL * 100
    written = (pixels != PAPER).any(axis=2) & ~red
    for edge in (written[:GAP], written[:, :GAP], written[-3:], written[:, -3:]):
        assert not edge.any()
    rows = np.flatnonzero(red.any(axis=1))
    starts = rows[np.flatnonzero(np.diff(rows, prepend=-2) > 1)]
    assert len(starts) == 4
    for start in starts:
        assert written[start + 100 : start + 100 + LINE].any()  # a caption under each row


def test_a_long_name_stays_in_its_cell_and_keeps_its_score() -> None:
    """Drawn beside an empty cell: no ink may reach it."""
    image = Image.new("RGB", (CELL, 10))
    caption = "a class with a very long name, longer than any cell is wide 0.50"
    sheet = np.asarray(draw_sheet([Block("n", ((Cell(caption, image), Cell("")),))]))
    end = GAP + CELL
    inked = (sheet != PAPER).any(axis=(0, 2))
    assert inked[end - 25 : end].any()
    assert not inked[end:].any()
    shown = module._shortened(caption, CELL)
    assert shown.startswith("a class")
    assert shown.endswith("0.50")
    assert "…" in shown


def test_a_file_gets_one_sheet_and_a_folder_one_for_each_picture(
    models: Models, photos: list[Path], tmp_path: Path
) -> None:
    counted: list[None] = []
    written, failures = write_sheets(
        models, photos, tmp_path / "new" / "maps.png", progress=lambda: counted.append(None)
    )
    assert (written, failures, len(counted)) == ([tmp_path / "new" / "maps.png"], [], 2)
    with Image.open(written[0]) as sheet:
        assert sheet.width == GAP + 3 * (CELL + GAP)
    written, _ = write_sheets(models, [*photos, photos[0]], tmp_path / "maps", NAMES[2:])
    assert [path.name for path in written] == ["a.png", "b.png", "a-2.png"]
    assert all(path.exists() for path in written)


@pytest.mark.parametrize("suffix", module.SUFFIXES)
def test_every_format_is_written(models: Models, photos: list[Path], tmp_path: Path, suffix: str) -> None:
    (written,), _ = write_sheets(models, photos[:1], tmp_path / f"maps{suffix}", ["red"])
    assert written.read_bytes()[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"RIFF", b"%PDF")


def test_an_unreadable_picture_is_left_out(models: Models, photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:40])
    written, (failure,) = write_sheets(models, [broken, *photos], tmp_path / "maps.png", ["red"])
    assert failure.path == broken
    assert failure.reason
    with Image.open(written[0]) as sheet:
        assert sheet.height == 2 * GAP + 2 * LINE + 2 * (2 * LINE + GAP + CELL // 2)
    assert write_sheets(models, [broken], tmp_path / "none.png") == ([], [failure])
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("out", "classes", "message"),
    [
        ("maps.gif", None, r"maps\.gif must end in \.png"),
        ("maps.png", ["gren"], "no class 'gren'; did you mean 'green'"),
        ("maps.png", [], "name at least one class"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_a_picture_is_opened(
    models: Models, tmp_path: Path, out: str, classes: list[str] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_sheets(models, [tmp_path / "missing.jpg"], tmp_path / out, classes)


def test_a_sheet_that_would_be_too_long_names_the_way_out(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="51 pictures would take 153 rows, and a sheet has room for 150"):
        write_sheets(models, [tmp_path / "missing.jpg"] * 51, tmp_path / "maps.png")
