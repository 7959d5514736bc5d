"""What the Tab key offers, down to a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.cli.completion import complete_recipe, complete_setting, joined_words
from coterie.config import Config, load_config
from coterie.recipe import recipe_names


def offered(incomplete: str) -> list[str]:
    return [word for word, _ in complete_setting(incomplete)]


def test_a_key_that_stands_alone_is_offered_with_its_default() -> None:
    assert offered("train.ep") == ["train.epochs=", f"train.epochs={Config().train.epochs}"]
    assert offered("student.ep") == ["student.epochs=", f"student.epochs={Config().train.epochs}"]


def test_keys_go_section_by_section() -> None:
    top = offered("")
    assert {"train.", "model.", "data.", "k=", "seed=", "recipe=", "data=", "model="} <= set(top)
    assert not any(word.startswith("train.e") for word in top)
    assert {"train.epochs=", "train.ema=", "train.lr="} <= set(offered("tra"))
    assert offered("da") == ["data.", "data="]
    assert {"data.voc.", "data.format="} <= set(offered("data."))


def test_every_setting_is_reached_by_what_is_offered() -> None:
    from coterie.config import describe_settings

    seen, open_ = set(), [""]
    while open_:
        for word in offered(open_.pop()):
            if word.endswith("."):
                open_.append(word)
            seen.add(word.partition("=")[0])
    assert {name for name, _, _ in describe_settings()} <= seen


def test_meanings_come_with_the_keys() -> None:
    meanings = dict(complete_setting("model."))
    assert meanings["model.head="] == Config.model_fields["model"].annotation.model_fields["head"].description  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("model.head=", ["linear", "csra", "ml-decoder", "query2label", "transformer"]),
        ("model.head=c", ["csra"]),
        ("model.pretrained=", ["true", "false"]),
        ("data.official_val=t", ["train", "test"]),
        ("teacher.loss=", ["asl", "bce"]),
        ("train.epochs=", []),
        ("data=", []),  # a path: the shell's business
        ("no.such=", []),
    ],
)
def test_values_are_those_there_are_to_choose_from(incomplete: str, expected: list[str]) -> None:
    key = incomplete.partition("=")[0]
    assert offered(incomplete) == [f"{key}={value}" for value in expected]
    for word in offered(incomplete):
        load_config([word])


def test_recipes_are_offered_by_name() -> None:
    assert complete_recipe("") == recipe_names()
    assert complete_recipe("dem") == ["demo"]
    assert offered("recipe=dem") == ["recipe=demo"]
    assert offered("zzz") == []


@pytest.mark.parametrize(
    ("words", "number", "expected"),
    [
        (["coterie", "run", "k"], 2, (["coterie", "run", "k"], 2)),
        (["coterie", "run", "recipe", "=", "de"], 4, (["coterie", "run", "recipe=de"], 2)),
        (["coterie", "run", "recipe", "="], 3, (["coterie", "run", "recipe="], 2)),
        (["coterie", "run", "k", "=", "3", "se"], 5, (["coterie", "run", "k=3", "se"], 3)),
        (["coterie", "run", "k", "=", "3"], 5, (["coterie", "run", "k=3"], 3)),
    ],
)
def test_words_that_bash_takes_apart_are_put_together(
    words: list[str], number: int, expected: tuple[list[str], int]
) -> None:
    assert joined_words(words, number) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_keys_values_and_recipes(tmp_path: Path) -> None:
    """Through the script that `--install-completion` installs, called as bash calls it."""
    script = """
        eval "$(_COTERIE_COMPLETE=source_bash coterie)"
        ask() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _coterie_completion coterie
            echo "${COMPREPLY[*]}"
        }
        ask coterie expl
        ask coterie run train.ep
        ask coterie run recipe = dem
        ask coterie run k = 3 model.head =
        ask coterie recipes copy dem
    """
    program = tmp_path / "coterie"
    program.write_text(f"#!{sys.executable}\nfrom coterie.cli import main\nmain()\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    printed = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert printed.stdout.splitlines() == [
        "explain",
        f"train.epochs= train.epochs={Config().train.epochs}",
        "demo",
        "linear csra ml-decoder query2label transformer",
        "demo",
    ]
