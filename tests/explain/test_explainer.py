"""Maps of a predictor: in the picture's own size, in 0..1, by the method that fits the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from coterie.checkpoint import describe_architecture, save_checkpoint
from coterie.config import ModelConfig
from coterie.errors import ConfigError, DataError
from coterie.explain import ClassMap, explain, make_explainer
from coterie.explain.explainer import best_classes
from coterie.models.factory import ModelFactory
from coterie.pipeline import Run
from coterie.predictor import Picture, load_classifier
from tests.explain.models import built, predictor_of
from tests.tiny import Net

WIDTH, HEIGHT = 96, 64


class Reddest(nn.Module):
    """Four by four features: how red and how green, of which the logits are the means."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.pool(images)
        return pooled[:, :2].mean(dim=(2, 3))


def picture_with_red_corner() -> Image.Image:
    """Wider than high, black, its lower left corner red and its upper right one green."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[HEIGHT // 2 :, : WIDTH // 4, 0] = 255
    pixels[: HEIGHT // 2, WIDTH // 2 :, 1] = 255
    return Image.fromarray(pixels)


def test_a_map_has_the_size_of_the_picture_and_is_high_where_the_class_is() -> None:
    predictor = predictor_of(Reddest(), ("red", "green"), image_size=16)
    maps = make_explainer(predictor)(picture_with_red_corner(), ["green", "red"])
    assert list(maps) == ["green", "red"]
    for heat in maps.values():
        assert heat.dtype == np.float32
        assert heat.shape == (HEIGHT, WIDTH)
        assert heat.min() == 0
        assert heat.max() == 1
    assert maps["red"][HEIGHT - 1, 0] == 1
    assert maps["red"][0, 0] == 0
    assert maps["red"][HEIGHT - 1, WIDTH - 1] == 0
    assert maps["green"][0, WIDTH - 1] == 1
    assert maps["green"][HEIGHT - 1, 0] == 0


@pytest.mark.parametrize(
    ("name", "head", "method"),
    [
        ("squeezenet1_1", "linear", "class activation"),
        ("test_resnet", "linear", "class activation"),
        ("test_convnext", "linear", "Grad-CAM"),
        ("test_vit", "linear", "Grad-CAM"),
        ("test_vit", "csra", "residual attention"),
        ("squeezenet1_1", "ml-decoder", "attention"),
        ("test_resnet", "query2label", "attention"),
        ("test_vit", "transformer", "attention"),
    ],
)
def test_each_head_has_its_method_and_the_map_the_models_logit(name: str, head: str, method: str) -> None:
    predictor = predictor_of(built(name, head))
    predictor.checkpoint = replace(predictor.checkpoint, temperature=2.5)
    explainer = make_explainer(predictor)
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    maps = explainer.maps(picture, ["dog", "ant"])
    scores = dict(zip(predictor.class_names, predictor.scores([picture])[0], strict=True))
    assert explainer.method == method
    assert (explainer.layer is None) == (method != "Grad-CAM")
    for label, found in maps.items():
        assert found.method == method
        assert found.score == pytest.approx(scores[label], abs=1e-5)
        assert 1 / (1 + np.exp(-found.logit / 2.5)) == pytest.approx(found.score, abs=1e-6)
        if method in ("class activation", "residual attention"):
            assert found.values.mean() + found.bias == pytest.approx(found.logit, abs=1e-4)


def test_a_layer_is_looked_at_by_grad_cam_whatever_the_head() -> None:
    explainer = make_explainer(predictor_of(built("squeezenet1_1")), "backbone.features.7")
    assert (explainer.method, explainer.layer) == ("Grad-CAM", "backbone.features.7")
    assert explainer.maps(picture_with_red_corner(), ["ant"])["ant"].values.shape == (7, 7)


def test_paths_pictures_and_arrays_give_the_same_maps(tmp_path: Path) -> None:
    explainer = make_explainer(predictor_of(Reddest(), ("red", "green"), image_size=16))
    picture = picture_with_red_corner()
    picture.save(tmp_path / "a.png")
    expected = explainer(picture, ["red"])["red"]
    forms: list[Picture] = [tmp_path / "a.png", str(tmp_path / "a.png"), np.array(picture)]
    for given in [*forms, picture.convert("RGBA")]:
        np.testing.assert_array_equal(explainer(given, ["red"])["red"], expected)


def test_a_photograph_is_upright_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    picture_with_red_corner().save(tmp_path / "a.png", exif=exif)
    explainer = make_explainer(predictor_of(Reddest(), ("red", "green"), image_size=16))
    heat = explainer(tmp_path / "a.png", ["red"])["red"]
    assert heat.shape == (WIDTH, HEIGHT)
    assert heat[0, 0] == 1  # lower left before


def test_heat_is_the_evidence_above_zero_over_its_maximum() -> None:
    values = np.array([[-4.0, 0.0], [1.0, 2.0]], np.float32)
    heat = ClassMap(values, "class activation", 0.0, 0.5).heat(2, 2)
    assert heat.tolist() == [[0, 0], [0.5, 1]]


def test_heat_of_attention_is_what_lies_above_the_average() -> None:
    shares = np.array([[0.1, 0.25], [0.3, 0.35]], np.float32)
    heat = ClassMap(shares, "attention", 0.0, 0.5).heat(2, 2)
    np.testing.assert_allclose(heat, np.array([[0, 0], [0.5, 1]]), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "method"), [([[-1.0, -2.0]], "class activation"), ([[0.5, 0.5]], "attention")]
)
def test_heat_is_nothing_where_nothing_speaks_for_the_class(values: list[list[float]], method: str) -> None:
    heat = ClassMap(np.array(values, np.float32), method, 0.0, 0.5).heat(6, 3)  # type: ignore[arg-type]
    assert heat.shape == (3, 6)
    assert not heat.any()


def test_explain_shows_the_best_classes_of_each_picture() -> None:
    predictor = predictor_of(Reddest(), ("red", "green"), image_size=16)
    red = Image.new("RGB", (8, 4), "red")
    green = Image.new("RGB", (4, 8), "lime")
    maps = explain(predictor, [red, green], top=1)
    assert [list(found) for found in maps] == [["red"], ["green"]]
    assert [heat.shape for found in maps for heat in found.values()] == [(4, 8), (8, 4)]
    assert [list(found) for found in explain(predictor, [red, green], ["green"])] == [["green"], ["green"]]
    assert explain(predictor, []) == []


def test_the_best_classes_are_told_apart_where_float32_scores_are_all_one() -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[20.0, 30.0]]).repeat(len(images), 1)

    predictor = predictor_of(Sure(), ("sure", "surest"), image_size=16)
    image = Image.new("RGB", (8, 8))
    assert predictor.scores([image]).tolist() == [[1, 1]]
    assert best_classes(predictor, image, 2) == ["surest", "sure"]


def test_a_map_may_have_another_size() -> None:
    explainer = make_explainer(predictor_of(Reddest(), ("red", "green"), image_size=16))
    image = Image.new("RGB", (8, 4), "red")
    assert explainer(image, ["red"], (3, 5))["red"].shape == (5, 3)


def test_a_trained_model_of_ones_own_is_explained_by_grad_cam(finished_run: Run) -> None:
    picture = Path(finished_run.config.data.source).parent / "000.png"
    predictor = load_classifier(finished_run.folder, Net)
    assert make_explainer(predictor).layer == "norm"
    (maps,) = explain(predictor, [picture], ["stripes"])
    assert maps["stripes"].shape == (16, 16)


def test_explain_takes_the_folder_of_a_checkpoint(tmp_path: Path) -> None:
    factory = ModelFactory(ModelConfig(name="squeezenet", image_size=64))
    predictor = predictor_of(factory.build(["ant", "bee"]), ("ant", "bee"))
    described = replace(predictor.checkpoint, architecture=describe_architecture(factory))
    save_checkpoint(tmp_path, predictor.model, described)
    (found,) = explain(tmp_path, [picture_with_red_corner()], ["bee"])
    (expected,) = explain(predictor, [picture_with_red_corner()], ["bee"])
    np.testing.assert_array_equal(found["bee"], expected["bee"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "name at least one class; the model knows 'red', 'green'"),
        ([""], "name at least one class"),
        (["gren"], "the model has no class 'gren'; did you mean 'green'"),
        (["zzz"], "the model has no class 'zzz'; it knows 'red', 'green'"),
        (["red", "red"], "named more than once: 'red'"),
    ],
)
def test_classes_that_cannot_be_explained_are_told(classes: list[str], message: str) -> None:
    explainer = make_explainer(predictor_of(Reddest(), ("red", "green"), image_size=16))
    with pytest.raises(ConfigError, match=message):
        explainer(picture_with_red_corner(), classes)


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read: it is not a picture of a known format"):
        explain(predictor_of(Reddest(), ("red", "green"), image_size=16), [tmp_path / "a.jpg"])


def test_explaining_leaves_a_predictor_as_it_was() -> None:
    predictor = predictor_of(built("test_convnext"))
    picture = picture_with_red_corner()
    before = predictor.scores([picture])
    make_explainer(predictor)(picture, ["ant"])
    np.testing.assert_array_equal(predictor.scores([picture]), before)
    assert all(parameter.grad is None for parameter in predictor.model.parameters())
    assert torch.is_grad_enabled()
