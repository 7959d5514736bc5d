"""From settings to models: one architecture, built anew for each set of classes."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from coterie.config import ModelConfig
from coterie.data.transforms import Preprocessing
from coterie.errors import CheckpointError, ConfigError, did_you_mean, shortened
from coterie.models.classifier import Classifier
from coterie.models.feature_map import FeatureMap, without_pooling
from coterie.models.heads import POOLED, build_head
from coterie.models.squeezenet import NUM_FEATURES as SQUEEZENET_FEATURES
from coterie.models.squeezenet import SqueezeNetBackbone
from coterie.models.weights import LoadReport, load_backbone_weights
from coterie.models.word_vectors import WordVectors, count_dimensions, read_word_vectors
from coterie.seeding import seeded

# A user's own model: takes `num_classes`, and `class_names` if it has such a parameter.
ModelBuilder = Callable[..., nn.Module]

SQUEEZENET_NAMES = ("squeezenet", "squeezenet1_1")
DEFAULT_IMAGE_SIZE = 224
# The settings that build a model of coterie; a user's own is built by its builder.
OF_COTERIE = ("weights", "pretrained", "options", "drop_rate", "head", "word_vectors")
# What timm calls pooling that has weights; heads on the feature map are in its place.
ATTENTION_POOL = "attn_pool"
# What timm's constructors raise on arguments that do not fit.
BUILD_ERRORS = (TypeError, KeyError, ValueError, AssertionError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class ModelFactory:
    """Builds one architecture for any classes: baseline, teachers and student differ in the head alone, and
    in the size to which they `shrink` their images.
    """

    settings: ModelConfig
    builder: ModelBuilder | None = field(default=None)
    shrink: int | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """Image size and normalisation: the settings' where given, else the model's own."""
        own = _own_preprocessing(self.settings.name) if self.builder is None else _imagenet_preprocessing()
        return Preprocessing(
            image_size=self.settings.image_size or own.image_size,
            mean=self.settings.mean or own.mean,
            std=self.settings.std or own.std,
        )

    def build(self, class_names: Sequence[str], seed: int = 0) -> nn.Module:
        """A new model with one logit for each class; its random weights depend on `seed` alone."""
        with seeded(seed, "weights"):
            if self.builder is not None:
                if self.shrink is not None:
                    raise ConfigError("shrink does not reach your own model; do that in its builder")
                return _build_own(self.builder, class_names)
            words = self.read_word_vectors(class_names)
            backbone, num_features = self._backbone()
            feature_map = None
            if self.settings.head not in POOLED:
                feature_map = self._without_pooling(backbone, num_features)
            vectors = None if words is None else words.vectors
            head = build_head(self.settings, num_features, len(class_names), vectors)
            model = Classifier(backbone, head, self.settings.drop_rate, feature_map, self.shrink)
        if self.settings.weights is not None:
            self.load_weights(model)
        return model

    def read_word_vectors(self, class_names: Sequence[str]) -> WordVectors | None:
        """The vectors of the classes from the file `model.word_vectors`, None without one."""
        path = self.settings.word_vectors
        return None if path is None else read_word_vectors(path, class_names)

    @cached_property
    def head_options(self) -> dict[str, Any]:
        """The settings of the chosen head as plain values, with what a file of word vectors decides: they
        build it without the file.
        """
        section = self.settings.head_section()
        options = {} if section is None else section.model_dump(mode="json")
        if self.settings.word_vectors is not None:
            options["label_dimensions"] = count_dimensions(self.settings.word_vectors)
        return options

    def load_weights(self, model: nn.Module) -> LoadReport:
        """Put the file `model.weights` into the backbone; CheckpointError where it is of another."""
        if self.settings.weights is None or not isinstance(model, Classifier):
            raise ConfigError(
                "model.weights works with the models that coterie builds; load yours in its builder"
            )
        left_out = _classifier_of(self.settings.name)
        if model.feature_map is not None:
            left_out += (ATTENTION_POOL,)
        return load_backbone_weights(model.backbone, self.settings.weights, left_out)

    def _without_pooling(self, backbone: nn.Module, num_features: int) -> FeatureMap:
        if isinstance(backbone, SqueezeNetBackbone):
            backbone.pooled = False
            return FeatureMap(self.settings.name, num_features)
        return without_pooling(backbone, self.settings.name, num_features)

    def _backbone(self) -> tuple[nn.Module, int]:
        """The backbone with its pooling, and how many features it gives."""
        settings = self.settings
        if settings.name in SQUEEZENET_NAMES:
            if settings.options:
                raise ConfigError(f"{settings.name} takes no model.options")
            squeezenet = _downloading(settings, lambda: SqueezeNetBackbone(settings.pretrained))
            return squeezenet, SQUEEZENET_FEATURES
        check_timm_name(settings.name)
        options: dict[str, Any] = dict(settings.options)
        config = timm.get_pretrained_cfg(settings.name, allow_unregistered=True)
        if settings.image_size and config is not None and config.fixed_input_size:
            options.setdefault("img_size", settings.image_size)
        try:
            backbone = _downloading(
                settings,
                lambda: timm.create_model(settings.name, settings.pretrained, num_classes=0, **options),
            )
        except BUILD_ERRORS as error:
            given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "its defaults"
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"timm cannot build {settings.name} with {given} (model.options): {reason}"
            ) from None
        num_features: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        return backbone, int(num_features)


def make_factory(settings: ModelConfig, builder: ModelBuilder | None = None) -> ModelFactory:
    """The factory for the settings; a `module:function` name is imported here, and must be callable."""
    if builder is None and ":" in settings.name:
        builder = import_builder(settings.name)
    default = ModelConfig()
    useless = [name for name in OF_COTERIE if getattr(settings, name) != getattr(default, name)]
    if builder is not None and useless:
        raise ConfigError(f"model.{useless[0]} does not reach your own model; do that in its builder")
    return ModelFactory(settings, builder)


def builder_name(builder: ModelBuilder) -> str:
    """`module:function`; for an object that can be called, `module:` and its class."""
    name = getattr(builder, "__qualname__", type(builder).__qualname__)
    return f"{getattr(builder, '__module__', '')}:{name}"


def import_builder(name: str) -> ModelBuilder:
    """The function `module:function`, looked for in the current folder too."""
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise ConfigError(f"'{name}' names no function to build a model; write it as module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"model.name={name}: module '{module_name}' cannot be imported: {error}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value)]
        hint = did_you_mean(function_name, names)
        raise ConfigError(f"model.name={name}: '{module_name}' has no function '{function_name}'{hint}")
    return function  # type: ignore[no-any-return]


def check_timm_name(name: str) -> None:
    """ConfigError with the nearest right name where timm has no such model."""
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, [*timm.list_models(), *SQUEEZENET_NAMES])
        raise ConfigError(f"model.name={name}: there is no such model in timm{hint}")
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:
        tagged = timm.list_pretrained(f"{architecture}.*")
        hint = did_you_mean(name, tagged) or f"; it has {shortened(tagged)}"
        raise ConfigError(f"model.name={name}: timm has no such weights of {architecture}{hint}") from None


def _build_own(builder: ModelBuilder, class_names: Sequence[str]) -> nn.Module:
    parameters = inspect.signature(builder).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "num_classes" not in parameters and not takes_any:
        raise ConfigError(
            f"the model builder {builder_name(builder)} takes no `num_classes`; write it as "
            "`def build(num_classes): …`"
        )
    arguments: dict[str, Any] = {"num_classes": len(class_names)}
    if "class_names" in parameters:
        arguments["class_names"] = tuple(class_names)
    model = builder(**arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model builder must return a torch.nn.Module, got {type(model).__name__}")
    model.register_forward_hook(_take_logits)
    return model


def _take_logits(_module: nn.Module, _images: object, output: object) -> object:
    """The classifiers of `transformers` return an object that holds the logits."""
    return getattr(output, "logits", output)


def _own_preprocessing(name: str) -> Preprocessing:
    if name in SQUEEZENET_NAMES:
        return _imagenet_preprocessing()
    check_timm_name(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return _imagenet_preprocessing()
    (r, g, b), (r_std, g_std, b_std) = config.mean, config.std
    return Preprocessing(config.input_size[-1], (r, g, b), (r_std, g_std, b_std))


def _imagenet_preprocessing() -> Preprocessing:
    return Preprocessing(DEFAULT_IMAGE_SIZE, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _classifier_of(name: str) -> tuple[str, ...]:
    if name in SQUEEZENET_NAMES:
        return ("classifier",)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    names = config.classifier if config is not None else None
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _downloading(settings: ModelConfig, build: Callable[[], nn.Module]) -> nn.Module:
    """`build()`, with a failure to get pretrained weights told as one, and not at each of its attempts."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        return build()
    # What a missing network raises differs by the libraries below: OSError, RuntimeError, errors of HTTP.
    except Exception as error:
        if not settings.pretrained or isinstance(error, TypeError | AssertionError | LookupError):
            raise
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise CheckpointError(
            f"the pretrained weights of {settings.name} cannot be had: {reason}. "
            "Check the network, or give a file with model.pretrained=false model.weights=FILE"
        ) from None
    finally:
        hub.setLevel(level)
