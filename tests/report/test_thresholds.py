"""What a report says of thresholds and calibration is what tuning and its curve say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coterie.pipeline import Run
from coterie.report import write_report
from coterie.report.reading import read_run
from coterie.report.thresholds import calibration, threshold_content
from coterie.tune import tune_run
from coterie.tuning import calibration_curve

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_thresholds_are_those_that_tuning_would_choose(run_copy: Run, page: Page) -> None:
    run = read_run(run_copy.folder)
    content = threshold_content(run, run.logits("val"))
    assert content is not None
    assert not content["tuned"]
    assert {row["kept"] for row in content["rows"]} == {0.5}

    tuning = tune_run(run_copy.folder, calibrate=False)["student"]
    assert content["recommended"] == tuning.recommended
    for choice in content["choices"]:
        own = tuning.choices[choice["name"]]
        assert choice["cross_validated"] == own.cross_validated.summary(tuning.objective)
    tuned = read_run(run_copy.folder)
    content = threshold_content(tuned, tuned.logits("val"))
    assert content is not None
    assert content["tuned"]
    assert [row["kept"] for row in content["rows"]] == pytest.approx(tuning.thresholds().tolist())
    targets = run.logits("val").targets
    assert [row["positives"] for row in content["rows"]] == (targets == 1).sum(axis=0).tolist()

    page.goto(write_report(run_copy.folder, pictures=0).path.as_uri())
    shown = page.locator("#choice-table tbody tr", has_text="recommended").inner_text().split()
    summary = tuning.choices[tuning.recommended].cross_validated.summary(tuning.objective)
    assert f"{summary['mean F1']:.2f}" in shown


def test_calibration_is_of_the_scores_with_and_without_the_temperature(run_copy: Run) -> None:
    temperature = tune_run(run_copy.folder)["student"].temperature
    run = read_run(run_copy.folder)
    logits = run.logits("test")
    found = calibration(run, logits)
    names = [name for name in found if name.startswith("student")]
    assert names == ["student", f"student, temperature {temperature:.2f}"]
    for name, divisor in zip(names, (1.0, temperature), strict=True):
        scores = 1 / (1 + np.exp(-logits.models["student"].astype(float) / divisor))
        curve = calibration_curve(scores, logits.targets)
        filled = curve.count > 0
        assert found[name]["score"] == pytest.approx(curve.mean_score[filled], abs=1e-5)
        assert found[name]["share"] == pytest.approx(curve.frequency[filled], abs=1e-5)
        assert found[name]["error"] == pytest.approx(100 * curve.error)
    assert re.fullmatch(r"baseline, temperature \d+\.\d\d", list(found)[1])
