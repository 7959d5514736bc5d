"""The order of an epoch: every image once, known from the seed, from few places at a time, and well mixed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from coterie.data.loading import EpochSampler
from coterie.data.order import Shuffled, ShuffledBlocks

EDGES = np.array([0, 100, 100, 117, 400])  # of archives; one of them is empty


def blocks(seed: int = 0, window: int = 64, block: int = 8) -> ShuffledBlocks:
    return ShuffledBlocks(np.arange(1000, 2000), seed, EDGES, window, block)


def order_of(order: ShuffledBlocks, epoch: int = 0, first: int = 0) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *order.parts(epoch, first)])


def test_every_image_comes_once_in_an_order_of_the_seed_and_the_epoch() -> None:
    found = order_of(blocks())
    assert sorted(found) == list(range(1000, 2000))
    assert np.array_equal(order_of(blocks()), found)
    for other in (order_of(blocks(), epoch=1), order_of(blocks(seed=1))):
        assert sorted(other) == list(range(1000, 2000))
        assert not np.array_equal(other, found)


@pytest.mark.parametrize("first", [0, 1, 63, 64, 65, 500, 999, 1000])
def test_an_epoch_goes_on_anywhere(first: int) -> None:
    assert np.array_equal(order_of(blocks(), 3, first), order_of(blocks(), 3)[first:])


def test_a_window_holds_whole_blocks_of_one_archive_each() -> None:
    order = blocks()
    parts = list(order.parts(0))
    assert all(len(part) <= 64 for part in parts)
    assert len(parts) <= 18  # 126 blocks of 1000 images: nearly full windows
    bounds = {*EDGES.tolist(), 1000}
    for part in parts:
        whole = np.sort(part) - 1000
        starts = [whole[0], *(b for a, b in pairwise(whole) if b != a + 1)]
        # runs begin where a block of 8 counted from the beginning of its archive does
        assert all((start - max(edge for edge in bounds if edge <= start)) % 8 == 0 for start in starts)


def test_batches_go_on_over_windows_and_leave_a_short_last_one_out() -> None:
    order = blocks()
    sampler = EpochSampler(order.indices, 48, shuffle=True, order=order)
    batches = list(sampler.batches(2))
    assert len(batches) == len(sampler) == 1000 // 48
    assert np.array_equal(np.concatenate(batches), order_of(order, 2)[: 48 * len(sampler)])
    later = list(sampler.batches(2, 7))
    assert all(np.array_equal(one, two) for one, two in zip(later, batches[7:], strict=True))
    assert list(sampler.batches(2, len(sampler))) == []


def test_in_order_the_last_batch_may_be_short() -> None:
    sampler = EpochSampler(np.arange(10), 4)
    assert [batch.tolist() for batch in sampler.batches(0)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [batch.tolist() for batch in sampler.batches(0, 2)] == [[8, 9]]


def test_all_at_once_is_the_permutation_of_the_generator() -> None:
    (part,) = Shuffled(np.arange(50), 3).parts(1, 10)
    assert sorted([*part, *np.setdiff1d(np.arange(50), part)]) == list(range(50))
    assert len(part) == 40


def test_batches_are_as_mixed_as_the_formula_says() -> None:
    """Of images sorted by class, the variance of a batch's share of a class is that of a fair draw times
    1 + (b - 1) (B - 1) / (M - 1), for batches of b in windows of M images of blocks of B.
    """
    n, batch, window, block = 65_536, 32, 1024, 16
    order = ShuffledBlocks(np.arange(n), 0, np.array([0]), window, block)
    shares = [
        (of_batch < n // 2).mean()
        for epoch in range(32)
        for of_batch in EpochSampler(np.arange(n), batch, shuffle=True, order=order).batches(epoch)
    ]
    fair = 0.25 / batch
    expected = 1 + (batch - 1) * (block - 1) / (window - 1)
    assert np.var(shares) / fair == pytest.approx(expected, rel=0.05)
