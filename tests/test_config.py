"""Settings: what words, recipes and files give, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from coterie.config import (
    RESERVED_OPTIONS,
    ROLES,
    Config,
    TrainConfig,
    as_words,
    changed_settings,
    describe_settings,
    load_config,
    read_config,
    setting_names,
)
from coterie.errors import ConfigError
from coterie.recipe import recipe_names

TEMPERATURES = (
    "setting 'model.csra.temperatures' must be a list of numbers above 0 and 'max', such as [1, 2, 4, max]"
)


def message(*words: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(words, settings=settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.epoch=3", "there is no setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("trian.epochs=3", "there is no setting 'trian.epochs'; did you mean 'train.epochs'?"),
        ("data.sorce=x", "there is no setting 'data.sorce'; did you mean 'data.source'?"),
        ("data.scenes.trian=5", "there is no setting 'data.scenes.trian'; did you mean 'data.scenes.train'?"),
        ("student.epoch=3", "there is no setting 'student.epoch'; did you mean 'student.epochs'?"),
        ("studnet.lr=3", "there is no setting 'studnet.lr'; did you mean 'student.lr'?"),
        ("lr=3", "there is no setting 'lr'; did you mean 'train.lr'?"),
        ("cutout=.3", "there is no setting 'cutout'; did you mean 'augment.cutout'?"),
        ("Seed=3", "there is no setting 'Seed'; did you mean 'seed'?"),
        ("data.path=x", "there is no setting 'data.path'; see `coterie settings` for all of them"),
        ("train.lr.x=3", "there is no setting 'train.lr.x'; see `coterie settings` for all of them"),
        ("train={epoch: 3}", "there is no setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("model.csra.weigth=3", "there is no setting 'model.csra.weigth'; did you mean 'model.csra.weight'?"),
        (
            "model.ml_decoder.group=3",
            "there is no setting 'model.ml_decoder.group'; did you mean 'model.ml_decoder.groups'?",
        ),
        ("model.csar.weight=3", "there is no setting 'model.csar.weight'; did you mean 'model.csra.weight'?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(word: str, expected: str) -> None:
    assert message(word) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("k=0", "setting 'k' must be greater than or equal to 1, got 0"),
        ("k=x", "setting 'k' must be a whole number, got 'x'"),
        ("k=2.5", "setting 'k' must be a whole number, got 2.5"),
        ("k=", "setting 'k' must be a whole number, got null"),
        ("k=true", "setting 'k' must be a number, got true"),
        ("augment.flip=true", "setting 'augment.flip' must be a number, got true"),
        ("augment.randaugment=2", "setting 'augment.randaugment' must be true or false, got 2"),
        ("augment.cutout=1.5", "setting 'augment.cutout' must be less than or equal to 1, got 1.5"),
        ("device=gpu", "setting 'device' must be 'auto', 'cpu', 'cuda' or 'mps', got 'gpu'"),
        ("threshold=.nan", "setting 'threshold' must be a finite number, got NaN"),
        ("distill.temperature=inf", "setting 'distill.temperature' must be a finite number, got 'inf'"),
        ("seed=4294967296", "setting 'seed' must be less than 4294967296, got 4294967296"),
        ("data=", "setting 'data.source' must not be empty, got ''"),
        ("data.test_fraction=-1", "setting 'data.test_fraction' must be greater than or equal to 0, got -1"),
        ("train=5", "'train' is a group of settings, such as train.epochs; it cannot be 5"),
        ("model.mean=[.5,.5]", "setting 'model.mean' must be three numbers, got [0.5, 0.5]"),
        ("model.mean=.5", "setting 'model.mean' must be three numbers, got 0.5"),
        ("model.mean=[0,0,124]", "setting 'model.mean' must be less than or equal to 1, got 124"),
        ("model.std=[0,1,1]", "setting 'model.std' must be greater than 0, got 0"),
        ("model.csra.temperatures=[0]", f"{TEMPERATURES}, got [0]"),
        ("model.csra.temperatures=[]", f"{TEMPERATURES}, got []"),
        ("model.csra.temperatures=max", f"{TEMPERATURES}, got 'max'"),
        ("model.csra.temperatures=[1, best]", f'{TEMPERATURES}, got [1, "best"]'),
        ("model.csra.temperatures=[true]", f"{TEMPERATURES}, got [true]"),
        ("train.lr=[", "the value of 'train.lr' cannot be read: ["),
        ("train.lr=2024-13-45", "the value of 'train.lr' cannot be read: 2024-13-45"),
        ("epochs", "'epochs' is not a setting; write it as key=value, such as train.epochs=20"),
        ("=3", "'=3' is not a setting; write it as key=value, such as train.epochs=20"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_key_and_what_it_must_be(word: str, expected: str) -> None:
    assert message(word) == expected


def test_a_method_of_a_partition_is_one_that_its_branch_has() -> None:
    assert message("partition.co_method=balanced", "partition.dis_method=typo").splitlines() == [
        "setting 'partition.co_method' must be 'normalized-cut', 'balanced-cut' or 'paper', got 'balanced'",
        "setting 'partition.dis_method' must be 'balanced' or 'paper', got 'typo'",
    ]
    assert load_config(["partition.co_method=paper"]).partition.co_method == "paper"


def test_a_wrong_value_of_train_is_told_once_and_not_for_each_role_that_takes_it_over() -> None:
    assert message("train.lr=abc") == "setting 'train.lr' must be a number, got 'abc'"
    assert message("train.lr=-1", "student.lr=-2").splitlines() == [
        "setting 'train.lr' must be greater than 0, got -1",
        "setting 'student.lr' must be greater than 0, got -2",
    ]


def test_all_wrong_settings_are_told_together() -> None:
    assert message("k=0", "train.epoch=3").splitlines() == [
        "setting 'k' must be greater than or equal to 1, got 0",
        "there is no setting 'train.epoch'; did you mean 'train.epochs'?",
    ]


def test_pretrained_and_a_weights_file_exclude_each_other() -> None:
    expected = "choose one of model.pretrained=true and model.weights=FILE"
    assert message("model.pretrained=true", "model.weights=a.pt") == expected


def test_an_unknown_head_is_told_with_those_there_are() -> None:
    heads = "'linear', 'csra', 'ml-decoder', 'query2label' or 'transformer'"
    assert message("model.head=csar") == f"setting 'model.head' must be {heads}, got 'csar'"


def test_a_setting_of_another_head_is_an_error_since_it_would_change_nothing() -> None:
    assert message("model.csra.weight=0.2") == "model.csra needs model.head=csra, and that is 'linear'"
    assert message("model.head=csra", "model.ml_decoder.groups=3") == (
        "model.ml_decoder needs model.head=ml-decoder, and that is 'csra'"
    )
    assert message("model.head=query2label", "model.word_vectors=words.npz") == (
        "model.word_vectors needs model.head=transformer, and that is 'query2label'"
    )
    config = load_config(["model.head=csra", "model.csra.temperatures=[1, 2.5, max]"])
    assert list(config.model.csra.temperatures) == [1, 2.5, "max"]
    assert config.model.head_section() == config.model.csra
    assert load_config([]).model.head_section() is None


@pytest.mark.parametrize("name", sorted(RESERVED_OPTIONS))
def test_options_bring_no_weights_and_leave_the_head_alone(name: str) -> None:
    assert message(f"model.options.{name}=x").startswith(f"model.options cannot hold '{name}'; weights come")


def test_options_must_be_plain_values_that_a_config_file_can_hold() -> None:
    assert load_config(["model.options.depths=[1,2]"]).model.options == {"depths": [1, 2]}
    assert message(model={"options": {"act_layer": object}}) == (
        "setting 'model.options' must be made of texts, numbers, lists and mappings, got \"<class 'object'>\""
    )


def test_a_number_with_an_exponent_is_a_number() -> None:
    assert load_config(["train.lr=1e-4"]).train.lr == 1e-4
    assert load_config(["data.cache_gb=1e1"]).data.cache_gb == 10


def test_a_cache_is_on_off_or_where_views_come_again() -> None:
    assert load_config(["distill.cache=on"]).distill.cache == "on"
    assert load_config(["distill.cache=off"]).distill.cache == "off"

    def caches(*words: str) -> bool:
        return load_config(["student.epochs=4", *words]).caches_logits

    assert not caches()
    assert caches("student.views=3")
    assert caches("train.views=3")
    assert not caches("student.views=4")
    assert caches("distill.cache=on")
    assert not caches("distill.cache=off", "student.views=3")


def test_where_logits_are_kept_changes_no_student() -> None:
    def inputs(*words: str) -> dict[str, Any]:
        return load_config(["student.epochs=4", *words]).distill_inputs()

    assert inputs("distill.cache=on", "cache_dir=elsewhere") == inputs("distill.cache=on")
    assert inputs("student.views=3") == inputs("distill.cache=on")
    assert inputs("distill.cache_dtype=float16") == inputs()
    for other in ("cache=off", "cache_dtype=float16", "w=0.3", "tolerance=0"):
        assert inputs("distill.cache=on", f"distill.{other}") != inputs("distill.cache=on")


def test_a_batch_has_an_image_for_each_process() -> None:
    assert load_config(["processes=32"]).processes == 32
    with pytest.raises(ConfigError, match=r"student\.batch_size=7 is less than an image for each"):
        load_config(["processes=8", "student.batch_size=7"])


def test_the_baseline_cannot_start_from_itself() -> None:
    assert load_config(["teacher.start=baseline"]).student.start == "model"
    with pytest.raises(ConfigError, match=r"cannot start from itself: set teacher\.start=baseline"):
        load_config(["train.start=baseline"])


def test_embeddings_are_compared_with_those_of_live_teachers_on_whole_batches() -> None:
    assert not load_config(["distill.relations=1", "student.views=2"]).caches_logits
    with pytest.raises(
        ConfigError, match=r"^distill\.relations compares embeddings.* distill\.cache=off, or"
    ):
        load_config(["distill.relations=1", "distill.cache=on"])
    with pytest.raises(ConfigError, match=r"^distill\.relations compares .* of single images, and student\."):
        load_config(["distill.relations=1", "student.mixup=0.2"])
    for name in ("relations", "generator"):
        load_config([f"distill.{name}=0", "processes=2"])
        with pytest.raises(ConfigError, match=rf"^distill\.{name} looks at whole batches.* processes=1, or"):
            load_config([f"distill.{name}=1", "processes=2"])


def test_mixed_images_are_refused_where_the_disk_has_what_was_made_of_others() -> None:
    assert load_config(["train.mixup=0.2", "train.epochs=4"]).teacher.mixup == 0.2
    load_config(["student.mixup=0.2", "student.views=2", "student.epochs=4", "distill.cache=off"])
    load_config(["teacher.mixup=0.2", "teacher.frozen=backbone.layer3"])  # each view is a new one
    with pytest.raises(ConfigError, match=r"^student\.mixup mixes .* set distill\.cache=off, or"):
        load_config(["student.mixup=0.2", "student.views=2", "student.epochs=4"])
    frozen = ["train.frozen=backbone.layer3", "train.views=2", "train.epochs=4", "distill.cache=off"]
    load_config([*frozen, "student.mixup=0.2"])
    with pytest.raises(ConfigError, match=r"^teacher\.mixup mixes .* of teacher\.frozen on the disk .*views"):
        load_config([*frozen, "teacher.mixup=0.2"])


def test_data_and_model_have_short_forms_that_leave_their_other_settings() -> None:
    config = load_config(["data.min_positives=5", "data=x.csv", "model=resnet18", "model.drop_rate=.1"])
    assert (config.data.source, config.data.min_positives) == ("x.csv", 5)
    assert (config.model.name, config.model.drop_rate) == ("resnet18", 0.1)
    assert load_config(settings={"data": Path("x.csv"), "model": "resnet18"}).data.source == "x.csv"
    assert load_config(["model={name: resnet18, drop_rate: .1}"]).model == config.model


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("data=photos/set #2: [new].csv", "source", "photos/set #2: [new].csv"),
        ("data=2024", "source", "2024"),
        ("data=007", "source", "007"),
        ("data.delimiter=,", "delimiter", ","),
        ("data.delimiter=|", "delimiter", "|"),
        ("data.delimiter=:", "delimiter", ":"),
        ("data.delimiter=' '", "delimiter", " "),
        ('data.delimiter="\\t"', "delimiter", "\t"),
        ("data.labels_column=no", "labels_column", "no"),
        ("data.image_root=1e5", "image_root", Path("1e5")),
        ("data.image_root=null", "image_root", None),
        ("data.image_root=~/a", "image_root", Path.home() / "a"),
    ],
)
def test_texts_and_paths_are_taken_as_they_stand(word: str, key: str, value: object) -> None:
    assert getattr(load_config([word]).data, key) == value


def test_words_win_over_settings_and_settings_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("seed: 1\nk: 2\ntrain: {epochs: 3, lr: 0.1}\ndata: labels.csv\n")
    config = load_config(["train.lr=.3", f"recipe={recipe}", "k=4", "k=5"], settings={"k": 3, "seed": 9})
    assert (config.seed, config.k, config.train.epochs, config.train.lr) == (9, 5, 3, 0.3)
    assert config.data.source == "labels.csv"


def test_loading_does_not_change_the_settings_given() -> None:
    settings: dict[str, Any] = {"train": {"epochs": 3}}
    assert load_config(["train.lr=.3"], settings=settings).train.epochs == 3
    assert settings == {"train": {"epochs": 3}}


def test_roles_start_from_train_and_override_it_key_by_key() -> None:
    config = load_config(["train.epochs=7", "train.lr=1e-4", "student.lr=1e-5"])
    assert (config.student.lr, config.student.epochs) == (1e-5, 7)
    assert config.teacher == config.baseline == config.train
    assert config.teacher.lr == 1e-4


def test_roles_start_from_a_train_section_made_in_python() -> None:
    made = Config(train=TrainConfig(epochs=7, lr=0.5), student=TrainConfig(epochs=3))
    assert (made.baseline.epochs, made.teacher.lr) == (7, 0.5)
    assert made.student == TrainConfig(epochs=3)  # a whole section stands as it is


def test_a_saved_config_reads_back_equal(tmp_path: Path) -> None:
    words = [
        "out=runs/x", "seed=3", "data=2024", "data.delimiter=|", "model.mean=[0,0,.5]",
        "model.options.a.b=[1]", "train.lr=1e-5", "train.ema=null", "student.epochs=2",
        "data.image_root=photos/ü",
    ]  # fmt: skip
    config = load_config(words)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(path) == config
    assert read_config(path) != Config()
    assert load_config(settings=config.to_values()) == config


def test_a_saved_config_has_of_a_role_only_what_differs_from_train(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(load_config(["train.epochs=7", "student.lr=1e-5", "teacher.epochs=7"]).to_yaml())
    saved = yaml.safe_load(path.read_text())
    assert {role: saved.get(role) for role in ROLES} == {
        "baseline": None,
        "teacher": None,
        "student": {"lr": 1e-5},
    }
    again = load_config([f"recipe={path}", "train.epochs=1", "train.lr=0.5"])
    assert (again.baseline.epochs, again.teacher.epochs, again.student.epochs) == (1, 1, 1)
    assert (again.baseline.lr, again.student.lr) == (0.5, 1e-5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [1", "is not YAML: "),
        ("when: 2024-13-45", "is not YAML: month must be in 1..12"),
        ("- k", "must hold settings as `key: value`, got list"),
        ("b\xe9", "cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_recipe_file_that_is_no_settings_is_named(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_config(recipe=path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_recipe_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    assert message("recipe=dmo").startswith(
        "there is no recipe 'dmo'; did you mean 'demo'? `coterie recipes`"
    )
    assert message("recipe=").startswith("there is no recipe ''. `coterie recipes` lists")
    assert message(f"recipe={tmp_path / 'no.yml'}") == f"config file {tmp_path / 'no.yml'} is not there"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_config(recipe=tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_config([f"recipe={name}"]) != Config()


def test_changed_settings_are_shown_as_they_are_written() -> None:
    new = load_config(["data=x.csv", "student.lr=1e-5", "student.ema=null", "augment.randaugment=no"])
    assert changed_settings(Config(), new) == [
        ("data.source", "scenes", "x.csv"),
        ("augment.randaugment", "true", "false"),
        ("student.lr", "0.001", "1e-05"),
        ("student.ema", "0.9997", "null"),
    ]
    assert changed_settings(new, new) == []


def test_a_change_of_train_is_shown_once_and_not_for_the_roles_that_follow_it() -> None:
    old = load_config(["student.epochs=9"])
    assert changed_settings(old, load_config(["train.epochs=3", "student.epochs=9"])) == [
        ("train.epochs", "40", "3")
    ]
    assert changed_settings(old, load_config(["train.epochs=3"])) == [
        ("train.epochs", "40", "3"),
        ("student.epochs", "9", "3"),
    ]
    assert changed_settings(old, Config()) == [("student.epochs", "9", "40")]


def test_every_setting_is_described_with_its_default() -> None:
    def is_leaf(name: str) -> bool:
        return not any(other.startswith(f"{name}.") for other in setting_names())

    described = {key: default for key, default, _ in describe_settings()}
    leaves = [name for name in setting_names() if is_leaf(name) and name.split(".")[0] not in ROLES]
    assert sorted(described) == sorted(leaves)
    plain = {
        key: text if key.startswith("data.delim") else yaml.safe_load(text) for key, text in described.items()
    }
    for key, value in plain.items():
        expected: Any = Config()
        for part in key.split("."):
            expected = getattr(expected, part)
        assert not isinstance(expected, BaseModel)
        assert value == (list(expected) if isinstance(expected, tuple) else expected), key


def test_the_run_folder_is_named_by_data_model_k_and_seed() -> None:
    config = load_config(
        ["data=photos/birds.csv", "model=vit_tiny_patch16_224.augreg_in21k", "k=3", "seed=7"]
    )
    assert config.run_folder() == Path("runs/photos-birds-vit_tiny_patch16_224.augreg_in21k-k3-s7")
    assert load_config(["model=my.module:build"]).run_folder() == Path("runs/scenes-my.module-build-k5-s0")
    assert load_config(["out=x"]).run_folder() == Path("x")
    shards = load_config(["data=shards/train-{000..099}.tar"])
    assert shards.run_folder() == Path("runs/shards-train-000..099-resnet50-k5-s0")


def test_the_run_folder_tells_heads_and_image_sizes_apart() -> None:
    words = ["model=resnet18", "model.head=csra", "model.image_size=96"]
    assert load_config(words).run_folder() == Path("runs/scenes-resnet18-csra-96-k5-s0")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("labels.csv", "labels"),
        ("./labels.csv", "labels"),
        ("a/photos/labels.csv", "photos-labels"),
        ("/photos/labels.csv", "photos-labels"),
        ("../labels.csv", "here-labels"),
    ],
)
def test_tables_of_one_name_in_two_folders_have_two_run_folders(
    source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert load_config([f"data={source}"]).run_folder() == Path(f"runs/{name}-resnet50-k5-s0")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["recipe=demo"],
        ["recipe=recommended", "model.options.drop_path_rate=0.1", "train.lr=1e-05", "student.epochs=40"],
        ["data=photos/set #2.csv", "data.delimiter='", "data.labels_column='null'", "data.split_column=no"],
        ["data.class_names=['a, b', \"it's\", '<b>']", "model.mean=[0.1, 0.2, 0.3]", "train.ema=null"],
        ["train.epochs=20", "baseline.epochs=40", "model.image_size=96", "out=runs/x y", "distill.cache=on"],
    ],
)
def test_a_config_is_told_in_words_that_give_it_again(words: list[str]) -> None:
    config = load_config(words)
    assert load_config(as_words(config)) == config


def test_the_words_of_a_config_are_what_is_not_default() -> None:
    assert as_words(load_config(["k=3", "train.epochs=7", "seed=0"])) == ["k=3", "train.epochs=7"]


def test_options_of_a_model_may_be_one_word() -> None:
    config = load_config(["model=resnet18", "model.options={drop_path_rate: 0.1}"])
    assert config.model.options == {"drop_path_rate": 0.1}
