"""Test prefetching: the same items, errors at their place, and no thread left running."""

from __future__ import annotations

import threading

import pytest

from starfc.training import prefetch
from starfc.training.prefetch import prefetched


@pytest.fixture(params=[True, False], ids=["worker", "in line"])
def concurrent(request, monkeypatch):
    monkeypatch.setattr(prefetch, "concurrent_kernels", lambda: request.param)
    return request.param


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_items_come_in_order(concurrent, count):
    assert list(prefetched(iter(range(count)), 1)) == list(range(count))
    assert not workers()


def test_the_next_item_is_made_while_one_is_used(monkeypatch):
    monkeypatch.setattr(prefetch, "concurrent_kernels", lambda: True)
    made = threading.Event()

    def items():
        yield 0
        made.set()
        yield 1

    for item in prefetched(items(), 1):
        if item == 0:
            assert made.wait(10)


def test_an_error_comes_at_its_item(concurrent):
    def items():
        yield 0
        yield 1
        raise OSError("disk")

    stream = prefetched(items(), 1)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(stream)
    assert not workers()


def test_leaving_early_ends_the_worker_and_makes_no_more(concurrent):
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    stream = prefetched(items(), 1)
    assert [next(stream), next(stream)] == [0, 1]
    stream.close()
    assert made in ([0, 1], [0, 1, 2])
    assert not workers()


def test_threading_layer(monkeypatch):
    def unknown():
        raise ValueError("not initialised")

    for layer, safe in ((unknown, False), (lambda: "workqueue", False), (lambda: "omp", True), (lambda: "tbb", True)):
        monkeypatch.setattr(prefetch.numba, "threading_layer", layer)
        assert prefetch.concurrent_kernels() is safe
