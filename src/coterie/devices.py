"""What this machine computes on, and in which precisions it is fast there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What cpuinfo calls bf16 arithmetic in hardware; without it, bf16 is slower than fp32.
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def device_type(device: str) -> str:
    """The type of a device; of "auto", that of a GPU where there is one, and else "cpu"."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cpu_capabilities() -> Mapping[str, Any]:
    """What cpuinfo says of the processor, by its names; nothing where torch is too old to tell."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def low_precisions(device_type: str, precision: str = "fp32") -> list[torch.dtype]:
    """The precisions under fp32 that are fast on a device, that of a run first."""
    fast = [] if precision == "fp32" else [DTYPES[precision]]
    if device_type == "cuda":
        # bf16 first: it has the range of fp32, where fp16 overflows on a picture that nobody tried
        fast += [torch.bfloat16] if torch.cuda.is_bf16_supported(including_emulation=False) else []
        fast += [torch.float16]
    elif device_type == "cpu":
        known = cpu_capabilities()
        fast += [torch.bfloat16] if any(known.get(name) for name in CPU_BF16) else []
    return list(dict.fromkeys(fast))


def fastest_precision(device: str) -> str:
    """The name, of those in DTYPES, of what a network is trained in fastest on a device."""
    fast = [*low_precisions(device_type(device)), torch.float32]
    return next(name for name, dtype in DTYPES.items() if dtype == fast[0])
