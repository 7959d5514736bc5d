import numpy as np
import pytest

from coterie.errors import PartitionError
from coterie.labels import normalized_cut, share_inside

CHAIN = np.array([[0, 3, 0, 0], [3, 0, 1, 0], [0, 1, 0, 3], [0, 0, 3, 0]], dtype=float)


@pytest.mark.parametrize(
    ("groups", "cut", "share"),
    [
        ([[0, 1], [2, 3]], 1 / 7 + 1 / 7, 12 / 14),
        ([[0, 2], [1, 3]], 2, 0),
        ([[0], [1, 2, 3]], 1 + 3 / 11, 8 / 14),
        ([[0, 1, 2, 3]], 0, 1),
        ([[0], [1], [2], [3]], 4, 0),
    ],
)
def test_values_by_hand(groups: list[list[int]], cut: float, share: float) -> None:
    assert normalized_cut(CHAIN, groups) == pytest.approx(cut)
    assert share_inside(CHAIN, groups) == pytest.approx(share)


def test_a_group_without_weight_counts_one_and_a_graph_without_weight_has_no_share() -> None:
    assert normalized_cut(np.zeros((3, 3)), [[0, 1], [2]]) == 2
    assert share_inside(np.zeros((3, 3)), [[0, 1], [2]]) == 0


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [2]], "no group holds 'class 3'"),
        ([[0, 1, 2], [2, 3]], "group 1 holds 'class 2' and group 0 too"),
        ([[0, 1, 2, 3], []], "group 1 is empty"),
        ([[0, 1, 2, 4]], "holds class 4, but classes go from 0 to 3"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups: list[list[int]], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        normalized_cut(CHAIN, groups)
