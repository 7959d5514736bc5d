"""The site of the documents: its generated pages, its pictures, the names on the page about Python."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
from PIL import Image

import coterie
from coterie.cli import app
from coterie.config import describe_settings
from coterie.recipe import recipe_names

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS: Any = typer.main.get_command(app)


def load(name: str) -> ModuleType:
    """A script of the folder docs, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words_of(svg: Path) -> list[str]:
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    return ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    load("generate").write_pages(folder)
    return folder


def test_every_command_is_described_with_its_example_and_options(generated: Path) -> None:
    page = (generated / "commands.md").read_text()
    parts = dict(zip(*[iter(re.split(r"^### (.*)\n", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert set(parts) == set(COMMANDS.commands)
    for name, text in parts.items():
        assert f"```sh\ncoterie {name}" in text
    assert "| `--classes` | The classes to show; by default the best of each picture. |" in parts["explain"]
    assert "Example:" not in page


def test_every_setting_and_every_recipe_is_in_a_table(generated: Path) -> None:
    settings = (generated / "settings.md").read_text()
    for name, default, _ in describe_settings():
        assert f"| `{name}` | `{default}` |" in settings
    recipes = (generated / "recipes.md").read_text()
    assert re.findall(r"^\| `([^`]+)` \| \S", recipes, re.MULTILINE) == recipe_names()


def test_every_public_name_is_on_the_page_about_python() -> None:
    page = (DOCS / "api.md").read_text()
    described = re.findall(r"^\.\. auto\w+:: coterie\.(\w+)$", page, re.MULTILINE)
    assert sorted(described) == sorted(coterie.__all__)


def test_docstrings_are_shown_as_they_are_written() -> None:
    lines = ["`P[i,j]` of *labels* |z - u| at c_", "R = P ** 2"]
    load("conf").as_restructured_text(None, "", "", None, None, lines)
    assert lines == ["``P[i,j]`` of \\*labels\\* \\|z - u\\| at c\\_", "R = P \\*\\* 2"]


def test_the_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    load("draw").main(None, tmp_path)
    for name in ("groups.svg", "method.svg"):
        assert words_of(tmp_path / name) == words_of(DOCS / "pictures" / name)
    with Image.open(tmp_path / "scenes.jpg") as drawn, Image.open(DOCS / "pictures" / "scenes.jpg") as kept:
        difference = np.asarray(drawn.convert("RGB"), int) - np.asarray(kept.convert("RGB"), int)
    assert np.abs(difference).mean() < 1
