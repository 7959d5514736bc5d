"""What the Tab key offers: names of settings and recipes, and the values there are to choose from."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

# How a shell's completion calls the program, as typer sets it up: what it asks, and the words so far.
ASKING, WORDS, NUMBER = "_COTERIE_COMPLETE", "COMP_WORDS", "COMP_CWORD"


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """(word, meaning) for the beginning of a `key=value` word.

    Keys go section by section: "train." where several sections begin so. A key that stands alone is offered
    with its default too, so that a shell puts no space behind its "=".
    """
    from coterie.config import ROLES, describe_settings, setting_choices
    from coterie.recipe import recipe_names

    key, equals, _ = incomplete.partition("=")
    if equals:
        values = recipe_names() if key == "recipe" else setting_choices(key)
        return [(f"{key}={value}", "") for value in values if f"{key}={value}".startswith(incomplete)]
    described = {name: (default, meaning) for name, default, meaning in describe_settings()}
    for name in list(described):
        section, _, last = name.partition(".")
        if section == "train":
            described |= {f"{role}.{last}": described[name] for role in ROLES}
    described |= {"recipe": ("demo", "the settings to start from"), "data": described["data.source"]}
    described["model"] = described["model.name"]
    found = {name: described[name] for name in described if name.startswith(key)}
    heads = {name[: name.find(".", len(key)) + 1] or f"{name}=" for name in found}
    if len(heads) > 1:
        meanings = {f"{name}=": meaning for name, (_, meaning) in found.items()}
        return [(head, meanings.get(head, "")) for head in sorted(heads)]
    if len(found) == 1:
        ((name, (default, meaning)),) = found.items()
        return [(f"{name}=", meaning), (f"{name}={default}", "the default")]
    return [(f"{name}=", meaning) for name, (_, meaning) in sorted(found.items())]


def complete_recipe(incomplete: str) -> list[str]:
    """The names of recipes that begin so."""
    from coterie.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


@contextlib.contextmanager
def bash_words() -> Iterator[None]:
    """Bash takes `key=value` apart at its "=": where it asks, the word is put together, and what is answered
    is only what comes behind the "=", which is all that bash replaces.
    """
    if os.environ.get(ASKING) != "complete_bash":
        yield
        return
    words, number = joined_words(os.environ[WORDS].split(), int(os.environ[NUMBER]))
    os.environ[WORDS], os.environ[NUMBER] = "\n".join(words), str(number)
    current = words[number] if number < len(words) else ""
    head, equals, _ = current.partition("=")
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(answers):
            yield
    finally:
        for line in answers.getvalue().splitlines():
            print(line.removeprefix(head + equals) if equals else line, file=sys.stdout)


def joined_words(words: list[str], number: int) -> tuple[list[str], int]:
    """The words with those around a "=" put together, and the number of the word that `number` is in."""
    joined: list[str] = []
    place = number
    for position, word in enumerate(words):
        if joined and (word == "=" or (words[position - 1] == "=" and position > 1)):
            joined[-1] += word
        else:
            joined.append(word)
        if position == number:
            place = len(joined) - 1
    return joined, place if number < len(words) else len(joined)
