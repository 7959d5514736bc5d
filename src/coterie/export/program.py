"""A classifier as a `torch.export` program (.pt2): torch runs it without our code, or timm's."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import load, save

from coterie.export.checking import TOLERANCE, Agreement, Answers, Pixels, check
from coterie.export.model import METADATA_FILE, describe, quiet, trace
from coterie.files import atomic_write
from coterie.predictor import Predictor


def export_program(
    predictor: Predictor, out: str | Path, pictures: Sequence[Path] = (), tolerance: float = TOLERANCE
) -> Agreement:
    """Write the classifier to `out`, after the program, loaded again, gave the predictor's scores.

    Input, outputs and description are those of the ONNX file; the description is the extra file
    `coterie.json`. Raises ExportError where scores differ, and `out` is as it was then.
    """
    written = io.BytesIO()
    program = trace(predictor)
    files = {METADATA_FILE: json.dumps(describe(predictor.checkpoint))}
    with quiet():
        save(program, written, extra_files=files)
        content = written.getvalue()
        loaded = load(io.BytesIO(content)).module()

    @torch.no_grad()
    def run(pixels: Pixels) -> Answers:
        scores, labels, logits = loaded(torch.from_numpy(np.ascontiguousarray(pixels)))
        return scores.numpy(), labels.numpy(), logits.numpy()

    agreement = check(run, predictor, pictures, tolerance)
    atomic_write(Path(out), content)
    return agreement
