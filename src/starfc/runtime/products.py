"""Choose the number type of matrix products: float32, or bfloat16 if the processor is much faster with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from time import thread_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.runtime import threads

ROWS = 64  # a product with a multiple of this number of rows computes each row in the same way

_used: list[torch.dtype] = []
_lock = Lock()
_running: list[int] = []  # one entry for each block of full_sums that runs now
_before: dict[str, Any] = {}  # torch's settings before the first of them


def use_product_dtype(dtype: torch.dtype) -> None:
    """Let :func:`product_dtype` return this type from now on, so that several processes use the same one."""
    _used[:] = [dtype]


def product_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """Return bfloat16 if a device multiplies it at least twice as fast as float32, otherwise float32.

    The speed of the processor is measured once, in a few milliseconds. GPUs of compute capability 8 and above (Ampere)
    have units for bfloat16.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    return _used[0] if _used else _faster()


def padded(rows: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return row numbers (m,) with the last one repeated, until their number is a multiple of :data:`ROWS`.

    The last rows of a matrix product can differ in the last bit, because the library computes them in another order.
    With such a number of rows there are no such rows, so the result of a row does not depend on the others.
    """
    return np.pad(rows, (0, -len(rows) % ROWS), mode="edge") if len(rows) else rows


@contextmanager
def full_sums() -> Iterator[None]:
    """Let GPUs add the terms of a product in float32 while the block runs, so that its error has the bound it needs.

    By default, cuBLAS may add parts of a bfloat16 product in bfloat16. A program may have allowed TF32 for products of
    float32. Both settings are those of the process. They are set back at the end of the last block, because blocks of
    several threads can run at the same time.
    """
    with _lock:
        if not _running:
            _before.update(_set_full_sums())
        _running.append(1)
    try:
        yield
    finally:
        with _lock:
            _running.pop()
            if not _running:
                for name, value in _before.items():
                    setattr(torch.backends.cuda.matmul, name, value)
                _before.clear()


def _set_full_sums() -> dict[str, Any]:
    """Set the two settings of :func:`full_sums`, and return what they were."""
    settings = torch.backends.cuda.matmul
    try:
        before = {"allow_tf32": settings.allow_tf32}
    except RuntimeError:  # the program uses torch's newer name of this setting
        before = {"fp32_precision": settings.fp32_precision}
    before["allow_bf16_reduced_precision_reduction"] = settings.allow_bf16_reduced_precision_reduction
    settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction = False, False
    return before


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
