"""Where the student's scores are cut, what another cut would be worth, and how far scores can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from coterie.checkpoint import read_checkpoint
from coterie.errors import DataError
from coterie.logits import SplitLogits
from coterie.report.reading import FinishedRun
from coterie.seeding import derive_seed
from coterie.tune import SPLIT
from coterie.tuning import UNTUNED, Tuning, brier_score, calibration_curve, tune_thresholds

CALIBRATED = ("baseline", "student")


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
        "tuned": run.student.thresholds is not None,
        "temperature": run.student.temperature,
        "fitted": tuning.temperature,
        "rows": _class_thresholds(run, tuning),
    }


def _class_thresholds(run: FinishedRun, tuning: Tuning) -> list[dict[str, Any]]:
    before, after = (tuning.choices[name].cross_validated.f1 for name in (UNTUNED, tuning.recommended))
    recommended, kept = tuning.thresholds(), run.student.class_thresholds()
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
    """For each model "score" and "share" of the filled bins, "error" and "brier", over all classes.

    A model whose checkpoint has a temperature stands there twice, with it and without.
    """
    found = {}
    for model in CALIBRATED:
        values = logits.models[model].astype(np.float64)
        found[model] = _calibration(expit(values), logits.targets)
        temperature = read_checkpoint(run.folder / model).temperature
        if temperature != 1:
            found[f"{model}, temperature {temperature:.2f}"] = _calibration(
                expit(values / temperature), logits.targets
            )
    return found


def _calibration(scores: npt.NDArray[np.float64], targets: npt.NDArray[np.int8]) -> dict[str, Any]:
    curve = calibration_curve(scores, targets)
    filled = curve.count > 0
    return {
        "score": curve.mean_score[filled].round(5).tolist(),
        "share": curve.frequency[filled].round(5).tolist(),
        "error": 100 * curve.error,
        "brier": brier_score(scores, targets),
    }
