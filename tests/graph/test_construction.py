"""Test graph construction: hand-computed graphs and slow twins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.graphs import propagate_scales
from helpers.samples import blobs, random_graph, unit
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.affinity import (
    Affinity,
    affinity_edges,
    propagate,
    propagation_matrix,
)
from starfc.graph.exact import exact_search
from starfc.graph.knn import build_knn, exact_knn
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.graph.order import inverse, locality_order
from starfc.graph.recall import Sample
from starfc.graph.store import find_graph, read_graph, write_graph


def twin_propagation_matrix(graph: KnnGraph, th_sim: float) -> np.ndarray:
    n = graph.num_nodes
    dense = np.zeros((n, n))
    for i in range(n):
        for j, s in zip(graph.ids[i], graph.sims[i], strict=True):
            if j >= 0 and s >= np.float32(th_sim):
                dense[i, j] = max(dense[i, j], s)
                dense[j, i] = max(dense[j, i], s)
    dense += np.eye(n)
    return dense / dense.sum(axis=1, keepdims=True)


def twin_knn(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    sims = features.astype(np.float64) @ features.T.astype(np.float64)
    n = len(features)
    ids, out = np.full((n, k), -1), np.zeros((n, k))
    for i in range(n):
        order = [j for j in sorted(range(n), key=lambda j: (-sims[i, j], j)) if j != i][: k - 1]
        ids[i, : len(order)], out[i, : len(order)] = order, np.clip(sims[i, order], 0, 1)
    return ids, out


graphs = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.just(n), st.integers(1, max(1, n - 1)), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0])
    )
)


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(graphs)
def test_propagation_matrix_equals_its_twin(parameters):
    n, k, seed, th_sim = parameters
    graph = random_graph(n, k, seed)
    matrix = propagation_matrix(graph, th_sim)
    np.testing.assert_allclose(matrix.toarray(), twin_propagation_matrix(graph, th_sim), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1.0, rtol=1e-5)
    for i in range(n):
        row = matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]
        assert (np.diff(row) > 0).all()
        assert i in row
    features = np.random.default_rng(seed).normal(size=(n, 7)).astype(np.float32)
    expected = matrix.toarray() @ features
    np.testing.assert_allclose(propagate(matrix, features), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(propagate_scales(graph, features, None, th_sim)[0], expected, rtol=1e-4, atol=1e-5)


def cut(graph: KnnGraph, scale: int) -> KnnGraph:
    """The graph of fewer neighbours, the node itself counted."""
    return KnnGraph(graph.ids[:, : scale - 1].copy(), graph.sims[:, : scale - 1].copy())


nested = st.integers(4, 30).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.sets(st.integers(2, n - 1), min_size=1, max_size=4).map(sorted),
        st.integers(0, 2**32 - 1),
        st.sampled_from([0.0, 0.3, 1.0]),
    )
)


@pytest.mark.long
@settings(deadline=None, max_examples=100)
@given(nested)
def test_scales_equal_the_matrices_of_the_cut_graphs(parameters):
    """Similarities of the two directions differ here: each scale takes the higher of those that it has."""
    n, scales, seed, th_sim = parameters
    graph = random_graph(n, min(n - 1, scales[-1] + 1), seed)
    features = unit(np.random.default_rng(seed).normal(size=(n, 7)))
    found = propagate_scales(graph, features, scales, th_sim)
    rows, order = np.random.default_rng(seed).permutation(n)[: n // 2], np.random.default_rng(seed).permutation(n)
    affinity = Affinity.of(graph, th_sim, order, scales)
    some = affinity.aggregate(Features(features), rows, np.float64)
    assert some.dtype == np.float64
    edges = affinity_edges(graph, scales, th_sim)
    assert [x.dtype for x in edges] == [np.int32, np.int32, np.uint8]
    for s, scale in enumerate(scales):
        matrix = propagation_matrix(cut(graph, scale), th_sim)
        expected = matrix.toarray().astype(np.float64) @ features
        np.testing.assert_allclose(found[s], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(some[s], expected[rows], rtol=1e-4, atol=1e-6)
        stored = matrix.tocoo()
        rows_s, cols_s = (ends[edges[2] <= s] for ends in edges[:2])
        np.testing.assert_array_equal(rows_s, stored.row)
        np.testing.assert_array_equal(cols_s, stored.col)


def test_scales_by_hand():
    # 0 lists 1 first; 1 lists 0 second, with a higher similarity
    sims = np.array([[0.5, 0], [0.75, 0.7], [0.75, 0]], np.float32)
    graph = KnnGraph(np.array([[1, 2], [2, 0], [1, 0]], np.int32), sims)
    first, second = propagate_scales(graph, np.eye(3, dtype=np.float32), (2, 3))
    np.testing.assert_allclose(first[0], np.array([1, 0.5, 0]) / 1.5, rtol=1e-6)
    np.testing.assert_allclose(second[0], np.array([1, 0.7, 0]) / 1.7, rtol=1e-6)
    np.testing.assert_array_equal(affinity_edges(graph, (2, 3))[2], [0, 0, 1, 0, 0, 0, 1, 0, 0])


def test_graphs_too_shallow_for_the_scales_are_refused():
    graph = random_graph(40, 10, 0)
    with pytest.raises(
        InputError,
        match=r"k: at least 12 needed by a model with scales of \(8, 12\) neighbours; found a kNN graph of 10",
    ):
        Affinity.of(graph, scales=(8, 12))
    with pytest.raises(InputError, match="increasing numbers"):
        affinity_edges(graph, (8, 8))
    few = random_graph(9, 8, 0)  # all that a graph of nine nodes can have
    np.testing.assert_array_equal(Affinity.of(few, scales=(5, 12, 20)).widths, [4, 8, 8])


def test_propagation_matrix_by_hand():
    # 0 -> 1 (0.5), 1 -> 0 (0.25), 2 -> 0 (0.0): a similarity of 0 is an edge
    graph = KnnGraph(np.array([[1], [0], [0]], np.int32), np.array([[0.5], [0.25], [0.0]], np.float32))
    matrix = propagation_matrix(graph)
    expected = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(matrix.toarray(), expected / expected.sum(1, keepdims=True), rtol=1e-6)
    assert matrix.nnz == 7
    assert propagation_matrix(graph, th_sim=0.3).nnz == 5


@settings(deadline=None, max_examples=60)
@given(graphs)
def test_node_order_takes_every_node_once(parameters):
    n, k, seed, _ = parameters
    order = locality_order(random_graph(n, k, seed))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order[inverse(order)], np.arange(n))


def test_node_order_puts_neighbours_together():
    features, _ = blobs(identities=60, size=20, noise=0.2)
    graph = exact_knn(unit(features), 15)
    place = inverse(locality_order(graph))

    def distance(place):
        return np.abs(place[graph.ids] - place[:, None])[graph.ids >= 0].mean()

    assert distance(place) < 0.2 * distance(np.arange(graph.num_nodes))


def test_relabelling_nodes_permutes_the_matrix():
    features, _ = blobs(seed=3)
    features = unit(features)
    order = np.random.default_rng(0).permutation(len(features))
    ours = propagation_matrix(exact_knn(features, 12)).toarray()
    permuted = propagation_matrix(exact_knn(features[order], 12)).toarray()
    np.testing.assert_allclose(permuted, ours[np.ix_(order, order)], rtol=1e-4, atol=1e-7)


def test_exact_knn_equals_its_twin():
    features = unit(blobs(noise=1.0)[0])
    ids, sims = twin_knn(features, 20)
    for graph in (build_knn(features, 20), exact_knn(features, 20)):
        np.testing.assert_allclose(graph.sims, sims, atol=1e-6)
        assert (graph.ids == ids).mean() > 0.999  # float32 and float64 may order near-ties differently
        assert graph.ids.dtype == np.int32


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(1, 90),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([7, 64, 100]),
)
def test_exact_search_equals_its_twin(n, k, dim, seed, block):
    """Integers, so that products are exact and ties are many: of equal products the lower ids stay."""
    k = min(k, n)
    features = np.random.default_rng(seed).integers(-2, 3, (n, dim)).astype(np.float32)
    sims, ids = exact_search(features, k, block)
    products = features @ features.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(sims, np.take_along_axis(products, expected, axis=1))


def test_tidy_orders_ties_by_id_and_removes_self():
    raw_ids = np.array([[5, 0, 9, 3, -1], [1, 2, 0, 3, 4]])
    raw_sims = np.array([[0.5, 1.0, 0.5, 0.7, -1.0], [1.2, -0.3, 0.1, 0.1, 0.9]])
    graph = tidy(raw_ids, raw_sims, np.arange(2), 10)
    np.testing.assert_array_equal(graph.ids, [[3, 5, 9, -1, -1], [4, 0, 3, 2, -1]])
    np.testing.assert_allclose(graph.sims, [[0.7, 0.5, 0.5, 0, 0], [0.9, 0.1, 0.1, 0, 0]])


def test_duplicates_may_push_a_row_out_of_its_own_list():
    features = np.ones((50, 4), np.float32) / 2
    graph = build_knn(features, 8)
    assert (graph.ids != np.arange(50)[:, None]).all()
    assert ((graph.ids >= 0).sum(axis=1) >= 7).all()
    np.testing.assert_allclose(propagation_matrix(graph).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("method", "params"), [("ivf", {"nlist": 8, "nprobe": 4}), ("ivf", {})])
def test_approximate_graphs_report_their_recall(method, params):
    features = unit(blobs(identities=40, size=50, noise=0.5)[0])
    graph = build_knn(features, 20, method, params)
    exact = build_knn(features, 20)
    true_recall = np.mean(
        [len(np.intersect1d(a[a >= 0], b[b >= 0])) / 19 for a, b in zip(graph.ids, exact.ids, strict=True)]
    )
    assert graph.info["recall"] > 0.8
    assert graph.info["recall"] == pytest.approx(true_recall, abs=0.02)
    assert graph.info["params"].items() >= params.items()


def test_recall_of_a_damaged_graph():
    features = unit(blobs(noise=1.0)[0])
    graph = build_knn(features, 21)
    half = KnnGraph(np.where(np.arange(21) < 10, graph.ids, -1), np.where(np.arange(21) < 10, graph.sims, 0))
    sample = Sample.draw(Features(features), graph.k, np.random.default_rng(0))
    assert sample.recall_of(graph) == 1.0
    assert sample.recall_of(half) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["graph", "graph.npz"])
def test_stored_graphs_come_back(tmp_path, name):
    features = Features(blobs(noise=1.0)[0])
    graph = build_knn(features.all(), 10)
    write_graph(tmp_path / name, graph, features)
    back = read_graph(tmp_path / name, features, 10)
    np.testing.assert_array_equal(back.ids, graph.ids)
    np.testing.assert_allclose(back.sims, graph.sims, atol=1e-7)
    assert find_graph(tmp_path / "graph") == tmp_path / name


def test_a_published_file_without_self_comes_back(tmp_path):
    features = Features(np.tile(np.eye(4, dtype=np.float32), (6, 1)))
    graph = build_knn(features.all(), 5)
    write_graph(tmp_path / "g.npz", graph, features)
    back = read_graph(tmp_path / "g.npz", features, 5)
    np.testing.assert_array_equal(back.ids, graph.ids)


@pytest.mark.long
def test_manifest_says_what_the_graph_is(tmp_path):
    features = Features(blobs(noise=1.0)[0])
    write_graph(tmp_path / "g", build_knn(features.all(), 10, "ivf", {"nlist": 4, "nprobe": 2}), features)
    manifest = json.loads((tmp_path / "g" / "manifest.json").read_text())
    assert manifest["num_nodes"] == 180
    assert manifest["feature_dim"] == 16
    assert manifest["k"] == 10
    assert manifest["backend"] == "ivf"
    assert manifest["params"] == {"nlist": 4, "nprobe": 2, "partitions": 1, "sweeps": 0}
    assert 0 < manifest["recall"] <= 1
    assert manifest["fingerprint"] == features.check.fingerprint


def test_scipy_agrees_on_the_matrix():
    graph = random_graph(25, 6, 7)
    assert sp.isspmatrix_csr(propagation_matrix(graph))
    propagation_matrix(graph).check_format(full_check=True)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("annoy", {}, "one of"),
        ("exact", {"nlist": 3}, "'exact' takes no parameters"),
        ("faiss", {"nlist": 3}, "'exact' takes no parameters"),
        ("ivf", {"nlist": 51}, "at most the 50 instances"),
    ],
)
def test_searches_that_cannot_be(method, params, message):
    with pytest.raises(InputError, match=message):
        build_knn(unit(np.random.default_rng(0).normal(size=(50, 4))), 5, method, params)


@pytest.mark.parametrize("k", [0, 51])
def test_k_out_of_range(k):
    with pytest.raises(InputError, match="k: between 1 and N = 50 needed; found"):
        build_knn(unit(np.random.default_rng(0).normal(size=(50, 4))), k)
