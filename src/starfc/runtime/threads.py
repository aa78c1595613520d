"""Run work in several threads, each of which goes from matrix product to selection without waiting for the others.

A worker computes a product with one thread and selects from it while it lies in the cache of its core. There is no
barrier between the two steps. Matrix products and compiled kernels release the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], Any], items: Iterable[T]) -> None:
    """Call ``work`` on every item, in as many threads as torch has. The first exception stops the other threads."""
    threads, pending, lock, stop = torch.get_num_threads(), iter(items), threading.Lock(), threading.Event()

    def worker() -> None:
        torch.set_num_threads(1)
        while not stop.is_set():
            with lock:
                try:
                    item = next(pending)
                except StopIteration:
                    return
            work(item)

    try:
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(worker) for _ in range(threads)]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
            for future in running:
                future.result()
    finally:
        torch.set_num_threads(threads)  # torch keeps the number of the last thread that set it


def results(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return the results of ``work`` in the order of the items. Threads and exceptions are as in :func:`each`."""
    found: dict[int, R] = {}

    def keep(at: int) -> None:
        found[at] = work(items[at])

    each(keep, range(len(items)))
    return [found[at] for at in range(len(items))]
