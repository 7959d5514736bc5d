"""What numbers are measured on."""

from __future__ import annotations

import platform
from typing import Any

import torch

from coterie.devices import cpu_capabilities, low_precisions


def environment() -> dict[str, Any]:
    """On what the calling process computes: the same seed gives the same weights only on the same of it."""
    return {
        "processor": cpu_capabilities().get("cpu_name") or platform.machine(),
        "low_precisions": [str(dtype).removeprefix("torch.") for dtype in low_precisions("cpu")],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
