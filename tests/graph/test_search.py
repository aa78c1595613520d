"""Test kNN search against slow twins: pools, rounded products, cells and resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.samples import blobs, unit
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph import approximate as approximate_module
from starfc.graph import cells as cells_module
from starfc.graph import exact as exact_module
from starfc.graph import knn as knn_module
from starfc.graph import opening
from starfc.graph.cells import Cells, Centroids, Members, make_cells, nearest_cells, probe_cells
from starfc.graph.exact import exact_search, nearest_of_rows, rounded_search, search_rows
from starfc.graph.knn import build_knn, exact_knn, search_bytes
from starfc.graph.neighbours import KnnGraph
from starfc.graph.partial import PartialGraph
from starfc.graph.pools import Pools, numeric, sorted_pools
from starfc.graph.recall import Recalls, Sample
from starfc.graph.rerank import products_of
from starfc.graph.sweeps import Steps, sweep
from starfc.runtime.products import slices
from starfc.runtime.stages import Stages
from starfc.storage.records import PhaseRecord

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


@pytest.mark.parametrize("kind", ["products that are exact", "copies"])
def test_of_equal_similarities_the_lower_ids_stay_however_they_are_searched(kind):
    """Many more rows than a pool holds tie at the k-th place."""
    rng = np.random.default_rng(0)
    if kind == "copies":
        matrix = unit(rng.standard_normal((5, 32)))[rng.integers(0, 5, 700)]
    else:
        matrix = np.zeros((700, 24), np.float32)
        for row in matrix:
            row[rng.choice(24, 4, replace=False)] = 0.5  # similarities are 0, 1/4, ..., 1
    features, rows = Features(matrix), np.arange(700)
    every = products_of(*features.scaled, np.repeat(rows, 700), np.tile(rows, 700)).reshape(700, 700)
    wanted = np.argsort(-every, axis=1, kind="stable")[:, :20]
    for search in (exact_search, rounded_search):
        np.testing.assert_array_equal(search(features, 20)[1], wanted)


def test_rows_that_rounding_leaves_uncertain_are_searched_again(monkeypatch):
    """Hundreds of duplicates and near-duplicates: more candidates within the error than a pool holds."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 24))
    features = unit(np.concatenate([base + 1e-3 * rng.normal(size=(300, 24)), np.repeat(base, 60, axis=0)]))
    again = []
    real = exact_module.search_rows
    monkeypatch.setattr(exact_module, "search_rows", lambda *a: again.append(len(a[1])) or real(*a))
    sims, ids = rounded_search(Features(features, normalise=False), 20)
    _measured, *rest = again
    assert rest
    assert rest[0] > 100
    assert_same_neighbours(sims, ids, features)


def test_more_candidates_are_kept_where_the_data_are_dense(monkeypatch):
    """With k + k / 4 + 4 candidates, rounding would leave many of these rows uncertain."""
    rng = np.random.default_rng(0)
    features = Features(unit(rng.normal(size=(1, 32)) + 0.4 * rng.normal(size=(4000, 32))), normalise=False)
    again = []
    real = exact_module.search_rows
    monkeypatch.setattr(exact_module, "search_rows", lambda *a: again.append(len(a[1])) or real(*a))
    sims, ids = rounded_search(features, 40)
    few = sum(again[1:])  # the first call measures
    monkeypatch.setattr(exact_module, "_needed", lambda *a: 54)
    again.clear()
    rounded_search(features, 40)
    assert few * 10 < again[0]
    assert_same_neighbours(sims, ids, features.all())


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
@given(st.integers(1, 200), st.integers(1, 90), st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_nearest_centroids_equal_their_twin(n, count, wanted, groups, seed):
    """With all groups searched; centroids are in groups of any sizes."""
    rng = np.random.default_rng(seed)
    points, centroids = (torch.from_numpy(unit(rng.normal(size=(m, 5)))) for m in (n, count))
    starts = np.concatenate([[0], np.sort(rng.integers(0, count + 1, groups - 1)), [count]])
    coarse = torch.from_numpy(unit(rng.normal(size=(groups, 5))))
    known = Centroids(centroids, coarse, starts, np.tile(np.arange(groups), (groups, 1)))
    wanted = min(wanted, known.searched)
    ids = known.nearest(points, wanted)
    products = (points @ centroids.T).numpy()
    found = np.take_along_axis(products, ids, axis=1)
    assert all(len(set(row)) == wanted for row in ids)
    np.testing.assert_allclose(found, -np.sort(-products, axis=1)[:, :wanted], atol=2e-2)  # bfloat16 may round order


@both_dtypes
def test_centroids_are_searched_in_the_groups_near_the_nearest(monkeypatch, dtype):
    monkeypatch.setattr(cells_module, "product_dtype", lambda device="cpu": dtype)
    coarse = torch.eye(3)
    vectors = torch.tensor([[1.0, 0, 0], [0.9, 0.4, 0], [0, 1.0, 0], [0.1, 0, 1.0]])
    known = Centroids(vectors, coarse, np.array([0, 2, 3, 4]), np.array([[0, 1], [1, 1], [2, 0]]))
    points = torch.tensor([[0.7, 0.6, 0.1], [0.3, 0.9, 0], [0.6, 0, 0.9]])
    np.testing.assert_array_equal(known.nearest(points, 1), [[1], [2], [3]])
    np.testing.assert_array_equal(known.nearest(points[:1], 3), [[1, 0, 2]])
    assert known.searched == 2


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 7, 60])
def test_cells_hold_every_row_once(count):
    features = Features(blobs(identities=20, size=20)[0])
    cells = make_cells(features, count)
    np.testing.assert_array_equal(np.sort(cells.order), np.arange(400))
    assert count <= len(cells) <= count + round(count**0.5)
    assert (cells.starts[0], cells.starts[-1]) == (0, 400)
    torch.testing.assert_close(cells.centroids.vectors.norm(dim=1), torch.ones(len(cells)))
    nearest = (torch.from_numpy(features.all()) @ cells.centroids.vectors.T).max(dim=1).values
    cell_of = np.empty(400, int)
    cell_of[cells.order] = np.repeat(np.arange(len(cells)), np.diff(cells.starts))
    own = (torch.from_numpy(features.all()) * cells.centroids.vectors[torch.from_numpy(cell_of)]).sum(dim=1)
    torch.testing.assert_close(own, nearest, atol=2e-2, rtol=0)
    again = make_cells(features, count)
    np.testing.assert_array_equal(again.order, cells.order)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 20), m=st.integers(1, 150), k=st.integers(1, 8), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_known_candidates_are_not_offered_again(n, m, k, seed):
    """Pools start from lists of the best of some candidates; then all candidates are offered, in two tiles."""
    rng = np.random.default_rng(seed)
    products = rng.permuted(np.tile(np.arange(1, m + 1), (n, 1)), axis=1).astype(np.float32) / 256
    some = rng.random((n, m)) < 0.3
    ids = np.full((n, k), -1, np.int32)
    sims = np.zeros((n, k), np.float32)
    for i in range(n):
        best = sorted(np.flatnonzero(some[i]), key=lambda c: -products[i, c])[:k]
        ids[i, : len(best)], sims[i, : len(best)] = best, products[i, best]
    pools = Pools.of_lists(KnnGraph(ids, sims), k, k, torch.float32)
    for part in slices(m, 64):
        tile = np.zeros((n, 64), np.float32)
        tile[:, : part.stop - part.start] = products[:, part]
        pools.offer_new(torch.from_numpy(tile), np.arange(part.start, part.stop), np.arange(n), ids)
    expected = best_first(products, k)
    np.testing.assert_array_equal(sorted_pools(pools, k)[1][:, : expected.shape[1]], expected)


def test_the_members_of_cells_are_offered_as_products_are():
    """bfloat16: the loop of few rows and the matrix product find the same, without what is known."""
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(unit(rng.normal(size=(192, 32)))).bfloat16()
    order, starts = rng.permutation(192), np.array([0, 64, 128, 192])
    known = rng.integers(0, 192, (10, 5))
    rows, cells = np.repeat(np.arange(10), 2), np.tile([2, 0], 10)
    loop = Pools.empty(10, 20, torch.bfloat16, np.int32)
    loop.offer_members(numeric(vectors), 7, rows, cells, order, starts, known)
    whole = Pools.empty(10, 20, torch.bfloat16, np.int32)
    for cell in (2, 0):
        names = order[starts[cell] : starts[cell + 1]]
        whole.offer_new(vectors[7:17] @ vectors[torch.from_numpy(names)].T, names, np.arange(10), known)
    for pools in (loop, whole):
        pools.cut()
    for row in range(10):
        found = set(loop.ids[row, :20].tolist())
        assert not found & set(known[row].tolist())
        # another order of the sum may round to the next bfloat16, which exchanges the last ones
        assert len(found & set(whole.ids[row, :20].tolist())) >= 18


def found_by(offer, features, k, names):
    """Return the lists of all rows after one phase without earlier lists: sims and ids (N, k), by row."""
    n = len(names)
    pools = Pools.empty(n, k, torch.float32, np.int32)
    offer(slice(0, n), None, pools)
    sims, places = sorted_pools(pools, k)
    out_sims, out_ids = np.empty_like(sims), np.empty_like(places)
    out_sims[names], out_ids[names] = sims, np.where(places >= 0, names[places], -1)
    return out_sims, out_ids


@pytest.mark.long
@pytest.mark.parametrize(("rows", "few"), [(64, 0), (512, 0), (512, 1000)])
def test_probing_every_cell_is_exact_search(monkeypatch, rows, few):
    """By matrix products, and by the loop for cells that few rows probe."""
    monkeypatch.setattr(cells_module, "product_dtype", lambda device="cpu": torch.float32)
    monkeypatch.setattr(cells_module, "_FEW_ROWS", few)
    monkeypatch.setattr(cells_module, "_ROWS", rows)
    monkeypatch.setattr(cells_module, "_COLUMNS", 64)
    matrix = unit(blobs(identities=40, size=15, noise=0.7)[0])
    features = Features(matrix, normalise=False)
    cells = make_cells(features, 9)
    members = Members.of(features, cells.order)
    places = Cells(cells.centroids, np.arange(len(cells.order)), cells.starts)
    probed = nearest_cells(members.vectors, places, len(cells))
    sims, ids = found_by(lambda *a: probe_cells(members, places, probed, *a), features, 12, cells.order)
    assert_same_neighbours(sims, ids, matrix)


def one_step(lists: np.ndarray, width: int) -> list[list[int]]:
    """Place itself, its first neighbours, and the first of those that have it as one: by position, then by place."""
    near, ways = lists[:, :width], []
    for i in range(len(near)):
        back = sorted((c, j) for j, c in zip(*np.nonzero(near == i), strict=True))[:width]
        ways.append([i, *near[i][near[i] >= 0].tolist(), *(int(j) for _, j in back)])
    return ways


@pytest.mark.long
def test_a_sweep_finds_the_best_that_two_steps_reach(monkeypatch):
    """Blocks of one row: its candidates are then exactly those of its own two steps."""
    monkeypatch.setattr("starfc.graph.sweeps._BLOCK", 1)
    monkeypatch.setattr("starfc.graph.sweeps.NEAR", 3)
    monkeypatch.setattr(cells_module, "product_dtype", lambda device="cpu": torch.float32)
    matrix = unit(blobs(identities=20, size=10, noise=0.8)[0])
    rng, n = np.random.default_rng(3), 200
    lists = np.stack([rng.choice(np.setdiff1d(np.arange(n), i), 3, replace=False) for i in range(n)]).astype(np.int32)
    members = Members.of(Features(matrix, normalise=False), np.arange(n))
    pools = Pools.empty(n, 5, torch.float32, np.int32)
    sweep(members, Steps.of(lists), slice(0, n), lists, pools)
    ids = sorted_pools(pools, 5)[1]
    ways = one_step(lists, 3)
    for i in range(n):
        reached = np.array(sorted({b for a in ways[i] for b in ways[a]} - set(lists[i])))
        best = reached[np.argsort(-(matrix[reached] @ matrix[i]), kind="stable")][:5]
        assert set(ids[i][ids[i] >= 0]) == set(best)


@pytest.mark.long
def test_blocks_share_candidates_up_to_a_limit(monkeypatch):
    """A block of all rows offers every row all places, or those that most paths reach."""
    monkeypatch.setattr("starfc.graph.sweeps._BLOCK", 200)
    monkeypatch.setattr(cells_module, "product_dtype", lambda device="cpu": torch.float32)
    matrix = unit(blobs(identities=20, size=10, noise=0.8)[0])
    lists = exact_knn(matrix, 9).ids
    members = Members.of(Features(matrix, normalise=False), np.arange(200))
    offered = []
    monkeypatch.setattr(Pools, "offer_new", lambda self, products, names, *rest: offered.append(set(names)))
    for most in (8192, 50):
        monkeypatch.setattr("starfc.graph.sweeps._MOST", most)
        sweep(members, Steps.of(lists), slice(0, 200), lists, Pools.empty(200, 9, torch.float32, np.int32))
    every, some = offered
    assert every == set(range(200))
    assert len(some) == 50
    paths = np.bincount([j for way in one_step(lists, 9) for j in way], minlength=200)
    assert min(paths[list(some)]) >= max(paths[list(every - some)])


def test_rows_alone_have_the_neighbours_of_the_whole_search(monkeypatch):
    monkeypatch.setattr(exact_module, "SMALL", 0)
    monkeypatch.setattr(exact_module, "product_dtype", lambda: torch.bfloat16)
    matrix = unit(blobs(identities=60, size=20, noise=0.6)[0])
    features, rows = Features(matrix, normalise=False), np.array([3, 700, 41, 1199])
    sims, ids = nearest_of_rows(features, rows, 12)
    expected = search_rows(features, rows, 12)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_allclose(sims, expected[0], atol=1e-6)


@pytest.fixture
def clustered(monkeypatch):
    """Features for which an approximate search pays although they are few."""
    monkeypatch.setattr(knn_module, "_FEW", 0)
    monkeypatch.setattr(approximate_module, "_CHUNKS", (256, 256))
    return Features(blobs(identities=100, size=20, noise=0.4)[0])


def recall_of(graph: KnnGraph, features: Features, seed: int = 5) -> float:
    return Sample.draw(features, graph.k, np.random.default_rng(seed), judged=False).recall_of(graph)


def test_exact_search_of_very_many_rows_names_the_faster_way(monkeypatch, caplog):
    features = Features(blobs(identities=6, size=10)[0])
    with caplog.at_level("INFO", "starfc"):
        build_knn(features, 5)
        assert "ivf" not in caplog.text
        monkeypatch.setattr(knn_module, "_MANY", 50)
        build_knn(features, 5)
    assert "all 1.8e+03 pairs of rows; knn_method 'ivf' is several times faster" in caplog.text


@pytest.mark.long
def test_the_target_recall_is_reached(clustered):
    phases = []
    for recall in (0.5, 0.99):
        graph = build_knn(clustered, 15, "ivf", recall=recall)
        assert graph.info["recall"] >= recall
        assert recall_of(graph, clustered) >= recall - 0.01
        phases.append(graph.info["params"]["partitions"] + graph.info["params"]["sweeps"])
    assert phases[0] <= phases[1]


@pytest.mark.long
def test_a_missed_target_is_warned_of(clustered, monkeypatch, caplog):
    monkeypatch.setattr(approximate_module, "_MOST_SWEEPS", 1)
    graph = build_knn(clustered, 15, "ivf", {"nlist": 200}, recall=1.0)
    assert graph.info["recall"] < 1
    assert "knn_recall 1 was not reached: found" in caplog.text


def test_only_a_search_needs_the_memory_of_a_search(tmp_path, monkeypatch):
    features = Features(unit(blobs()[0]), "x")
    monkeypatch.setattr(opening, "search_bytes", lambda *_: 1 << 50)
    limited, place = Stages(1 << 40), opening.Place.named(tmp_path / "graph")
    for where in (None, place):
        with pytest.raises(InputError, match="stage 'kNN graph' needs about"):
            opening.open_or_build(features, 10, opening.Search(), where, limited)
    built = opening.open_or_build(features, 10, opening.Search(), place)
    stored = opening.open_or_build(features, 10, opening.Search(), place, limited)
    np.testing.assert_array_equal(stored.ids, built.ids)


def test_where_approximate_search_does_not_pay_search_is_exact():
    features = Features(blobs(identities=30, size=10)[0])
    graph, exact = build_knn(features, 15, "ivf"), exact_knn(features, 15)
    assert graph.info == {"backend": "exact", "params": {}, "recall": 1.0, "recall_rows": 0}
    np.testing.assert_array_equal(graph.ids, exact.ids)


@pytest.mark.long
def test_the_result_does_not_depend_on_threads(clustered):
    before, graphs = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        graphs.append(build_knn(clustered, 15, "ivf", {"nprobe": 2, "partitions": 2, "sweeps": 2}))
    torch.set_num_threads(before)
    np.testing.assert_array_equal(graphs[0].ids, graphs[1].ids)


@pytest.mark.long
def test_more_partitions_and_sweeps_find_more(clustered):
    found = [
        recall_of(build_knn(clustered, 15, "ivf", {"nprobe": 1, "nlist": 100, **more}), clustered)
        for more in ({}, {"partitions": 2}, {"sweeps": 1}, {"partitions": 2, "sweeps": 2})
    ]
    assert found[0] < found[1]
    assert found[0] < found[2]
    assert found[3] == max(found)


def phase(kind: str, share: float | None = None, **more: int) -> PhaseRecord:
    recalls = {} if share is None else Recalls(0.1, 0.2, share, [], 10).as_dict()
    return PhaseRecord(kind=kind, number=0, recalls=recalls, **more)


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ([], "cells"),
        (["cells"], "cells"),
        (["cells", "cells"], "sweep"),
        (["cells", "cells", 0.99], None),
        (["cells", "cells", 0.5], "sweep"),
        (["cells", "cells", 0.5, 0.8], "sweep"),
        (["cells", "cells", 0.5, 0.6], "cells"),
        (["cells", "cells", 0.5, 0.6, "cells"], "sweep"),
        (["cells", "cells", 0.5, 0.6, "cells", 0.7], "sweep"),
        (["cells", "cells", 0.5, "cells", 0.6, "cells", 0.7, 0.71], None),
    ],
)
def test_the_phases_of_a_search_that_chooses(done, expected):
    plan = approximate_module.Plan.of({}, 0.98, 4)
    after = plan.after([phase("cells") if what == "cells" else phase("sweep", what) for what in done])
    assert (after.kind if after else None) == expected


def test_the_phases_of_a_search_that_is_told():
    plan, done = approximate_module.Plan.of({"nprobe": 3, "partitions": 2, "sweeps": 1}, 0.98, 4), []
    while (after := plan.after(done)) is not None:
        done.append(after)
    assert [(p.kind, p.number, p.probes) for p in done] == [("cells", 0, 3), ("cells", 1, 3), ("sweep", 0, 0)]


class Killed(Exception):
    pass


SOME = {"nprobe": 2, "partitions": 2, "sweeps": 1}


def killed_after(chunks: int, features: Features, folder, monkeypatch) -> list[int]:
    """Kill a search once it has written some chunks; return where these start."""
    write, written = PartialGraph.write, []

    def killed_write(self, chunk, ids, sims):
        if len(written) >= chunks:
            raise Killed
        write(self, chunk, ids, sims)
        written.append(chunk.start)

    with monkeypatch.context() as patch:
        patch.setattr(PartialGraph, "write", killed_write)
        with pytest.raises(Killed):
            build_knn(features, 15, "ivf", SOME, folder=folder)
    return written


@pytest.mark.long
@pytest.mark.parametrize("after", [3, 11, 17, 22])
def test_a_killed_search_goes_on_where_it_stopped(clustered, monkeypatch, tmp_path, after):
    """The three phases have eight chunks each."""
    whole = build_knn(clustered, 15, "ivf", SOME)
    written = killed_after(after, clustered, tmp_path / "partial", monkeypatch)
    write, resumed = PartialGraph.write, []
    monkeypatch.setattr(PartialGraph, "write", lambda self, c, *a: resumed.append(c.start) or write(self, c, *a))
    monkeypatch.setattr(approximate_module, "make_cells", None)  # they are stored
    graph = build_knn(clustered, 15, "ivf", SOME, folder=tmp_path / "partial")
    assert sorted(written + resumed) == sorted(3 * list(range(0, 2000, 256)))
    np.testing.assert_array_equal(graph.ids, whole.ids)
    np.testing.assert_array_equal(graph.sims, whole.sims)
    assert graph.info == whole.info


@pytest.mark.long
@pytest.mark.parametrize("name", ["lists-0.ids", "lists-1.sims", "cells-0.npz", "cells-1.npz", "done.json"])
def test_damaged_progress_is_searched_again(clustered, monkeypatch, tmp_path, name):
    whole = build_knn(clustered, 15, "ivf", SOME)
    killed_after(11, clustered, tmp_path / "partial", monkeypatch)
    path = tmp_path / "partial" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 0x55
    path.write_bytes(content)
    graph = build_knn(clustered, 15, "ivf", SOME, folder=tmp_path / "partial")
    np.testing.assert_array_equal(graph.ids, whole.ids)


@pytest.mark.long
def test_what_another_search_left_is_not_used(clustered, tmp_path):
    build_knn(clustered, 15, "ivf", {"nprobe": 1}, folder=tmp_path)
    other = Features(clustered.array[::-1].copy())
    for features, probes in ((clustered, 9), (other, 9)):
        graph = build_knn(features, 15, "ivf", {"nprobe": probes}, folder=tmp_path)
        expected = build_knn(features, 15, "ivf", {"nprobe": probes})
        np.testing.assert_array_equal(graph.ids, expected.ids)


def test_a_search_of_few_rows_does_not_depend_on_the_number_of_threads():
    features = Features(unit(np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)))
    rows, before, found = np.arange(0, 4000, 500), torch.get_num_threads(), []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            found.append(search_rows(features, rows, 10))
    finally:
        torch.set_num_threads(before)
    for sims, ids in found[1:]:
        np.testing.assert_array_equal(sims, found[0][0])
        np.testing.assert_array_equal(ids, found[0][1])


def test_a_small_set_needs_the_memory_of_exact_search():
    features = Features(unit(np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)))
    assert search_bytes(features, 20, "ivf") == search_bytes(features, 20)
    assert search_bytes(features, 20, "ivf", {"nprobe": 3}) > search_bytes(features, 20)
