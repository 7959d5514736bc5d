"""Every setting once: typed, validated, from a YAML recipe and `key=value` words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from coterie.errors import ConfigError, did_you_mean

ROLES = ("baseline", "teacher", "student")


class Section(BaseModel):
    """A group of settings; unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ScenesConfig(Section):
    """The built-in scenes (`data=scenes`): pictures in each split, their size, how strong the themes are."""

    train: int = Field(1000, ge=1)
    val: int = Field(300, ge=1)
    test: int = Field(1000, ge=1)
    test_shifted: int = Field(1000, ge=1)
    size: int = Field(64, ge=16, description="side of a picture in pixels")
    theme_share: float = Field(
        0.85, ge=0, le=1, description="probability that a label is of the picture's theme"
    )


class DataConfig(Section):
    """Where images and labels come from; `data=PATH` is short for `data.source=PATH`."""

    source: str = Field("scenes", description="'scenes', or a table: CSV, TSV or Parquet")
    image_root: Path | None = Field(
        None, description="folder of the images; by default the table's own folder"
    )
    image_column: str = "image"
    labels_column: str = "labels"
    split_column: str = "split"
    delimiter: str = Field(";", min_length=1, description="what stands between the labels of an image")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of validation where the table names none")
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of test where the table names no split")
    min_positives: int = Field(0, ge=0, description="leave out classes with fewer training images than this")
    on_corrupt: Literal["error", "skip"] = Field(
        "error", description="what to do with an image that cannot be read"
    )
    cache_gb: float = Field(2.0, ge=0, description="keep the resized images in memory if they fit into this")
    workers: int = Field(0, ge=0, description="processes that prepare images beside the training")
    scenes: ScenesConfig = ScenesConfig()


class AugmentConfig(Section):
    """Augmentation of training images."""

    cutout: float = Field(
        0.5, ge=0, le=1, description="side of the erased square, as a share of the image's; 0 is off"
    )
    randaugment: bool = True
    randaugment_ops: int = Field(2, ge=1)
    randaugment_magnitude: int = Field(9, ge=0, le=30)
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")


class ModelConfig(Section):
    """The network; `model=NAME` is short for `model.name=NAME`."""

    name: str = Field("resnet50", description="a timm model, 'squeezenet1_1', or your own 'module:function'")
    pretrained: bool = Field(False, description="start from timm's weights for this name")
    weights: Path | None = Field(None, description="start from a file: a state dict or safetensors")
    image_size: int | None = Field(None, ge=16, description="side in pixels; by default the model's own")
    mean: tuple[float, float, float] | None = Field(None, description="by default the model's own")
    std: tuple[float, float, float] | None = Field(None, description="by default the model's own")
    drop_rate: float = Field(0.0, ge=0, lt=1, description="dropout before the linear head")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the timm model")

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights:
            raise ValueError("choose one of pretrained=true and weights=FILE")
        return self


class PartitionConfig(Section):
    """How labels are grouped; `method` names are those of `coterie.partition_labels`."""

    root: float = Field(2.0, gt=0, description="root taken of the conditional probabilities")
    co_method: str | None = Field(None, description="'normalized-cut' (default) or 'paper'")
    dis_method: str | None = Field(None, description="'balanced' (default) or 'paper'")


class TrainConfig(Section):
    """One training. `train` holds for all; `baseline`, `teacher` and `student` override it key by key."""

    epochs: int = Field(40, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(1e-4, ge=0, description="on weights only, not on biases and norms")
    warmup: float = Field(
        0.1, gt=0, lt=1, description="share of the steps in which OneCycle rises to the peak"
    )
    loss: Literal["asl", "bce"] = "asl"
    gamma_neg: float = Field(4.0, ge=0, description="ASL: focal exponent of absent labels")
    gamma_pos: float = Field(0.0, ge=0, description="ASL: focal exponent of present labels")
    clip: float = Field(0.05, ge=0, lt=1, description="ASL: shift of the probability of absent labels")
    ema: float | None = Field(0.9997, ge=0, lt=1, description="decay of the averaged weights; null is off")
    grad_clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null is off")


class DistillConfig(Section):
    """The student's loss: (1 - w) * cls + w * (a * kd(co) + (1 - a) * kd(dis))."""

    loss: Literal["bernoulli-kl", "squared-error"] = "bernoulli-kl"
    w: float = Field(0.5, ge=0, le=1, description="weight of the teachers against the labels")
    a: float = Field(0.5, ge=0, le=1, description="weight of the co-occurrence branch against the other")
    temperature: float = Field(1.0, gt=0, description="of the Bernoulli KL")


class Config(Section):
    """All settings of a run."""

    out: Path | None = Field(None, description="the run folder; by default runs/<data>-<model>-k<k>-s<seed>")
    seed: int = Field(0, ge=0)
    k: int = Field(5, ge=1, description="label groups in each branch")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the network; losses are in fp32"
    )
    channels_last: bool = Field(True, description="memory format of images and weights")
    threshold: float = Field(0.5, ge=0, le=1, description="score above which a label is predicted")
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    partition: PartitionConfig = PartitionConfig()
    train: TrainConfig = TrainConfig()
    baseline: TrainConfig = TrainConfig()
    teacher: TrainConfig = TrainConfig()
    student: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()

    @field_validator("data", "model", mode="before")
    @classmethod
    def _short_form(cls, value: Any, info: Any) -> Any:
        if isinstance(value, str | Path):
            return {"source" if info.field_name == "data" else "name": str(value)}
        return value

    @model_validator(mode="before")
    @classmethod
    def _roles_start_from_train(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("train", {}), dict):
            return values
        shared = values.get("train", {})
        return values | {
            role: shared | own for role in ROLES if isinstance(own := values.get(role) or {}, dict)
        }

    def run_folder(self) -> Path:
        """`out`, or a name made of data, model, k and seed, so that the same words find the same run."""
        if self.out is not None:
            return self.out
        words = (
            Path(self.data.source).stem,
            re.sub(r"[^\w.-]+", "-", self.model.name),
            f"k{self.k}",
            f"s{self.seed}",
        )
        return Path("runs") / "-".join(words)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(
    words: Iterable[str] = (), recipe: str | Path | None = None, settings: Mapping[str, Any] | None = None
) -> Config:
    """The config from a recipe (a shipped name or a YAML file), then `settings`, then `key=value` words.

    Later values win. `recipe=NAME` may also stand among the words. Raises ConfigError, naming the key
    and the nearest right one, where a key is unknown or a value does not fit.
    """
    values: dict[str, Any] = {}
    overrides: list[tuple[str, Any]] = []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise ConfigError(f"'{word}' is not a setting; write it as key=value, such as train.epochs=20")
        if key == "recipe":
            recipe = text
        else:
            overrides.append((key, _parse(key, text)))
    if recipe is not None:
        _merge(values, _read_recipe(recipe))
    _merge(values, settings or {})
    for key, value in overrides:
        _merge(values, _nested(key, value))
    return validate_config(values)


def read_config(path: Path) -> Config:
    """The config saved in `path` (YAML)."""
    return validate_config(_read_yaml(path))


def validate_config(values: Mapping[str, Any]) -> Config:
    """A Config from nested plain values; ConfigError names each wrong key once."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        messages = dict.fromkeys(_message(problem) for problem in error.errors())
        raise ConfigError("\n".join(messages)) from None


def changed_settings(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` for each setting that differs."""
    before, after = dict(_leaves(old.model_dump(mode="json"))), dict(_leaves(new.model_dump(mode="json")))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def setting_names(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """All keys, with dots: "seed", "train.epochs", and sections themselves."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_names(field.annotation, f"{prefix}{name}.")


def describe_settings(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every setting."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            if name not in ROLES:
                yield from describe_settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, str(field.get_default(call_default_factory=True)), field.description or ""


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = resources.files("coterie") / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return _read_yaml(path)
    if str(recipe) not in recipe_names():
        raise ConfigError(
            f"there is no recipe '{recipe}'{did_you_mean(str(recipe), recipe_names())} "
            f"The recipes are {', '.join(recipe_names())}; a file's name ends in .yaml"
        )
    return _parse_yaml((resources.files("coterie") / "recipes" / f"{recipe}.yaml").read_text(), str(recipe))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name} must hold settings as `key: value`, got {type(values).__name__}")
    return values


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of {key} cannot be read: '{text}'") from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merge(values: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Put `new` over `values`, section by section; the short forms `data: PATH`, `model: NAME` are spelt
    out.
    """
    for key, value in new.items():
        main = {"data": "source", "model": "name"}.get(key)
        if main and not isinstance(value, Mapping) and value is not None:
            value = {main: str(value)}
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _message(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        # A wrong key of `train` comes back once for each role that starts from it.
        key = re.sub(rf"^({'|'.join(ROLES)})\.", "train.", key)
        return f"there is no setting '{key}'{_nearest_setting(key)}"
    text = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return f"setting '{key}': {text[:1].lower()}{text[1:]}{given}" if key else text


def _nearest_setting(key: str) -> str:
    names = list(setting_names())
    same_ending = [name for name in names if name.split(".")[-1] == key.split(".")[-1]]
    siblings = [name for name in names if name.rpartition(".")[0] == key.rpartition(".")[0]]
    near = (
        same_ending
        or difflib.get_close_matches(key, siblings, n=1)
        or difflib.get_close_matches(key, names, n=1)
    )
    return f"; did you mean '{near[0]}'?" if near else "; see `coterie settings` for all of them"
