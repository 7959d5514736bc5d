"""`coterie export` and `coterie push`: what they write, what they print, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch

from coterie.export import write_hub_folder
from coterie.pipeline import Run
from coterie.predictor import load_classifier
from tests.export.making import NAMES, save_small
from tests.export.test_hub import FakeApi, hub  # noqa: F401  (a fixture)
from tests.export.test_onnx import description, photo_files
from tests.test_cli import OWN_MODEL, Command, assert_refused, coterie_command  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("small") / "student")


def test_export_writes_each_form_and_says_how_far_it_is_off(
    coterie_command: Command,  # noqa: F811
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    first, *others = photo_files(tmp_path / "photos")
    outcome = coterie_command(
        "export", checkpoint, "--check", first, *others, "--out", tmp_path / "model.onnx"
    )
    assert outcome.status == 0
    assert f"{tmp_path / 'model.onnx'}: 2.9 MB; its scores of 4 pictures are at most " in outcome.output
    assert description(tmp_path / "model.onnx")["class_names"] == list(NAMES)

    outcome = coterie_command("export", checkpoint, "--format", "torch", "--out", tmp_path / "model.pt2")
    assert "its scores of 4 synthetic pictures are at most " in outcome.output
    files = {"coterie.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=files)
    assert json.loads(files["coterie.json"])["class_names"] == list(NAMES)

    outcome = coterie_command(
        "export", checkpoint, "--format", "hub", "--license", "mit", "--out", tmp_path / "hub"
    )
    assert "`coterie push" in outcome.output
    assert load_classifier(tmp_path / "hub").class_names == NAMES
    assert "license: mit" in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")


def test_what_export_cannot_do_is_one_message(
    coterie_command: Command,  # noqa: F811
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    def refused(*words: object) -> str:
        outcome = coterie_command("export", *words)
        assert_refused(outcome)
        return outcome.error

    assert f"--out {tmp_path} is a folder; name a file" in refused(checkpoint, "--out", tmp_path)
    assert "--check is for onnx and torch" in refused(
        checkpoint, "--format", "hub", "--check", tmp_path, "--out", tmp_path / "hub"
    )
    assert "--license is for the model card" in refused(
        checkpoint, "--license", "mit", "--out", tmp_path / "m.onnx"
    )
    assert "there is no run or checkpoint at" in refused(tmp_path, "--out", tmp_path / "m.onnx")
    blocked = tmp_path / "file"
    blocked.touch()
    assert str(blocked) in refused(checkpoint, "--out", blocked / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_an_own_model_is_exported_with_its_builder(
    coterie_command: Command,  # noqa: F811
    finished_run: Run,
    tmp_path: Path,
) -> None:
    folder = finished_run.folder
    assert_refused(coterie_command("export", folder, "--out", tmp_path / "m.onnx"), "--model module:function")
    assert coterie_command("export", folder, *OWN_MODEL, "--out", tmp_path / "m.onnx").status == 0
    assert (tmp_path / "m.onnx").is_file()


def test_push_prints_where_the_model_is(
    coterie_command: Command,  # noqa: F811
    checkpoint: Path,
    hub: type[FakeApi],  # noqa: F811
) -> None:
    outcome = coterie_command("push", checkpoint, "ann/toys", "--message", "better")
    assert outcome.output == "https://hub.example/ann/toys\n"
    assert hub.calls[1] == ("upload", {"name": "ann/toys", "message": "better"})
    assert_refused(coterie_command("push", checkpoint, "toys"), "write it as user/model")


def test_a_model_of_the_hub_is_evaluated_once_and_by_its_name(
    coterie_command: Command,  # noqa: F811
    finished_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_hub_folder(finished_run.folder / "student", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "hub"))
    table = finished_run.config.data.source
    words = ("evaluate", "hf://ann/toys", f"data={table}", *OWN_MODEL, "--out", tmp_path / "m.json")
    outcome = coterie_command(*words)
    assert outcome.status == 0, outcome.error
    (measured,) = json.loads((tmp_path / "m.json").read_text())["test"].values()
    assert measured["mAP"] == pytest.approx(finished_run.metrics["test"]["student"]["mAP"])
