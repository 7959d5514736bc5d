"""The program as a whole: help that teaches, commands in panels."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from coterie.cli import app
from coterie.cli.app import EXAMPLES, PANELS, _explained
from coterie.config import load_config

COMMANDS: Any = typer.main.get_command(app)
CONTEXT = typer.Context(COMMANDS)
NAMES = COMMANDS.list_commands(CONTEXT)
EXAMPLE = re.compile(r"Example: coterie (.*)")


def test_every_command_has_a_panel_and_stands_in_its_order() -> None:
    order = [name for names in PANELS.values() for name in names]
    assert len(order) == len(set(order))
    assert [name for name in order if name in NAMES] == NAMES


def test_help_shows_the_panels_one_after_the_other_and_examples() -> None:
    command = [sys.executable, "-m", "coterie", "--help"]
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    places = [shown.index(f" {panel} ") for panel in PANELS]
    assert places == sorted(places)
    for panel, names in PANELS.items():
        after = shown[shown.index(f" {panel} ") :]
        box = after[: after.index("╰")]
        assert [line.split()[1] for line in box.splitlines()[1:] if line[2:3] != " "] == [
            name for name in names if name in NAMES
        ]
    for line in EXAMPLES.split("\n\n"):
        assert line in " ".join(shown.split())


def examples() -> list[str]:
    return [line.removeprefix("coterie ") for line in EXAMPLES.split("\n\n") if line.startswith("coterie ")]


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_has_an_example_that_it_takes(name: str) -> None:
    command = COMMANDS.get_command(CONTEXT, name)
    found = EXAMPLE.search(command.help)
    assert found is not None, f"coterie {name} --help has no line 'Example: coterie {name} …'"
    check_example(found[1])


@pytest.mark.parametrize("example", examples())
def test_the_examples_of_the_program_are_taken(example: str) -> None:
    check_example(example)


def check_example(words: str) -> None:
    name, *rest = shlex.split(words)
    context = COMMANDS.get_command(CONTEXT, name).make_context(name, rest)
    load_config(context.params.get("words") or ())


@pytest.mark.parametrize("words", [["--classes", "--out", "x.png"], ["--classes"]])
def test_a_list_without_values_is_wrong_usage(words: list[str]) -> None:
    command = COMMANDS.get_command(CONTEXT, "explain")
    with pytest.raises(Exception, match=r"--classes.* requires an argument") as raised:
        command.make_context("explain", ["runs/x", "new.jpg", *words])
    assert getattr(raised.value, "exit_code", None) == 2


@pytest.mark.parametrize("error", [FileExistsError, NotADirectoryError])
def test_a_place_below_a_file_is_named(error: type[OSError], tmp_path: Path) -> None:
    (tmp_path / "labels.csv").touch()
    shown = f"{tmp_path / 'labels.csv'} is a file, where a folder is needed; choose another place"
    assert _explained(error(17, "File exists", str(tmp_path / "labels.csv"))) == shown
    assert _explained(error(20, "Not a directory", str(tmp_path / "labels.csv" / "x" / "y.csv"))) == shown
    assert _explained(error(17, "File exists", str(tmp_path / "x"))) == f"File exists: {tmp_path / 'x'}"


def test_as_a_module_it_has_its_own_name() -> None:
    """Completion that is installed by `python -m coterie` would be for a command `python -m coterie`."""
    words = [sys.executable, "-m", "coterie", "predict", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:3] == ["Usage:", "coterie", "predict"]
