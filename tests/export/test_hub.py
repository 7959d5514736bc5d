"""The folder for the Hub: it loads back, its card is true and safe, and no path of this machine is in it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from markdown_it import MarkdownIt

import coterie.extras
from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE, read_checkpoint
from coterie.errors import CheckpointError, ConfigError, ExportError
from coterie.export import push_to_hub, write_hub_folder
from coterie.pipeline import Run
from coterie.predictor import load_classifier
from tests.export.making import NAMES, THRESHOLDS, save_small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("small") / "student")


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a model card."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", maxsplit=2)
    values: dict[str, Any] = yaml.safe_load(head)
    return values, text


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as a reader sees them: rows of cells."""
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and token.level > 2:
            assert all(child.type in ("text", "text_special") for child in token.children or ()), (
                token.content
            )
            tables[-1][-1].append("".join(child.content for child in token.children or ()))
    return tables


def test_the_folder_loads_back_with_the_same_scores(checkpoint: Path, tmp_path: Path) -> None:
    from tests.export.test_onnx import photo_files

    photos = photo_files(tmp_path / "photos")
    write_hub_folder(checkpoint, tmp_path / "hub")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "checkpoint.json",
        "config.json",
        "model.safetensors",
    ]
    loaded = load_classifier(tmp_path / "hub")
    assert loaded.class_names == NAMES
    assert loaded.scores(photos).tolist() == load_classifier(checkpoint).scores(photos).tolist()


def test_config_json_has_the_classes_as_other_tools_look_for_them(checkpoint: Path, tmp_path: Path) -> None:
    write_hub_folder(checkpoint, tmp_path / "hub")
    content = json.loads((tmp_path / "hub" / "config.json").read_text(encoding="utf-8"))
    assert content["id2label"] == {str(number): name for number, name in enumerate(NAMES)}
    assert content["problem_type"] == "multi_label_classification"
    assert content["thresholds"] == list(THRESHOLDS)
    assert content["architecture"]["name"] == "squeezenet"


def test_the_card_holds_metrics_and_settings_of_the_run(finished_run: Run, tmp_path: Path) -> None:
    write_hub_folder(finished_run.folder / "student", tmp_path / "hub", "mit", "ann/toys")
    head, text = card_of(tmp_path / "hub")
    assert head["library_name"] == "coterie"
    assert head["license"] == "mit"
    assert 'load_classifier("hf://ann/toys")' in text
    assert "`tests.tiny:Net`" in text
    metrics, settings, classes = tables_of(text)
    assert metrics[0] == ["split", "mAP", "CF1", "OF1"]
    for split, *cells in metrics[1:]:
        measured = finished_run.metrics[split]["student"]
        assert cells == [f"{measured[name]:.2f}" for name in ("mAP", "CF1", "OF1")]
    assert [row[0] for row in metrics[1:]] == ["val", "test", "test_shifted"]
    assert ["data", "labels.csv"] in settings
    assert ["groups of labels in each branch", "2"] in settings
    assert classes[1:] == [[name, "0.500"] for name in finished_run.student.class_names]


@pytest.mark.parametrize(
    "models", [[], {"student": 3}, {"student": {"mAP": "x"}}, {"student": {"mAP": [1]}}, {"student": []}]
)
def test_results_that_are_none_are_left_out_of_the_card(run_copy: Run, tmp_path: Path, models: Any) -> None:
    (run_copy.folder / "metrics.json").write_text(json.dumps({"splits": {"val": models}}))
    write_hub_folder(run_copy.folder / "student", tmp_path / "hub")
    assert "## Metrics" not in card_of(tmp_path / "hub")[1]


def test_class_names_break_no_card(checkpoint: Path, tmp_path: Path) -> None:
    write_hub_folder(checkpoint, tmp_path / "hub")
    head, text = card_of(tmp_path / "hub")
    assert "license" not in head
    classes = tables_of(text)[-1]
    assert classes[1:] == [[name, f"{limit:.3f}"] for name, limit in zip(NAMES, THRESHOLDS, strict=True)]
    assert "Metrics" not in text  # there is no run around this checkpoint


def test_nothing_tells_where_it_was_trained(finished_run: Run, tmp_path: Path) -> None:
    write_hub_folder(finished_run.folder / "student", tmp_path / "hub")
    for name in ("README.md", "checkpoint.json", "config.json"):
        assert str(finished_run.folder.parent) not in (tmp_path / "hub" / name).read_text(encoding="utf-8")
    before = read_checkpoint(finished_run.folder / "student")
    after = read_checkpoint(tmp_path / "hub")
    assert after.config["data"]["source"] == "labels.csv"
    assert after.config["train"] == before.config["train"]
    assert before.config["data"]["source"] == str(
        finished_run.config.data.source
    )  # the original is as it was


def test_a_folder_that_holds_something_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="hub is there already; name another folder"):
        write_hub_folder(checkpoint, tmp_path / "hub")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_damaged_weights_are_not_passed_on(checkpoint: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(checkpoint, tmp_path / "student"))
    with (copied / WEIGHTS_FILE).open("r+b") as file:
        file.seek(5000)
        file.write(b"\1\2\3")
    with pytest.raises(CheckpointError, match="their hash is not the one in"):
        write_hub_folder(copied, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


class FakeApi:
    """What is called of huggingface_hub.HfApi, without a network."""

    calls: list[tuple[str, dict[str, Any]]]
    files: dict[str, bytes]

    def __init__(self, **_about: str) -> None:
        pass

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        type(self).calls.append(("create", {"name": repo_id, "private": private, "exist_ok": exist_ok}))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        type(self).calls.append(("upload", {"name": repo_id, "message": commit_message}))
        type(self).files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    FakeApi.calls, FakeApi.files = [], {}
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi


def test_push_makes_the_repository_and_puts_the_folder_there(checkpoint: Path, hub: type[FakeApi]) -> None:
    address = push_to_hub(checkpoint, "ann/toys", private=True, license="cc-by-4.0")
    assert address == "https://hub.example/ann/toys"
    assert hub.calls == [
        ("create", {"name": "ann/toys", "private": True, "exist_ok": True}),
        ("upload", {"name": "ann/toys", "message": "student, written by coterie"}),
    ]
    assert hub.files[WEIGHTS_FILE] == (checkpoint / WEIGHTS_FILE).read_bytes()
    assert b'"hf://ann/toys"' in hub.files["README.md"]
    assert b"license: cc-by-4.0" in hub.files["README.md"]


@pytest.mark.parametrize("name", ["toys", "ann/toys/x", "ann/", "ann toys/x", "../ann/toys"])
def test_a_name_that_is_none_of_the_hub_is_refused(name: str, checkpoint: Path, hub: type[FakeApi]) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{re.escape(name)}' is no name on the Hub; write it as user/mod"
    ):
        push_to_hub(checkpoint, name)
    assert hub.calls == []


def test_what_the_hub_refuses_is_one_message(
    checkpoint: Path, hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401 Client Error.\nRequest id …")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(
        ExportError, match=r"ann/toys cannot be put on the Hub: 401 Client Error\. Log in with"
    ):
        push_to_hub(checkpoint, "ann/toys")


def test_a_model_of_the_hub_is_loaded_by_its_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision, allow_patterns))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    files = [INFO_FILE, WEIGHTS_FILE]
    assert load_classifier("hf://ann/toys").class_names == NAMES
    assert load_classifier(Path("hf://ann/toys@v1.0")).class_names == NAMES  # as the command line has it
    assert asked == [("ann/toys", None, files), ("ann/toys", "v1.0", files)]


def test_a_model_that_cannot_be_had_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"hf://ann/toys cannot be had from the Hub: no network$"):
        load_classifier("hf://ann/toys")


def test_without_the_extra_the_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coterie.extras, "find_spec", lambda _name: None)
    with pytest.raises(
        ConfigError, match=r"hf://ann/toys needs huggingface_hub: pip install 'coterie\[hub\]'"
    ):
        load_classifier("hf://ann/toys")
