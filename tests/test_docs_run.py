"""The commands and the Python of the documents do what they say: they are run, on data that are tiny."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coterie
from coterie.cli import main
from coterie.config import leaves, load_config
from tests.layouts import write_tiny_coco
from tests.test_docs import DOCUMENTS, blocks
from tests.tiny import make_dataset, write_table

NAMES = ("beach", "cat", "dog", "tree")
# What makes a training take a second; the last words win.
SMALL = (
    *("model=test_resnet", "model.image_size=32", "model.pretrained=false", "model.weights=null"),
    *("device=cpu", "precision=fp32", "jobs=1", "data.min_positives=1", "augment.randaugment=false"),
    *("train.epochs=1", "train.batch_size=8", "teacher.epochs=1", "train.views=null"),
    *("data.scenes.train=24", "data.scenes.val=12", "data.scenes.test=12", "data.scenes.test_shifted=12"),
)
# The same where the model is one's own.
OWN_MODEL = tuple(word for word in SMALL if not word.startswith("model"))
# One teacher of all labels does where the groups are not the point.
ONE_TEACHER = "k=1"
# Command lines that are not run, and why.
NOT_RUN = {
    r"run '?data=(nuswide|VOCdevkit|shards/|somebody/).*": "tests/test_cli.py runs each layout",
    r"run .*engine=ray.*": "a cluster; tests/test_ray_engine.py runs on one",
    r"serve .*": "it goes on until Ctrl-C; tests/serve runs it",
    r"predict runs/photos - .*": "paths from standard input; tests/test_cli.py gives some",
    r"evaluate .*data=VOCdevkit.*": "tests/test_class_mapping.py and tests/test_cli.py map classes",
    r"(push|predict hf:).*": "the Hub; tests/export/test_hub.py runs them without a network",
    r"import-cpsd .*": "published files of 170 MB and more; tests/test_published.py imports one of each kind",
}
# Words that are added to commands that would train for too long.
ADDED = {"ablate": ("--plan",), "bench": ("--seconds", "0.01")}
# Blocks of Python that are not run here, by what is in them, and why.
PYTHON_NOT_RUN = {
    "def build(num_classes": "tests/test_plug_in.py runs them",
    '"image_size": 64}, k=3': "tests/test_plug_in.py runs it",
    "coco_glove_word2vec.pkl": "a published file",
    "coterie.ablate(": "tests/ablation/test_running.py runs one",
}
PYTHON_RUN_ANYWAY = 'coterie.fit("photos/labels.csv", model=build'


def command_lines(document: str) -> list[str]:
    """The lines of a document that call coterie, without it, in order."""
    lines = []
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "coterie":
                lines.append(shlex.join(words[1:]))
    return lines


def call(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`coterie LINE` in this process, made small; fails unless its exit status is 0."""
    words = small(shlex.split(line))
    monkeypatch.setattr(sys, "argv", ["coterie", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code, f"coterie {shlex.join(words)}"


def small(words: list[str]) -> list[str]:
    command, *rest = words
    if command in ("run", "ablate", "bench", "partition"):
        own = any(word.startswith("model.name=") for word in rest)
        # settings go where the others are, before the options
        first_option = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
        settings = [*rest[:first_option], *(OWN_MODEL if own else SMALL)]
        if command == "run" and "out=runs/photos" not in rest:
            settings.append(ONE_TEACHER)
        if command == "run" and not any(word.startswith("out=") for word in rest):
            # made small, runs that differ have one name
            settings.append(f"out=runs/{re.sub(r'[^a-z0-9]+', '-', ' '.join(rest))}")
        rest = [*settings, *rest[first_option:], *ADDED.get(command, ())]
    return [command, *rest]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the documents speak of: photographs, tables, a run, checkpoints, an own model."""
    folder = tmp_path_factory.mktemp("documents")
    dataset = replace(make_dataset(), class_names=NAMES)
    write_table(folder / "photos", dataset)
    others = write_table(folder / "others", dataset.subset(dataset.indices("test")))
    others.write_text("\n".join(line.rpartition(",")[0] for line in others.read_text().splitlines()) + "\n")
    write_tiny_coco(folder / "coco")
    for name in ("folder", "more", "photos/test"):
        (folder / name).mkdir()
        for number in range(3):
            dataset.load_image(number).save(folder / name / f"{number}.jpg")
    dataset.load_image(5).save(folder / "new.jpg")
    (builder,) = [block for block in blocks("docs/plug-in.md", "python") if "torchvision" in block]
    (folder / "own_models.py").write_text(builder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (line,) = [line for line in command_lines("README.md") if line.endswith("out=runs/photos")]
        call(line, patch)
    shutil.copytree(folder / "runs" / "photos" / "student", folder / "checkpoints" / "r101")
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, as the current one."""
    copied = Path(shutil.copytree(world, tmp_path / "place"))
    monkeypatch.chdir(copied)
    monkeypatch.syspath_prepend(str(copied))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return copied


def not_run(line: str) -> str | None:
    """Why a line is not run."""
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, line)), None)


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if command_lines(document)])
def test_the_commands_of_a_document_run(
    document: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []
    for line in command_lines(document):
        if not_run(line) is None:
            call(line, monkeypatch)
            assert "error: " not in capsys.readouterr().err
            done.append(line)
    if not done:
        pytest.skip(f"none of its commands is run: {not_run(command_lines(document)[0])}")
    for line in done:
        if written := re.search(r"--(?:out|picture) (\S+)", line):
            assert (place / written[1]).exists() or "--plan" in small(shlex.split(line)), line


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_is_there(pattern: str) -> None:
    lines = [line for document in DOCUMENTS for line in command_lines(document)]
    assert any(re.fullmatch(pattern, line) for line in lines)


def python_blocks() -> list[Any]:
    found = []
    for document in DOCUMENTS:
        for number, code in enumerate(blocks(document, "python")):
            why = next((why for part, why in PYTHON_NOT_RUN.items() if part in code), None)
            marks = [pytest.mark.skip(reason=why)] if why and PYTHON_RUN_ANYWAY not in code else []
            found.append(pytest.param(code, id=f"{document}-{number}", marks=marks))
    return found


@pytest.mark.parametrize("code", python_blocks())
@pytest.mark.usefixtures("place")
def test_the_python_of_a_document_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coterie, "fit", partial(small_fit, coterie.fit))
    names: dict[str, Any] = {}
    exec(compile(code, "document", "exec"), names)
    if "maps" in names:
        assert names["maps"]["dog"].shape == (16, 16)
        assert names["maps"]["dog"].dtype == np.float32


def small_fit(fit: Any, data: str, model: Any, **settings: Any) -> Any:
    """`coterie.fit` at the size of the tiny pictures, for one epoch."""
    settings["train"] = settings.get("train", {}) | {"epochs": 1, "batch_size": 8}
    settings["augment"] = {"randaugment": False}
    return fit(data, {"name": model, "image_size": 32}, **settings)


@pytest.mark.parametrize("script", blocks("docs/cluster.md", "bash"))
def test_a_script_for_slurm_is_one_that_bash_takes(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_yaml_in_the_documents_is_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in blocks("docs/recipes.md", "yaml"):
        Path("mine.yaml").write_text(text)
        config = load_config(["recipe=mine.yaml"])
        assert config.k == 3
        assert dict(leaves(config.model_dump()))["train.epochs"] == 20
