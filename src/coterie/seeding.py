"""All randomness comes from the one seed of the config, through names: never from what ran before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np


def derive_seed(*parts: object) -> int:
    """A seed in 0..2**63-1 from a seed and names, such as `derive_seed(0, "student", "views", 3)`."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_everything(*parts: object) -> None:
    """Seed the global generators from `parts`: torch's, of every device, Python's and NumPy's, which a model
    of a user's own may draw from.
    """
    import torch  # here, not above: whoever derives a seed need not wait for it

    seed = derive_seed(*parts)
    if _has_device():
        torch.manual_seed(seed)
    else:  # the same numbers, in a tenth of the time: the other takes a traceback for each kind of device
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the one that a model would draw from


@cache
def _has_device() -> bool:
    import torch

    return torch.accelerator.is_available()


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Torch's CPU generator seeded from `parts` inside the block, and as it was after it."""
    import torch

    before = torch.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(before)
