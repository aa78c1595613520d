"""Test the search on a device in torch, on the device 'cpu': the same lists as the compiled search, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.samples import blobs, unit
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph import device_search as device_search_module
from starfc.graph.approximate import approximate_search
from starfc.graph.cells import Cells, Members, make_cells, nearest_cells, probe_cells
from starfc.graph.device_members import DeviceMembers, _Batches
from starfc.graph.device_pools import DevicePools
from starfc.graph.device_search import DeviceFeatures, device_search
from starfc.graph.exact import exact_search
from starfc.graph.knn import build_knn, exact_knn
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.graph.order import inverse
from starfc.graph.pools import sorted_pools
from starfc.graph.rerank import rerank
from starfc.graph.sweeps import Steps, sweep
from starfc.runtime.device import device_limit
from starfc.runtime.products import full_sums


@pytest.fixture
def by_torch(monkeypatch):
    """Let torch functions do on the CPU what they do on a GPU."""
    monkeypatch.setattr("starfc.runtime.device.COMPILED", set())


CPU = torch.device("cpu")
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def assert_equal_to_the_compiled_search(features: Features, k: int, dtype: torch.dtype) -> None:
    expected_sims, expected_ids = exact_search(features, k)
    sims, ids = device_search(features, k, CPU, dtype=dtype)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(sims, expected_sims)
    assert ids.dtype == expected_ids.dtype


def clustered(n: int, dim: int = 24, noise: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 15), dim))
    return (centres[np.sort(rng.integers(0, len(centres), n))] + noise * rng.normal(size=(n, dim))).astype(np.float32)


@both_dtypes
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 3), (40, 40), (65, 7), (1301, 20)])
def test_lists_are_those_of_the_compiled_search(dtype, n, k):
    """Sorted by identity; k = N; block sizes that do not divide N; negative similarities."""
    assert_equal_to_the_compiled_search(Features(clustered(n)), k, dtype)
    assert_equal_to_the_compiled_search(Features(np.random.default_rng(n).normal(size=(n, 3)) + 1e-3), k, dtype)


@both_dtypes
def test_copies_and_near_ties_are_ordered_as_on_the_processor(dtype, monkeypatch):
    """More rows tie within the error than candidates are kept, so the processor searches them."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 24))
    near = base + 1e-4 * rng.normal(size=(200, 24))
    features = Features(unit(np.concatenate([near, np.repeat(base, 60, axis=0), rng.normal(size=(300, 24))])))
    left = []
    real = device_search_module.search_rows
    monkeypatch.setattr(device_search_module, "search_rows", lambda *a: left.append(len(a[1])) or real(*a))
    assert_equal_to_the_compiled_search(features, 20, dtype)
    assert len(left) == 1
    assert left[0] >= 260


@both_dtypes
def test_features_are_read_as_they_are(dtype, tmp_path):
    """float16 in a mapped file, float64, and rows so long or so short that a product leaves the range of float32."""
    rows = clustered(300)
    np.save(tmp_path / "f.npy", rows.astype(np.float16))
    assert_equal_to_the_compiled_search(Features(np.load(tmp_path / "f.npy", mmap_mode="r")), 15, dtype)
    lengths = np.resize([1e-37, 1e-10, 1.0, 1e10, 1e37], (300, 1))
    assert_equal_to_the_compiled_search(Features(unit(rows).astype(np.float64) * lengths), 15, dtype)
    assert_equal_to_the_compiled_search(Features((unit(rows) * lengths).astype(np.float32)), 15, dtype)


@both_dtypes
def test_features_that_do_not_fit_are_read_in_blocks(dtype, monkeypatch):
    features, read = Features(clustered(1000, dim=64)), []
    real = DeviceFeatures._read
    monkeypatch.setattr(DeviceFeatures, "_read", lambda self, rows: read.append(rows) or real(self, rows))
    with device_limit(140_000):
        assert_equal_to_the_compiled_search(features, 10, dtype)
    blocks = {rows.start for rows in read if isinstance(rows, slice)}
    queries = [rows for rows in read if not isinstance(rows, slice)]
    assert len(blocks) > 10
    assert len(queries) > 10
    assert len(read) > 10 * len(queries)
    with device_limit(2000), pytest.raises(InputError, match="device_memory: a block of"):
        device_search(features, 10, CPU)


def test_a_device_out_of_memory_searches_in_smaller_blocks(monkeypatch):
    features, widths, failures = Features(clustered(1000)), [], [1]
    real = DevicePools.offer_rows

    def offer(self, products, first, width):
        widths.append(products.shape)
        if len(widths) <= failures[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, products, first, width)

    monkeypatch.setattr(DevicePools, "offer_rows", offer)
    with device_limit(1 << 20):
        assert_equal_to_the_compiled_search(features, 10, torch.float32)
        assert widths[1][1] < widths[0][1]
        widths.clear()
        failures[0] = 2
        with pytest.raises(InputError, match="device_memory: cpu ran out of memory twice"):
            device_search(features, 10, CPU)


def test_the_sampled_floors_lose_nothing(monkeypatch):
    monkeypatch.setattr(device_search_module, "_SAMPLE", 200)
    assert_equal_to_the_compiled_search(Features(clustered(1200)), 10, torch.bfloat16)
    monkeypatch.setattr(device_search_module._Search, "_sampled_floor", lambda self, queries, keep: 1.0)
    assert_equal_to_the_compiled_search(Features(clustered(1200)), 10, torch.bfloat16)  # floors that are too high


@both_dtypes
@pytest.mark.parametrize("spread", [3, 1000])
def test_device_pools_keep_the_best(dtype, spread, monkeypatch):
    """With few values many candidates tie, so their products are compared and not their ids."""
    monkeypatch.setattr("starfc.graph.device_pools._WIDTH", 16)
    products = np.random.default_rng(0).integers(-spread, spread, (9, 640)).astype(np.float32)
    products = torch.from_numpy(products).to(dtype)
    pools = DevicePools.empty(9, 30, dtype, np.int32, CPU)
    for start, stop in ((0, 64), (64, 448), (448, 600)):
        tile = torch.nn.functional.pad(products[:, start:stop], (0, -(stop - start) % 64))
        pools.offer_rows(tile.clone(), 7 + start, stop - start)
    best, ids = sorted_pools(pools.on_host(), 30)
    values = products[:, :600].float().numpy()
    np.testing.assert_array_equal(best, -np.sort(-values, axis=1)[:, :30])
    np.testing.assert_array_equal(np.take_along_axis(values, ids - 7, axis=1), best)
    assert all(len(set(row)) == 30 for row in ids)


def test_device_pools_that_are_not_full_come_to_the_host_packed():
    pools = DevicePools.empty(3, 4, torch.float32, np.int32, CPU)
    pools.offer(torch.tensor([0, 2, 2]), torch.tensor([5, 6, 7]), torch.tensor([0.5, -0.25, 0.75]))
    found = pools.on_host()
    np.testing.assert_array_equal(found.fill, [1, 0, 2])
    np.testing.assert_array_equal(found.floor, [-2, -2, -2])
    assert [set(found.ids[r, : found.fill[r]]) for r in range(3)] == [{5}, set(), {6, 7}]


def test_settings_of_products_hold_only_during_a_search():
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction
    try:
        settings.allow_tf32 = settings.allow_bf16_reduced_precision_reduction = True
        with full_sums():
            assert not settings.allow_tf32
            assert not settings.allow_bf16_reduced_precision_reduction
        assert settings.allow_tf32
        first, second = full_sums(), full_sums()  # of two threads: the first to begin is the first to end
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not settings.allow_tf32
        second.__exit__(None, None, None)
        assert settings.allow_tf32
        assert settings.allow_bf16_reduced_precision_reduction
    finally:
        settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction = before


def test_the_method_torch_gives_the_exact_graph():
    features = blobs()[0]
    exact, torch_graph = build_knn(features, 10), build_knn(features, 10, "torch")
    np.testing.assert_array_equal(torch_graph.ids, exact.ids)
    np.testing.assert_array_equal(torch_graph.sims, exact.sims)
    assert torch_graph.info == exact.info | {"backend": "torch"}


def test_on_a_gpu_the_exact_search_is_in_torch(by_torch):
    assert build_knn(blobs()[0], 10, "exact").info["backend"] == "torch"
    assert build_knn(blobs()[0], 10, "ivf").info["backend"] == "torch"  # few rows


@pytest.fixture(scope="module")
def searched():
    """1,500 rows, a partition of them, and what the compiled search finds: probed cells and lists after each phase."""
    features = Features(clustered(1500, dim=32, noise=0.8))
    cells = make_cells(features, 75)
    places = Cells(cells.centroids, np.arange(1500, dtype=np.int32), cells.starts)
    members = Members.of(features, cells.order)
    probed = nearest_cells(members.at(slice(0, 1500)), places, 4)
    lists = phases(members, features, cells.order, places, probed)
    return features, cells.order, places, probed, lists


def phases(members, features, order, places, probed) -> list[KnnGraph]:
    """The lists (1500, 12) of all places after probing cells, and after a sweep from these."""
    whole, found = slice(0, 1500), []

    def lists_of(before: KnnGraph | None) -> KnnGraph:
        pools = members.pools(1500, before, 11, 15)
        if before is None:
            probe_cells(members, places, probed, whole, None, pools)
        else:
            sweep(members, Steps.of(before.ids), whole, before.ids, pools)
        sims, ids = np.empty((1500, 12), np.float32), np.empty((1500, 12), np.int32)
        rerank(pools.on_host(), features.scaled, order, order, np.zeros(1500, np.float32), sims, ids)
        graph = tidy(ids, sims, order, 1500)
        return KnnGraph(np.where(graph.ids >= 0, inverse(order)[graph.ids], -1).astype(np.int32), graph.sims)

    found.append(lists_of(None))
    found.append(lists_of(found[0]))
    return found


@pytest.mark.parametrize("limit", [None, 150_000])
def test_approximate_lists_are_those_of_the_compiled_search(searched, by_torch, limit, monkeypatch):
    """From the same cells. A candidate at the edge of a pool may differ where rounded products tie: below 1 % of rows.

    On these data all rows are equal. With a limit, the rows are on the host, and batches have few tiles.
    """
    features, order, places, probed, lists = searched
    if limit is not None:
        monkeypatch.setattr("starfc.graph.device_members._ROWS", 8)
        monkeypatch.setattr("starfc.graph.device_members._NAMES", 16)
    with device_limit(limit):
        members = DeviceMembers.on(CPU, features, order)
        assert members.held == (limit is None)
        near = nearest_cells(members.at(slice(0, 1500)), places, 4)
        found = phases(members, features, order, places, probed)
    assert (near == probed).mean() > 0.99
    for own, expected in zip(found, lists, strict=True):
        assert (own.ids == expected.ids).all(axis=1).mean() > 0.99
        assert (own.ids >= 0).sum() == (expected.ids >= 0).sum()


def test_an_approximate_search_in_torch_reaches_the_same_recall(by_torch, tmp_path):
    features = Features(clustered(1500, dim=32, noise=0.8))
    params = {"nlist": 60, "nprobe": 4, "partitions": 2, "sweeps": 1}
    exact = exact_knn(features, 10)
    graph = approximate_search(features, 10, params, 0, 0.9, tmp_path / "search", device=CPU)
    measured = graph.info["recalls"]["neighbours"]
    assert measured > 0.95
    held = [np.isin(wanted, own).mean() for wanted, own in zip(exact.ids[:, :9], graph.ids, strict=True)]
    assert np.mean(held) == pytest.approx(measured, abs=0.01)


def test_a_batch_out_of_memory_is_made_smaller(searched, by_torch, monkeypatch):
    features, order, places, probed, lists = searched
    sizes, real = [], _Batches.reached

    def reached(self, tiles):
        sizes.append(len(tiles))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, tiles)

    monkeypatch.setattr(_Batches, "reached", reached)
    with device_limit(64 << 20):
        found = phases(DeviceMembers.on(CPU, features, order), features, order, places, probed)
    assert sizes[1] < sizes[0]
    assert (found[1].ids == lists[1].ids).all(axis=1).mean() > 0.99
