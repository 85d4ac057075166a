"""Runs a function in several threads: OpenCV and file reads release Python's lock."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from drnas_jax.training.hosts import cores

_MOST_THREADS = 16


def in_threads(function: Callable[[int], Any], arguments: Iterable[int]) -> Iterator[Any]:
    """Yields the results of calls in several threads, in order.

    If a call raises, or the caller stops iterating, the calls that have not begun are cancelled.
    """
    pool = ThreadPoolExecutor(min(_MOST_THREADS, cores()))
    try:
        yield from pool.map(function, arguments)
    finally:
        pool.shutdown(cancel_futures=True)
