"""Seeds from names, and a generator that is left as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from coterie.seeding import derive_seed, seed_everything, seeded


def test_a_seed_depends_on_every_part_and_on_nothing_else() -> None:
    assert derive_seed(0, "student", "views", 3) == derive_seed(0, "student", "views", 3)
    parts = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a"), (0, "a1"), (0, 1, "a"), ("0a", 1)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)
    assert all(0 <= derive_seed(0, number) < 2**63 for number in range(100))


def test_a_seed_is_the_same_in_every_version() -> None:
    assert derive_seed(0, "weights") == 6475904748445805001


def test_all_generators_are_seeded_and_that_of_torch_as_torch_does_it() -> None:
    drawn = []
    for before in (1, 2):
        torch.manual_seed(before)
        random.seed(before)
        np.random.seed(before)  # noqa: NPY002
        seed_everything(5, "x")
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    torch.manual_seed(derive_seed(5, "x"))
    assert torch.rand(1).item() == drawn[0][0]


def test_a_seeded_block_draws_the_same_numbers_whatever_ran_before() -> None:
    torch.manual_seed(1)
    with seeded(5, "x"):
        first = torch.rand(3)
    torch.manual_seed(2)
    torch.rand(7)
    with seeded(5, "x"):
        assert torch.equal(torch.rand(3), first)
    with seeded(5, "y"):
        assert not torch.equal(torch.rand(3), first)


def test_a_seeded_block_leaves_the_generator_as_it_was_even_after_an_error() -> None:
    before = torch.get_rng_state()

    def fail() -> None:
        torch.rand(3)
        raise KeyError

    with seeded(0), pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), seeded(0):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
