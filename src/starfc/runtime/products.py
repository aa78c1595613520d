"""Choose the number type of matrix products: float32, or bfloat16 if the processor is much faster with it."""

from __future__ import annotations

from functools import cache
from time import thread_time

import torch

from starfc.runtime import threads

_used: list[torch.dtype] = []


def use_product_dtype(dtype: torch.dtype) -> None:
    """Let :func:`product_dtype` return this type from now on, so that several processes use the same one."""
    _used[:] = [dtype]


def product_dtype() -> torch.dtype:
    """Return bfloat16 if this machine multiplies it at least twice as fast as float32, otherwise float32.

    The speed is measured once, in a few milliseconds.
    """
    return _used[0] if _used else _faster()


@cache
def _faster() -> torch.dtype:

    def seconds(dtype: torch.dtype) -> float:
        a, out = torch.ones(512, 256, dtype=dtype), torch.empty(512, 512, dtype=dtype)
        times = []
        for _ in range(5):
            started = thread_time()  # CPU time, because other work on the machine would distort the clock time
            torch.mm(a, a.T, out=out)
            times.append(thread_time() - started)
        return min(times)

    found: list[bool] = []
    threads.each(lambda _: found.append(2 * seconds(torch.bfloat16) < seconds(torch.float32)), [None])
    return torch.bfloat16 if found[0] else torch.float32


def slices(n: int, step: int) -> list[slice]:
    """Cut [0, n) into slices of ``step`` elements; the last one may be shorter."""
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
