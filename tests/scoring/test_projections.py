"""Compare edge scores from node projections, and the parsed graph, with the network written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.edges import edge_set
from helpers.samples import blobs, random_graph, unit
from starfc.graph.affinity import propagation_matrix
from starfc.graph.knn import build_knn
from starfc.models.gcn import StarFCModel
from starfc.scoring import projections
from starfc.scoring.projection_kernels import score_rows, score_rows_torch
from starfc.scoring.projections import edge_probabilities, own_candidates, parse_graph, project_nodes, score_entries


@pytest.fixture(scope="module")
def scored():
    features, labels = blobs()
    features = unit(features)
    graph = build_knn(features, 12)
    model = StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0))
    return features, labels, graph, model, project_nodes(model, features, graph)


def exact_scores(features, graph, model) -> np.ndarray:
    """Spec sections 2 to 4 written out, in float64: p of every kNN entry (N, k), NaN where there is none."""
    aggregated = propagation_matrix(graph).toarray().astype(np.float64) @ features
    state = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
    both = np.concatenate([features, aggregated], axis=1)
    x = np.maximum(both @ state["backbone.conv1.weight"] + state["backbone.conv1.bias"], 0)
    p = np.full(graph.ids.shape, np.nan)
    for i, c in zip(*np.nonzero(graph.ids >= 0), strict=True):
        pair = np.concatenate([x[i], x[graph.ids[i, c]]])
        hidden = state["head.classifier.0.weight"] @ pair + state["head.classifier.0.bias"]
        hidden = np.where(hidden > 0, hidden, hidden * state["head.classifier.1.weight"])
        z = state["head.classifier.2.weight"] @ hidden + state["head.classifier.2.bias"]
        p[i, c] = 1 / (1 + np.exp(z[0] - z[1]))
    return p


def bits_of(edges) -> dict[tuple[int, int], bytes]:
    """The exact p of each edge."""
    ends = zip(edges.rows.tolist(), edges.cols.tolist(), strict=True)
    return {pair: p.tobytes() for pair, p in zip(ends, edges.scores, strict=True)}


@pytest.mark.long
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 70), st.integers(0, 2**31 - 1), st.floats(0.02, 0.98))
def test_parsing_equals_its_twin(n, k, width, seed, tau1):
    """Random graphs with missing entries, odd widths: the edges of float32, and p within half precision's error."""
    features = unit(np.random.default_rng(seed).normal(size=(n, 7)))
    graph = random_graph(n, k, seed)
    model = StarFCModel(7, width, generator=torch.Generator().manual_seed(seed))
    p = exact_scores(features, graph, model)
    edges = parse_graph(project_nodes(model, features, graph), tau1)
    sure = {(i, graph.ids[i, c]) for i, c in zip(*np.nonzero(p > tau1 + 1e-6), strict=True)}
    possible = {(i, graph.ids[i, c]) for i, c in zip(*np.nonzero(p > tau1 - 1e-6), strict=True)}
    assert sure <= edge_set(edges) <= possible
    expected = {(i, graph.ids[i, c]): p[i, c] for i, c in zip(*np.nonzero(graph.ids >= 0), strict=True)}
    for i, j, score in zip(edges.rows.tolist(), edges.cols.tolist(), edges.scores, strict=True):
        assert score == pytest.approx(expected[i, j], abs=2e-3)


def test_order_blocks_and_slices_change_no_edge(scored, monkeypatch):
    features, _, graph, model, nodes = scored
    edges = parse_graph(nodes, 0.4)
    whole, scores = edge_set(edges), bits_of(edges)
    order = np.random.default_rng(0).permutation(len(features)).astype(np.int32)
    for rows, target_bytes in ((1, 1 << 30), (7, 7 * 64), (1000, 1 << 30), (50, 100 * 64)):
        monkeypatch.setattr(projections, "ROW_BLOCK", rows)
        again = parse_graph(project_nodes(model, features, graph, order=order), 0.4, target_bytes)
        assert edge_set(again) == whole
        assert len(again) == len(whole)
        assert bits_of(again) == scores


def test_p_of_an_edge_does_not_depend_on_the_others(scored):
    _, _, graph, _, nodes = scored
    rows, column = np.nonzero(graph.ids >= 0)
    cols = graph.ids[rows, column]
    for some in (nodes, nodes.in_double()):
        p = edge_probabilities(some, rows, cols)
        for part in (slice(0, 1), slice(3, 70), slice(None, None, 3)):
            np.testing.assert_array_equal(edge_probabilities(some, rows[part], cols[part]), p[part])


def test_edges_near_the_threshold_are_decided_by_the_whole_network(scored):
    """Thresholds that are the float32 probabilities of edges: p > τ1 must leave just those edges out."""
    _, _, graph, _, nodes = scored
    rows, column = np.nonzero(graph.ids >= 0)
    cols = graph.ids[rows, column]
    p = edge_probabilities(nodes, rows, cols)
    for at in np.argsort(p)[:: len(p) // 40]:
        kept = edge_set(parse_graph(nodes, float(p[at])))
        close = np.abs(p - p[at]) < 1e-6  # the error of float32; these are decided in float64
        expected = set(zip(rows[p > p[at]].tolist(), cols[p > p[at]].tolist(), strict=True))
        assert kept ^ expected <= set(zip(rows[close].tolist(), cols[close].tolist(), strict=True))


def test_scores_are_the_head_written_out(scored):
    features, _, graph, model, nodes = scored
    p = exact_scores(features, graph, model)
    (rows, entries) = next(iter(score_entries(nodes)))
    np.testing.assert_array_equal(rows, np.arange(len(features)))
    np.testing.assert_array_equal(entries.cols, graph.ids[graph.ids >= 0])
    np.testing.assert_allclose(entries.scores, p[graph.ids >= 0], atol=2e-3)
    exact = edge_probabilities(nodes, rows[entries.local], entries.cols)
    np.testing.assert_allclose(exact, p[graph.ids >= 0], rtol=1e-4, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("first", "count"), [(0, 180), (30, 100), (170, 10)])
@pytest.mark.parametrize("line", [-np.inf, -0.4, 0.0, 4.0])
def test_every_devices_scoring_keeps_the_same_edges(scored, line, first, count):
    """The path that GPUs take, run on the CPU, against the compiled one."""
    _, _, _, _, nodes = scored
    target = torch.from_numpy(nodes.target[first : first + count])
    candidates = own_candidates(nodes, np.arange(20, 90))
    arguments = (
        candidates, nodes.source[20:90], target, first, nodes.source_term[20:90],
        torch.from_numpy(nodes.target_term), torch.from_numpy(nodes.error), nodes.scorer, line,
    )  # fmt: skip
    ours, torchs = score_rows(*arguments), score_rows_torch(*arguments)
    np.testing.assert_array_equal(ours.counts, torchs.counts)
    np.testing.assert_array_equal(ours.cols, torchs.cols)
    np.testing.assert_array_equal(ours.doubtful, torchs.doubtful)
    np.testing.assert_allclose(ours.scores, torchs.scores, rtol=1e-4)
