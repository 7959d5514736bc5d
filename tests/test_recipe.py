"""Recipes: which come with the package, what they are based on, what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.config import load_config, recipe_text, recipe_values
from coterie.errors import ConfigError
from coterie.recipe import read_layers, recipe_comment, recipe_names


def write(folder: Path, **contents: str) -> Path:
    """YAML files in `folder`; the last of them."""
    path = folder
    for name, content in contents.items():
        path = folder / f"{name}.yaml"
        path.write_text(content)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_the_first_line_of_a_recipe_says_what_it_is_for(name: str) -> None:
    first = recipe_comment(name).splitlines()[0]
    assert first.startswith("# ")
    assert 20 < len(first) < 100


@pytest.mark.parametrize("name", recipe_names())
def test_a_copy_of_a_recipe_is_the_same_run_in_one_file(name: str, tmp_path: Path) -> None:
    copied = tmp_path / "own.yaml"
    copied.write_text(recipe_text(name))
    assert load_config(recipe=copied) == load_config(recipe=name)
    assert [layer.name for layer in read_layers(copied)] == [str(copied)]
    assert copied.read_text().startswith(recipe_comment(name) + f"\n# Copied from {name}")


def test_a_recipe_wins_over_those_it_is_based_on_and_a_later_base_over_an_earlier(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        root="k: 2\nseed: 4\ntrain: {epochs: 3, lr: 0.1}\nmodel: resnet18\n",
        other="k: 3\ntrain: {lr: 0.2}\nmodel: {head: csra}\n",
        own="base: [root.yaml, other.yaml]\ntrain: {warmup: 0.5}\ndata: x.csv\n",
    )
    config = load_config(recipe=path)
    assert (config.k, config.seed, config.data.source) == (3, 4, "x.csv")
    assert (config.train.epochs, config.train.lr, config.train.warmup) == (3, 0.2, 0.5)
    assert (config.model.name, config.model.head) == ("resnet18", "csra")


def test_a_base_is_a_shipped_name_or_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, top="base: deep/middle.yaml\nseed: 7\n")
    write(tmp_path / "deep", middle="base: bottom.yaml\n", bottom="base: paper\nk: 9\n")
    names = [layer.name for layer in read_layers(tmp_path / "top.yaml")]
    assert names == [
        "paper",
        *(str(tmp_path / part) for part in ("deep/bottom.yaml", "deep/middle.yaml", "top.yaml")),
    ]
    config = load_config(recipe=tmp_path / "top.yaml")
    assert (config.k, config.seed, config.train.epochs) == (9, 7, 80)


def test_words_win_over_the_base_of_a_recipe() -> None:
    assert load_config(["recipe=coco-r101-tf-576", "train.epochs=2", "k=3"]).train.epochs == 2


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("own.yaml", "own.yaml is based on itself: "),
        ("papr", "there is no recipe 'papr'; did you mean 'paper'\\? `coterie recipes` lists"),
        ("missing.yaml", "config file .*missing.yaml is not there"),
        ("{a: 1}", r"'base' in .*own.yaml must be a recipe or a list of recipes, got \{'a': 1\}"),
        ("[1]", r"'base' in .*own.yaml must be a recipe or a list of recipes, got \[1\]"),
    ],
)
def test_a_base_that_cannot_be_read_is_told(tmp_path: Path, base: str, expected: str) -> None:
    path = write(tmp_path, own=f"base: {base}\n")
    with pytest.raises(ConfigError, match=expected):
        load_config(recipe=path)


def test_two_recipes_that_are_based_on_each_other_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, other="base: own.yaml\n", own="base: other.yaml\n")
    other = tmp_path / "other.yaml"
    with pytest.raises(ConfigError, match=f"{path} is based on itself: {path} -> {other} -> {path}$"):
        load_config(recipe=path)


def test_two_recipes_may_have_the_same_base() -> None:
    assert [layer.name for layer in read_layers("cpu-coco-r101-tf-448")] == [
        *("paper", "coco-r101-448", "coco-r101-tf-448", "cpu", "cpu-coco-r101-tf-448")
    ]
    assert recipe_values("cpu-coco-r101-tf-448")["model"] == {
        "pretrained": True,
        "image_size": 128,
        "name": "resnet18.tv_in1k",
        "head": "transformer",
        "transformer": {"width": 256, "layers": 2},
    }
