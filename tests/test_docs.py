"""What the documents say is true of the software: commands, settings, names, paths, tables, versions."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import coterie
from coterie.ablation.rows import CONTROLS, SWEEPS, read_rows, row_config
from coterie.cli import app
from coterie.config import Config, load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_PATH = re.compile(
    r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|txt|toml|yml|yaml)|(?:src|tests|docs|benchmarks)(?:/\w+)*)`"
)
# Files of a run, of a person or of a dataset, not of the repository.
NOT_OURS = {"config.yaml", "FILE.yaml", "ablation.md", "Concepts81.txt", "classnames.txt"}
PLACEHOLDERS = {"key=value", "recipe=FILE.yaml", "recipe=mine.yaml"}
COMMANDS: Any = typer.main.get_command(app)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document in `language`."""
    return [content for found, content in FENCE.findall(text_of(document)) if found == language]


def command_lines(program: str) -> list[tuple[str, ...]]:
    """The words of every line of every `sh` block that calls `program`, without it."""
    lines = []
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0].rpartition("/")[2] == program:
                    lines.append(tuple(words[1:]))
    return lines


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_documents_show_every_command_of_the_command_line() -> None:
    assert {words[0] for words in command_lines("coterie")} == set(COMMANDS.commands)


@pytest.mark.parametrize("words", command_lines("coterie"), ids=" ".join)
def test_a_command_line_in_the_documents_is_one_that_coterie_takes(words: tuple[str, ...]) -> None:
    name, *rest = words
    context = COMMANDS.commands[name].make_context(name, rest)

    load_config(word for word in context.params.get("words") or () if word not in PLACEHOLDERS)


@pytest.mark.parametrize("words", command_lines("make"), ids=" ".join)
def test_a_make_target_in_the_documents_exists(words: tuple[str, ...]) -> None:
    assert re.search(rf"^{words[0]}:", text_of("Makefile"), re.MULTILINE)


@pytest.mark.parametrize("words", command_lines("python"), ids=" ".join)
def test_a_python_command_in_the_documents_runs_a_file_that_exists(words: tuple[str, ...]) -> None:
    first, *others = words

    module = others[0].replace(".", "/")
    files = (f"{module}.py", f"{module}/__main__.py") if first == "-m" else (first,)
    assert any((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_settings_in_running_text_exist(document: str) -> None:
    prose = FENCE.sub("", text_of(document))
    for code in re.findall(r"`([^`]+)`", prose):
        words = code.split()
        if all(re.fullmatch(r"[a-z_.]+=[^=…]+", word) for word in words):
            load_config(word for word in words if word not in PLACEHOLDERS)


@pytest.mark.parametrize("code", blocks("README.md", "python"))
def test_python_in_the_readme_uses_names_and_settings_that_exist(code: str) -> None:
    settings = set(Config.model_fields)
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "coterie"
        ):
            assert node.attr in coterie.__all__
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("coterie."):
            function = getattr(coterie, ast.unparse(node.func).removeprefix("coterie."))
            keywords = {keyword.arg for keyword in node.keywords}
            assert keywords <= set(inspect.signature(function).parameters) | settings


@pytest.mark.parametrize("table", blocks("README.md", "csv"))
def test_a_table_in_the_readme_can_be_read(table: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(table)
    for line in table.splitlines()[1:]:
        image = tmp_path / line.partition(",")[0]
        image.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(image)

    dataset = coterie.read_table(path)

    assert dataset.class_names in (("beach", "cat", "dog"), ("cat", "dog", "beach"))
    assert len(dataset) == len(table.splitlines()) - 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_in_a_document_lead_somewhere(document: str) -> None:
    prose = FENCE.sub("", text_of(document))
    folder = (ROOT / document).parent
    links = [link.partition("#")[0] for link in LINK.findall(prose) if "://" not in link]
    for link in links:
        assert (folder / link).exists(), f"{document} links to {link}"
    for path in NAMED_PATH.findall(prose):
        places = (ROOT / path, ROOT / "src" / "coterie" / path, ROOT / "src" / "coterie" / "data" / path)
        assert path in NOT_OURS or any(place.exists() for place in places), f"{document} names {path}"


def test_the_rows_of_an_ablation_are_described() -> None:
    table = re.findall(r"^\| (`[^|]*`) \|", text_of("docs/ablation.md"), re.MULTILINE)

    described = [name for cell in table for name in re.findall(r"`([^`]+)`", cell)]

    assert described == [row.name for row in CONTROLS] + list(SWEEPS)


@pytest.mark.parametrize("rows", blocks("docs/ablation.md", "yaml"))
def test_own_rows_in_the_documents_can_be_read(rows: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(rows)

    for row in read_rows(path):
        row_config(row, Config())


def test_the_architecture_names_every_module() -> None:
    modules = [path for path in (ROOT / "src" / "coterie").rglob("*.py") if path.name != "__init__.py"]
    names = {path.relative_to(ROOT / "src" / "coterie").as_posix() for path in modules}

    described = set(re.findall(r"`([\w/]+\.py)`", text_of("docs/architecture.md")))

    assert names - described == set()


def test_constraints_pin_exact_versions_each_once_and_sorted() -> None:
    names = [pin.name.lower() for pin in pins()]

    assert names == sorted(set(names))
    for pin in pins():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins()}
    listed = project()["dependencies"] + [
        word for extra in project()["optional-dependencies"].values() for word in extra
    ]
    for requirement in map(Requirement, listed):
        if requirement.name == "coterie":  # its own extras, whose packages are listed too
            continue
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt lacks {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_the_newest_version_of_the_changelog_is_that_of_the_package() -> None:
    newest = re.search(r"^## \[(\d[^\]]*)\]", text_of("CHANGELOG.md"), re.MULTILINE)

    assert newest is not None
    assert newest[1] == project()["version"]
