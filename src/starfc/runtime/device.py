"""Memory of a device: how much a computation may take there, how large its blocks are, and what follows if it ran out.

A computation on a device works in blocks. :func:`room` says how many bytes it may take, and :func:`block_rows` how many
rows fit into them. :func:`retry_smaller` runs it, and runs it once more with half the room if the device ran out of
memory. The limit of ``--device-memory`` holds on the CPU too, for arrays that torch functions with a device argument
hold; without this limit they may take what they like there.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from starfc.errors import InputError
from starfc.runtime.products import full_sums
from starfc.runtime.stages import megabytes
from starfc.runtime.words import advice, word

log = logging.getLogger("starfc")

R = TypeVar("R")

COMPILED = {"cpu"}  # the kinds of devices for which there are compiled kernels
_MARGIN = 0.1  # share of the free memory that stays free, for what torch and the driver take themselves
# what torch's errors say if memory runs out elsewhere than in its allocator, which raises OutOfMemoryError
_RAN_OUT = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_limit: list[int] = []


def uses_torch(device: str | torch.device) -> bool:
    """Return whether work on a device is done by torch functions. On the CPU, compiled kernels are faster."""
    return torch.device(device).type not in COMPILED


@contextmanager
def device_limit(limit: int | None) -> Iterator[None]:
    """Let this process take at most ``limit`` bytes of each device while the block runs. None: what is free.

    Raises
    ------
    InputError
        If a device runs out of memory in the block, outside of :func:`retry_smaller`.
    """
    before = _limit[:]
    _limit[:] = [] if limit is None else [limit]
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise InputError(
            f"{word('device_memory')}: the device ran out of memory ({_reason(error)}); free memory of the device, "
            f"or set {word('device')} to cpu"
        ) from error
    finally:
        _limit[:] = before


def room(device: str | torch.device) -> int:
    """Return the number of bytes that a computation may take on a device now.

    On a GPU this is 90 % of the memory that is free or that torch keeps without using it; with a limit
    (:func:`device_limit`), at most what the tensors of this process leave of it. On the CPU this is the limit, or
    ``sys.maxsize`` without one.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return _limit[0] if _limit else sys.maxsize
    held = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    most = int((1 - _MARGIN) * free)
    return max(0, min(most, _limit[0] - held)) if _limit else most


def block_rows(free: int, per_row: int, most: int, multiple: int = 1) -> int:
    """Return how many rows of a block fit into ``free`` bytes, at most ``most``; a multiple of ``multiple``.

    Parameters
    ----------
    free : int
        The bytes that the block may take.
    per_row : int
        The bytes that each row takes.
    most, multiple : int
        The largest number of rows that makes sense, and what it is rounded down to a multiple of.

    Raises
    ------
    InputError
        If not even ``multiple`` rows fit.
    """
    rows = min(free // per_row, most) // multiple * multiple
    if rows < 1:
        raise InputError(
            f"{word('device_memory')}: a block of {multiple} rows needs {megabytes(multiple * per_row)} of the device; "
            f"found {megabytes(free)} for it; free memory of the device{advice(', raise {}', 'device_memory')}, or set "
            f"{word('device')} to cpu"
        )
    return rows


def ran_out(error: RuntimeError) -> bool:
    """Return whether a device had too little memory: for a tensor, for pinned memory, or for a library of products."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _RAN_OUT)


def _reason(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]


def retry_smaller(work: Callable[[int], R], device: str | torch.device) -> R:
    """Return ``work(bytes)``: call it with the room on a device, and once more with half if that ran out of memory.

    ``work`` must choose its blocks by the bytes that it gets, and a second call must not depend on the first. While it
    runs, the device adds the terms of products in float32 (:func:`starfc.runtime.products.full_sums`).

    Raises
    ------
    InputError
        If the second call runs out of memory too.
    """
    allowed, again = room(device), False
    while True:
        try:
            with full_sums():
                return work(allowed)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            if again:
                raise InputError(
                    f"{word('device_memory')}: {device} ran out of memory twice, the second time with blocks for "
                    f"{megabytes(allowed)}; free memory of the device{advice(', lower {}', 'device_memory')}, or set "
                    f"{word('device')} to cpu"
                ) from error
            log.info("%s: out of memory (%s); once more with half the block", device, _reason(error))
        # outside of the handler, whose traceback holds the tensors of the first call
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
        allowed, again = min(allowed, room(device)) // 2, True
