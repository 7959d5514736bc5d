"""Recipes: YAML files of settings, those that come with the package and a person's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from coterie.errors import ConfigError, did_you_mean
from coterie.untrusted import parse_yaml

# The key by which a recipe names those that it starts from; what it sets itself wins.
BASE = "base"


@dataclass(frozen=True)
class Layer:
    """What one recipe sets by itself: nested values, not yet validated."""

    name: str
    values: dict[str, Any]


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    files = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def recipe_comment(name: str) -> str:
    """The comment at the top of a recipe that comes with the package; its first line says what it is for."""
    lines = _shipped(name).read_text(encoding="utf-8").splitlines()
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:first])


def read_layers(recipe: str | Path) -> list[Layer]:
    """What a recipe sets, a shipped name or a YAML file, after what the recipes that it is based on set.

    `base: NAME` or `base: [NAME, …]`; the name of a file starts from the folder of the recipe. Raises
    ConfigError where one is not there, is no settings, or is based on itself.
    """
    return list(_layers(str(recipe), Path(), ()))


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in the file `path`; ConfigError where it is not there or holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    return _parse(text, str(path))


def _layers(recipe: str, folder: Path, above: tuple[str, ...]) -> Iterator[Layer]:
    own_file = Path(recipe).suffix in (".yaml", ".yml")
    name = str(folder / recipe) if own_file else recipe
    if name in above:
        raise ConfigError(f"recipe {name} is based on itself: {' -> '.join((*above, name))}")
    values = read_yaml(Path(name)) if own_file else _parse(_shipped(name).read_text(encoding="utf-8"), name)
    bases = values.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"'{BASE}' in {name} must be a recipe or a list of recipes, got {bases!r}")
    for base in bases:
        yield from _layers(base, Path(name).parent if own_file else Path(), (*above, name))
    yield Layer(name, values)


def _shipped(name: str) -> Traversable:
    names = recipe_names()
    if name not in names:
        raise ConfigError(
            f"there is no recipe '{name}'{did_you_mean(name, names) or '.'} `coterie recipes` lists those "
            "there are; the name of a recipe of your own ends in .yaml"
        )
    return _folder() / f"{name}.yaml"


def _folder() -> Traversable:
    return resources.files("coterie") / "recipes"


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name} must hold settings as `key: value`, got {type(values).__name__}")
    return values
