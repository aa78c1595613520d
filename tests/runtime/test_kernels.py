"""Test the parts of compiled kernels: 16-bit floats, vector comparisons, scratch files, threads."""

from __future__ import annotations

import threading
import time

import numba as nb
import numpy as np
import pytest
import torch

from starfc.runtime import threads
from starfc.runtime.half import bits, number, rounded, single
from starfc.runtime.memory import mapped_bytes, release
from starfc.runtime.simd import lowest_bit, prefetch_row, reached, reached_each
from starfc.storage.scratch import ScratchRows


@nb.njit
def singles(values):
    return np.array([single(v) for v in values])


@nb.njit
def numbers(values):
    return np.array([number(v) for v in values])


@pytest.mark.long
def test_every_half_is_its_value():
    halves = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(singles(halves), halves.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(singles(np.float32([1.5, -2])), np.float32([1.5, -2]))
    assert bits(halves.view(np.float16)).dtype == np.uint16


def test_every_bfloat_is_its_value():
    raw = np.arange(-(2**15), 2**15).astype(np.int16)
    np.testing.assert_array_equal(numbers(raw), torch.from_numpy(raw).view(torch.bfloat16).float().numpy())


@nb.njit
def roundings(values):
    return np.array([rounded(v) for v in values])


def test_rounding_to_bfloat_is_torchs():
    raw = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    ties = (np.arange(2**16, dtype=np.uint32) << np.uint32(16) | np.uint32(0x8000)).view(np.float32)
    values = np.concatenate([raw, ties])
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(roundings(values), torch.from_numpy(values).bfloat16().view(torch.int16).numpy())


@nb.njit
def masks(values, at, floor, floors):
    prefetch_row(values.reshape((1, values.size)), 0, values.size)
    return reached(values, at, floor), reached_each(values, at, floors, 3)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("at", [0, 1, 17])
def test_vector_comparisons(dtype, at):
    rng = np.random.default_rng(0)
    values, floors = (rng.integers(-5, 5, 100).astype(dtype) for _ in range(2))
    one, each = masks(values, at, values[9], floors)
    shown = [bool(one >> c & 1) for c in range(64)], [bool(each >> c & 1) for c in range(64)]
    np.testing.assert_array_equal(shown[0], values[at : at + 64] >= values[9])
    np.testing.assert_array_equal(shown[1], values[at : at + 64] >= floors[3:67])


def test_lowest_bit():
    lowest = nb.njit(lambda mask: lowest_bit(mask))
    assert [lowest(np.uint64(1 << c)) for c in range(64)] == list(range(64))
    assert lowest(np.uint64(0b101000)) == 3


def test_scratch_rows_come_back(tmp_path):
    rows = ScratchRows(5, np.float16, tmp_path)
    values = np.arange(60, dtype=np.float16).reshape(12, 5)
    rows[7:12], rows[0:7] = values[7:], values[:7]
    np.testing.assert_array_equal(rows[3:9], values[3:9])
    assert list(tmp_path.iterdir()) == []  # it has no name
    with pytest.raises(EOFError, match="never written"):
        rows[10:14]


def test_released_files_are_read_again(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")[2:]
    assert mapped.sum() == 44
    release(mapped)
    assert mapped.sum() == 44
    release(np.arange(3))  # nothing to give back
    assert mapped_bytes(mapped, np.arange(3)) == mapped.nbytes == 64


def test_each_calls_every_item_and_restores_the_number_of_threads():
    before, found, seen = torch.get_num_threads(), [], set()
    threads.each(lambda i: (found.append(i), seen.add((threading.get_ident(), torch.get_num_threads()))), range(50))
    assert sorted(found) == list(range(50))
    assert {count for _, count in seen} == {1}
    assert torch.get_num_threads() == before


def test_results_are_in_the_order_of_the_items_whichever_thread_ends_first():
    def work(part):
        time.sleep(0.002 * (part % 3))
        return 10 * part

    assert threads.results(work, list(range(20))) == list(range(0, 200, 10))
    assert threads.results(work, []) == []
    with pytest.raises(ZeroDivisionError):
        threads.results(lambda part: 1 // part, [1, 0, 1])


def test_the_first_error_stops_the_rest():
    done = []

    def work(i):
        if i == 3:
            raise ValueError("three")
        done.append(i)

    with pytest.raises(ValueError, match="three"):
        threads.each(work, range(10_000))
    assert len(done) < 10_000
    assert torch.get_num_threads() >= 1
