"""Commands that list what can be set: recipes, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coterie.cli.app import app
from coterie.cli.completion import complete_recipe
from coterie.errors import ConfigError

recipes_app = typer.Typer(invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that come with coterie: `coterie run recipe=NAME`.

    Example: coterie recipes
    """
    if context.invoked_subcommand is not None:
        return
    from coterie.recipe import recipe_comment, recipe_names

    names = recipe_names()
    for name in names:
        purpose = recipe_comment(name).partition("\n")[0].removeprefix("# ")
        typer.echo(f"{name:<{max(map(len, names))}}  {purpose}")


@recipes_app.command(name="copy")
def copy_recipe(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="One of those that `coterie recipes` lists.",
            autocompletion=complete_recipe,
        ),
    ],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to write it; by default NAME.yaml here.")
    ] = None,
) -> None:
    """Write a recipe to a file of your own, with all that it sets, to edit and run with recipe=FILE.yaml.

    Example: coterie recipes copy demo my-demo.yaml
    """
    from coterie.config import recipe_text
    from coterie.files import atomic_write

    text = recipe_text(name)
    file = file or Path(f"{name}.yaml")
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"a recipe of your own is a file whose name ends in .yaml, got {file}")
    if file.exists():
        raise ConfigError(f"{file} is there already; name another file, or remove it")
    atomic_write(file, text)
    typer.echo(f"written to {file}; `coterie run recipe={file}` runs it")


@app.command()
def settings() -> None:
    """List every setting with its default and meaning.

    Example: coterie settings
    """
    from coterie.config import describe_settings

    table = Table("setting", "default", "meaning")
    for row in describe_settings():
        table.add_row(*map(Text, row))
    Console().print(table)
