"""Grids: how the output of a layer is a map of the picture."""

from __future__ import annotations

import pytest
import torch

from coterie.explain.grids import Grid, grid_of


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((2, 8, 4, 4), Grid(4)),
        ((2, 4, 4, 8), Grid(4, channels_at_end=True)),
        ((2, 4, 4, 4), Grid(4)),
        ((2, 16, 8), Grid(4, prefix_tokens=0)),
        ((2, 17, 8), Grid(4, prefix_tokens=1)),
        ((2, 198, 8), Grid(14, prefix_tokens=2)),
        ((2, 8, 1, 1), None),
        ((2, 8, 3, 5), None),
        ((2, 3, 8), None),  # fewer tokens than positions
        ((2, 8), None),
    ],
)
def test_the_grid_of_an_output(shape: tuple[int, ...], grid: Grid | None) -> None:
    assert grid_of(torch.zeros(shape)) == grid


def test_what_is_no_tensor_of_numbers_has_no_grid() -> None:
    assert grid_of((torch.zeros(1, 8, 4, 4),)) is None
    assert grid_of(torch.zeros(1, 8, 4, 4, dtype=torch.int64)) is None


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 4, 3), (2, 18, 3)])
def test_a_map_goes_back_to_the_output_it_came_from(shape: tuple[int, ...]) -> None:
    output = torch.randn(shape)
    grid = grid_of(output)
    assert grid is not None
    features = grid.to_map(output)
    assert features.shape == (2, 3, 4, 4)
    torch.testing.assert_close(grid.from_map(features, output), output)


def test_tokens_go_from_left_to_right_and_top_to_bottom() -> None:
    tokens = torch.tensor([[[9.0], [0.0], [1.0], [2.0], [3.0]]])
    assert Grid(2, prefix_tokens=1).to_map(tokens).tolist() == [[[[0, 1], [2, 3]]]]
