"""Where the student's scores are cut, what another cut would be worth, and how far scores can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from coterie.data.dataset import UNKNOWN
from coterie.errors import DataError
from coterie.logits import SplitLogits
from coterie.report.reading import FinishedRun
from coterie.report.styles import STYLES, TEMPERED
from coterie.seeding import derive_seed
from coterie.tune import SPLIT, TUNED
from coterie.tuning import UNTUNED, Tuning, calibration_curve, tune_thresholds


def threshold_content(run: FinishedRun, validation: SplitLogits) -> dict[str, Any] | None:
    """What thresholds for F1 would be worth for the student, chosen on `validation` as `coterie tune` does.

    "choices" with what each is worth "in_sample" and "cross_validated" {measure: value}, "recommended",
    and "rows" of the classes: the threshold "kept" in the checkpoint, the one "recommended", and the F1
    "before" and "after", cross-validated, in percent. None where validation has nothing to choose from.
    """
    try:
        tuning = tune_thresholds(
            validation.models["student"],
            validation.targets,
            class_names=run.class_names,
            threshold=run.config.threshold,
            seed=derive_seed(run.config.seed, "tuning"),
        )
    except DataError:
        return None
    student = run.checkpoints["student"]
    choices = [
        {
            "name": name,
            "in_sample": choice.in_sample.summary(tuning.objective),
            "cross_validated": choice.cross_validated.summary(tuning.objective),
        }
        for name, choice in tuning.choices.items()
    ]
    return {
        "split": SPLIT,
        "choices": choices,
        "measures": list(choices[0]["in_sample"]),
        "recommended": tuning.recommended,
        "tuned": student.thresholds is not None,
        "temperature": student.temperature,
        "fitted": tuning.temperature,
        "rows": _class_thresholds(run, tuning),
    }


def _class_thresholds(run: FinishedRun, tuning: Tuning) -> list[dict[str, Any]]:
    before, after = (tuning.choices[name].cross_validated.f1 for name in (UNTUNED, tuning.recommended))
    recommended, kept = tuning.thresholds(), run.checkpoints["student"].class_thresholds()
    return [
        {
            "name": name,
            "positives": int(tuning.positives[index]),
            "kept": kept[index],
            "recommended": float(recommended[index]),
            "before": 100 * float(before[index]) if tuning.positives[index] else None,
            "after": 100 * float(after[index]) if tuning.positives[index] else None,
        }
        for index, name in enumerate(tuning.class_names)
    ]


def calibration(run: FinishedRun, logits: SplitLogits) -> dict[str, dict[str, Any]]:
    """For each model "score" and "share" of the filled bins over all classes, "error" in percent, "style".

    A model whose checkpoint has a temperature stands there twice, with it and without. Empty where no target
    is known.
    """
    if not (logits.targets != UNKNOWN).any():
        return {}
    found = {}
    for model in TUNED:
        values = logits.models[model].astype(np.float64)
        found[model] = _calibration(values, logits.targets, STYLES[model])
        temperature = run.checkpoints[model].temperature
        if temperature != 1:
            found[f"{model}, temperature {temperature:.2f}"] = _calibration(
                values / temperature, logits.targets, TEMPERED[model]
            )
    return found


def _calibration(
    logits: npt.NDArray[np.float64], targets: npt.NDArray[np.int8], style: dict[str, Any]
) -> dict[str, Any]:
    curve = calibration_curve(expit(logits), targets)
    filled = curve.count > 0
    return {
        "score": curve.mean_score[filled].round(5).tolist(),
        "share": curve.frequency[filled].round(5).tolist(),
        "error": 100 * curve.error,
        "style": style,
    }
