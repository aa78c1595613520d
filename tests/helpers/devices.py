"""Compute on the CPU what a GPU computes: the torch functions, in blocks that fit a small limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from starfc.runtime import device as devices


@contextmanager
def as_on_a_gpu(limit: int | None = None) -> Iterator[None]:
    """Let every stage use torch instead of the compiled kernels; ``limit`` is the device's memory in bytes."""
    with pytest.MonkeyPatch.context() as patch, devices.device_limit(limit):
        patch.setattr(devices, "COMPILED", set())
        yield
