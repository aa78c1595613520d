"""Test measures of doubt: cuts of one and two edges against a slow twin, merge candidates, columns of the table."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.review import clique, labels_of, parsed
from starfc.clustering.parsing import Decision, ParsedEdges
from starfc.graph.edges import EdgeList
from starfc.review.cuts import best_cuts
from starfc.review.measures import COLUMNS, instance_columns, merge_candidates, numbered, review
from starfc.review.pairs import Pairs
from starfc.runs.outputs import write_clustering


def pieces_without(n: int, edges: set, gone: tuple) -> np.ndarray:
    """Components by depth-first search over a set of edges, the slow way."""
    left = edges - set(gone)
    label = np.full(n, -1)
    for start in range(n):
        stack = [start] if label[start] < 0 else []
        while stack:
            i = stack.pop()
            label[i] = start
            stack += [j for a, b in left for i2, j in ((a, b), (b, a)) if i2 == i and label[j] < 0]
    return label


def slow_suspicion(n: int, edges: dict, labels: np.ndarray) -> tuple[np.ndarray, dict]:
    """Rate every single edge and every pair of edges by taking it away."""
    best = dict.fromkeys(range(labels.max() + 1), (0.0, ()))
    bridges = set()
    for k in (1, 2):
        for gone in combinations(sorted(edges), k):
            if labels[gone[0][0]] != labels[gone[-1][0]] or (k == 2 and bridges & set(gone)):
                continue
            cluster = labels[gone[0][0]]
            members = np.flatnonzero(labels == cluster)
            parts = np.unique(pieces_without(n, set(edges), gone)[members], return_counts=True)[1]
            if len(parts) == 1:
                continue
            if k == 1:
                bridges |= set(gone)
            m, size = parts.min(), len(members)
            evidence = sum(edges[e] for e in gone)
            rating = 4 * m * (size - m) / size**2 * (1 - 1 / m) * (1 - evidence / 3)
            if rating > best[cluster][0] + 1e-9:
                best[cluster] = (rating, gone)
    return np.array([best[c][0] for c in sorted(best)]), best


@pytest.mark.long
def test_two_cliques_on_a_bridge():
    edges = parsed(8, [*clique(range(4)), *clique(range(4, 8)), (3, 4, 0.7, 0.6)])
    labels = labels_of(edges)
    found = review(edges, labels)
    assert found.sizes.tolist() == [8]
    assert found.edges.tolist() == [13]
    np.testing.assert_allclose(found.cohesion, (12 * 0.9 + 0.7) / 13, rtol=1e-6)
    np.testing.assert_allclose(found.density, 13 / 28)
    assert found.cuts.first.tolist() == [[3, 4]]
    assert found.cuts.second.tolist() == [[-1, -1]]
    assert found.cuts.pieces.tolist() == [4]
    assert found.cuts.piece(0).tolist() in ([0, 1, 2, 3], [4, 5, 6, 7])
    np.testing.assert_allclose(found.bridge_scores, 0.7)
    np.testing.assert_allclose(found.cuts.suspicion, (1 - 1 / 4) * (1 - 0.42 / 3), rtol=1e-6)


def test_two_edges_hold_two_cliques_together_and_the_weaker_is_named_first():
    edges = parsed(9, [*clique(range(4)), *clique(range(4, 9)), (0, 4, 0.9, 0.9), (3, 8, 0.6, 0.7)])
    found = review(edges, labels_of(edges))
    assert found.cuts.first.tolist() == [[3, 8]]
    assert found.cuts.second.tolist() == [[0, 4]]
    assert found.cuts.piece(0).tolist() == [0, 1, 2, 3]
    rating = 4 * 4 * 5 / 81 * (3 / 4) * (1 - (0.81 + 0.42) / 3)
    np.testing.assert_allclose(found.cuts.suspicion, rating, rtol=1e-6)


def test_one_instance_on_an_edge_is_an_outlier_and_a_clique_has_no_cut():
    edges = parsed(9, [*clique(range(4)), (3, 4, 0.6, 0.6), *clique(range(5, 9))])
    found = review(edges, labels_of(edges))
    assert found.sizes.tolist() == [5, 4]
    assert found.cuts.suspicion.tolist() == [0, 0]
    assert found.cuts.first.tolist() == [[3, 4], [-1, -1]]
    assert found.cuts.piece(0).tolist() == [4]
    assert found.cuts.piece(1).size == 0
    assert found.order.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_cuts_against_taking_edges_away(seed):
    rng = np.random.default_rng(seed)
    n = 16
    pairs = [pair for pair in combinations(range(n), 2) if rng.random() < 0.14]
    edges = [(a, b, rng.integers(60, 100) / 100, rng.integers(40, 100) / 100) for a, b in pairs]
    graph = parsed(n, edges)
    labels = labels_of(graph)
    stayed = {(a, b): np.float32(p) * np.float32(ni) for a, b, p, ni in edges if ni > 0.5}
    expected, slow = slow_suspicion(n, stayed, labels)
    found = best_cuts(Pairs.of(graph), labels, len(expected), seed)
    np.testing.assert_allclose(found.suspicion, expected, atol=1e-6)
    for c, (rating, _) in slow.items():
        if rating == 0:
            continue
        cut = tuple(tuple(ends.tolist()) for ends in (found.first[c], found.second[c]) if ends[0] >= 0)
        parts = pieces_without(n, set(stayed), cut)
        piece = found.piece(c)
        assert len(piece) == found.pieces[c]
        assert len(np.unique(parts[piece])) == 1
        assert set(piece) == set(np.flatnonzero(parts == parts[piece[0]]))


def test_a_long_ring_is_cut_in_the_middle():
    n = 1500
    edges = parsed(n, [(i, i + 1, 0.8, 0.75) for i in range(n - 1)] + [(0, n - 1, 0.8, 0.75)])
    found = review(edges, labels_of(edges))
    assert abs(int(found.cuts.pieces[0]) - n // 2) <= 6  # of long chains, evenly spread edges are rated
    np.testing.assert_allclose(found.cuts.suspicion, 1 - 1.2 / 3, atol=2e-3)


def test_directed_lists_become_pairs_with_the_higher_values():
    edges = EdgeList.from_rows(
        np.array([0, 0, 1, 2]), np.array([2, 1, 0, 1], np.int32), np.array([0.6, 0.7, 0.8, 0.9], np.float32), 3
    )
    intimacy = np.array([0.2, 0.9, 0.3, 0.1], np.float32)
    pairs = Pairs.of(ParsedEdges(edges, intimacy, intimacy > 0.5))
    assert pairs.cols.tolist() == [1, 2, 0, 2, 0, 1]
    np.testing.assert_allclose(pairs.scores, [0.8, 0.6, 0.8, 0.9, 0.6, 0.9], rtol=1e-6)
    np.testing.assert_allclose(pairs.intimacy, [0.9, 0.2, 0.9, 0.1, 0.2, 0.1], rtol=1e-6)
    assert pairs.kept.tolist() == [True, False, True, False, False, False]
    assert pairs.find(2, 1) == 5
    assert pairs.find(2, 2) == -1


def test_merge_candidates_by_how_nearly_an_edge_stayed():
    edges = parsed(
        9,
        [
            *clique(range(3)),
            *clique(range(3, 6)),
            *clique(range(6, 8)),
            (0, 3, 0.8, 0.3),
            (1, 4, 0.7, 0.45),
            (2, 6, 0.99, 0.48),
            (5, 8, 0.8, 0.1),
        ],
    )
    labels = labels_of(edges)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    found = merge_candidates(Pairs.of(edges), labels, Decision(0.6, 0.5))
    assert list(zip(found.first, found.second, found.count, strict=True)) == [(0, 2, 1), (0, 1, 2), (1, 3, 1)]
    assert list(zip(found.a, found.b, strict=True)) == [(2, 6), (1, 4), (5, 8)]
    np.testing.assert_allclose(found.margins, [-0.02, -0.05, -0.4], atol=1e-6)
    np.testing.assert_allclose(found.scores, [0.99, 0.7, 0.8], rtol=1e-6)
    by_p = merge_candidates(Pairs.of(edges), labels, Decision(0.6, 0.5, partition="infomap"))
    assert list(zip(by_p.a, by_p.b, strict=True)) == [(2, 6), (0, 3), (5, 8)]
    np.testing.assert_array_equal(by_p.margins, by_p.scores)


def test_no_edge_at_all():
    none = EdgeList(np.zeros(4, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), symmetric=True)
    edges = ParsedEdges(none, np.empty(0, np.float32), np.empty(0, bool))
    found = review(edges, np.arange(3))
    assert found.cohesion.tolist() == found.cuts.suspicion.tolist() == [0, 0, 0]
    assert merge_candidates(Pairs.of(edges), np.arange(3), Decision(0.5, 0.5)).first.size == 0


def test_the_table_has_the_measures_of_each_instance_s_cluster(tmp_path):
    edges = parsed(11, [*clique(range(4)), *clique(range(4, 8)), (3, 4, 0.7, 0.6), (8, 9, 0.9, 0.9), (0, 10, 0.8, 0.2)])
    labels = labels_of(edges)
    write_clustering(tmp_path, labels, np.zeros(11, np.float32), instance_columns(edges, labels))
    table = pq.read_table(tmp_path / "clusters.parquet").to_pydict()
    assert list(table)[:3] == ["row", "label", "confidence"]
    assert table["weakest_bridge_a"] == [3] * 8 + [8, 8, None]
    assert table["weakest_bridge_b"] == [4] * 8 + [9, 9, None]
    np.testing.assert_allclose(table["weakest_bridge_score"][:10], [0.7] * 8 + [0.9] * 2, rtol=1e-6)
    assert table["weakest_bridge_score"][10] is None
    assert table["suspicion"][0] > 0.5 > table["suspicion"][8] == table["suspicion"][10] == 0
    assert table["cohesion"][10] == 0


def test_clusters_that_were_left_out_as_too_small_are_told_apart():
    edges = parsed(9, [*clique(range(4)), *clique(range(4, 7)), (7, 8, 0.7, 0.6)])
    labels = labels_of(edges)
    partly = np.where(labels < 1, labels, -1)
    np.testing.assert_array_equal(numbered(Pairs.of(edges), partly), labels)


@pytest.mark.parametrize("before", range(6))
def test_of_equal_cuts_the_same_one_counts_whatever_else_is_measured(before):
    """Two rings of four that share an instance have equal cuts; triangles before them have edges of lower numbers."""
    n = 3 * before + 7
    rings = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 4), (4, 5), (5, 6), (0, 6)]
    edges = [edge for at in range(before) for edge in clique(range(3 * at, 3 * at + 3))]
    graph = parsed(n, [*edges, *[(a + 3 * before, b + 3 * before, 0.9, 0.9) for a, b in rings]])
    labels = np.repeat(np.arange(before + 1), [3] * before + [7])
    whole = instance_columns(graph, labels)
    found = instance_columns(graph, labels, pa.table(whole), np.arange(before + 1) == before)
    assert whole["weakest_bridge_a"][n - 1].is_valid
    assert all(found[name].equals(whole[name]) for name in COLUMNS)


def test_only_changed_clusters_are_measured_again():
    """Two steps: edges that come and go, and a row that is removed; a slow twin measures everything."""
    before = parsed(11, [*clique(range(4)), *clique(range(4, 8)), (3, 4, 0.7, 0.6), (8, 9, 0.9, 0.9)])
    labels = np.array([0] * 8 + [1, 1, 2])
    earlier = pa.table(instance_columns(before, labels))
    after = parsed(12, [*clique(range(4)), *clique(range(4, 8)), (8, 9, 0.7, 0.9), (9, 11, 0.8, 0.8)])
    labels = np.array([0] * 4 + [3] * 4 + [1, 1, -1, 1])
    expected = instance_columns(after, labels)
    assert expected["weakest_bridge_a"].to_pylist() == [None] * 8 + [8, 8, None, 8]
    found = instance_columns(after, labels, earlier, np.array([True, True, False, True]))
    assert all(found[name].equals(expected[name]) for name in COLUMNS)
    kept = instance_columns(after, labels, earlier, np.array([False, True, False, True]))
    assert kept["suspicion"][0] == earlier["suspicion"][0]  # not measured: as before
    assert kept["weakest_bridge_a"].to_pylist() == [3] * 4 + [None] * 4 + [8, 8, None, 8]
