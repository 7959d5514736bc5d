"""A classifier as one ONNX file: normalisation, scores and thresholds inside, the rest in its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from coterie.errors import ExportError
from coterie.export.checking import TOLERANCE, Agreement, Exported, check
from coterie.export.model import INPUT, METADATA_KEY, OUTPUTS, describe, quiet, trace
from coterie.extras import need_extra
from coterie.files import atomic_write
from coterie.predictor import Predictor

if TYPE_CHECKING:
    from onnx import ModelProto

# What protobuf can hold in one file, less what the graph itself takes.
MOST_BYTES = 2**31 - 2**24


def export_onnx(
    predictor: Predictor, out: str | Path, pictures: Sequence[Path] = (), tolerance: float = TOLERANCE
) -> Agreement:
    """Write the classifier to `out`, after onnxruntime gave the predictor's scores on `pictures`.

    See ExportedClassifier for input and outputs, and `describe` for the JSON in the metadata. Raises
    ExportError where the model cannot be exported or its scores differ, and `out` is as it was then;
    ConfigError where the extra is missing.
    """
    need_extra("export", "an export to ONNX", "onnx", "onnxscript", "onnxruntime")
    size = sum(tensor.nbytes for tensor in predictor.model.state_dict().values())
    if size > MOST_BYTES:
        raise ExportError(
            f"the weights take {size / 1e9:.1f} GB, and one ONNX file holds 2; use --format torch for this "
            "model"
        )
    model = _convert(predictor)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(describe(predictor.checkpoint))
    content = model.SerializeToString()
    agreement = check(_session(content), predictor, pictures, tolerance)
    atomic_write(Path(out), content)
    return agreement


def _convert(predictor: Predictor) -> ModelProto:
    program = trace(predictor)
    try:
        with quiet():
            converted = torch.onnx.export(
                program, input_names=[INPUT], output_names=list(OUTPUTS), dynamo=True, verbose=False
            )
    except Exception as error:  # any of the exporter's own errors
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"the model cannot be written as ONNX: {reason}; try --format torch") from None
    assert converted is not None
    model: ModelProto = converted.model_proto
    _tidy(model)
    return model


def _tidy(model: ModelProto) -> None:
    """Name the free axis, and leave out what the exporter noted about each node."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # shapes of what is between carry the old name of the axis; runtimes infer them
    graph.ClearField("value_info")


def _session(content: bytes) -> Exported:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: tuple(session.run(list(OUTPUTS), {INPUT: pixels}))
