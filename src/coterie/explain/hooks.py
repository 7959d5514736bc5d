"""Hooks that see the calls of one thread: a server explains and predicts with one model at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


def in_this_thread(hook: Callable[Given, Result]) -> Callable[Given, Result | None]:
    """The hook, but for calls of the model in another thread, which it leaves alone."""
    owner = threading.get_ident()

    def filtered(*given: Given.args, **options: Given.kwargs) -> Result | None:
        return hook(*given, **options) if threading.get_ident() == owner else None

    return filtered
