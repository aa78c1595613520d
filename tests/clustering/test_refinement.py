"""Test node intimacy and refinement: hand-computed cases and slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.devices import as_on_a_gpu
from helpers.edges import edge_list, edge_lists, edge_set
from starfc.clustering import refinement
from starfc.clustering.refinement import (
    dynamic_thresholds,
    node_intimacy,
    node_intimacy_undirected,
    refine,
    refine_dynamic,
)
from starfc.graph.edges import EdgeList, undirected


@pytest.mark.long
@settings(deadline=None, max_examples=100)
@given(edge_lists())
def test_node_intimacy_equals_the_matrix_form(edges):
    n = edges.num_nodes
    adjacency = sp.csr_matrix((np.ones(len(edges)), (edges.rows, edges.cols)), shape=(n, n)).toarray()
    common, degree = adjacency @ adjacency, adjacency.sum(axis=1)
    expected = [
        max(common[i, j] / degree[i], common[i, j] / degree[j]) if degree[i] and degree[j] else 0.0
        for i, j in zip(edges.rows, edges.cols, strict=True)
    ]
    np.testing.assert_allclose(node_intimacy(edges), np.array(expected, np.float32), rtol=1e-6)


def test_node_intimacy_does_not_hang_on_the_order_within_a_row():
    edges = edge_list([(0, 1), (0, 2), (1, 2), (2, 1), (2, 0)], 3)
    turned = EdgeList(edges.indptr, np.array([2, 1, 2, 1, 0], np.int32), edges.scores)
    by_pair = dict(zip(zip(edges.rows, edges.cols, strict=True), node_intimacy(edges), strict=True))
    again = dict(zip(zip(turned.rows, turned.cols, strict=True), node_intimacy(turned), strict=True))
    assert by_pair == again


def test_intimacy_by_hand():
    # 0 -> 1, 0 -> 2, 1 -> 2: the path 0 -> 1 -> 2 makes one common neighbour; node 2 points nowhere
    edges = edge_list([(0, 1), (0, 2), (1, 2), (2, 0)], 3)
    np.testing.assert_allclose(node_intimacy(edges), [0, 1, 0, 0])
    assert len(refine(edges, node_intimacy(edges), 1.0)) == 0
    assert len(refine(edges, node_intimacy(edges), 0.5)) == 1
    np.testing.assert_allclose(node_intimacy(edge_list([(0, 1), (0, 2), (1, 2)], 3)), [0, 0, 0])


@settings(deadline=None, max_examples=100)
@given(edge_lists())
def test_undirected_intimacy_equals_the_matrix_form(edges):
    n = edges.num_nodes
    adjacency = sp.csr_matrix((np.ones(len(edges)), (edges.rows, edges.cols)), shape=(n, n)).toarray()
    adjacency = np.maximum(adjacency, adjacency.T)
    both = undirected(edges)
    pairs = np.zeros((n, n))
    pairs[both.rows, both.cols] = 1
    np.testing.assert_array_equal(pairs, adjacency)
    assert len(both) == adjacency.sum()
    common, degree = adjacency @ adjacency, adjacency.sum(axis=1)
    i, j = both.rows, both.cols
    np.testing.assert_allclose(
        node_intimacy_undirected(both), np.maximum(common[i, j] / degree[i], common[i, j] / degree[j]), rtol=1e-6
    )


def test_dynamic_thresholds_rise_with_the_smaller_degree():
    # a clique of 12, a clique of 25 and one edge between: degrees of 11 or 24, and one more at its ends
    cliques = [(i, j) for block in (range(12), range(12, 37)) for i in block for j in block if i != j]
    edges = undirected(edge_list([*cliques, (0, 12)], 38))
    pairs = zip(edges.rows.tolist(), edges.cols.tolist(), strict=True)
    by_pair = dict(zip(pairs, dynamic_thresholds(edges, 0.78), strict=True))
    assert by_pair[1, 2] == pytest.approx(0.7509, abs=1e-4)
    assert by_pair[0, 12] == by_pair[12, 0] == by_pair[1, 2]
    assert by_pair[13, 14] == pytest.approx(0.7741, abs=1e-4)
    np.testing.assert_allclose(dynamic_thresholds(edge_list([(0, 1), (1, 0)], 2), 0.78), 0.6517, atol=1e-4)
    assert edge_set(refine_dynamic(edges, node_intimacy_undirected(edges), 0.78)) == set(cliques)


@settings(deadline=None, max_examples=50)
@given(edge_lists(), st.integers(0, 2**32 - 1))
def test_the_order_in_which_nodes_are_taken_changes_no_intimacy(edges, seed):
    order = np.random.default_rng(seed).permutation(edges.num_nodes)
    np.testing.assert_array_equal(node_intimacy(edges, order), node_intimacy(edges))


@settings(deadline=None, max_examples=25)
@given(edge_lists(), st.integers(1, 200))
def test_the_intimacy_that_a_device_counts_has_the_same_bits(edges, searches):
    """With few searches at a time, so that most lists are in blocks of their own."""
    for listed in (edges, undirected(edges)):
        here = node_intimacy(listed)
        with as_on_a_gpu(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(refinement, "_SEARCHES", searches)
            np.testing.assert_array_equal(node_intimacy(listed), here)


def test_edges_that_do_not_fit_on_the_device_are_counted_on_the_cpu(monkeypatch):
    edges = edge_list([(0, 1), (1, 2), (0, 2)], 3)
    monkeypatch.setattr(refinement, "_counted_there", None)
    with as_on_a_gpu(limit=100):
        np.testing.assert_array_equal(node_intimacy(edges), node_intimacy(edges, device="cpu"))
