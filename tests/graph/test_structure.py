"""Compare structural features of candidate edges with a slow twin of the table that defines them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.samples import blobs, random_graph, unit
from starfc.data.dataset import as_features
from starfc.errors import InputError
from starfc.graph.affinity import propagation_matrix
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.graph.structure import (
    FEATURES,
    FIRST_FEATURES,
    CandidateEdges,
    EdgeLogits,
    Structure,
    encode,
    smooth,
    smooth_rows,
    smoothing_affinity,
)

PLACES = (1, 5, 10, 20, 40)


class Twin:
    """The table of :mod:`starfc.graph.structure`, an entry at a time, with dictionaries and sets."""

    def __init__(self, graph: KnnGraph, columns: int, candidates: int) -> None:
        longest = max(1, int((graph.ids >= 0).sum(axis=1).max()))
        self.k, self.candidates = min(columns, longest), candidates
        self.sims = graph.sims[:, : self.k].astype(float)
        self.lists = [[int(m) for m in row[: self.k] if m >= 0] for row in graph.ids]
        self.depth = [{m: a + 1 for a, m in enumerate(row)} | {i: 0} for i, row in enumerate(self.lists)]
        self.sim = [dict(zip(row, sims, strict=False)) for row, sims in zip(self.lists, self.sims, strict=True)]

    def is_candidate(self, i: int, j: int) -> bool:
        return j in self.lists[i][: self.candidates]

    def owned(self, i: int) -> list[int]:
        return [j for j in self.lists[i][: self.candidates] if i < j or not self.is_candidate(j, i)]

    def common(self, i: int, j: int) -> set[int]:
        return (set(self.lists[i]) & set(self.lists[j])) - {i, j}

    def transition(self, i: int) -> dict[int, float]:
        weights = {m: math.exp(-(2 - 2 * s) / 0.1) for m, s in self.sim[i].items()}
        return {m: w / sum(weights.values()) for m, w in weights.items()}

    def first(self, i: int, j: int) -> list[float]:
        k, s, common = self.k, self.sim[i][j], self.common(i, j)
        row = []
        for t in (5, 10, 20, 40, k):
            t = min(t, k)
            near_i, near_j = ({m for m, d in self.depth[end].items() if d <= t} for end in (i, j))
            row.append(len(near_i & near_j) / t)
        p_i, p_j = self.transition(i), self.transition(j)
        row.append(math.log(sum(p_i[m] + p_j[m] for m in common) / 2 + 1e-4))
        shared = [min(self.sim[i][m], self.sim[j][m]) for m in common]
        row.append((sum(shared) / len(shared) if shared else 0) - s)
        at = [min(t, k) - 1 for t in (*PLACES, k)]
        profiles = [self.sims[end, at] - s for end in (i, j)]
        profiles.sort(key=lambda p: (p[3], *p), reverse=True)
        return row + [float(profile[c]) for c in range(6) for profile in profiles] + [0.0]  # no smoothing

    def second(self, i: int, j: int, p: dict[tuple[int, int], float]) -> list[float]:
        def of(a: int, b: int) -> float:
            return p.get((a, b), 0.0)

        common = self.common(i, j)
        pairs = [(of(i, m), of(j, m)) for m in common]
        c = sum(x * y for x, y in pairs)
        degrees = [sum(of(end, m) for m in self.lists[end]) for end in (i, j)]
        a, b = sorted((degrees[0] - of(i, j) + 0.5, degrees[1] - of(j, i) + 0.5))
        lower = [min(x, y) for x, y in pairs]
        return [
            math.log(of(i, j) / (1 - of(i, j))), c / a, c / b, c / math.sqrt(a * b), math.log(c + 0.1), math.log(a),
            math.log(b), max(lower, default=0.0), sum(lower) / b, sum(abs(x - y) for x, y in pairs) / (len(common) + 1),
        ]  # fmt: skip


def symmetric_graph(n: int, k: int, seed: int) -> KnnGraph:
    """The lists of ``random_graph`` with one similarity for every pair, as embeddings have it; many are tied."""
    ids = random_graph(n, k, seed).ids
    sims = np.random.default_rng(seed).integers(0, 5, (n, n)) / 4
    sims = np.maximum(sims, sims.T)
    return tidy(ids, sims[np.arange(n)[:, None], ids], np.arange(n), n)


def ends(graph: KnnGraph, pairs: CandidateEdges) -> list[tuple[int, int]]:
    return list(zip(pairs.rows.tolist(), graph.ids[pairs.rows, pairs.slots].tolist(), strict=True))


def some_logits(graph: KnnGraph, structure: Structure, seed: int) -> tuple[EdgeLogits, dict]:
    """Random logits of all candidates, and the probabilities that they stand for, in both directions stored."""
    pairs = structure.first_round(np.arange(graph.num_nodes))
    codes = encode(np.random.default_rng(seed).normal(0, 4, len(pairs.local)).astype(np.float32))
    before = EdgeLogits(structure)
    before.put(pairs, codes)
    before.sum_degrees(np.arange(graph.num_nodes))
    p = {}
    for (i, j), code in zip(ends(graph, pairs), codes.tolist(), strict=True):
        p[i, j] = 1 / (1 + math.exp(-code / 16))
        if i in graph.ids[j, : min(structure.candidates, structure.columns)]:
            p[j, i] = p[i, j]
    return before, p


# nodes, neighbours, columns, candidates: lists longer and shorter than every prefix; more columns than there are
SHAPES = [
    (70, 50, 50, 40),
    (60, 45, 45, 12),
    (40, 30, 24, 6),
    (30, 8, 8, 4),
    (12, 4, 4, 9),
    (25, 12, 60, 12),
    (9, 1, 1, 1),
]


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_both_rounds_equal_the_twin(shape, seed):
    n, k, columns, candidates = shape
    graph = random_graph(n, k, seed)
    structure, twin = Structure(graph, columns, candidates), Twin(graph, columns, candidates)
    before, p = some_logits(graph, structure, seed)
    first = structure.first_round(np.arange(n))
    second = structure.second_round(np.arange(n), before)
    assert (first.features.shape[1], second.features.shape[1]) == (FIRST_FEATURES, FEATURES)
    edges = ends(graph, first)
    assert edges == ends(graph, second) == [(i, j) for i in range(n) for j in twin.owned(i)]
    expected = np.array([twin.first(i, j) for i, j in edges]).reshape(-1, FIRST_FEATURES)
    np.testing.assert_allclose(first.features, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(second.features[:, :FIRST_FEATURES], first.features)
    expected = np.array([twin.second(i, j, p) for i, j in edges]).reshape(-1, FEATURES - FIRST_FEATURES)
    np.testing.assert_allclose(second.features[:, FIRST_FEATURES:], expected, rtol=2e-5, atol=1e-5)
    for (i, j), back in zip(edges, first.back.tolist(), strict=True):
        assert back == twin.depth[j].get(i, 0) - 1


def test_on_embeddings_the_table_of_weights_costs_a_hundredth_of_a_logarithm():
    graph = exact_knn(unit(blobs(noise=0.8)[0]), 50)
    twin, pairs = Twin(graph, 49, 20), Structure(graph, 49, 20).first_round(np.arange(0, 180, 5))
    expected = np.array([twin.first(i, j) for i, j in ends(graph, pairs)])
    others = np.arange(FIRST_FEATURES) != 5
    np.testing.assert_allclose(pairs.features[:, others], expected[:, others], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pairs.features[:, 5], expected[:, 5], atol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_candidate_edge_is_owned_once(shape):
    n, k, columns, candidates = shape
    graph = random_graph(n, k, 3)
    pairs = Structure(graph, columns, candidates).first_round(np.arange(n))
    listed = graph.ids[:, : min(columns, candidates)]
    wanted = {frozenset((i, int(j))) for i in range(n) for j in listed[i] if j >= 0}
    found = [frozenset(edge) for edge in ends(graph, pairs)]
    assert len(found) == len(wanted)
    assert set(found) == wanted


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_candidate_of_a_node_is_the_same_from_either_end(shape, seed):
    n, k, columns, candidates = shape
    graph = symmetric_graph(n, k, seed)
    structure = Structure(graph, columns, candidates)
    owned = structure.first_round(np.arange(n))
    features = {frozenset(edge): row for edge, row in zip(ends(graph, owned), owned.features, strict=True)}
    nodes = np.random.default_rng(seed).permutation(n)[: n // 2 + 1]
    every = structure.first_round(nodes, every=True)
    listed = graph.ids[:, : min(columns, candidates)]
    assert ends(graph, every) == [(int(i), int(j)) for i in nodes for j in listed[i] if j >= 0]
    for edge, row in zip(ends(graph, every), every.features, strict=True):
        np.testing.assert_allclose(row, features[frozenset(edge)], rtol=1e-5, atol=1e-5)


def test_blocks_and_their_order_change_nothing():
    graph = random_graph(60, 45, 5)
    structure = Structure(graph, 45, 12)
    before, _ = some_logits(graph, structure, 5)
    whole = structure.second_round(np.arange(60), before)
    rows = dict(zip(ends(graph, whole), whole.features, strict=True))
    order, seen = np.random.default_rng(0).permutation(60), 0
    for size in (1, 7, 60):
        for start in range(0, 60, size):
            part = structure.second_round(order[start : start + size], before)
            assert (np.diff(part.local) >= 0).all()
            for edge, row in zip(ends(graph, part), part.features, strict=True):
                np.testing.assert_array_equal(row, rows[edge])
            seen += len(part.local)
    assert seen == 3 * len(rows)
    none = structure.first_round(np.empty(0, np.int64))
    assert none.features.shape == (0, FIRST_FEATURES)


def test_relabelling_nodes_permutes_the_result():
    """Lists keep their order, so that ties stay as they were."""
    n = 60
    for graph in (symmetric_graph(n, 45, 6), symmetric_graph(n, 8, 7)):
        name = np.random.default_rng(1).permutation(n).astype(np.int32)  # the new name of every node
        ids, sims = np.empty_like(graph.ids), np.empty_like(graph.sims)
        ids[name], sims[name] = np.where(graph.ids >= 0, name[graph.ids], -1), graph.sims
        renamed = KnnGraph(ids, sims)
        here = Structure(graph, graph.k, 12).first_round(np.arange(n))
        there = Structure(renamed, graph.k, 12).first_round(np.arange(n))
        found = {frozenset(edge): row for edge, row in zip(ends(renamed, there), there.features, strict=True)}
        assert len(found) == len(here.local)
        for (i, j), row in zip(ends(graph, here), here.features, strict=True):
            np.testing.assert_allclose(found[frozenset((int(name[i]), int(name[j])))], row, rtol=1e-5, atol=1e-5)


def test_logits_are_stored_at_both_ends_and_summed():
    """0 and 1 list each other; 2 lists 0, which has it beyond its two candidates; 3 lists nobody."""
    ids = np.array([[1, 3, 2], [0, -1, -1], [0, -1, -1], [-1, -1, -1]], np.int32)
    sims = np.array([[0.9, 0.8, 0.7], [0.9, 0, 0], [0.7, 0, 0], [0, 0, 0]], np.float32)
    structure = Structure(KnnGraph(ids, sims), 3, 2)
    pairs = structure.first_round(np.arange(4))
    assert list(zip(pairs.rows, pairs.slots, pairs.back, strict=True)) == [(0, 0, 0), (0, 1, -1), (2, 0, 2)]
    before = EdgeLogits(structure)
    before.put(pairs, encode(np.array([1, -2, 100], np.float32)))
    np.testing.assert_array_equal(
        before.codes, [[16, -32, -128], [16, -128, -128], [127, -128, -128], [-128, -128, -128]]
    )
    p = [1 / (1 + math.exp(-z)) for z in (1, -2, 127 / 16)]
    expected = [p[0] + p[1], p[0], p[2], 0]
    before.sum_degrees(np.array([2, 0]))
    np.testing.assert_allclose(before.degrees, [expected[0], 0, expected[2], 0], rtol=1e-6)
    before.sum_degrees(np.arange(4))
    np.testing.assert_allclose(before.degrees, expected, rtol=1e-6)


def test_codes_are_sixteenths():
    logits = np.array([0, 0.03, 0.04, -3.5, -100, 7.9], np.float32)
    np.testing.assert_array_equal(encode(logits), [0, 0, 1, -56, -127, 126])


def test_longer_lists_than_a_byte_counts_are_refused():
    graph = random_graph(10, 5, 0)
    Structure(graph, 253, 5)
    with pytest.raises(InputError, match="structural features: at most 253 neighbours allowed; found 254"):
        Structure(graph, 254, 5)


@pytest.mark.long
@pytest.mark.parametrize("neighbours", [0, 3, 11, 40])
def test_smoothed_nodes_are_one_graph_convolution_and_their_similarity_is_a_column(neighbours):
    features = unit(blobs()[0])
    graph = exact_knn(features, 12)
    nodes = smooth(graph, features, neighbours, order=np.random.default_rng(0).permutation(len(features)))
    pairs = Structure(graph, 11, 5, nodes).first_round(np.arange(len(features)))
    if neighbours == 0:
        assert nodes.shape == (len(features), 0)
        assert (pairs.features[:, 19] == 0).all()
        return
    nearest = KnnGraph(graph.ids[:, :neighbours], graph.sims[:, :neighbours])
    mean = propagation_matrix(nearest, 0.0) @ features
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(nodes, expected, atol=1e-3)
    ids, sims = graph.ids[pairs.rows, pairs.slots], graph.sims[pairs.rows, pairs.slots]
    np.testing.assert_allclose(pairs.features[:, 19], (expected[pairs.rows] * expected[ids]).sum(1) - sims, atol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("neighbours", [0, 3, 40])
def test_edges_within_some_nodes_are_seen_as_in_the_whole_graph(neighbours):
    features = unit(blobs()[0])
    graph = exact_knn(features, 12)
    rows = np.random.default_rng(1).permutation(len(features))[:30]
    within = np.unique(np.concatenate([rows, graph.ids[rows, :5].ravel()]))[::-1]
    whole = Structure(graph, 11, 5, smooth(graph, features, neighbours))
    nodes = np.empty((len(within), features.shape[1] if neighbours else 0), np.float16)
    if neighbours:
        wanted = np.isin(np.arange(len(features)), within)
        affinity = smoothing_affinity(graph, neighbours, wanted=wanted)
        smooth_rows(affinity, as_features(features), within, np.arange(len(within)), nodes)
        np.testing.assert_array_equal(nodes, whole.nodes[within])
    some = Structure(graph, 11, 5, nodes, within)
    for every in (True, False):
        found, expected = (structure.first_round(rows, every=every) for structure in (some, whole))
        np.testing.assert_array_equal(found.slots, expected.slots)
        np.testing.assert_array_equal(found.features, expected.features)
