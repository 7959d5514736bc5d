"""A checkpoint of the public PSD release becomes ours and gives its logits, or is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from coterie.checkpoint import WEIGHTS_FILE, load_model, read_checkpoint
from coterie.cli import main
from coterie.config import ModelConfig
from coterie.data.transforms import Preprocessing
from coterie.errors import CheckpointError, CoterieError, DataError
from coterie.metrics import multilabel_metrics
from coterie.models.factory import ModelFactory
from coterie.predictor import load_classifier
from coterie.published import MODELS, import_cpsd, read_class_names, released_classes
from tests.conftest import shared_data
from tests.released import (
    ReleasedLinear,
    ReleasedQuery2Label,
    ReleasedTransformer,
    ReleasedTResNet,
)

NAMES = ("zebra", "ant", "bee", "cat", "dog")
SIDE = 64
BLOCKS = (1, 1, 1, 1)
SMALL_TRANSFORMER = {"width": 32, "layers": 2, "head_width": 24, "feedforward": 40}
SMALL_QUERY2LABEL = {"width": 32, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 48}


def pictures() -> list[Image.Image]:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 4, 7, 3), dtype=np.uint8)
    return [Image.fromarray(picture).resize((80, 50), Image.Resampling.BICUBIC) for picture in coarse]


def as_released() -> Tensor:
    """The pictures as the release feeds them: squashed, in 0..1, and nothing taken off."""
    squashed = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in pictures()]
    return torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of the release in small: narrow heads, and one block for each stage of the ResNet."""
    for name, section, sizes in (
        ("resnet101-tf", "transformer", SMALL_TRANSFORMER),
        ("q2l-resnet101", "query2label", SMALL_QUERY2LABEL),
        ("resnet101", None, {}),
        ("tresnet_l", None, {}),
    ):
        settings = dict(MODELS[name].settings) | {"options": {"layers": list(BLOCKS)}}
        if section is not None:
            settings[section] = settings[section] | sizes
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], settings=settings))


@pytest.fixture(scope="module")
def query2label() -> ReleasedQuery2Label:
    torch.manual_seed(1)
    return ReleasedQuery2Label(as_released(), BLOCKS, len(NAMES), **SMALL_QUERY2LABEL)


@pytest.fixture(scope="module")
def transformer() -> ReleasedTransformer:
    torch.manual_seed(2)
    return ReleasedTransformer(as_released(), BLOCKS, **SMALL_TRANSFORMER)


def saved(state: Mapping[str, Any], folder: Path) -> Path:
    path = folder / "release.ckpt"
    torch.save(dict(state), path)
    return path


def write_words(folder: Path, names: tuple[str, ...] = NAMES, dimensions: int = 300) -> tuple[Path, Tensor]:
    """A file of word vectors, in another order than `names`, and the vectors in theirs."""
    vectors = torch.randn(len(names), dimensions)
    path = folder / "words.npz"
    np.savez(path, vectors=vectors.flip(0), class_names=names[::-1])
    return path, vectors


def assert_same_logits(folder: Path, logits: Callable[[Tensor], Tensor]) -> None:
    """What our checkpoint makes of pictures is what the release's model makes of them."""
    with torch.no_grad():
        expected = logits(as_released())
    assert expected.std(dim=0).min() > 0.02  # they depend on the picture
    predictor = load_classifier(folder)
    with torch.no_grad():
        found = predictor.model(as_released())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(predictor.scores(pictures()), expected.sigmoid(), rtol=0, atol=1e-4)


# The five models


@pytest.mark.parametrize("kind", ["resnet101", "resnext50"])
def test_a_linear_model_of_the_release_gives_its_logits(tmp_path: Path, kind: str) -> None:
    released = ReleasedLinear(kind, len(NAMES), as_released())
    imported = import_cpsd(saved(released.state, tmp_path), tmp_path / "out", NAMES, image_size=SIDE)
    assert (imported.model, imported.loaded) == (kind, len(released.state))
    assert_same_logits(tmp_path / "out", released.logits)


def test_tresnet_of_the_release_gives_its_logits(tmp_path: Path) -> None:
    released = ReleasedTResNet(len(NAMES), as_released())
    # older versions of in-place ABN count batches, and the blur may be there as a buffer
    further = {
        "body.conv1.1.num_batches_tracked": torch.tensor(7),
        "body.layer2.0.conv1.1.op.filt": torch.ones(152, 1, 3, 3),
    }
    path = saved(released.state | further, tmp_path)
    imported = import_cpsd(path, tmp_path / "out", NAMES, image_size=SIDE)
    assert (imported.model, imported.loaded) == ("tresnet_l", len(released.state) + 1)
    assert imported.left_out == ("body.layer2.0.conv1.1.op.filt",)
    assert_same_logits(tmp_path / "out", released.logits)


def test_a_norm_of_tresnet_gets_the_scale_of_in_place_abn() -> None:
    value = MODELS["tresnet_l"].value
    scale = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(value("backbone.body.conv1.bn.weight", scale), scale.abs() + 1e-5)
    assert torch.equal(value("backbone.body.conv1.bn.bias", scale), scale)


@pytest.mark.usefixtures("small")
def test_the_transformer_of_the_release_gives_its_logits(
    transformer: ReleasedTransformer, tmp_path: Path
) -> None:
    words, vectors = write_words(tmp_path)
    path = saved(transformer.state, tmp_path)
    imported = import_cpsd(path, tmp_path / "out", NAMES, image_size=SIDE, word_vectors=words)
    assert (imported.model, imported.loaded) == ("resnet101-tf", len(transformer.state))
    words.unlink()  # the checkpoint needs nothing beside it
    assert_same_logits(tmp_path / "out", lambda images: transformer.logits(images, vectors))


@pytest.mark.usefixtures("small")
def test_query2label_of_the_release_gives_its_logits(
    query2label: ReleasedQuery2Label, tmp_path: Path
) -> None:
    imported = import_cpsd(saved(query2label.state, tmp_path), tmp_path / "out", NAMES)
    assert imported.image_size == SIDE  # as its positions tell
    assert (imported.model, imported.left_out) == ("q2l-resnet101", ("backbone.1.pe",))
    assert imported.loaded == len(query2label.state) - 1
    assert_same_logits(tmp_path / "out", query2label.logits)


SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "resnet101-tf": {
        "head.project.weight": (1024, 2048),
        "head.layers.2.attention.project.weight": (12288, 1024),
        "head.layers.2.attention.output.weight": (1024, 4096),
        "head.layers.2.feedforward.0.weight": (1024, 1024),
        "head.classify.weight": (1, 1024),
    },
    "q2l-resnet101": {
        "head.project.weight": (2048, 2048, 1, 1),
        "head.queries": (80, 2048),
        "head.encoder.0.feedforward.0.weight": (8192, 2048),
        "head.decoder.1.attention.in_proj_weight": (6144, 2048),
        "head.classify.weight": (80, 2048, 1),
    },
}


@pytest.mark.parametrize("name", SIZES)
def test_the_heads_have_the_sizes_of_the_release(name: str) -> None:
    with torch.device("meta"):
        model = ModelFactory(ModelConfig(**MODELS[name].settings)).build(released_classes("coco"))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for key, shape in SIZES[name].items():
        assert shapes[key] == shape
    assert not {"head.layers.3.attention.output.bias", "head.encoder.1.output_norm.bias"} & shapes.keys()
    assert "head.decoder.2.output_norm.bias" not in shapes


# What is around the weights


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_a_prefix_of_wrappers_changes_nothing(
    query2label: ReleasedQuery2Label, tmp_path: Path, prefix: str
) -> None:
    wrapped = {prefix + key: tensor for key, tensor in query2label.state.items()}
    import_cpsd(saved(query2label.state, tmp_path), tmp_path / "bare", NAMES)
    import_cpsd(saved(wrapped, tmp_path), tmp_path / "wrapped", NAMES)
    bare, unwrapped = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("bare", "wrapped"))
    assert bare == unwrapped


@pytest.mark.usefixtures("small")
def test_the_checkpoint_has_the_classes_and_images_of_the_release(
    query2label: ReleasedQuery2Label, tmp_path: Path
) -> None:
    released = ReleasedLinear("resnet101", len(NAMES), as_released(), BLOCKS)
    import_cpsd(saved(released.state, tmp_path), tmp_path / "linear", NAMES)
    checkpoint = read_checkpoint(tmp_path / "linear")
    assert checkpoint.class_names == NAMES
    assert checkpoint.preprocessing == Preprocessing(448, (0, 0, 0), (1, 1, 1))
    assert checkpoint.threshold == 0.8
    state = query2label.state | {"backbone.1.pe": query2label.positions(3, 32)}
    import_cpsd(saved(state, tmp_path), tmp_path / "own size", NAMES)
    import_cpsd(saved(state, tmp_path), tmp_path / "given size", NAMES, image_size=128)
    sizes = [read_checkpoint(tmp_path / name).preprocessing.image_size for name in ("own size", "given size")]
    assert sizes == [96, 128]


@pytest.mark.usefixtures("small")
def test_an_imported_checkpoint_is_measured_and_used_on_the_command_line(
    transformer: ReleasedTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def coterie(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["coterie", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        assert exit_.value.code in (0, None), printed.err
        return printed.out

    monkeypatch.chdir(tmp_path)
    saved(transformer.state, tmp_path)
    _, vectors = write_words(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES) + "\n")
    printed = coterie(
        *("import-cpsd", "release.ckpt", "--out", "tf", "--class-names", "names.txt"),
        *("--image-size", str(SIDE), "--word-vectors", "words.npz"),
    )
    assert "tf: resnet101-tf, 5 classes, images of 64 px\n" in printed
    assert f"{len(transformer.state)} tensors loaded" in printed
    assert "words.npz: vectors of 300 numbers for 5 classes" in printed

    targets = np.array([[1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1]] * 2)
    lines = ["image,labels"]
    for index, (image, row) in enumerate(zip(pictures(), targets, strict=True)):
        image.save(f"{index}.png")
        lines.append(f"{index}.png,{';'.join(np.array(NAMES)[row == 1])}")
    Path("labels.csv").write_text("\n".join(lines))
    coterie("evaluate", "tf", "data=labels.csv", "--out", "metrics.json")
    with torch.no_grad():
        scores = transformer.logits(as_released(), vectors).double().sigmoid()
    measured = json.loads(Path("metrics.json").read_text())["test"]["tf"]
    expected = multilabel_metrics(scores, targets, 0.8)
    for metric in ("mAP", "CF1", "OF1"):
        assert measured[metric] == pytest.approx(expected[metric])

    shown = [
        json.loads(line)
        for line in coterie("predict", "tf", "0.png", "--top", "5", "--format", "jsonl").splitlines()
    ]
    found = shown[0]["labels"]
    assert found == pytest.approx(dict(zip(NAMES, scores[0].tolist(), strict=True)), abs=1e-4)


# What is refused


def refusal(state: Mapping[str, Any], folder: Path, names: tuple[str, ...] = NAMES, **options: Any) -> str:
    """The message; nothing is written."""
    path = saved(state, folder)
    with pytest.raises(CoterieError) as caught:
        import_cpsd(path, folder / "out", names, **options)
    assert not (folder / "out").exists()
    return str(caught.value)


@pytest.mark.usefixtures("small")
def test_a_key_that_is_left_over_missing_or_of_another_shape_is_named(
    query2label: ReleasedQuery2Label, tmp_path: Path
) -> None:
    state = dict(query2label.state)
    further = state | {
        "module.transformer.decoder.layers.0.norm1.weight": torch.ones(32),
        "fc.Z": torch.ones(1),
    }
    message = refusal(further, tmp_path)
    assert (
        "release.ckpt does not fit the model, and nothing was written: 2 of its keys have no place" in message
    )
    assert "'transformer.decoder.layers.0.norm1.weight', 'fc.Z'" in message
    # named as ours, it has no place either: it is not of the release
    assert "1 of its keys have no place there: 'head.queries'" in refusal(
        state | {"head.queries": state["query_embed.weight"]}, tmp_path
    )
    lacking = {key: tensor for key, tensor in state.items() if key != "input_proj.bias"}
    assert "1 tensors are missing: 'head.project.bias'" in refusal(lacking, tmp_path)
    other = state | {"input_proj.bias": torch.ones(33)}
    assert "input_proj.bias [33], for [32] in the model" in refusal(other, tmp_path)


class SmallTResNet(ReleasedTResNet):
    STAGES = tuple((1, *stage[1:]) for stage in ReleasedTResNet.STAGES)


@pytest.mark.usefixtures("small")
def test_of_two_keys_for_one_tensor_the_second_is_left_over(tmp_path: Path) -> None:
    state = SmallTResNet(len(NAMES), as_released()).state
    twice = state | {"body.conv1.0.0.weight": state["body.conv1.0.weight"]}
    assert "1 of its keys have no place there: 'body.conv1.0.0.weight'" in refusal(twice, tmp_path)
    import_cpsd(saved(state, tmp_path), tmp_path / "out", NAMES)


@pytest.mark.usefixtures("small")
def test_a_model_with_another_number_of_layers_is_refused(
    query2label: ReleasedQuery2Label, tmp_path: Path
) -> None:
    state = query2label.state
    fewer = {key: tensor for key, tensor in state.items() if ".decoder.layers.1." not in key}
    assert "tensors are missing: 'head.decoder.1." in refusal(fewer, tmp_path)
    more = {key.replace("encoder.layers.0", "encoder.layers.1"): tensor for key, tensor in state.items()}
    assert "have no place there: 'transformer.encoder.layers.1." in refusal(state | more, tmp_path)


@pytest.mark.usefixtures("small")
def test_classes_that_are_not_those_of_the_file_are_refused(
    query2label: ReleasedQuery2Label, tmp_path: Path
) -> None:
    message = refusal(query2label.state, tmp_path, released_classes("coco"))
    assert "release.ckpt is of 5 classes, and 80 are named" in message
    assert "more than once: 'ant'" in refusal(query2label.state, tmp_path, ("ant", *NAMES[1:]))


@pytest.mark.usefixtures("small")
def test_a_file_of_another_model_is_refused(query2label: ReleasedQuery2Label, tmp_path: Path) -> None:
    state = query2label.state
    assert "is of q2l-resnet101, not of resnet101" in refusal(state, tmp_path, model="resnet101")
    message = refusal(state, tmp_path, model="resnext")
    assert message.startswith("the release has no model 'resnext'; its models are 'resnet101-tf', ")
    assert message.endswith("; did you mean 'resnext50'?")
    other = {"conv1.weight": torch.ones(3), "fc.weight": torch.ones(3)}
    message = refusal(other, tmp_path)
    assert "is of none of the models of the public PSD release, 'resnet101-tf', 'q2l-resnet101'" in message
    assert "its keys are 'conv1.weight', 'fc.weight'" in message
    both = state | {f"module.{key}": tensor for key, tensor in state.items()}
    assert "holds more than one model" in refusal(both, tmp_path)
    shifted = state | {"backbone.1.pe": state["backbone.1.pe"].roll(1, dims=2)}
    assert "backbone.1.pe [1, 32, 2, 2] are not the sine encoding" in refusal(shifted, tmp_path)


@pytest.mark.usefixtures("small")
def test_word_vectors_are_asked_for_where_they_are_needed(
    query2label: ReleasedQuery2Label, transformer: ReleasedTransformer, tmp_path: Path
) -> None:
    state = transformer.state
    assert "is of resnet101-tf, which takes word vectors" in refusal(state, tmp_path)
    words, _ = write_words(tmp_path)
    assert "q2l-resnet101, which takes no word vectors" in refusal(
        query2label.state, tmp_path, word_vectors=words
    )
    words, _ = write_words(tmp_path, NAMES[1:])
    assert "lack 1 of the 5 classes: 'zebra'" in refusal(state, tmp_path, word_vectors=words)
    words, _ = write_words(tmp_path, dimensions=50)
    message = refusal(state, tmp_path, word_vectors=words)
    assert "label_emb.0.weight [32, 300], for [32, 50] in the model" in message


class Runs:
    """Code, in a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the code in the file was run",))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    assert "never loaded" in refusal({"classify.bias": torch.ones(5), "x": Runs()}, tmp_path)


@pytest.mark.usefixtures("small")
def test_a_checkpoint_that_is_there_is_not_written_over(
    query2label: ReleasedQuery2Label, tmp_path: Path
) -> None:
    path = saved(query2label.state, tmp_path)
    import_cpsd(path, tmp_path / "out", NAMES)
    with pytest.raises(CheckpointError, match=r"there is a checkpoint in .*out already"):
        import_cpsd(path, tmp_path / "out", NAMES[::-1])
    assert load_model(tmp_path / "out")[1].class_names == NAMES


# Class names


def test_the_classes_of_the_release_are_in_alphabetical_order() -> None:
    for dataset, count in (("coco", 80), ("nuswide", 81)):
        names = released_classes(dataset)
        assert len(set(names)) == count
        assert list(names) == sorted(names)
    with pytest.raises(
        DataError, match=r"no dataset 'coca'; choose 'coco' or 'nuswide'; did you mean 'coco'\?$"
    ):
        released_classes("coca")


def test_the_classes_of_the_release_are_those_of_the_datasets() -> None:
    labels = shared_data() / "labels"
    coco = np.load(labels / "coco2014_val_targets.npz")["class_names"]
    nuswide = np.load(labels / "nuswide81_targets.npz")["class_names"]
    assert released_classes("coco") == tuple(coco)
    assert [name.replace("earthquake", "earthq") for name in released_classes("nuswide")] == list(nuswide)


def test_class_names_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("wine glass\n\n büe \n", encoding="utf-8")
    assert read_class_names(path) == ("wine glass", "büe")
    for text, expected in (("\n", "names no class"), ("a\nb\na\n", "names 'a' twice")):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"names\.txt.*{expected}"):
            read_class_names(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_class_names(tmp_path / "no.txt")


@pytest.mark.parametrize("options", [(), ("--dataset", "coco", "--class-names", "names.txt")])
def test_the_command_takes_one_source_of_classes(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["coterie", "import-cpsd", "a.ckpt", "--out", "out", *options])
    with pytest.raises(SystemExit):
        main()
    assert "--dataset coco, --dataset nuswide or --class-names FILE" in capsys.readouterr().err
