"""Groups of labels that do not belong together: balanced anti-clustering."""

from __future__ import annotations

import numpy as np

from coterie.labels.objectives import Floats, Labels
from coterie.labels.search import search

STARTS, KICKS = 16, 200


def balanced_anticlusters(affinity: Floats, k: int, seed: int) -> Labels:
    """Labels [C] of the lowest share of `affinity` [C, C] inside K groups found by moves and swaps.

    Group sizes stay between a third and five thirds of C / K.
    """
    c = len(affinity)
    weight = affinity.sum()
    rng = np.random.default_rng(seed)
    starts = [rng.permutation(np.arange(c) % k) for _ in range(STARTS)]
    if not weight:
        return starts[0]
    return search(affinity / weight, starts, lambda inside, _: inside, size_bounds(c, k), KICKS, rng)


def size_bounds(c: int, k: int) -> tuple[int, int]:
    """Smallest and largest size of a group when C classes make K: a third and five thirds of C / K."""
    return -(-c // (3 * k)), max(-(-c // k), 5 * c // (3 * k))
