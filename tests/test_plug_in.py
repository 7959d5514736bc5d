"""Models that are not ours go through a whole run: the builders are those of docs/plug-in.md, as they stand
there.
"""

from __future__ import annotations

import csv
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from coterie import fit, load_classifier
from coterie.cli import main
from coterie.errors import CheckpointError
from coterie.pipeline import Run
from tests.tiny import CLASS_NAMES, RUN_SETTINGS, make_dataset, write_table

PAGE = (Path(__file__).parents[1] / "docs" / "plug-in.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BUILDERS = [block for block in BLOCKS if "def build(" in block]
LIBRARIES = ("torchvision", "timm", "transformers")
SIDE = 64
ONE_EPOCH = RUN_SETTINGS | {"train": {"epochs": 1, "batch_size": 8}}


@pytest.fixture(params=LIBRARIES)
def own_models(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `own_models` in the current folder: the page's builder for one library."""
    pytest.importorskip(request.param)
    (code,) = [block for block in BUILDERS if re.search(rf"^(?:from|import) {request.param}\b", block, re.M)]
    (tmp_path / "own_models.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return importlib.import_module("own_models")


def plain_scores(own_models: ModuleType, folder: Path, image: Image.Image) -> np.ndarray:
    """The scores of an image without any of our code: the model, its weights, normalisation by hand."""
    arguments: dict[str, Any] = {"num_classes": len(CLASS_NAMES), "class_names": CLASS_NAMES}
    wanted = own_models.build.__annotations__
    model = own_models.build(**{key: value for key, value in arguments.items() if key in wanted}).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255
    normalised = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    output = model(torch.from_numpy(normalised.transpose(2, 0, 1)[None]).float())
    logits = output if isinstance(output, torch.Tensor) else output.logits
    scores: np.ndarray = logits.sigmoid().detach().numpy()
    return scores


def teachers_of(run: Run) -> list[str]:
    return sorted(str(path.parent.relative_to(run.folder)) for path in run.folder.glob("teachers/*/*.json"))


def test_the_page_has_a_builder_for_each_library() -> None:
    assert len(BUILDERS) == len(LIBRARIES)


def test_a_model_of_a_library_is_trained_saved_and_loaded(own_models: ModuleType, tmp_path: Path) -> None:
    dataset = make_dataset()
    images = [dataset.load_image(index) for index in range(5)]
    model = {"name": own_models.build, "image_size": SIDE}
    run = fit(dataset, model, out=tmp_path / "run", **ONE_EPOCH)

    for branch in ("co-occurrence", "dis-occurrence"):
        teachers = [run.predictor(name) for name in teachers_of(run) if branch in name]
        assert len(teachers) == 2
        assert sorted(name for teacher in teachers for name in teacher.class_names) == sorted(CLASS_NAMES)
        for teacher in teachers:
            assert teacher.scores(images).shape == (5, len(teacher.class_names))

    scores = run.student.scores(images)
    loaded = load_classifier(tmp_path / "run", model=own_models.build)
    assert loaded.class_names == CLASS_NAMES
    assert np.array_equal(loaded.scores(images), scores)
    expected = plain_scores(own_models, tmp_path / "run" / "student", images[0])
    np.testing.assert_allclose(scores[:1], expected, atol=1e-5)
    assert set(run.metrics["test"]) == {
        "baseline", "CGP teachers", "DGP teachers", "all teachers", "student"
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"your own model own_models:build.*give the builder"):
        load_classifier(tmp_path / "run")


def test_a_model_of_a_library_is_named_on_the_command_line(
    own_models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coterie(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["coterie", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code in (0, None)

    table = write_table(tmp_path / "photos")
    words = (
        "k=1",
        "jobs=2",
        "device=cpu",
        "augment.randaugment=false",
        "train.epochs=1",
        "train.batch_size=8",
    )
    name = "own_models:build"
    coterie("run", f"data={table}", f"model.name={name}", f"model.image_size={SIDE}", "out=run", *words)
    coterie(
        *("predict", "run", "photos/000.png", "--model", name),
        *("--format", "csv", "--top", "4", "--out", "labels.csv"),
    )
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    with Image.open(tmp_path / "photos" / "000.png") as image:
        expected = plain_scores(own_models, tmp_path / "run" / "student", image)[0]
    scores = {row["label"]: float(row["score"]) for row in rows}
    # a table's classes are sorted
    assert scores == pytest.approx(dict(zip(sorted(CLASS_NAMES), expected, strict=True)), abs=1e-5)
