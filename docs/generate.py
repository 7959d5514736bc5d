"""Pages that the software itself knows best, written when the site is built: commands, settings, recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from coterie.cli import app
from coterie.cli.app import PANELS
from coterie.config import describe_settings
from coterie.files import atomic_write
from coterie.recipe import recipe_comment, recipe_names

COMMANDS: Any = typer.main.get_command(app)


def write_pages(folder: Path) -> None:
    """Write all of them to `folder`, to be included in the pages beside it."""
    for name, text in {"commands": commands(), "settings": settings(), "recipes": recipes()}.items():
        atomic_write(folder / f"{name}.md", text)


def commands() -> str:
    """What each command does, with its example and options, panel by panel."""
    context = typer.Context(COMMANDS)
    lines = []
    for panel, names in PANELS.items():
        lines += [f"## {panel}", ""]
        for name in names:
            if name in COMMANDS.commands:
                lines += [f"### {name}", "", *_command(COMMANDS.get_command(context, name))]
    return "\n".join(lines)


def settings() -> str:
    """Every setting, with default and meaning, a table for each section."""
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for name, default, meaning in describe_settings():
        section = name.rpartition(".")[0]
        rows.setdefault(section, []).append((f"`{name}`", f"`{default}`", meaning))
    lines = []
    for section, found in rows.items():
        lines += [f"## {section or 'The run'}", "", *_table(("setting", "default", "meaning"), found), ""]
    return "\n".join(lines)


def recipes() -> str:
    """Every recipe that comes with the package, and what it is for."""
    rows = [
        (f"`{name}`", recipe_comment(name).partition("\n")[0].removeprefix("# ")) for name in recipe_names()
    ]
    return "\n".join(_table(("recipe", "what it is for"), rows))


def _command(command: Any) -> list[str]:
    what, *rest = re.split(r"\n\s*\n", command.help)
    lines = [_cell(what), ""]
    for paragraph in rest:
        example = paragraph.removeprefix("Example: ")
        lines += ["```sh", example, "```", ""] if example != paragraph else [_cell(paragraph), ""]
    options = [
        (", ".join(f"`{name}`" for name in option.opts), _cell(option.help or ""))
        for option in command.params
        if option.name != "help" and option.opts[0].startswith("--")
    ]
    return [*lines, *_table(("option", "meaning"), options), ""] if options else lines


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in cells]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
