"""Libraries that are installed on demand."""

from __future__ import annotations

from importlib.util import find_spec

from coterie.errors import ConfigError, listed


def need_extra(extra: str, purpose: str, *modules: str) -> None:
    """ConfigError with what to install where one of `modules` is missing: those that the extra brings."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{purpose} needs {listed(missing)}: pip install 'coterie[{extra}]'")
