"""Test the memory limit of a device, the sizes of blocks, and the second attempt after it ran out of memory."""

from __future__ import annotations

import sys

import pytest
import torch

from starfc.errors import InputError
from starfc.runtime.device import block_rows, device_limit, retry_smaller, room, uses_torch

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore text"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),  # of pinned memory
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def test_the_limit_holds_while_its_block_runs():
    assert room("cpu") == sys.maxsize
    with device_limit(1000):
        assert room("cpu") == 1000
        with device_limit(None):
            assert room("cpu") == sys.maxsize
        assert room("cpu") == 1000
    assert room("cpu") == sys.maxsize


def test_on_a_gpu_the_room_is_what_is_free_and_not_above_the_limit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 600)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400)
    assert room("cuda") == 1080  # 90 % of 1,000 that are free, and of 200 that torch keeps without using them
    with device_limit(900):
        assert room("cuda:0") == 500
    with device_limit(300):
        assert room("cuda") == 0
    assert uses_torch("cuda")
    assert not uses_torch(torch.device("cpu"))


def test_blocks_fit_into_the_room():
    assert block_rows(1000, 10, 64) == 64
    assert block_rows(1000, 10, 1000) == 100
    assert block_rows(1000, 10, 1000, multiple=64) == 64
    with pytest.raises(InputError, match=r"device_memory: a block of 64 rows needs .*; found .*; free memory"):
        block_rows(630, 10, 1000, multiple=64)


@pytest.mark.parametrize(
    ("failures", "error"), [(0, None), *((1, error) for error in OUT_OF_MEMORY), (2, OUT_OF_MEMORY[0])]
)
def test_a_device_out_of_memory_gets_a_second_attempt_with_half(failures, error):
    given = []

    def work(allowed: int) -> str:
        given.append(allowed)
        if len(given) <= failures:
            raise error
        return "done"

    with device_limit(1000):
        if failures < 2:
            assert retry_smaller(work, "cpu") == "done"
        else:
            with pytest.raises(InputError, match=r"device_memory: cpu ran out of memory twice.*lower device_memory"):
                retry_smaller(work, "cpu")
    assert given == [1000, 500][: min(failures, 1) + 1]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_device_out_of_memory_outside_of_a_block_is_one_message(error):
    with (
        pytest.raises(InputError, match=r"^device_memory: the device ran out of memory \(.*\); free .* device to cpu$"),
        device_limit(None),
    ):
        raise error
    with pytest.raises(RuntimeError, match="a bug"), device_limit(None):
        raise RuntimeError("a bug")


def test_other_errors_get_no_second_attempt():
    given = []

    def work(allowed: int) -> None:
        given.append(allowed)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        retry_smaller(work, "cpu")
    assert len(given) == 1
