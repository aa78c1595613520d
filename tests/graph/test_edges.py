"""Test edge lists: both directions of each edge, and confidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.edges import edge_list, edge_lists
from starfc.graph.edges import EdgeList, edge_confidence, undirected
from starfc.storage import scratch


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


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_of_blocks_become_the_list_of_both_directions(seed, in_memory, monkeypatch, tmp_path):
    """Against ``undirected``; some nodes have more than 64 edges. With ``in_memory`` 0 the list is in files."""
    monkeypatch.setattr(scratch, "IN_MEMORY", in_memory)
    rng, n = np.random.default_rng(seed), 300
    upper = np.argwhere(np.triu(rng.random((n, n)) < rng.choice([0.02, 0.5], n)[:, None], 1))
    turned = rng.random(len(upper)) < 0.5
    upper[turned] = upper[turned][:, ::-1]
    upper = upper[np.lexsort((rng.random(len(upper)), upper[:, 0]))]
    p, blocks = rng.random(len(upper), np.float32), []
    for rows in np.array_split(rng.permutation(n), 7):
        own = [np.flatnonzero(upper[:, 0] == row) for row in rows]
        at = np.concatenate(own)
        blocks.append((rows, np.array([len(some) for some in own]), upper[at, 1].astype(np.int32), p[at]))
    expected = undirected(EdgeList.from_blocks(list(blocks), n, np.int32))
    found = EdgeList.from_pairs(blocks, n, np.int32, tmp_path)
    assert found.symmetric
    assert isinstance(found.cols, np.memmap) == (in_memory == 0)
    found.release()
    for name in ("indptr", "cols", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@settings(deadline=None, max_examples=50)
@given(edge_lists(), st.integers(0, 2**32 - 1))
def test_edges_inside_clusters_against_slow_twins(edges, seed):
    rng, n = np.random.default_rng(seed), edges.num_nodes
    members, kept = rng.integers(0, max(n // 3, 1), n), rng.random(len(edges)) < 0.5
    within = members[edges.rows] == members[edges.cols]
    np.testing.assert_array_equal(edges.inside(members), within)
    inside, count, outside = edges.split_sums(members)
    np.testing.assert_allclose(inside, np.bincount(edges.rows[within], edges.scores[within], n))
    np.testing.assert_array_equal(count, np.bincount(edges.rows[within], minlength=n))
    np.testing.assert_allclose(outside, np.bincount(edges.rows[~within], edges.scores[~within], n))
    chosen = edges.select(kept)
    np.testing.assert_array_equal(chosen.rows, edges.rows[kept])
    np.testing.assert_array_equal(chosen.cols, edges.cols[kept])


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
