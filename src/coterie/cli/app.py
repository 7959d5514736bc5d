"""What all commands share: the program, its exit statuses, and kinds of options."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from coterie.cli.completion import bash_words, complete_setting
from coterie.errors import CoterieError

# The commands as `coterie --help` shows them: in the order in which a person comes to need them.
PANELS = {
    "Look at data": ("inspect", "partition"),
    "Train": ("run", "ablate", "bench"),
    "See what was learned": ("evaluate", "report", "compare", "explain", "diagnose"),
    "Use a model": ("tune", "predict", "serve", "export", "push"),
    "Settings, and models from elsewhere": ("settings", "recipes", "import-cpsd"),
}

EXAMPLES = "\n\n".join(
    (
        "Examples:",
        "coterie run data=photos/labels.csv model=resnet50 model.pretrained=true k=3",
        "coterie explain runs/photos new.jpg --classes dog cat --out maps.png",
        "coterie predict runs/photos folder/ --format csv --out labels.csv",
        "`coterie COMMAND --help` has an example of each command. Exit status: 0 done, 1 a problem that the "
        "message explains, 2 wrong usage, 130 stopped by Ctrl-C.",
    )
)


class Commands(TyperGroup):
    """The commands; every foreseen problem of one is a message and an exit status, not a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Panel by panel; a command of no panel comes last."""
        names = super().list_commands(ctx)
        order = [name for panel in PANELS.values() for name in panel]
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command: Any = super().get_command(ctx, cmd_name)
        for panel, names in PANELS.items():
            if command is not None and cmd_name in names:
                command.rich_help_panel = panel
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CoterieError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail(
                "stopped; the same command, given again, goes on: a run from the last state that it kept",
                status=130,
            )
        except BrokenPipeError:  # what reads our output has enough, as in `coterie predict … | head`
            raise
        except OSError as error:
            _fail(_explained(error))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Multi-label image classifiers trained by Parallel Self-Distillation.",
    epilog=EXAMPLES,
)

SettingWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings, such as data=labels.csv k=3 train.epochs=20.",
        autocompletion=complete_setting,
    ),
]

RunOrCheckpoint = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder (its student), or a checkpoint.")
]

Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, …")]

OwnModel = Annotated[
    str | None, typer.Option(metavar="MODULE:FUNCTION", help="What builds a model that is not coterie's.")
]


class ListsOfValues(TyperCommand):
    """A command whose options for several values take them in a row: `--seeds 0 1 2`.

    A list ends at the next option, and at the next setting, which has a "=".
    """

    takes_settings = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        option = None
        for position, word in enumerate(args):
            if option is not None and args[position - 1] == option and word.startswith("--"):
                raise typer.BadParameter(f"Option {option!r} requires an argument.", ctx)
            if word.startswith("--"):
                option = word if word in lists else None
            elif "=" in word and self.takes_settings:
                option = None
            elif option is not None and args[position - 1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


class ListsOfNames(ListsOfValues):
    """The same for a command without settings: a name may have a "=" in it."""

    takes_settings = False


def main() -> None:
    """What the command `coterie` runs."""
    with bash_words():
        app(prog_name="coterie")  # also by `python -m coterie`: the shell completes that word


def _explained(error: OSError) -> str:
    """What went wrong, and with which file or folder."""
    name = error.filename2 or error.filename  # of a renaming, the name that was asked for
    if name and isinstance(error, FileExistsError | NotADirectoryError):
        path = Path(os.fsdecode(name))
        file = next((place for place in (path, *path.parents) if place.is_file()), None)
        if file is not None:
            return f"{file} is a file, where a folder is needed; choose another place"
    return f"{error.strerror or error}{f': {name}' if name else ''}"


def _fail(message: str, status: int = 1) -> NoReturn:
    Console(stderr=True).print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    sys.exit(status)
