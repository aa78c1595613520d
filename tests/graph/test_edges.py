"""Test edge lists: both directions of each edge, and confidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.edges import edge_list, edge_lists
from starfc.graph.edges import EdgeList, edge_confidence, undirected


@pytest.mark.long
@settings(deadline=None, max_examples=100)
@given(edge_lists(), st.integers(0, 2**32 - 1))
def test_undirected_equals_its_sorting_twin(edges, seed):
    """Rows in any order of columns, some pairs in both directions with different scores."""
    rng = np.random.default_rng(seed)
    turned = np.lexsort((rng.random(len(edges)), edges.rows))
    edges = EdgeList(edges.indptr, edges.cols[turned], rng.random(len(edges), np.float32))
    both = undirected(edges)
    expected = {}
    for i, j, score in zip(edges.rows.tolist(), edges.cols.tolist(), edges.scores, strict=True):
        for pair in ((i, j), (j, i)):
            expected[pair] = max(score, expected.get(pair, 0))
    assert list(zip(both.rows.tolist(), both.cols.tolist(), strict=True)) == sorted(expected)
    np.testing.assert_array_equal(both.scores, [expected[pair] for pair in sorted(expected)])


def test_undirected_edges_keep_the_higher_score():
    both = undirected(edge_list([(0, 1), (1, 0), (2, 1)], 3, [0.25, 0.75, 0.5]))
    np.testing.assert_array_equal(both.rows, [0, 1, 1, 2])
    np.testing.assert_array_equal(both.cols, [1, 0, 2, 1])
    np.testing.assert_array_equal(both.scores, np.float32([0.75, 0.75, 0.5, 0.5]))


def test_confidence_is_the_mean_of_the_edges_at_a_node():
    edges = edge_list([(0, 1), (1, 0), (1, 2)], 4, [0.8, 0.6, 0.9])
    np.testing.assert_allclose(edge_confidence(edges), [0.7, (0.8 + 0.6 + 0.9) / 3, 0.9, 0.0], rtol=1e-6)


def test_confidence_of_kept_edges_is_that_of_a_list_of_just_these():
    rng = np.random.default_rng(0)
    ends = [(i, j) for i in range(40) for j in range(40) if i != j and rng.random() < 0.2]
    edges = edge_list(ends, 41, rng.random(len(ends)))
    pairs = undirected(edges)
    for some, kept in ((edges, rng.random(len(edges)) < 0.5), (pairs, pairs.scores > np.median(pairs.scores))):
        np.testing.assert_array_equal(edge_confidence(some, kept), edge_confidence(some.select(kept)))
    one_by_one = edge_confidence(EdgeList(pairs.indptr, pairs.cols, pairs.scores))
    np.testing.assert_allclose(edge_confidence(pairs), one_by_one, rtol=1e-6)
