"""Errors that a person can act on: each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

LONGEST_NAME = 300  # characters
LONGEST_REASON = 2000  # of what a library says
LONGEST_MESSAGE = 10_000
OUT_OF_MEMORY = "memory has run out"


class CoterieError(Exception):
    """Base of every error that the command line prints as one message, without a traceback.

    A message longer than anyone reads, as one that quotes a damaged file may be, loses its middle.
    """

    def __str__(self) -> str:
        message = super().__str__()
        if len(message) <= LONGEST_MESSAGE:
            return message
        half = LONGEST_MESSAGE // 2
        return f"{message[:half]} … {message[-half:]}"


class ConfigError(CoterieError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(CoterieError):
    """Images, labels or splits are missing, unreadable or inconsistent."""


class PartitionError(CoterieError):
    """Label groups that are not a partition, or cannot be made."""


class CheckpointError(CoterieError):
    """Weights or checkpoints that are missing, damaged, or belong to something else."""


class ExportError(CoterieError):
    """A model that cannot be exported, or that says something else when it is."""


class RunError(CoterieError):
    """A run folder that cannot be used, or a training that cannot go on."""


class Diverged(RunError):
    """A training whose loss, gradient, weights or logits are no longer finite."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: Python's own, that of a GPU, or that of torch on a CPU, for which it has a
    text and no type.
    """
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError)


@contextmanager
def where_memory_may_run_out(message: str) -> Iterator[None]:
    """RunError with the message where it does."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(message) from None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the choice nearest to `name`, or `""` where none is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def with_remedy(message: object, remedy: str) -> str:
    """Both in one message; behind "did you mean 'x'?" there is no semicolon."""
    return f"{message}{' ' if str(message).endswith('?') else '; '}{remedy}"


def either(names: Iterable[str]) -> str:
    """`"'a', 'b' or 'c'"`: the choices there are."""
    *first, last = [f"'{name}'" for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def shortened(names: Sequence[object], most: int = 5) -> str:
    """The first `most` names in quotes, then how many more: for messages about long lists. A name that is too
    long to be one is cut.
    """
    return listed([f"'{cut(str(name))}'" for name in names], most)


def cut(text: str, most: int = LONGEST_NAME) -> str:
    """A text as it stands, of one that is too long to be read the beginning."""
    return text if len(text) <= most else f"{text[:most]}…"


def listed(parts: Sequence[str], most: int = 5) -> str:
    """The first `most` parts as they are, then how many more."""
    rest = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def repeated(names: Iterable[str]) -> list[str]:
    """The names that stand more than once, each once and sorted."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def counted(number: int, one: str, many: str | None = None) -> str:
    """`"1 image"`, `"1,200 images"`: a number and what it counts; `many` where an s does not make it so."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
