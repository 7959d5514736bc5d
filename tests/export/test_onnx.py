"""The ONNX file: the checkpoint's scores for every head and batch size, its metadata, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from scipy.special import expit, logit

import coterie.extras
from coterie.errors import ConfigError, DataError, ExportError
from coterie.export import checking, export_onnx
from coterie.export.checking import synthetic_pictures
from coterie.models.classifier import Classifier
from coterie.models.weights import load_backbone_weights
from coterie.pipeline import Run
from coterie.predictor import Predictor, load_classifier
from tests.conftest import shared_data
from tests.export.making import HEADS, NAMES, TEMPERATURE, THRESHOLDS, save_small, scores_of, small_predictor
from tests.tiny import CLASS_NAMES, Net

LIMITS = np.array(THRESHOLDS, np.float32)
EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_predict.py"
# Runs a script where neither torch nor coterie can be imported.
WITHOUT_US = """
import runpy, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("coterie", "torch", "torchvision", "timm"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def description(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(session(path).get_modelmeta().custom_metadata_map["coterie"])
    return content


def pixels_of(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, side, side), np.uint8)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return small_predictor(tmp_path_factory.mktemp("small") / "student")


@pytest.fixture(scope="module")
def exported(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "student.onnx"
    export_onnx(predictor, path)
    return path


@pytest.mark.parametrize("head", HEADS)
def test_a_file_gives_the_scores_and_labels_of_the_checkpoint_in_batches_of_any_size(
    head: str, tmp_path: Path
) -> None:
    predictor = small_predictor(tmp_path / "checkpoint", head)
    path = tmp_path / "model.onnx"
    agreement = export_onnx(predictor, path)
    assert agreement.pictures == 4
    assert agreement.largest_difference < 1e-5
    model = session(path)
    for count in (1, 3):
        pixels = pixels_of(count)
        scores, labels, logits = model.run(["scores", "labels", "logits"], {"pixels": pixels})
        np.testing.assert_allclose(scores, scores_of(predictor, pixels), atol=1e-5)
        np.testing.assert_allclose(scores, expit(logits / TEMPERATURE), atol=1e-6)
        assert labels.tolist() == (scores > LIMITS).tolist()
    assert np.ptp(scores, axis=0).max() > 1e-3  # pictures differ, or the comparison says nothing


@pytest.mark.parametrize("head", HEADS)
def test_the_scores_of_real_photographs_agree_for_every_head(head: str, tmp_path: Path) -> None:
    folder = shared_data()
    weights = folder / "weights" / "squeezenet1_1_imagenet_features.safetensors"
    photos = sorted((folder / "corel5k").rglob("*.jpg"))[:600:200]
    predictor = load_classifier(save_small(tmp_path / "checkpoint", head))
    assert isinstance(predictor.model, Classifier)
    load_backbone_weights(predictor.model.backbone, weights, ("classifier",))
    agreement = export_onnx(predictor, tmp_path / "model.onnx", photos)
    assert agreement.pictures == 3
    assert agreement.largest_difference < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_backbones_of_timm_are_exported_too(name: str, tmp_path: Path) -> None:
    predictor = small_predictor(tmp_path / "checkpoint", "csra", name=name, side=32)
    assert export_onnx(predictor, tmp_path / "model.onnx").largest_difference < 1e-4


def test_the_student_of_a_run_with_a_model_of_your_own(finished_run: Run, tmp_path: Path) -> None:
    predictor = load_classifier(finished_run.folder, Net)
    photos = sorted(Path(finished_run.config.data.source).parent.glob("*.png"))[:5]
    agreement = export_onnx(predictor, tmp_path / "own.onnx", photos)
    assert agreement.pictures == 5
    assert agreement.largest_difference < 1e-5
    assert description(tmp_path / "own.onnx")["class_names"] == sorted(CLASS_NAMES)


def test_the_file_is_valid_and_says_how_it_is_used(exported: Path, predictor: Predictor) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    (given,) = model.graph.input
    dimensions = [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim]
    assert (given.name, dimensions) == ("pixels", ["batch", 3, 64, 64])
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == ["scores", "labels", "logits"]
    about = description(exported)
    assert about["class_names"] == list(NAMES)
    assert about["thresholds"] == list(THRESHOLDS)
    assert about["temperature"] == TEMPERATURE
    assert about["image_size"] == 64
    assert (about["mean"], about["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert about["weights_sha256"] == predictor.checkpoint.weights_sha256


def test_a_file_names_nothing_of_the_machine_it_was_written_on(exported: Path) -> None:
    content = exported.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


def photo_files(folder: Path) -> list[Path]:
    """Photographs that need the whole preprocessing: larger than the network's square, turned, with alpha,
    of 16 bits.
    """
    folder.mkdir()
    paths = [folder / name for name in ("plain.png", "turned.jpg", "clear.png", "deep.png")]
    pixels = synthetic_pictures(90)
    Image.fromarray(pixels[2]).resize((150, 80)).save(paths[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[2]).resize((70, 100)).save(paths[1], exif=exif)
    Image.fromarray(pixels[1]).convert("RGBA").save(paths[2])
    Image.fromarray(np.linspace(0, 65535, 90 * 70).reshape(90, 70).astype(np.uint16)).save(paths[3])
    return paths


def run_example(model: Path, photos: list[Path]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", WITHOUT_US, EXAMPLE, model, *photos]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)


def printed_scores(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], float]:
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {(photo, name): float(score) for photo, name, score in rows}


def test_the_example_gives_what_predict_gives_without_torch_and_without_us(
    exported: Path, predictor: Predictor, tmp_path: Path
) -> None:
    photos = photo_files(tmp_path / "photos")
    printed = printed_scores(run_example(exported, photos))
    expected = {
        (prediction.image, label): prediction.scores[label]
        for prediction in predictor.predict(photos)
        for label in prediction.labels
    }
    assert {photo for photo, _ in expected} >= {str(photos[0]), str(photos[3])}
    assert printed == pytest.approx(expected, abs=2e-6)


def test_the_example_says_in_one_line_what_it_cannot_read(exported: Path, tmp_path: Path) -> None:
    photo = photo_files(tmp_path / "photos")[0]
    photo.write_bytes(photo.read_bytes()[:-400])
    done = run_example(exported, [photo])
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"{re.escape(str(photo))} cannot be read: .*truncated.*\n", done.stderr)


def test_the_example_is_as_short_as_it_says() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30
    imported = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(lines), re.MULTILINE))
    assert imported <= {"json", "sys", "numpy", "onnxruntime", "PIL"}


def test_a_file_whose_scores_differ_is_refused_and_the_old_one_stays(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the file before")
    truth = predictor.scores(list(synthetic_pictures(64)))

    def other(_self: Predictor, pictures: list[np.ndarray]) -> np.ndarray:
        wrong = truth[: len(pictures)].astype(np.float64)
        wrong[2, 1] += 0.01
        logits: np.ndarray = TEMPERATURE * logit(wrong)
        return logits

    monkeypatch.setattr(Predictor, "logits", other)
    message = rf"score of '<b>bold</b>' is {truth[2, 1]:.6f}, that of the checkpoint {truth[2, 1] + 0.01:.6f}"
    with pytest.raises(ExportError, match=message):
        export_onnx(predictor, path)
    assert path.read_bytes() == b"the file before"
    assert list(tmp_path.iterdir()) == [path]
    assert export_onnx(predictor, path, tolerance=0.02).largest_difference == pytest.approx(0.01, abs=1e-4)


def test_scores_that_are_no_numbers_and_labels_that_are_not_their_scores_are_refused(
    predictor: Predictor,
) -> None:
    logits = predictor.logits(list(synthetic_pictures(64))).astype(np.float32)
    scores = predictor.scores(list(synthetic_pictures(64)))

    def answers(broken: np.ndarray, labels: np.ndarray) -> checking.Exported:
        return lambda pixels: (broken[: len(pixels)], labels[: len(pixels)], logits[: len(pixels)])

    lost = scores.copy()
    lost[0, 0] = np.nan
    with pytest.raises(ExportError, match="is nan, that of the checkpoint"):
        checking.check(answers(lost, scores > LIMITS), predictor)
    with pytest.raises(ExportError, match="labels that its own scores and thresholds do not"):
        checking.check(answers(scores, scores > 0.3), predictor)
    with pytest.raises(ExportError, match=r"scores \[4, 2\], not \[4, 5\]"):
        checking.check(answers(scores[:, :2], scores > LIMITS), predictor)


def test_logits_differ_where_scores_are_all_one(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, sigmoid(40) is sigmoid(60)."""
    truth = np.full((4, 5), 40.0)
    monkeypatch.setattr(Predictor, "logits", lambda _self, pictures: truth[: len(pictures)])

    def exported(logit: float) -> checking.Exported:
        def answer(pixels: np.ndarray) -> checking.Answers:
            logits = np.full((len(pixels), 5), logit, np.float32)
            return expit(logits), np.ones_like(logits, bool), logits

        return answer

    assert checking.check(exported(40.01), predictor).largest_difference < 1e-9
    with pytest.raises(ExportError, match=r"its logit of '.*' is 40\.25.*, that of the checkpoint 40\.0"):
        checking.check(exported(40.25), predictor)


def test_a_picture_that_cannot_be_read_ends_the_check(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
        export_onnx(predictor, tmp_path / "model.onnx", [tmp_path / "broken.jpg"])
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_that_torch_cannot_follow_is_one_message(finished_run: Run, tmp_path: Path) -> None:
    predictor = load_classifier(finished_run.folder, Net)
    predictor.model.register_forward_hook(lambda _m, _i, logits: logits * float(logits.mean()))
    with pytest.raises(ExportError, match=r"torch\.export cannot follow the model of student: .*Its forward"):
        export_onnx(predictor, tmp_path / "model.onnx")


def test_weights_beyond_what_a_file_holds_are_said_before_the_work(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.export.onnx.MOST_BYTES", 1000)
    with pytest.raises(
        ExportError, match=r"the weights take 0\.0 GB, and one ONNX file holds 2; use --format torch"
    ):
        export_onnx(predictor, tmp_path / "model.onnx")


def test_a_missing_extra_is_named_with_its_installation(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coterie.extras, "find_spec", lambda name: None if name.startswith("onnx") else "spec")
    with pytest.raises(ConfigError) as caught:
        export_onnx(predictor, tmp_path / "model.onnx")
    assert str(caught.value) == (
        "an export to ONNX needs onnx, onnxscript, onnxruntime: pip install 'coterie[export]'"
    )
