"""Make the next item of an iterator while the current one is used."""

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
    """Yield the same items in the same order. A worker thread makes each item while the one before it is used.

    Only one thread at a time advances ``items``, so the items do not depend on timing. An error of ``items`` is raised
    here at the same item. Closing this generator waits for the item in work and starts no other. There is no worker if
    two threads must not run compiled kernels at once (:func:`concurrent_kernels`). This is known only after the first
    item, which the calling thread makes.

    Parameters
    ----------
    items : iterator
        The items.
    threads : int, optional
        Threads of the worker's compiled kernels; numba sets this number per thread. None: one per core.
    processes : int
        Number of processes that share the cores of this machine.
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
    """Return whether two threads may run compiled parallel kernels at once.

    The threading layers ``tbb`` and ``omp`` of numba allow it. The fallback ``workqueue`` would end the process. Numba
    chooses the layer when the first parallel kernel runs; before that the result is False.
    """
    try:
        return numba.threading_layer() in ("tbb", "omp")
    except ValueError:
        return False
