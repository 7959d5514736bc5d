"""The intervals of an ablation, from the logits of its runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coterie.ablation import ablate
from coterie.ablation.intervals import difference_intervals, interval_between, resampled_maps
from coterie.intervals import paired_interval, resampled_map
from coterie.logits import read_logits
from tests.ablation.test_running import config
from tests.tiny import write_table


def test_intervals_are_of_the_models_of_each_row_over_the_seeds_that_have_both(tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    result = ablate(config(table), ("cgp-teachers", "all-teachers"), (0, 1), out=tmp_path / "out")
    assert list(result.intervals) == ["val", "test", "test_shifted"]
    logits = [
        read_logits(Path(outcome.run), "test") for outcome in result.outcomes if outcome.row == "baseline"
    ]
    maps = {
        model: [resampled_map(one.models[model], one.targets, resamples=1000) for one in logits]
        for model in ("baseline", "CGP teachers")
    }
    expected = paired_interval(maps["CGP teachers"], maps["baseline"])
    assert result.intervals["test"]["cgp-teachers"] == pytest.approx(expected)
    assert "baseline" not in result.intervals["test"]
    assert difference_intervals(result) == result.intervals
    text = (tmp_path / "out" / "ablation.md").read_text()
    low, high = result.intervals["test"]["all-teachers"]
    assert f"[{low:+.2f}, {high:+.2f}]" in text

    found = resampled_maps(result, "test")
    del found["baseline", 1]
    alone = interval_between(found, "cgp-teachers", "baseline", result.seeds)
    assert alone == pytest.approx(paired_interval(maps["CGP teachers"][:1], maps["baseline"][:1]))
    del found["baseline", 0]
    assert interval_between(found, "cgp-teachers", "baseline", result.seeds) is None
    assert np.isfinite(found["all-teachers", 0]).all()
