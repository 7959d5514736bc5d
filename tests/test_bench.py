"""What limits a training, worked out from the speeds of its parts."""

from __future__ import annotations

import pytest

from coterie.bench import Form, Speeds, advice, best_workers, find_limit, is_cached, measure_speeds
from coterie.config import load_config
from coterie.models.factory import make_factory
from tests.tiny import RUN_WORDS, Net, make_dataset

SLOW, FAST = Form("fp32", False), Form("bf16", True)


def speeds(loading: float, augmentation: float, compute: float) -> Speeds:
    return Speeds(loading, augmentation, {SLOW: compute / 2, FAST: compute})


def test_the_fastest_form_is_named_as_the_settings_that_choose_it() -> None:
    assert speeds(1, 1, 1).best == FAST
    assert FAST.words == "precision=bf16 channels_last=true"


def test_in_one_process_the_parts_add_up_and_the_largest_is_the_limit() -> None:
    limit = find_limit(speeds(100, 200, 50), workers=0, cached=False)
    assert limit.name == "compute"
    assert limit.images_per_second == pytest.approx(1 / (1 / 100 + 1 / 200 + 1 / 50))
    cached = find_limit(speeds(100, 200, 400), workers=0, cached=True)
    assert cached.name == "augmentation"
    assert cached.images_per_second == pytest.approx(1 / (1 / 200 + 1 / 400))


@pytest.mark.parametrize(
    ("workers", "name", "rate"),
    [(1, "loading", 20), (4, "loading", 80), (5, "compute", 99), (9, "compute", 99)],
)
def test_beside_loading_processes_the_slower_side_is_the_limit(workers: int, name: str, rate: float) -> None:
    # one process prepares an image in 1/25 + 1/100 = 1/20 s
    limit = find_limit(speeds(25, 100, 99), workers, cached=False)
    assert (limit.name, limit.workers) == (name, workers)
    assert limit.images_per_second == pytest.approx(rate)


def test_as_few_loading_processes_as_are_fastest_are_advised() -> None:
    assert best_workers(speeds(25, 100, 99), cached=False, cores=16) == 5
    assert best_workers(speeds(25, 100, 99), cached=False, cores=4) == 3
    assert best_workers(speeds(25, 1e9, 99), cached=True, cores=16) == 0


def test_the_advice_says_what_limits_how_long_it_takes_and_what_is_faster() -> None:
    config = load_config(["device=cpu", "train.epochs=60", "baseline.epochs=30"])
    first, second = advice(config, speeds(1, 200, 200), cached=True, images=1000)
    assert "compute" in first or "augmentation" in first
    assert "at 100 images/s with data.workers=0: 30 epochs of 1000 images take 5 minutes" in first
    short, _ = advice(config, speeds(1, 200, 200), cached=True, images=100)
    assert short.endswith("30 epochs of 100 images take 30 seconds")
    assert second == "fastest here: precision=bf16 channels_last=true"


def test_every_form_that_the_device_has_is_timed() -> None:
    config = load_config([*RUN_WORDS, "model=tests.tiny:Net"])
    dataset, factory = make_dataset(), make_factory(config.model, Net)
    measured = measure_speeds(config, dataset, factory, seconds=0)
    assert [(form.precision, form.channels_last) for form in measured.compute] == [
        (precision, last) for precision in ("fp32", "bf16") for last in (False, True)
    ]
    assert min(measured.loading, measured.augmentation, *measured.compute.values()) > 0
    assert is_cached(config, dataset, factory)
    assert not is_cached(load_config(["data.cache_gb=0"]), dataset, factory)
