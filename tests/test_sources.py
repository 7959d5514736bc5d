"""Pictures are found in order, once each, as they are asked for, and not before."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from coterie.data.dataset import UnreadableImage, open_image
from coterie.download import Limits, WebImage
from coterie.errors import DataError
from coterie.sources import _Named, find_pictures, listed_paths

FILES = (
    *("a.png", "B.JPG", "c [1].webp", "notes.txt", ".hidden.png", "._b.jpg"),
    *("deep/a.png", "deep/er/a.jpg", "deep/er/x.png", "deep/er/a/a.png", "z.png/inside.jpg", ".cache/a.png"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(tree: Path, *words: str | Path, listed: bytes = b"") -> list[str]:
    found = find_pictures([tree / word if word != "-" else word for word in words], listed=io.BytesIO(listed))
    return [os.path.relpath(str(source), tree) for source in found]


def test_a_folder_gives_what_is_below_it_by_name(tree: Path) -> None:
    everything = [
        *("B.JPG", "a.png", "c [1].webp", "deep/a.png", "deep/er/a/a.png", "deep/er/a.jpg", "deep/er/x.png"),
        "z.png/inside.jpg",
    ]
    assert names(tree, "") == everything
    assert names(tree, "deep", "a.png") == [*everything[3:7], "a.png"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("a.png", "a.png"), ["a.png"]),
        (("deep/er", "deep/er/*.png"), ["deep/er/a/a.png", "deep/er/a.jpg", "deep/er/x.png"]),
        (("deep/er/x.png", "deep/er"), ["deep/er/x.png", "deep/er/a/a.png", "deep/er/a.jpg"]),
        (("deep/*.png", "./deep/er/a", "deep/a.png"), ["deep/a.png", "deep/er/a/a.png"]),
        (("deep/er/a", "z.png", "**/inside.*"), ["deep/er/a/a.png", "z.png/inside.jpg"]),
    ],
)
def test_what_several_words_name_comes_once_with_the_first(
    tree: Path, words: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(tree, *words) == expected
    monkeypatch.chdir(tree)
    partly_absolute = find_pictures([words[0], *(tree / word for word in words[1:])])
    assert [os.path.relpath(str(source), tree) for source in partly_absolute] == expected


def test_nothing_is_remembered_of_words_that_lie_apart(tree: Path) -> None:
    apart = [f"{tree}/deep/er/*/*.png", f"{tree}/deep/a.png", f"{tree}/z.png", f"{tree}/*/*.webp"]
    for words, remembered in ((apart[:3], 0), (apart, 4)):
        named = _Named(words)
        for word in words:
            list(named.new(word, iter([Path(word)])))
        assert len(named.seen) == remembered


def test_a_list_is_taken_as_it_is(tree: Path) -> None:
    assert names(tree, "a.png", "-", listed=f"{tree}/a.png\n{tree}/a.png\n".encode()) == ["a.png"] * 3


def test_a_file_is_taken_as_it_is(tree: Path) -> None:
    assert names(tree, "notes.txt", "c [1].webp", ".hidden.png") == ["notes.txt", "c [1].webp", ".hidden.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png", "z.png/inside.jpg"]),  # a folder of that name, too
        ("[ab].*", ["a.png"]),
        ("?.JPG", ["B.JPG"]),
        ("*/*.png", ["deep/a.png"]),
        ("**/a.*", ["a.png", "deep/a.png", "deep/er/a/a.png", "deep/er/a.jpg"]),
        ("**/*.jpg", ["deep/er/a.jpg", "z.png/inside.jpg"]),
        ("deep/**", ["deep/a.png", "deep/er/a/a.png", "deep/er/a.jpg", "deep/er/x.png"]),
        ("**/er/**/*.png", ["deep/er/a/a.png", "deep/er/x.png"]),
        ("**/**/a.png", ["a.png", "deep/a.png", "deep/er/a/a.png"]),
        ("d*/e*", ["deep/er/a/a.png", "deep/er/a.jpg", "deep/er/x.png"]),
    ],
)
def test_a_pattern_gives_each_match_once(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(tree, pattern) == expected


def test_a_pattern_starts_from_where_one_is(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert [str(source) for source in find_pictures(["*.png", "deep/*.png"])] == [
        *("a.png", "z.png/inside.jpg", "deep/a.png")
    ]


def test_only_folders_that_can_match_are_looked_into(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    scandir = os.scandir

    def listing(folder: str | Path) -> Iterator[os.DirEntry[str]]:
        looked.append(os.path.relpath(folder, tree))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", listing)
    assert names(tree, "d*/a.png") == ["deep/a.png"]
    assert set(looked) == {".", "deep"}


def test_standard_input_is_refused_where_no_list_is_read(tree: Path) -> None:
    with pytest.raises(DataError, match="standard input is not read here"):
        find_pictures([tree, "-"])


def test_folders_are_listed_when_their_turn_comes(tree: Path) -> None:
    found = find_pictures([tree])
    assert next(found).name == "B.JPG"  # type: ignore[union-attr]
    (tree / "deep" / "new.png").write_bytes(b"")
    assert str(tree / "deep" / "new.png") in map(str, found)


def test_links_to_folders_are_not_followed(tree: Path) -> None:
    (tree / "deep" / "loop").symlink_to(tree)
    (tree / "deep" / "loop.png").symlink_to(tree)
    (tree / "deep" / "link.png").symlink_to(tree / "a.png")
    assert names(tree, "deep") == [
        *("deep/a.png", "deep/er/a/a.png", "deep/er/a.jpg", "deep/er/x.png", "deep/link.png")
    ]


def test_what_names_no_picture_is_told_before_the_first(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no picture or folder .*missing\.jpg"):
        find_pictures([tree, tree / "missing.jpg"])
    with pytest.raises(DataError, match=r"folder .*empty holds no picture"):
        find_pictures([tree, tree / "empty"])
    with pytest.raises(DataError, match=r"pattern .*\*\.gif matches no picture"):
        find_pictures([tree / "*.gif"])
    with pytest.raises(DataError, match=r"pattern .*\*\.jpg matches nothing: there is no folder .*nope"):
        find_pictures([tree / "nope" / "*.jpg"])
    with pytest.raises(DataError, match="can be read once"):
        find_pictures(["-", "-"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a.png\nb c.png\r\n\nd.png", ["a.png", "b c.png", "d.png"]),
        (b"a\nb.png\0c.png\0", ["a\nb.png", "c.png"]),
        (b"only.png", ["only.png"]),
        (b"", []),
        (b"\n\n", []),
        ("é.png\n".encode() + b"\xff.png\n", ["é.png", "\udcff.png"]),
    ],
)
@pytest.mark.parametrize("chunk", [9, 10, 1000])
def test_lists_have_lines_or_nuls(
    content: bytes, expected: list[str], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.sources.CHUNK", chunk)
    assert list(listed_paths(io.BytesIO(content))) == expected


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_a_picture_instead_of_a_list_is_one_error(format: str) -> None:
    content = io.BytesIO()
    Image.effect_noise((90, 70), 40).convert("RGB").save(content, format)
    with pytest.raises(DataError, match="- reads paths from there, each on a line"):
        list(find_pictures(["-"], listed=io.BytesIO(content.getvalue())))


def test_a_name_with_a_control_character_is_no_picture(tree: Path) -> None:
    (tree / "bell\a.png").write_bytes(b"")
    assert names(tree, "-", listed=f"{tree}/bell\a.png\0none.png".encode()) == [
        "bell\a.png",
        os.path.relpath("none.png", tree),
    ]


def test_a_list_is_read_as_it_goes_on(tree: Path) -> None:
    paths = f"{tree}/a.png\n{tree}/deep\n{tree}/missing.png\n".encode()
    assert names(tree, "B.JPG", "-", listed=paths) == [
        *("B.JPG", "a.png", "deep/a.png", "deep/er/a/a.png", "deep/er/a.jpg", "deep/er/x.png", "missing.png")
    ]


def test_what_is_wrong_in_a_list_is_said_in_its_place() -> None:
    found = list(find_pictures(["-"], listed=io.BytesIO(b"http://example.org/a.png\nftp://x\n")))
    with pytest.raises(UnreadableImage, match="--allow-urls downloads"):
        open_image(found[0])
    with pytest.raises(UnreadableImage, match="there is no such file"):
        open_image(found[1])
    assert str(found[0]) == "http://example.org/a.png"


def test_a_folder_that_cannot_be_read_is_said_in_its_place(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def listing(folder: Path) -> Iterator[os.DirEntry[str]]:
        if folder.name == "er":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", listing)
    a, er = find_pictures([tree / "deep"])
    assert (str(a), str(er)) == (str(tree / "deep" / "a.png"), str(tree / "deep" / "er"))
    with pytest.raises(UnreadableImage, match="the folder cannot be read: Permission denied"):
        open_image(er)


def test_addresses_are_refused_unless_they_are_allowed() -> None:
    with pytest.raises(DataError, match="--allow-urls downloads pictures"):
        find_pictures(["https://example.org/a.png"])
    (source,) = find_pictures(["https://example.org/a.png"], web=Limits())
    assert isinstance(source, WebImage)
    with pytest.raises(DataError, match="there is no picture or folder ftp:"):
        find_pictures(["ftp://example.org/a.png"], web=Limits())
