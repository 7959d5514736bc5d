"""The torch.export program: the checkpoint's scores where nothing of ours can be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coterie.errors import ConfigError, ExportError
from coterie.export import export_program
from coterie.predictor import Predictor
from tests.export.making import HEADS, NAMES, THRESHOLDS, scores_of, small_predictor

# Scores of the pixels in an npy file, where coterie and timm cannot be imported.
ELSEWHERE = """
import sys
sys.modules["coterie"] = sys.modules["timm"] = None
import json, numpy, torch
files = {"coterie.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module()
scores, labels, _ = program(torch.from_numpy(numpy.load(sys.argv[2])))
print(json.dumps([scores.tolist(), labels.tolist(), json.loads(files["coterie.json"])["class_names"]]))
"""


@pytest.mark.parametrize("head", HEADS)
def test_a_program_gives_the_scores_of_the_checkpoint_in_batches_of_any_size(
    head: str, tmp_path: Path
) -> None:
    predictor = small_predictor(tmp_path / "checkpoint", head)
    path = tmp_path / "model.pt2"
    assert export_program(predictor, path).largest_difference < 1e-5
    module = torch.export.load(path).module()
    for count in (1, 3):
        pixels = np.random.default_rng(2).integers(0, 256, (count, 3, 64, 64), np.uint8)
        scores, labels, _ = module(torch.from_numpy(pixels))
        np.testing.assert_allclose(scores.detach(), scores_of(predictor, pixels), atol=1e-5)
        assert labels.tolist() == (scores > torch.tensor(THRESHOLDS)).tolist()


def test_a_program_runs_where_we_are_not_installed(tmp_path: Path) -> None:
    predictor = small_predictor(tmp_path / "checkpoint")
    pixels = np.random.default_rng(3).integers(0, 256, (2, 3, 64, 64), np.uint8)
    export_program(predictor, tmp_path / "model.pt2")
    np.save(tmp_path / "pixels.npy", pixels)
    words = [sys.executable, "-c", ELSEWHERE, tmp_path / "model.pt2", tmp_path / "pixels.npy"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores, labels, names = json.loads(done.stdout)
    np.testing.assert_allclose(scores, scores_of(predictor, pixels), atol=1e-5)
    assert labels == (np.array(scores) > THRESHOLDS).tolist()
    assert names == list(NAMES)


def test_a_program_with_other_scores_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = small_predictor(tmp_path / "checkpoint")
    truth = Predictor.logits
    monkeypatch.setattr(Predictor, "logits", lambda self, pictures: truth(self, pictures) - 0.2)
    with pytest.raises(ExportError, match="the exported model is another"):
        export_program(predictor, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


def test_a_model_that_is_not_on_the_cpu_is_refused(tmp_path: Path) -> None:
    predictor = small_predictor(tmp_path / "checkpoint")
    predictor.device = torch.device("cuda")
    with pytest.raises(ConfigError, match="a model is exported on the CPU, and this one is on cuda"):
        export_program(predictor, tmp_path / "model.pt2")
