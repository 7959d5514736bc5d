"""Every setting once: typed, validated, from a YAML recipe and `key=value` words."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from coterie.errors import ConfigError, cut, either, listed, shortened
from coterie.labels.partition import METHODS
from coterie.recipe import read_layers, read_yaml, recipe_comment
from coterie.untrusted import parse_yaml

CONFIG_FILE = "config.yaml"  # of a run folder
BASELINE, STUDENT = "baseline", "student"
ROLES = (BASELINE, "teacher", STUDENT)
# settings of the distillation that look at what the last layer of the model sees
LOOK_AT_OUTPUT_LAYER = ("relations", "generator")
# `data=PATH` is short for `data.source=PATH`.
SHORT_FORMS = {"data": "source", "model": "name"}

# What a setting must be, by pydantic's name of the problem; other problems keep pydantic's words.
EXPECTED = {
    "int": "be a whole number",
    "float": "be a number",
    "bool": "be true or false",
    "string_type": "be a text",
    "string_too_short": "not be empty",
    "path": "be a path",
    "tuple": "be three numbers",
    "missing": "be three numbers",
    "too_long": "be three numbers",
    "dict": "be a mapping",
    "invalid-json": "be made of texts, numbers, lists and mappings",
}
# Arguments of timm's that bring weights past the settings for them, or change what the model returns.
RESERVED_OPTIONS = {
    "cache_dir",
    "checkpoint_path",
    "features_only",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}

# The heads that have settings, and the section of each in `model`.
HEAD_SECTIONS = {
    "csra": "csra",
    "ml-decoder": "ml_decoder",
    "query2label": "query2label",
    "transformer": "transformer",
}

Share = Annotated[float, Field(ge=0, le=1)]
# What a class is that only doubtful objects show: present, unknown or absent.
Doubtful = Literal["positive", "ignore", "negative"]


class Section(BaseModel):
    """A group of settings; unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # Settings that came when there were trainings already: those at the defaults keep their keys.
    later: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `augment.flip=true`, which would be taken for 1.0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError("be a number")
        return value

    def inputs(self) -> dict[str, Any]:
        """The plain values for the key of a training: all but those that came `later` and are not set."""
        unset = {name for name in self.later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=unset)


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


class CocoConfig(Section):
    """MS-COCO, and other data in its format."""

    year: int | None = Field(
        None, ge=1, description="of the annotation files, where the folder holds several years: 2014 or 2017"
    )
    crowd: Doubtful = Field(
        "positive",
        description="a class that only crowd regions show: present, unknown or absent; the paper counts it "
        "as present",
    )


class VocConfig(Section):
    """PASCAL VOC, and other data in its layout."""

    year: int | None = Field(
        None, ge=1, description="where the VOCdevkit holds several years, such as 2007 and 2012"
    )
    difficult: Doubtful = Field(
        "ignore", description="a class that only difficult objects show: present, unknown or absent"
    )


class HuggingFaceConfig(Section):
    """A dataset of the Hugging Face library `datasets`."""

    configuration: str | None = Field(None, description="of a dataset that has several")
    revision: str | None = Field(None, description="of a dataset on the Hub: a branch, tag or commit")


class WebDatasetConfig(Section):
    """WebDataset shards: which members of a sample hold the picture and the labels, by extension."""

    image: str | None = Field(None, min_length=1, description="such as jpg; by default the only picture")
    labels: str | None = Field(
        None, min_length=1, description="such as json; by default json, cls or txt, the first there is"
    )
    index: Path | None = Field(
        None,
        description="folder that keeps what the shards hold, so that they are read once, and memory does not "
        "grow with them; null: they are read at every start",
    )
    window: int = Field(
        65_536,
        ge=1,
        description="training images that are shuffled together; of more, blocks of all shards come in turn",
    )
    block: int = Field(
        64, ge=1, description="images of a shard that stay in one window: what is read in a row"
    )


class DataConfig(Section):
    """Where images and labels come from; `data=PATH` is short for `data.source=PATH`."""

    source: str = Field(
        "scenes",
        min_length=1,
        description="'scenes', a table (CSV, TSV or Parquet), or a folder or files of a format below",
    )
    format: Literal["auto", "scenes", "table", "coco", "nuswide", "voc", "huggingface", "webdataset"] = Field(
        "auto", description="what data.source is; by default told from what lies there"
    )
    image_root: Path | None = Field(
        None, description="folder of the images; by default the table's own folder, or the format's layout"
    )
    image_column: str = "image"
    labels_column: str = "labels"
    split_column: str = "split"
    delimiter: str = Field(";", min_length=1, description="what stands between the labels of an image")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of validation where the data name none")
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of test where the data name no split; 0 is no test split"
    )
    official_val: Literal["train", "val", "test"] | None = Field(
        None,
        description="what the published val is used as; by default test for COCO, NUS-WIDE and VOC 2012, "
        "a part of train for VOC 2007, val for the rest",
    )
    unlabelled: Literal["drop", "keep"] | None = Field(
        None,
        description="images without a label; by default dropped from COCO and NUS-WIDE, as the paper does, "
        "and kept in the rest",
    )
    class_names: tuple[str, ...] | None = Field(
        None, description="the list of classes, in their order: any other label is an error"
    )
    min_positives: int = Field(0, ge=0, description="leave out classes with fewer training images than this")
    on_missing: Literal["error", "skip"] = Field(
        "error", description="what to do with an image that is not there"
    )
    on_corrupt: Literal["error", "skip"] = Field(
        "error", description="what to do with an image that cannot be read"
    )
    check_images: int | None = Field(
        None,
        ge=1,
        description="decode so many images before the first training, from all over the data; null: all",
    )
    on_overlap: Literal["error", "skip", "keep"] = Field(
        "error",
        description="what to do with a training image that is measured too, byte by byte; skip leaves it out "
        "of the training",
    )
    cache_gb: float = Field(2.0, ge=0, description="keep the resized images in memory if they fit into this")
    disk_cache_gb: float = Field(
        0.0,
        ge=0,
        description="else keep them on the disk if they fit into this, also for later runs; 0 is off",
    )
    workers: int = Field(0, ge=0, description="processes that prepare images beside the training")
    scenes: ScenesConfig = ScenesConfig()
    coco: CocoConfig = CocoConfig()
    voc: VocConfig = VocConfig()
    huggingface: HuggingFaceConfig = HuggingFaceConfig()
    webdataset: WebDatasetConfig = WebDatasetConfig()


class AugmentConfig(Section):
    """Augmentation of training images."""

    cutout: float = Field(
        0.5, ge=0, le=1, description="side of the erased square, as a share of the image's; 0 is off"
    )
    randaugment: bool = True
    randaugment_ops: int = Field(2, ge=1)
    randaugment_magnitude: int = Field(9, ge=0, le=30)
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    shift: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="largest move along each axis, as a share of the side; edges are mirrored",
    )
    view_seed: int | None = Field(
        None, ge=0, lt=2**32, description="of the augmented views; null: that of the run"
    )


class CsraConfig(Section):
    """Residual attention (`model.head=csra`)."""

    temperatures: tuple[PositiveFloat | Literal["max"], ...] = Field(
        (1.0,),
        description="an attention head for each, 'max' for the best position; the paper has [1, 2, 4, max]",
    )
    weight: float = Field(0.1, ge=0, description="of the attention beside the average (lambda)")
    normalize: bool = Field(
        False, description="bring the weights of each class to length 1, as the published code does"
    )

    @field_validator("temperatures", mode="before")
    @classmethod
    def _numbers_above_0_or_max(cls, given: Any) -> Any:
        def fits(value: Any) -> bool:
            return value == "max" or (type(value) in (int, float) and 0 < value < math.inf)

        if not isinstance(given, list | tuple) or not given or not all(map(fits, given)):
            raise ValueError("be a list of numbers above 0 and 'max', such as [1, 2, 4, max]")
        return given


class MlDecoderConfig(Section):
    """ML-Decoder (`model.head=ml-decoder`)."""

    groups: int = Field(
        100, ge=1, description="queries; where there are more classes, each answers for several of them"
    )
    width: int = Field(768, ge=1)
    heads: int = Field(8, ge=1, description="attention heads; they divide the width")
    feedforward: int = Field(2048, ge=1, description="width between the two layers of the feed-forward block")
    dropout: float = Field(0.1, ge=0, lt=1)
    learned_queries: bool = Field(False, description="train the queries; the paper's are random and stay")


class Query2LabelConfig(Section):
    """Query2Label (`model.head=query2label`)."""

    width: int | None = Field(
        None, ge=4, description="a multiple of 4 and of heads; by default that of the features"
    )
    heads: int = Field(4, ge=1, description="attention heads")
    encoder_layers: int = Field(1, ge=0)
    decoder_layers: int = Field(2, ge=1)
    feedforward: int | None = Field(None, ge=1, description="by default four times the width")
    dropout: float = Field(0.1, ge=0, lt=1)
    label_attention: bool = Field(
        False, description="self-attention among labels after the first layer; published models have none"
    )


class TransformerConfig(Section):
    """A transformer over patch tokens and label tokens (`model.head=transformer`)."""

    width: int = Field(1024, ge=1)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1, description="attention heads")
    head_width: int | None = Field(None, ge=1, description="of one attention head; by default the width")
    feedforward: int | None = Field(None, ge=1, description="by default the width")
    dropout: float = Field(0.1, ge=0, lt=1)
    label_dimensions: int | None = Field(
        None,
        ge=1,
        description="of learned label vectors, projected to the width; word vectors have their own",
    )
    shared_output: bool = Field(True, description="one output layer for all labels, or one for each")


class ModelConfig(Section):
    """The network; `model=NAME` is short for `model.name=NAME`."""

    name: str = Field(
        "resnet50", min_length=1, description="a timm model, 'squeezenet1_1', or your own 'module:function'"
    )
    head: Literal["linear", "csra", "ml-decoder", "query2label", "transformer"] = Field(
        "linear", description="linear is on pooled features, the others on the feature map of the backbone"
    )
    pretrained: bool = Field(False, description="start from timm's weights for this name")
    weights: Path | None = Field(None, description="start from a file: a state dict or safetensors")
    image_size: int | None = Field(None, ge=16, description="side in pixels; by default the model's own")
    mean: tuple[Share, Share, Share] | None = Field(
        None, description="of red, green and blue in 0..1; by default the model's own"
    )
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        None, description="of red, green and blue in 0..1; by default the model's own"
    )
    drop_rate: float = Field(0.0, ge=0, lt=1, description="dropout on the features, before the head")
    word_vectors: Path | None = Field(
        None, description="label tokens of the transformer head: an npz, or lines of a name and its numbers"
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="further arguments of the timm model"
    )
    csra: CsraConfig = CsraConfig()
    ml_decoder: MlDecoderConfig = MlDecoderConfig()
    query2label: Query2LabelConfig = Query2LabelConfig()
    transformer: TransformerConfig = TransformerConfig()

    @field_validator("options")
    @classmethod
    def _nothing_reserved(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if reserved := sorted(RESERVED_OPTIONS & options.keys()):
            raise ValueError(
                f"model.options cannot hold '{reserved[0]}'; weights come by model.pretrained or "
                "model.weights, and the classes from the data"
            )
        return options

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights:
            raise ValueError("choose one of model.pretrained=true and model.weights=FILE")
        return self

    @model_validator(mode="after")
    def _nothing_of_another_head(self) -> Self:
        """A setting that would change nothing is a mistake: `model.csra.weight=.2` with the linear head."""
        for head, section in HEAD_SECTIONS.items():
            if head != self.head and getattr(self, section) != type(self).model_fields[section].default:
                raise ValueError(f"model.{section} needs model.head={head}, and that is '{self.head}'")
        if self.word_vectors is not None and self.head != "transformer":
            raise ValueError(f"model.word_vectors needs model.head=transformer, and that is '{self.head}'")
        return self

    def head_section(self) -> Section | None:
        """The settings of the chosen head, None where it has none."""
        name = HEAD_SECTIONS.get(self.head)
        return None if name is None else getattr(self, name)


class PartitionConfig(Section):
    """How labels are grouped; the methods are those of `coterie.partition_labels`."""

    later = frozenset({"repeats"})

    root: float = Field(2.0, gt=0, description="root taken of the conditional probabilities")
    co_method: str | None = Field(
        None, description=f"of co-occurrence: {either(METHODS['co-occurrence'])}; by default the first"
    )
    dis_method: str | None = Field(
        None, description=f"of dis-occurrence: {either(METHODS['dis-occurrence'])}; by default the first"
    )
    random: Literal["same-sizes", "equal-sizes"] | None = Field(
        None, description="control: groups at random, of the sizes that the methods give or of equal sizes"
    )
    repeats: int = Field(
        1,
        ge=1,
        description="partitions of each branch, each with K teachers; the further ones keep other labels "
        "together",
    )

    @field_validator("co_method", "dis_method")
    @classmethod
    def _one_of_the_methods(cls, method: str | None, info: ValidationInfo) -> str | None:
        methods = METHODS["co-occurrence" if info.field_name == "co_method" else "dis-occurrence"]
        if method is not None and method not in methods:
            raise ValueError(f"be {either(methods)}")
        return method


class TrainConfig(Section):
    """One training. `train` holds for all; `baseline`, `teacher` and `student` override it key by key."""

    later = frozenset({"mixup", "patience", "outside"})

    epochs: int = Field(40, ge=1)
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many epochs without a better one on validation; the learning rate goes as "
        "for all of them; null: never",
    )
    batch_size: int = Field(32, ge=2, description="batch norm needs two images at least")
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
    mixup: float = Field(
        0.0,
        ge=0,
        description="mix the images of a batch in pairs, and their losses, by a share from "
        "Beta(mixup, mixup); 0 is off",
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="of the loss over the images of a batch; with 'sum', rates depend on batch_size"
    )
    ema: float | None = Field(0.9997, ge=0, lt=1, description="decay of the averaged weights; null is off")
    grad_clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null is off")
    views: int | None = Field(
        None,
        ge=1,
        description="views of each image, which the epochs take in turn; null: always a new one",
    )
    start: Literal["model", "baseline"] = Field(
        "model", description="first weights: those of the model's settings, or of the trained baseline"
    )
    frozen: str | None = Field(
        None,
        min_length=1,
        description="module up to which the model stays as it starts, such as backbone.features.7",
    )
    shrink: int | None = Field(
        None, ge=16, description="side in pixels that the model shrinks its images to; null: not at all"
    )

    outside: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of teachers: what the labels outside of its group count, in a teacher's loss and in its "
        "answers; with 0 it does not know them",
    )

    @property
    def views_come_again(self) -> bool:
        """Whether two epochs have the same view of an image."""
        return self.views is not None and self.views < self.epochs

    def epochs_done(self, best_epoch: int) -> int:
        """How many epochs a training took that is over, with its best one where it was."""
        return self.epochs if self.patience is None else min(self.epochs, best_epoch + self.patience)

    @property
    def distinct_views(self) -> range:
        """The numbers of the views that the epochs take."""
        return range(min(self.epochs, self.views or self.epochs))


class ResumeConfig(Section):
    """When the state of a training is kept besides after every epoch: what a kill may cost."""

    minutes: float | None = Field(
        10.0, ge=0, description="keep the state so long after the last one; null: only after epochs"
    )
    steps: int | None = Field(None, ge=1, description="keep the state so many steps after the last one")


class DistillConfig(Section):
    """The student's loss, (1 - w) * cls + w * (a * kd(co) + (1 - a) * kd(dis)), and its teachers' answers.

    With the baseline as a third teacher of weight b, its kd is in the sum too, and the branches have 1 - b.
    """

    later = frozenset({"ap_power", "w_end", "relations", "generator"})

    loss: Literal["bernoulli-kl", "squared-error"] = "bernoulli-kl"
    w: float = Field(0.5, ge=0, le=1, description="weight of the teachers against the labels")
    w_end: float | None = Field(
        None, ge=0, le=1, description="what w goes to, step by step in equal parts; null: it stays"
    )
    a: float = Field(0.5, ge=0, le=1, description="weight of the co-occurrence branch against the other")
    baseline: float = Field(
        0.0, ge=0, lt=1, description="weight of the baseline as a third teacher against both branches"
    )
    ap_power: float = Field(
        0.0,
        ge=0,
        description="weigh the teachers of each label by their validation AP for it, to this power; 0: not",
    )
    temperature: float = Field(1.0, gt=0, description="of the Bernoulli KL")
    relations: float = Field(
        0.0,
        ge=0,
        description="weight of a loss on distances among label-wise embeddings, beside that on logits",
    )
    generator: float = Field(
        0.0,
        ge=0,
        description="learning rate of a generator that makes one target for each label of all teachers'; 0: "
        "their weighted mean",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="of the student's first weights, order and dropout; null: that of the run",
    )
    tolerance: float = Field(
        1e-2,
        ge=0,
        lt=1,
        description="largest relative error of the teachers' logits in a faster form; 0: no faster form",
    )
    compile: bool = Field(False, description="torch.compile for the teachers; needs a C++ compiler")
    cache: Literal["auto", "on", "off"] = Field(
        "auto",
        description="keep the teachers' logits of every view on the disk; auto: where views come again",
    )
    cache_dtype: Literal["float32", "float16"] = Field(
        "float32", description="of those logits; float16 rounds them by up to 5e-4 of their size"
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _words_that_yaml_takes_for_truths(cls, value: Any) -> Any:
        return ("on" if value else "off") if isinstance(value, bool) else value


class RayConfig(Section):
    """The cluster of `engine=ray`, and what a training needs of it."""

    address: str = Field(
        "local",
        min_length=1,
        description="'local' starts Ray on this machine for the run, 'auto' takes the cluster that this "
        "machine is in, HOST:PORT another",
    )
    cpus: float = Field(1.0, ge=0, description="CPUs that a process takes, and threads that it uses")
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs that a process takes, 0.5 for two on one; null: 1 where the cluster has any",
    )
    work_dir: Path | None = Field(
        None,
        description="where a node keeps its trainings when there is a storage; by default among its "
        "temporary files",
    )

    @field_validator("address")
    @classmethod
    def _no_client(cls, address: str) -> str:
        if address.startswith("ray://"):
            raise ValueError("be the address of a cluster that this machine is in: 'auto' or HOST:PORT")
        return address

    @field_validator("gpus")
    @classmethod
    def _parts_of_one_or_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("be a part of one GPU, or whole GPUs")
        return gpus


class Config(Section):
    """All settings of a run."""

    out: Path | None = Field(
        None, description="the run folder; by default runs/ and a name made of data, model, k and seed"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="all randomness comes from it")
    k: int = Field(5, ge=1, description="label groups in each branch")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="where to compute; auto takes a GPU where there is one"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="of the network; losses are in fp32. auto: bf16 where the device has instructions for "
        "it, else fp16 with CUDA, and fp32 elsewhere and with engine=ray; settled when a run begins",
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="where trainings are done: in processes here, or as tasks of a Ray cluster"
    )
    jobs: int = Field(
        1,
        ge=1,
        description="trainings at once with engine=local: on the CPU they share its threads, GPUs they take "
        "in turn",
    )
    processes: int = Field(
        1,
        ge=1,
        description="that do one training together, each with its part of every batch (data parallel): on "
        "the CPU they share its threads, of GPUs each has its own",
    )
    retries: int = Field(
        1, ge=0, description="how often a training whose process or node dies is started again"
    )
    together: int = Field(
        1, ge=1, description="trainings in one process, fed from one decoding and augmentation of each image"
    )
    channels_last: bool = Field(True, description="memory format of images and weights")
    cache_dir: Path | None = Field(
        None,
        description="of what is computed once, teachers' logits and features; by default the run folder",
    )
    storage: str | None = Field(
        None,
        min_length=1,
        description="URL where the run is kept for other machines, such as sftp://HOST/PATH; null: nowhere",
    )
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
    resume: ResumeConfig = ResumeConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _roles_start_from_train(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        shared = values.get("train", {})
        if isinstance(shared, TrainConfig):
            shared = shared.model_dump(exclude_unset=True)
        if not isinstance(shared, dict):
            return values
        return values | {
            role: shared | own for role in ROLES if isinstance(own := values.get(role) or {}, dict)
        }

    @field_validator("storage")
    @classmethod
    def _no_password(cls, storage: str | None) -> str | None:
        """The config of a run is written down in many places."""
        if storage is not None and urlsplit(storage).password is not None:
            raise ValueError("hold no password: docs/cluster.md says where it belongs")
        return storage

    @model_validator(mode="after")
    def _the_baseline_starts_by_itself(self) -> Self:
        if self.baseline.start == "baseline":
            raise ValueError(
                "the baseline cannot start from itself: set teacher.start=baseline or student.start=baseline"
            )
        return self

    @model_validator(mode="after")
    def _an_image_for_each_process(self) -> Self:
        for role in ROLES:
            if (images := getattr(self, role).batch_size) < self.processes:
                raise ValueError(
                    f"{role}.batch_size={images} is less than an image for each of processes={self.processes}"
                )
        return self

    @model_validator(mode="after")
    def _mixed_images_are_not_on_the_disk(self) -> Self:
        for role in ROLES:
            settings: TrainConfig = getattr(self, role)
            if settings.mixup == 0:
                continue
            if role == STUDENT and self.caches_logits:
                raise ValueError(
                    "student.mixup mixes images in every step, and the teachers' logits on the disk are of "
                    "images by themselves: set distill.cache=off, or student.mixup=0"
                )
            if role != STUDENT and settings.frozen is not None and settings.views_come_again:
                raise ValueError(
                    f"{role}.mixup mixes images in every step, and the features of {role}.frozen on the disk "
                    f"are of images by themselves: set {role}.views=null, or {role}.mixup=0"
                )
        return self

    @model_validator(mode="after")
    def _embeddings_come_from_live_teachers(self) -> Self:
        distill = self.distill
        if distill.relations and self.caches_logits:
            raise ValueError(
                "distill.relations compares embeddings, and only logits are kept on the disk: set "
                "distill.cache=off, or distill.relations=0"
            )
        if distill.relations and self.student.mixup:
            raise ValueError(
                "distill.relations compares the labels of single images, and student.mixup mixes them: set "
                "one of them to 0"
            )
        for name in LOOK_AT_OUTPUT_LAYER:
            if getattr(distill, name) and self.processes > 1:
                raise ValueError(
                    f"distill.{name} looks at whole batches, and processes={self.processes} share each: set "
                    f"processes=1, or distill.{name}=0"
                )
        return self

    @property
    def view_seed(self) -> int:
        """The seed that the views of all trainings come from."""
        return self.seed if self.augment.view_seed is None else self.augment.view_seed

    @property
    def caches_logits(self) -> bool:
        """Whether the student learns from logits on the disk."""
        if self.distill.cache == "auto":
            return self.student.views_come_again and self.distill.relations == 0
        return self.distill.cache == "on"

    def distill_inputs(self) -> dict[str, Any]:
        """What of the distillation the student's weights depend on: not where its logits are kept."""
        values = self.distill.inputs()
        del values["cache"], values["cache_dtype"]
        return values | {"cached": self.distill.cache_dtype if self.caches_logits else None}

    def cache_folder(self, run: Path, name: str) -> Path:
        """The folder of that name for what was computed and may be deleted: of several runs, or in `run`."""
        return (self.cache_dir or run) / name

    def run_folder(self) -> Path:
        """`out`, or a name made of data, model, head, image size, k and seed, so that the same words find the
        same run.

        The data are the table's folder and name: many tables are a labels.csv.
        """
        if self.out is not None:
            return self.out
        source = Path(self.data.source)
        folder = source.parent.resolve() if source.parent.name == ".." else source.parent
        words = (
            *([folder.name] if folder.name else []),
            re.sub(r"-*[{}*?,]+-*", "-", source.stem).strip("-"),  # it may be a pattern of shards
            re.sub(r"[^\w.-]+", "-", self.model.name),
            *([self.model.head] if self.model.head != "linear" else []),
            *([str(self.model.image_size)] if self.model.image_size else []),
            f"k{self.k}",
            f"s{self.seed}",
        )
        return Path("runs") / "-".join(words)

    def to_values(self) -> dict[str, Any]:
        """Plain values that read back as an equal Config; of a role only what differs from `train`, so that a
        change of `train` reaches it.
        """
        values = self.model_dump(mode="json")
        for role in ROLES:
            own = values.pop(role)
            if changed := {key: value for key, value in own.items() if value != values["train"][key]}:
                values[role] = changed
        return values

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_values(), sort_keys=False, allow_unicode=True)


def load_config(
    words: Iterable[str] = (), recipe: str | Path | None = None, settings: Mapping[str, Any] | None = None
) -> Config:
    """The config from a recipe (a shipped name or a YAML file), then `settings`, then `key=value` words.

    Later values win. `recipe=NAME` may also stand among the words. Raises ConfigError, naming the key
    and the nearest right one, where a key is unknown or a value does not fit, and where code for the model is
    named by the recipe alone.
    """
    overrides = parse_words(words)
    recipe = overrides.pop("recipe", recipe)
    values = recipe_values(recipe) if recipe is not None else {}
    code = _code_in(values)
    for new in (settings or {}, overrides):
        _merge(values, _spelt_out(new))
    if code is not None and _code_in(overrides) is None and _code_in(values) == code:
        raise ConfigError(
            f"recipe {recipe} names code to run, model.name={code}; no file is followed there. If you know "
            f"that code, name it yourself: model={code}"
        )
    return settled(validate_config(values))


def settled(config: Config) -> Config:
    """With the precision that `auto` stands for: that of the run that goes on, or what is fast here. The
    nodes of a cluster need not be like the machine that asks them.
    """
    if config.precision != "auto":
        return config
    if (before := config.run_folder() / CONFIG_FILE).exists():
        with suppress(ConfigError):  # a damaged one is said to be so where the run is taken up
            return config.model_copy(update={"precision": read_config(before).precision})
    from coterie.devices import fastest_precision  # torch takes a while, and few configs need it

    precision = "fp32" if config.engine == "ray" else fastest_precision(config.device)
    return config.model_copy(update={"precision": precision})


def _code_in(values: Mapping[str, Any]) -> str | None:
    """The function `module:function` that would be imported to build the model, None without one."""
    model = values.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) and ":" in name else None


def recipe_values(recipe: str | Path) -> dict[str, Any]:
    """The nested values that a recipe and those it is based on set, not yet validated."""
    values: dict[str, Any] = {}
    for layer in read_layers(recipe):
        _merge(values, _spelt_out(layer.values))
    return values


def recipe_text(name: str) -> str:
    """A shipped recipe as a file of its own: its comment, and all that it and those it is based on set."""
    *bases, _ = (layer.name for layer in read_layers(name))
    origin = f"# Copied from {name}{f', with all of {listed(bases)}' if bases else ''}."
    values = yaml.safe_dump(recipe_values(name), sort_keys=False, allow_unicode=True)
    return f"{recipe_comment(name)}\n{origin}\n{values}"


def parse_words(words: Iterable[str]) -> dict[str, Any]:
    """The nested values that `key=value` words give, not yet validated; "recipe" is a name or a path."""
    values: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise ConfigError(
                f"{shortened([word])} is not a setting; write it as key=value, such as train.epochs=20"
            )
        _merge(values, _spelt_out({key: text} if key == "recipe" else _nested(key, _parse(key, text))))
    return values


def read_config(path: Path) -> Config:
    """The config saved in `path` (YAML)."""
    return validate_config(read_yaml(path))


def validate_config(values: Mapping[str, Any]) -> Config:
    """A Config from nested plain values; ConfigError names each wrong key once."""
    values = _spelt_out(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [problem for problem in error.errors() if not _is_of_train(problem["loc"], values)]
        raise ConfigError("\n".join(_message(problem) for problem in problems)) from None


def changed_settings(old: Config, new: Config) -> list[tuple[str, str, str]]:
    """(key, old value, new value) of each setting that differs; a role's only where it is its own."""
    before, after = dict(leaves(old.model_dump(mode="json"))), dict(leaves(new.model_dump(mode="json")))
    own = {key for config in (old, new) for key, _ in leaves(config.to_values())}
    return [
        (key, plain(before.get(key)), plain(after.get(key)))
        for key in before | after
        if before.get(key) != after.get(key) and (key in own or key.split(".")[0] not in ROLES)
    ]


def as_words(config: Config) -> list[str]:
    """The `key=value` words that give this config: one for each setting that is not its default."""
    default = dict(leaves(Config().model_dump(mode="json")))
    words = []
    for key, value in leaves(config.to_values()):
        if key.split(".")[0] in ROLES or key not in default or value != default[key]:
            text = plain(value)
            # what a shell or YAML would take for something else stands in quotes
            words.append(f"{key}={text if _parse(key, text) == value else json.dumps(value)}")
    return words


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
            default = field.get_default(call_default_factory=True)
            yield prefix + name, plain(default), field.description or ""


def setting_choices(key: str) -> tuple[str, ...]:
    """The values that the setting `key` has to choose from; none where it takes any, or there is none."""
    kinds = _kinds(key)
    if bool in kinds:
        return ("true", "false")
    return tuple(value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))


def _parse(key: str, text: str) -> Any:
    """The value of a word: YAML, but for a text or a path the characters as they are, unless in quotes.

    So `data.delimiter=|`, `data=photos/set #2.csv` and `data.labels_column=no` mean what they say.
    """
    kinds = _kinds(key)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if kinds & {str, Path} and not quoted and not (key in SHORT_FORMS and text.startswith("{")):
        if type(None) in kinds and text in ("", "null"):
            return None
        # a shell leaves the tilde of key=~/file alone
        return str(Path(text).expanduser()) if text.startswith("~/") else text
    try:
        return parse_yaml(text)
    except ValueError:
        raise ConfigError(f"the value of {shortened([key])} cannot be read: {cut(text)}") from None


def _kinds(key: str) -> set[Any]:
    """The types that the setting `key` takes; none where there is no such setting."""
    section: Any = Config
    annotation: Any = None
    for part in f"{key}.{SHORT_FORMS[key]}".split(".") if key in SHORT_FORMS else key.split("."):
        fields = getattr(section, "model_fields", {})
        annotation = section = fields[part].annotation if part in fields else None
    return {annotation, *(get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ())} - {
        None
    }


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _spelt_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the short forms `data: PATH` and `model: NAME` spelt out."""
    full = dict(values)
    for key, main in SHORT_FORMS.items():
        if isinstance(short := full.get(key), str | Path):
            full[key] = {main: str(short)}
    return full


def _merge(values: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Put `new` over `values`, section by section."""
    for key, value in new.items():
        if not isinstance(value, Mapping):
            values[key] = value
        elif isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = {}
            _merge(values[key], value)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key with dots, value) of every setting in nested values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value  # YAML may have a number for a key


def plain(value: Any) -> str:
    """A setting's value as a person writes it: `true`, `null`, `[1, 2]`, a text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _is_of_train(place: tuple[int | str, ...], values: Mapping[str, Any]) -> bool:
    """Whether a problem of a role's section is one of `train`, that the section only took over."""
    if len(place) < 2 or place[0] not in ROLES:
        return False
    own = values.get(str(place[0]))
    return not isinstance(own, Mapping) or str(place[1]) not in map(str, own)  # pydantic names a key as text


def _message(problem: Any) -> str:
    """One sentence on a problem that pydantic found."""
    place, value, kind = problem["loc"], problem["input"], problem["type"]
    # the place of a value inside a list, or inside an option, is of no help
    names = [part for part in place if isinstance(part, str)]
    key = ".".join(names[:2] if names[:2] == ["model", "options"] else names)
    if kind in ("extra_forbidden", "invalid_key") or (
        isinstance(value, dict) and not _is_section(key) and key
    ):
        key = key or str(place[-1])
        key = next((f"{key}.{leaf}" for leaf, _ in leaves(value)), key) if isinstance(value, dict) else key
        return f"there is no setting {shortened([key])}{_nearest_setting(key)}"
    if kind == "model_type":
        example = next(name for name in setting_names() if name.startswith(f"{key}."))
        return f"'{key}' is a group of settings, such as {example}; it cannot be {plain(value)}"
    text = re.sub("^(Value error, |Input should )", "", problem["msg"])
    if kind == "value_error" and isinstance(value, dict):
        return text
    text = next((words for start, words in EXPECTED.items() if kind.startswith(start)), text)
    given = cut(repr(value) if isinstance(value, str) else plain(value))
    return f"setting {shortened([key])} must {text}, got {given}"


def _is_section(key: str) -> bool:
    return key == "model.options" or any(name.startswith(f"{key}.") for name in setting_names())


def _nearest_setting(key: str) -> str:
    """The setting whose last part is the same or most alike, of those the one whose sections are."""
    names = list(setting_names())
    section, _, last = key.rpartition(".")
    siblings = [name for name in names if name.rpartition(".")[0] == section]
    same = [name for name in names if name.rpartition(".")[2] == last]
    for among in (same, siblings, names):
        near = difflib.get_close_matches(last, sorted({name.rpartition(".")[2] for name in among}), n=1)
        alike = [name for name in among if near and name.rpartition(".")[2] == near[0]]
        if alike:
            return f"; did you mean '{difflib.get_close_matches(key, alike, n=1, cutoff=0)[0]}'?"
    return "; see `coterie settings` for all of them"
