"""Compare what a device computes in torch, run on the CPU, with the compiled kernels.

The kernels themselves are compared with slow twins in ``test_structure.py``, ``test_construction.py`` and
``test_refinement.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.devices import as_on_a_gpu
from helpers.samples import blobs, random_graph, unit
from starfc.data.dataset import Features
from starfc.graph.affinity import Affinity
from starfc.graph.device_affinity import DeviceAffinity
from starfc.graph.device_structure import DeviceLogits, DeviceStructure
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.strangers import Strangers
from starfc.graph.structure import EdgeLogits, Structure, encode, smooth
from starfc.runtime import device_rows
from starfc.runtime.device import device_limit
from starfc.runtime.device_rows import Holder, in_blocks

TOLERANCE = 1e-5  # of a feature, relative to max(1, |feature|); sums of k float32 in another order


def compare(structure: Structure, room: int | None = None, **asked: int) -> None:
    """Both rounds of all nodes, with random logits between them."""
    with device_limit(room):
        device = DeviceStructure(structure, Holder("cpu"))
    n = structure.graph.num_nodes
    rows = np.random.default_rng(0).permutation(n)
    ours, theirs = structure.first_round(rows, **asked), device.first_round(rows, **asked)
    equal(ours, theirs.on_host())
    z = np.random.default_rng(1).normal(0, 4, len(ours.local)).astype(np.float32)
    codes = encode(z)
    np.testing.assert_array_equal(codes, encode(torch.from_numpy(z)))
    before, on_device = EdgeLogits(structure), DeviceLogits(device)
    before.put(ours, codes)
    on_device.put(theirs, torch.from_numpy(codes))
    before.sum_degrees(rows)
    on_device.sum_degrees(rows)
    np.testing.assert_array_equal(before.codes, on_device.codes)
    np.testing.assert_allclose(before.degrees, on_device.degrees, rtol=1e-6)
    since = asked.get("since", 0)
    equal(structure.second_round(rows, before, since), device.second_round(rows, on_device, since).on_host())


def equal(ours, theirs) -> None:
    for name in ("rows", "local", "slots", "back"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_allclose(
        theirs.features / np.maximum(1, np.abs(ours.features)),
        ours.features / np.maximum(1, np.abs(ours.features)),
        rtol=0,
        atol=TOLERANCE,
    )


# nodes, neighbours, columns, candidates: lists longer and shorter than every prefix; empty lists; more columns than k
@pytest.mark.parametrize(
    "shape", [(70, 50, 50, 40), (60, 45, 45, 12), (40, 30, 24, 6), (12, 4, 4, 9), (25, 12, 60, 12), (9, 1, 1, 1)]
)
def test_both_rounds_of_random_graphs_equal_the_kernels(shape):
    n, k, columns, candidates = shape
    compare(Structure(random_graph(n, k, 0), columns, candidates))


@pytest.mark.parametrize("room", [None, 40_000])
@pytest.mark.parametrize("asked", [{}, {"every": 1}, {"since": 100}])
def test_both_rounds_of_embeddings_equal_the_kernels(asked, room):
    """With strangers and smoothed features; in little room nothing is held but vectors."""
    rows = unit(blobs()[0])
    graph, strangers = exact_knn(rows, 30), Strangers.of(rows)
    compare(Structure(graph, 29, 20, smooth(graph, rows, 5), strangers=strangers), room, **asked)


def test_strangers_that_are_all_equally_similar():
    rows = np.eye(40, dtype=np.float32).repeat(3, axis=0)
    graph, strangers = exact_knn(rows, 12), Strangers.of(rows)
    assert strangers.tied
    compare(Structure(graph, 12, 8, strangers=strangers))


@pytest.mark.parametrize("scales", [None, (3, 8, 15)])
@pytest.mark.parametrize("th_sim", [0.0, 0.6])
def test_propagation_equals_the_kernels(scales, th_sim):
    """Similarities of the two directions differ, as in lists from elsewhere, so every kind of entry occurs."""
    rows = unit(blobs()[0])
    graph = exact_knn(rows, 20)
    noise = np.random.default_rng(0).normal(0, 0.1, graph.sims.shape)
    graph = KnnGraph(graph.ids, np.clip(graph.sims + noise, 0, 1).astype(np.float32))
    affinity, chosen = Affinity.of(graph, th_sim, scales=scales), np.random.default_rng(1).permutation(180)[:70]
    for features in (Features(5 * rows), Features(rows.astype(np.float16))):
        expected = affinity.aggregate(features, chosen)
        for room in (None, 20_000):
            with device_limit(room):
                device = DeviceAffinity(affinity, features, Holder("cpu"))
            np.testing.assert_allclose(device.aggregate(chosen), expected, rtol=0, atol=1e-6)
            np.testing.assert_allclose(device.rows(chosen), features.rows(chosen), rtol=0, atol=1e-6)


def test_smoothed_features_and_strangers_equal_those_of_the_kernels():
    rows = unit(blobs()[0])
    graph, known = exact_knn(rows, 20), Strangers.of(rows)
    expected = smooth(graph, rows, 5)
    with as_on_a_gpu(500_000):
        there, found = Strangers.of(rows, device="cpu"), smooth(graph, rows, 5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(there.node_median, known.node_median, rtol=0, atol=1e-6)
    np.testing.assert_allclose(there.node_spread, known.node_spread, rtol=0, atol=1e-6)


def test_blocks_are_halved_once_if_memory_runs_out(monkeypatch):
    monkeypatch.setattr(device_rows, "MOST_ROWS", 8)
    sizes: list[int] = []

    def work(part: slice) -> int:
        sizes.append(part.stop - part.start)
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part.start

    with device_limit(160):
        assert in_blocks(work, 20, 10, "cpu") == [0, 4, 8, 12, 16]
    assert sizes == [8, 8, 4, 4, 4, 4, 4]


def test_an_array_that_does_not_fit_is_read_and_written_in_main_memory():
    array = np.arange(40, dtype=np.int32).reshape(10, 4)
    array.setflags(write=False)
    for room, held in ((1000, True), (100, False)):
        with device_limit(room):
            rows = Holder("cpu").rows(array, written=True)
        index = torch.tensor([7, 2, 7])
        np.testing.assert_array_equal(rows.of(index), array[index])
        rows.put(torch.tensor([2, 9]), torch.tensor([0, 3]), torch.tensor([-1, -2], dtype=torch.int32))
        assert rows.on_host()[[2, 9], [0, 3]].tolist() == [-1, -2]
        assert held == (rows._tensor is not None)
    assert array[2, 0] == 8
