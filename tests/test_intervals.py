"""The bootstrap: its values are those of the plain way, resample by resample."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.intervals import bootstrap_differences, interval, paired_interval, resampled_map
from coterie.metrics import multilabel_metrics


def scored(seed: int, n: int = 60, c: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of two models with ties, and targets with unknown ones; class 0 has a single positive."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, c)) < 0.3).astype(np.int8)
    targets[:, 0] = 0
    targets[7, 0] = 1
    targets[rng.random((n, c)) < 0.1] = -1
    targets[7, 0] = 1
    new = np.round(rng.normal(size=(n, c)) + targets, 1).astype(np.float32)
    old = np.round(rng.normal(size=(n, c)), 1).astype(np.float32)
    return new, old, targets


def scores(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits.astype(float))))


def test_every_resample_has_the_metrics_of_its_images() -> None:
    new, old, targets = scored(0)
    found = bootstrap_differences(new, old, targets, (0.0, 0.0), resamples=20, seed=3)

    rng = np.random.default_rng(3)
    for number in range(20):
        drawn = rng.integers(len(targets), size=len(targets))
        measured = [multilabel_metrics(scores(logits[drawn]), targets[drawn]) for logits in (new, old)]
        for name in ("mAP", "CF1", "OF1"):
            expected = measured[0][name] - measured[1][name]
            assert found.metrics[name][number] == pytest.approx(expected, abs=1e-4), name
        for column in range(targets.shape[1]):
            ap = [one["AP"][column] for one in measured]
            expected = np.nan if ap[0] is None else ap[0] - ap[1]
            assert found.ap[number, column] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert np.isnan(found.ap[:, 0]).any()


def test_each_model_has_its_own_cut() -> None:
    new, old, targets = scored(1)
    found = bootstrap_differences(new, old, targets, (0.85, -0.4), resamples=1, seed=0)

    drawn = np.random.default_rng(0).integers(len(targets), size=len(targets))
    of1 = [
        multilabel_metrics(scores(logits[drawn]), targets[drawn], 1 / (1 + np.exp(-cut)))["OF1"]
        for logits, cut in ((new, 0.85), (old, -0.4))
    ]
    assert found.metrics["OF1"][0] == pytest.approx(of1[0] - of1[1], abs=1e-4)


def test_the_same_model_twice_has_no_difference() -> None:
    new, _, targets = scored(2)
    found = bootstrap_differences(new, new, targets, (0.0, 0.0))
    assert not any(values.any() for values in found.metrics.values())
    assert interval(found.metrics["mAP"]) == (0.0, 0.0)


def test_an_interval_holds_95_percent_of_what_is_known() -> None:
    values = np.arange(201, dtype=float)
    assert interval(values) == (5.0, 195.0)
    assert interval(np.where(values < 100, np.nan, values)) == (102.5, 197.5)
    assert interval(np.where(values < 101, np.nan, values)) is None


def test_resampled_map_is_that_of_the_drawn_images() -> None:
    new, _, targets = scored(4)
    found = resampled_map(new, targets, resamples=20, seed=3)
    assert found[0] == pytest.approx(multilabel_metrics(scores(new), targets)["mAP"])
    rng = np.random.default_rng(3)
    for number in range(1, 21):
        drawn = rng.integers(len(targets), size=len(targets))
        assert found[number] == pytest.approx(multilabel_metrics(scores(new[drawn]), targets[drawn])["mAP"])


def test_an_interval_over_seeds_covers_both_images_and_seeds() -> None:
    rng = np.random.default_rng(0)
    old = [rng.normal(50, 1, 1001) for _ in range(5)]
    gains = [0.0, 1.0, 2.0, 3.0, 4.0]
    # no noise of images: Student's t of five gains, whose variance is 2.5
    of_seeds = 2.776 * (2.5 / 5) ** 0.5
    found = paired_interval([one + gain for one, gain in zip(old, gains, strict=True)], old)
    assert found == pytest.approx((2 - of_seeds, 2 + of_seeds), abs=1e-3)
    # no noise of seeds: the same images are drawn for all of them, so that it does not average out
    noise = rng.normal(0, 1, 1001)
    noise[0] = 0
    found = paired_interval([one + 2 + noise for one in old], old)
    assert found == pytest.approx((2 - 1.96 * noise.std(), 2 + 1.96 * noise.std()), abs=1e-2)
    # one seed: the images alone
    assert paired_interval([old[0] + 2 + noise], [old[0]]) == pytest.approx(found)
    # as much noise of both: four times the degrees of freedom of the seeds, so 2.120 at 16
    noise *= 0.5**0.5 / noise[1:].std()
    found = paired_interval([one + gain + noise for one, gain in zip(old, gains, strict=True)], old)
    assert found == pytest.approx((2 - 2.120, 2 + 2.120), abs=1e-2)


def test_few_seeds_do_not_pass_for_many() -> None:
    """Of many draws of three seeds, the interval holds what is true in 95 of 100."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        gains = rng.normal(1, 2, 3) + rng.normal(0, 0.1)  # what the images drawn for the split change
        new = [gain + np.append(0, rng.normal(0, 0.1, 200)) for gain in gains]
        low, high = paired_interval(new, [np.zeros(201)] * 3) or (0, 0)
        held += low < 1 < high
    assert 0.92 <= held / 400 <= 0.98


def test_an_interval_needs_values() -> None:
    known, unknown = np.zeros(11), np.append(0, np.full(10, np.nan))
    assert paired_interval([unknown], [known]) is None
    assert paired_interval([known], [np.full(11, np.nan)]) is None
    assert paired_interval([known], [known]) == (0, 0)
