"""Names in any script: a font of the system stands in for what matplotlib's own lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image, ImageDraw

from coterie import fonts
from coterie.drawing import draw_partitions, write_picture
from coterie.explain import sheet
from coterie.fonts import BUILT_IN, built_in_font, families, missing_note, runs
from tests.test_drawing import partition_of, random_graph

CAT, DOG, ROCKET = "猫", "犬", "🚀"
ANIMALS, SHIPS = "Coterie Test Animals", "Coterie Test Ships"


def write_font(path: Path, family: str, characters: str) -> Path:
    """A font in which every one of the characters is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, names = pen.glyph(), [f"u{ord(character):x}" for character in characters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph()} | dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the only fonts that the system has."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(
        "matplotlib.font_manager.findSystemFonts", lambda: [str(path) for path in folder.iterdir()]
    )
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist])
    look_again()
    yield folder
    look_again()


def look_again() -> None:
    """As a new process would."""
    for cached in (fonts._fallbacks, fonts._system_fonts, fonts._characters):
        cached.cache_clear()


def test_each_part_has_a_font_that_has_its_characters(system: Path) -> None:
    animals = write_font(system / "animals.ttf", ANIMALS, CAT + DOG)
    ships = write_font(system / "ships.ttf", SHIPS, ROCKET)
    write_font(system / "animals-bold.ttf", "Bold", CAT)
    (system / "damaged.ttf").write_bytes(b"no font")
    assert runs(f"a {CAT}{DOG}{ROCKET} é") == [
        (built_in_font(), "a "),
        (animals, CAT + DOG),
        (ships, ROCKET),
        (built_in_font(), " é"),
    ]
    assert runs("été, Ελλάδα", bold=True) == [(built_in_font(bold=True), "été, Ελλάδα")]
    assert families(CAT + ROCKET) == [BUILT_IN, ANIMALS, SHIPS]
    assert families("été") == [BUILT_IN]
    assert missing_note(["dog", CAT, ROCKET]) is None


def test_what_no_font_has_is_told_with_what_to_install(system: Path) -> None:
    write_font(system / "ships.ttf", SHIPS, ROCKET)
    assert runs(f"{CAT} 1") == [(built_in_font(), f"{CAT} 1")]
    note = missing_note(["dog", f"{CAT}{DOG}", f"{ROCKET}\ufe0f", CAT])
    assert note is not None
    assert note.startswith(f"no font here has 2 characters of the names ({DOG}, {CAT}): a box ")
    assert "Noto Sans CJK (fonts-noto-cjk) and Symbola (fonts-symbola)" in note


def test_a_sheet_has_the_characters_of_the_fonts_of_the_system(system: Path) -> None:
    write_font(system / "animals.ttf", ANIMALS, CAT)

    def written(text: str) -> np.ndarray:
        image = Image.new("L", (60, 24), 255)
        sheet._write(ImageDraw.Draw(image), (0, 0), text, 60, 0)  # type: ignore[arg-type]
        return np.asarray(image)

    square = written(f"{CAT}\ufe0f")
    black = np.argwhere(square < 50)
    side = round(0.8 * sheet.TEXT)
    assert np.ptp(black, axis=0).tolist() == [side - 1, side - 1]
    assert len(black) == side**2
    alone, before = written("ab"), written(f"ab{CAT}")
    width = np.argwhere(alone < 255)[:, 1].max() + 1
    assert (before[:, :width] == alone[:, :width]).all()
    assert black[:, 0].max() == np.argwhere(alone < 50)[:, 0].max()  # on one baseline
    assert (before < 50).sum() == (alone < 50).sum() + side**2


def test_a_drawn_graph_has_them_too(system: Path, tmp_path: Path) -> None:
    names = (CAT, "b")
    graph = random_graph(2, names)
    pictures = []
    for path in (tmp_path / "boxes.png", tmp_path / "squares.png"):
        write_picture(draw_partitions(graph, [partition_of(names)]), path)
        pictures.append(path.read_bytes())
        write_font(system / "animals.ttf", ANIMALS, CAT)
        look_again()
    assert pictures[0] != pictures[1]
    label = draw_partitions(graph, [partition_of(names)]).axes[0].texts[0]
    assert label.get_fontfamily() == [BUILT_IN, ANIMALS]
