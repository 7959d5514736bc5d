"""The Hugging Face Hub: a checkpoint as a folder with a model card, put there and taken from there."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from coterie.checkpoint import (
    INFO_FILE,
    SCHEMA_VERSION,
    WEIGHTS_FILE,
    Checkpoint,
    read_checkpoint,
    write_description,
)
from coterie.config import validate_config
from coterie.errors import CheckpointError, ConfigError, ExportError
from coterie.extras import need_extra
from coterie.files import atomic_write, file_sha256
from coterie.predictor import HUB_NAME
from coterie.runfolder import METRICS_FILE
from coterie.untrusted import parse_json

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# Settings that name files and folders of the machine it was trained on: the Hub gets their last part alone.
LOCAL = (
    *("out", "data.source", "data.image_root"),
    *("model.weights", "model.word_vectors", "distill.cache_dir"),
)
SHOWN_METRICS = ("mAP", "CF1", "OF1")
# Characters that mean something in a Markdown table, or in HTML.
SPECIAL = re.compile(r"[\\`*_{}\[\]<>&|~$#!]")


def write_hub_folder(
    folder: Path, out: Path, license: str | None = None, repository: str = "user/model"
) -> None:
    """Write the checkpoint in `folder` to `out` as the Hub takes it: weights, description and model card.

    `license`: as the Hub names it ("apache-2.0"). `repository`: its name there, for the card.
    `coterie.load_classifier(out)` loads it. Raises ExportError where `out` holds something, CheckpointError
    where the checkpoint is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is there already; name another folder, or remove it")
    checkpoint = read_checkpoint(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or file_sha256(weights) != checkpoint.weights_sha256:
        raise CheckpointError(f"weights {weights} are damaged: their hash is not the one in {INFO_FILE}")
    measured = _measured(folder, checkpoint)
    public = _without_local_paths(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as unfinished:
        inside = Path(unfinished) / "folder"
        inside.mkdir()
        shutil.copyfile(weights, inside / WEIGHTS_FILE)
        write_description(inside, public)
        atomic_write(inside / CONFIG_FILE, json.dumps(hub_config(public), indent=1, ensure_ascii=False))
        atomic_write(inside / CARD_FILE, model_card(public, measured, license, repository))
        inside.rename(out)  # an empty folder gives way


def push_to_hub(
    folder: Path, name: str, *, private: bool = False, license: str | None = None, message: str | None = None
) -> str:
    """Put the checkpoint in `folder` into the repository `name` ("user/model") of the Hub, made if need be;
    the address. Needs a token: `hf auth login`, or HF_TOKEN.
    """
    need_extra("hub", "the Hugging Face Hub", "huggingface_hub")
    from huggingface_hub import HfApi

    if not re.fullmatch(HUB_NAME, name):
        raise ConfigError(f"'{name}' is no name on the Hub; write it as user/model")
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "model"
        write_hub_folder(folder, written, license, name)
        api = HfApi(library_name="coterie", library_version=version("coterie"))
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=name,
                folder_path=written,
                commit_message=message or f"{read_checkpoint(written).name}, written by coterie",
            )
        except (OSError, ValueError) as error:  # those of the Hub and of the network are OSErrors
            raise ExportError(
                f"{name} cannot be put on the Hub: {_first_line(error)}. Log in with `hf auth login`, and "
                "see that the name begins with your own or your organisation's"
            ) from None
    return str(address)


def hub_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of config.json: what the Hub and other tools look for, by the names that they know."""
    names = checkpoint.class_names
    return {
        "library_name": "coterie",
        "coterie_version": version("coterie"),
        "schema_version": SCHEMA_VERSION,
        "architecture": checkpoint.architecture,
        "problem_type": "multi_label_classification",
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "thresholds": checkpoint.class_thresholds(),
        "temperature": checkpoint.temperature,
        **asdict(checkpoint.preprocessing),
    }


def model_card(
    checkpoint: Checkpoint,
    measured: Mapping[str, Mapping[str, Any]],
    license: str | None = None,
    repository: str = "user/model",
) -> str:
    """The README.md of a model on the Hub; `measured`: {split: {metric: percent}}."""
    head: dict[str, Any] = {
        "library_name": "coterie",
        "pipeline_tag": "image-classification",
        "tags": ["multi-label", "image-classification", "parallel-self-distillation", "coterie"],
    }
    if license is not None:
        head["license"] = license
    environment = Environment(
        loader=PackageLoader("coterie.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown: names go through `cell`
    )
    environment.filters["cell"] = _cell
    return environment.get_template("card.md").render(
        front_matter=yaml.safe_dump(head, sort_keys=False).strip(),
        repository=repository,
        checkpoint=checkpoint,
        architecture=checkpoint.architecture,
        settings=_settings(checkpoint),
        metrics=SHOWN_METRICS,
        measured=measured,
        classes=list(zip(checkpoint.class_names, checkpoint.class_thresholds(), strict=True)),
        coterie_version=version("coterie"),
    )


def download(name: str) -> Path:
    """The checkpoint `user/model` or `user/model@revision` of the Hub, as a folder in its cache.

    Weights and description alone: nothing that could be run. CheckpointError where it cannot be had.
    """
    need_extra("hub", f"hf://{name}", "huggingface_hub")
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        files = [INFO_FILE, WEIGHTS_FILE]
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=files)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"hf://{name} cannot be had from the Hub: {_first_line(error)}") from None
    return Path(str(folder))


def _measured(folder: Path, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """What the run around `folder` measured of it, {split: {metric: percent}}; {} where there is none."""
    try:
        content = parse_json((folder.resolve().parent / METRICS_FILE).read_text(encoding="utf-8"))
        return {
            _text(split): {name: _number(models[checkpoint.name].get(name)) for name in SHOWN_METRICS}
            for split, models in content["splits"].items()
            if checkpoint.name in models
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _text(name: str) -> str:
    """The name; ValueError where it cannot be written."""
    name.encode()
    return name


def _without_local_paths(checkpoint: Checkpoint) -> Checkpoint:
    config = json.loads(json.dumps(checkpoint.config))
    for key in LOCAL:
        *sections, last = key.split(".")
        values: Any = config
        for section in sections:
            values = values.get(section) or {}
        if isinstance(values.get(last), str):
            values[last] = Path(values[last]).name
    return Checkpoint(**vars(checkpoint) | {"config": config})


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that a reader of the card looks for first; of an imported model, the network alone."""
    architecture = checkpoint.architecture
    shown = {"network": architecture.get("name") or architecture.get("builder")}
    if "head" in architecture:
        shown["head"] = architecture["head"]
    if not checkpoint.config:
        return shown
    config = validate_config(checkpoint.config)
    roles = {"student": config.student, "baseline": config.baseline}
    training = roles.get(checkpoint.name, config.teacher)
    shown |= {"data": Path(config.data.source).name, "seed": config.seed}
    shown |= {"epochs": training.epochs, "loss": training.loss}
    if checkpoint.name == "student":
        shown |= {"groups of labels in each branch": config.k, "weight of distillation": config.distill.w}
    return shown


def _cell(text: object) -> str:
    """Any text as it shows in a cell of a Markdown table."""
    one_line = " ".join(str(text).split())
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", one_line)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
