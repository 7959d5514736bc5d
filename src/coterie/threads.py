"""Work in threads: waiting for the disk and decoding let go of the interpreter's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST_THREADS = 8
AHEAD = 8  # items a thread that are begun before the first is asked for


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of `function` in the order of the `items`; only a few are begun ahead, so that neither
    items nor results pile up.
    """
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > threads * AHEAD:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, not after all that is begun
