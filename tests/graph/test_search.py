"""Test kNN search against slow twins: pools, rounded products, cells and resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.samples import blobs, unit
from starfc.data.dataset import Features
from starfc.graph import cells as cells_module
from starfc.graph import exact as exact_module
from starfc.graph import knn as knn_module
from starfc.graph.cells import make_cells, nearest_cells, search_cells
from starfc.graph.exact import exact_search, rounded_search, search_rows
from starfc.graph.knn import build_knn, draw_sample, exact_knn
from starfc.graph.partial import PartialGraph
from starfc.graph.pools import Pools, sorted_pools
from starfc.runtime.products import slices

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def best_first(values: np.ndarray, keep: int) -> np.ndarray:
    """Columns of the ``keep`` highest values of every row, ties by rising column."""
    return np.argsort(-values, axis=1, kind="stable")[:, :keep]


@pytest.mark.long
@both_dtypes
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 30), m=st.integers(1, 200), keep=st.integers(1, 20), step=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([2, 50]),
)  # fmt: skip
def test_pools_keep_the_best_whatever_the_tiles(dtype, n, m, keep, step, seed, spread):
    """Products offered by rows, in tiles, and by columns of the transpose; many ties, and none below 0 in bfloat16."""
    low = 0 if dtype == torch.bfloat16 else -spread
    products = np.random.default_rng(seed).integers(low, spread, (n, m)).astype(np.float32)
    rows, columns = (Pools.empty(n, keep, dtype, np.int32) for _ in range(2))
    for part in slices(m, step):
        tile = torch.from_numpy(products[:, part].copy()).to(dtype)
        rows.offer_rows(tile, 7 + part.start, np.arange(n))
        columns.offer_columns(tile.T.contiguous(), 7 + part.start)
    for pools in (rows, columns):
        _, ids = sorted_pools(pools, keep)
        expected = best_first(products, keep) + 7
        np.testing.assert_array_equal(ids[:, : expected.shape[1]], expected)
        assert (ids[:, expected.shape[1] :] == -1).all()


@both_dtypes
def test_an_offer_may_leave_out_columns_and_name_its_rows(dtype):
    pools = Pools.empty(5, 3, dtype, np.int32)
    tile = torch.arange(2 * 70, dtype=torch.float32).reshape(2, 70).to(dtype)
    pools.offer_rows(tile, 100, np.array([4, 1]), 66)
    _, ids = sorted_pools(pools, 3)
    values = tile.float().numpy()[:, :66]
    np.testing.assert_array_equal(ids[[4, 1]], best_first(values, 3) + 100)
    assert (ids[[0, 2, 3]] == -1).all()


def brute_force(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    sims = features.astype(np.float64) @ features.T.astype(np.float64)
    ids = best_first(sims, k)
    return np.take_along_axis(sims, ids, axis=1), ids


def assert_same_neighbours(sims: np.ndarray, ids: np.ndarray, features: np.ndarray) -> None:
    """Equal similarities to float32, and ids that are those of these similarities."""
    expected, _ = brute_force(features, sims.shape[1])
    np.testing.assert_allclose(sims, expected, atol=2e-6)
    for i in range(len(ids)):
        assert len(set(ids[i])) == len(ids[i])
        np.testing.assert_allclose(features[ids[i]].astype(np.float64) @ features[i], sims[i], atol=2e-6)


@pytest.mark.long
@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 400), st.integers(1, 60), st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 1.0])
)  # fmt: skip
def test_rounded_search_is_exact(n, k, dim, seed, noise):
    """Tight clusters and shapeless data, negative similarities included."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 20), dim))
    features = unit(centres[rng.integers(0, len(centres), n)] + noise * rng.normal(size=(n, dim)))
    sims, ids = rounded_search(Features(features, normalise=False), min(k, n), block=64)
    assert_same_neighbours(sims, ids, features)


def test_rows_that_rounding_leaves_uncertain_are_searched_again(monkeypatch):
    """Hundreds of duplicates and near-duplicates: more candidates within the error than a pool holds."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 24))
    features = unit(np.concatenate([base + 1e-3 * rng.normal(size=(300, 24)), np.repeat(base, 60, axis=0)]))
    again = []
    real = exact_module.search_rows
    monkeypatch.setattr(exact_module, "search_rows", lambda *a: again.append(len(a[1])) or real(*a))
    sims, ids = rounded_search(Features(features, normalise=False), 20)
    assert again
    assert again[0] > 100
    assert_same_neighbours(sims, ids, features)


@pytest.mark.long
def test_float16_features_are_searched_as_they_are():
    raw = blobs(identities=40, size=20, noise=0.6)[0].astype(np.float16)
    features = Features(raw)
    sims, ids = rounded_search(features, 15)
    assert_same_neighbours(sims, ids, features.all())
    array, scale = features.scaled
    assert array.dtype == np.uint16
    np.testing.assert_allclose(array.view(np.float16).astype(np.float32) * scale[:, None], features.all(), atol=1e-7)


def test_a_search_of_some_rows_is_the_whole_search_at_them():
    features = unit(blobs(identities=40, size=20, noise=0.8)[0])
    rows = np.array([3, 500, 77, 799])
    sims, ids = exact_search(features, 12)
    some_sims, some_ids = search_rows(Features(features, normalise=False), rows, 12)
    np.testing.assert_array_equal(some_ids, ids[rows])
    np.testing.assert_allclose(some_sims, sims[rows], atol=1e-6)
    np.testing.assert_array_equal(
        search_rows(Features(features, normalise=False), rows, 12, sims[rows, -1])[1], ids[rows]
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200), st.integers(1, 90), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_nearest_cells_equal_their_twin(n, count, wanted, seed):
    rng = np.random.default_rng(seed)
    points, centroids = (torch.from_numpy(unit(rng.normal(size=(m, 5)))) for m in (n, count))
    wanted = min(wanted, count)
    ids = nearest_cells(points, centroids, wanted)
    products = (points @ centroids.T).numpy()
    found = np.take_along_axis(products, ids, axis=1)
    assert all(len(set(row)) == wanted for row in ids)
    np.testing.assert_allclose(found, -np.sort(-products, axis=1)[:, :wanted], atol=2e-2)  # bfloat16 may round order


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 7, 60])
def test_cells_hold_every_row_once(count):
    features = Features(blobs(identities=20, size=20)[0])
    cells = make_cells(features, count)
    np.testing.assert_array_equal(np.sort(cells.order), np.arange(400))
    assert len(cells) == count
    assert (cells.starts[0], cells.starts[-1]) == (0, 400)
    torch.testing.assert_close(cells.centroids.norm(dim=1), torch.ones(count))
    again = make_cells(features, count)
    np.testing.assert_array_equal(again.order, cells.order)


@pytest.mark.long
@both_dtypes
@pytest.mark.parametrize("chunk", [13, 150, 1000])
def test_probing_every_cell_is_exact_search(monkeypatch, dtype, chunk):
    monkeypatch.setattr(cells_module, "product_dtype", lambda: dtype)
    monkeypatch.setattr(cells_module, "_ROWS", 64)
    monkeypatch.setattr(cells_module, "_COLUMNS", 64)
    matrix = unit(blobs(identities=40, size=15, noise=0.7)[0])
    features, n = Features(matrix, normalise=False), 600
    sims, ids = np.empty((n, 12), np.float32), np.empty((n, 12), np.int32)

    def finished(_, rows, found_sims, found_ids):
        sims[rows], ids[rows] = found_sims, found_ids

    search_cells(features, 12, make_cells(features, 9), 9, slices(n, chunk), finished)
    assert_same_neighbours(sims, ids, matrix)


@pytest.fixture
def clustered(monkeypatch):
    """Features that cells pay for although they are few."""
    monkeypatch.setattr(knn_module, "_CELL_ROW", 0)
    monkeypatch.setattr(knn_module, "_CHUNKS", (256, 256))
    return Features(blobs(identities=100, size=20, noise=0.4)[0])


@pytest.mark.long
def test_the_target_recall_is_reached_with_few_probes(clustered):
    probes = []
    for recall in (0.8, 0.99):
        graph = build_knn(clustered, 15, "ivf", recall=recall)
        true_recall = draw_sample(clustered, 15, np.random.default_rng(5)).recall(graph)
        assert graph.info["recall"] >= recall
        assert true_recall >= recall - 0.01
        probes.append(graph.info["params"]["nprobe"])
    assert probes[0] < probes[1] < graph.info["params"]["nlist"] / 2


def test_where_cells_do_not_pay_search_is_exact(clustered, monkeypatch):
    monkeypatch.setattr(knn_module, "_CELL_ROW", 40_000)
    graph, exact = build_knn(clustered, 15, "ivf"), exact_knn(clustered, 15)
    assert graph.info == {"backend": "exact", "params": {}, "recall": 1.0, "recall_rows": 0}
    np.testing.assert_array_equal(graph.ids, exact.ids)


@pytest.mark.long
def test_a_missed_target_is_searched_again_with_more_probes(clustered, monkeypatch):
    monkeypatch.setattr(knn_module, "_probes_for", lambda *_: 1)
    graph = build_knn(clustered, 15, "ivf", recall=0.999)
    assert graph.info["recall"] >= 0.999
    assert graph.info["params"]["nprobe"] > 1


class Killed(Exception):
    pass


@pytest.mark.long
def test_a_killed_search_goes_on_where_it_stopped(clustered, monkeypatch, tmp_path):
    whole = build_knn(clustered, 15, "ivf", {"nprobe": 6})
    write, written = PartialGraph.write, []

    def killed_write(self, chunk, ids, sims):
        if len(written) >= 3:
            raise Killed
        write(self, chunk, ids, sims)
        written.append(chunk.start)

    with monkeypatch.context() as patch:
        patch.setattr(PartialGraph, "write", killed_write)
        with pytest.raises(Killed):
            build_knn(clustered, 15, "ivf", {"nprobe": 6}, folder=tmp_path / "partial")
    resumed = []
    monkeypatch.setattr(PartialGraph, "write", lambda self, c, *a: resumed.append(c.start) or write(self, c, *a))
    monkeypatch.setattr(knn_module, "make_cells", None)  # they are stored
    graph = build_knn(clustered, 15, "ivf", {"nprobe": 6}, folder=tmp_path / "partial")
    assert sorted(written + resumed) == list(range(0, 2000, 256))
    np.testing.assert_array_equal(graph.ids, whole.ids)
    np.testing.assert_array_equal(graph.sims, whole.sims)


@pytest.mark.long
def test_what_another_search_left_is_not_used(clustered, tmp_path):
    build_knn(clustered, 15, "ivf", {"nprobe": 1}, folder=tmp_path)
    other = Features(clustered.array[::-1].copy())
    for features, probes in ((clustered, 9), (other, 9)):
        graph = build_knn(features, 15, "ivf", {"nprobe": probes}, folder=tmp_path)
        expected = build_knn(features, 15, "ivf", {"nprobe": probes})
        np.testing.assert_array_equal(graph.ids, expected.ids)
