"""The next item is made while the current one is used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TypeVar

import numba

from starfc.runtime.machine import set_threads

T = TypeVar("T")


class _End(Enum):
    END = 0


def prefetched(items: Iterator[T], threads: int | None, processes: int = 1) -> Generator[T, None, None]:
    """The same items in the same order, each but the first made in a worker thread while the one before it is used.

    One thread at a time advances ``items``, so what an item is cannot depend on timing where it depends on ``items``
    alone. An error raised by ``items`` is raised here, at the item it belongs to. Closing this generator waits for
    the item being made and starts no other. Where two threads must not run compiled kernels at once
    (:func:`concurrent_kernels`; it is known once the first item is made) there is no worker.

    Parameters
    ----------
    items : iterator
    threads : int, optional
        Threads of the worker's compiled kernels (None: one per core), which numba sets for every thread anew.
    processes : int
        Processes that share this machine's cores.
    """

    def following() -> T | _End:
        return next(items, _End.END)

    item = following()
    if not concurrent_kernels():
        while item is not _End.END:
            yield item
            item = following()
        return
    with ThreadPoolExecutor(1, "prefetch", initializer=set_threads, initargs=(threads, processes)) as worker:
        while item is not _End.END:
            coming = worker.submit(following)
            yield item
            item = coming.result()


def concurrent_kernels() -> bool:
    """Whether two threads may run compiled parallel kernels at once.

    numba's layers ``tbb`` and ``omp`` allow it; ``workqueue``, its last resort, ends the process when it happens. The
    layer is chosen when the first parallel kernel runs; before that the answer is no.
    """
    try:
        return numba.threading_layer() in ("tbb", "omp")
    except ValueError:
        return False
