"""Fonts for names in any script: the one that comes with matplotlib, and where it lacks a character, one of
the system's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from coterie.errors import counted, listed

BUILT_IN = "DejaVu Sans"  # has Latin, Greek, Cyrillic and more
# They choose between forms of the character before them, and have none themselves.
VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
LATER = ("bold", "italic", "oblique", "black", "light", "thin", "mono")  # of a family, the others come first


def built_in_font(bold: bool = False) -> Path:
    """The file of the font that comes with matplotlib."""
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


def runs(text: str, bold: bool = False) -> list[tuple[Path, str]]:
    """The text in parts of one font each: (file of the font, part)."""
    built_in = built_in_font(bold)
    others = _others(text, built_in)[0]
    parts = groupby(text, lambda character: others.get(character, built_in))
    return [(font, "".join(part)) for font, part in parts]


def families(text: str) -> list[str]:
    """For matplotlib, the names of fonts that together have what `text` needs, as far as there are any."""
    paths = dict.fromkeys(_others(text, built_in_font())[0].values())
    return [BUILT_IN, *map(_family, paths)]


def missing_note(names: Iterable[str]) -> str | None:
    """What to install for characters of `names` that no font here has; None where there are none."""
    missing = sorted(_others("".join(names), built_in_font())[1])
    if not missing:
        return None
    return (
        f"no font here has {counted(len(missing), 'character')} of the names ({listed(missing, 10)}): a box "
        "stands for each; Noto Sans CJK (fonts-noto-cjk) and Symbola (fonts-symbola) have most"
    )


def _others(text: str, font: Path) -> tuple[dict[str, Path], frozenset[str]]:
    """{character that `font` lacks: the font of the system that has it}, and the characters that none has."""
    needed = {character for character in text if character.isprintable()}
    return _fallbacks(frozenset(needed - VARIATION_SELECTORS - _characters(font)))


@functools.cache
def _fallbacks(characters: frozenset[str]) -> tuple[dict[str, Path], frozenset[str]]:
    found: dict[str, Path] = {}
    missing = characters
    for path in _system_fonts() if characters else ():
        has = missing & _characters(path)
        found |= dict.fromkeys(has, path)
        missing -= has
        if not missing:
            break
    return found, missing


@functools.cache
def _family(path: Path) -> str:
    """The name by which matplotlib finds a font from now on: it may be newer than matplotlib's list."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    fontManager.addfont(path)
    return FT2Font(str(path)).family_name


@functools.cache
def _system_fonts() -> tuple[Path, ...]:
    from matplotlib.font_manager import findSystemFonts

    def order(path: Path) -> tuple[bool, Path]:
        return any(word in path.stem.lower() for word in LATER), path

    return tuple(sorted(map(Path, findSystemFonts()), key=order))


@functools.cache
def _characters(path: Path) -> frozenset[str]:
    """Those that a font has outlines for; none of a damaged font, or of one made of little pictures."""
    from matplotlib.ft2font import FaceFlags, FT2Font

    try:
        font = FT2Font(str(path))
        is_drawn = FaceFlags.SCALABLE in font.face_flags and "LastResort" not in path.stem
        return frozenset(map(chr, font.get_charmap())) if is_drawn else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
