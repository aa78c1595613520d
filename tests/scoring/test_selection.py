"""Test inference of the extended method: the selector's fast form, the choice of scales, candidates, and the whole."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.edges import edge_set
from helpers.samples import blobs, random_graph, unit
from starfc.clustering.pipeline import cluster, cluster_dynamic
from starfc.errors import InputError
from starfc.graph.affinity import affinity_edges, propagation_matrix
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.scoring import projections, selection
from starfc.scoring.projections import edge_probabilities, parse_affinity, parse_graph, project_nodes
from starfc.scoring.selector import HalfSelector

SCALES = (6, 9, 13)


def hierarchical(width: int = 32, dim: int = 16, seed: int = 0) -> HierarchicalModel:
    """A model whose every parameter is random, biases and normalisations too."""
    generator = torch.Generator().manual_seed(seed)
    model = HierarchicalModel(dim, width, init="metric", scales=SCALES, generator=generator).eval()
    with torch.no_grad():
        for parameter in [*model.selector.parameters(), model.backbone.conv1.bias]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def case():
    features, labels = blobs(identities=20, noise=0.6)
    features = unit(features)
    return features, labels, build_knn(features, 13), hierarchical()


def float64_nodes(features, graph, model) -> tuple[np.ndarray, np.ndarray]:
    """Spec sections 2, 3 and 7 written out in float64: tokens (N, 3, h), and the selector's logits (N, 3)."""
    double = copy.deepcopy(model).double()
    own = torch.from_numpy(features).double()
    cuts = [KnnGraph(graph.ids[:, : k - 1].copy(), graph.sims[:, : k - 1].copy()) for k in SCALES]
    means = [torch.from_numpy(propagation_matrix(cut).toarray().astype(np.float64)) @ own for cut in cuts]
    with torch.inference_mode():
        tokens = torch.stack([double.backbone(own, mean) for mean in means], dim=1)
        return tokens.numpy(), double.selector(tokens).numpy()


def float64_probabilities(features, graph, model) -> np.ndarray:
    """p of every ordered pair (N, N), of the fused embeddings."""
    tokens, logits = float64_nodes(features, graph, model)
    double = copy.deepcopy(model).double()
    n = len(features)
    with torch.inference_mode():
        u, v = double.head.project(torch.from_numpy(tokens[np.arange(n), logits.argmax(axis=1)]))
        rows, cols = (torch.from_numpy(x.ravel()) for x in np.indices((n, n)))
        return torch.sigmoid(double.head.pair_logits(u[rows], v[cols])).numpy().reshape(n, n)


@pytest.mark.long
@pytest.mark.parametrize("width", [32, 100])
def test_the_selectors_fast_form_keeps_differences(width):
    """Tokens that lie close together: differences of logits are right to a bfloat16's digits, whatever the logits."""
    generator = torch.Generator().manual_seed(1)
    selector = hierarchical(width).selector
    base = torch.randn(700, 1, width, generator=generator).relu()
    tokens = base + 0.02 * torch.randn(700, 3, width, generator=generator)
    with torch.inference_mode():
        exact = copy.deepcopy(selector).double()(tokens.double()).numpy()
    ours, spreads = HalfSelector(selector)(tokens.numpy())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, atol=0.05)
    apart, found = exact - exact[:, 1:2], ours - ours[:, 1:2]
    assert np.abs(found - apart).max() < 0.05 * np.abs(apart).max()
    normal = selector.block.norm1(tokens).detach().numpy()
    np.testing.assert_allclose(spreads, np.linalg.norm(normal - normal[:, 1:2], axis=2).max(axis=1), rtol=1e-4)
    plain = copy.deepcopy(selector).bfloat16()(tokens.bfloat16()).float().detach().numpy()
    assert np.abs(found - apart).max() < 0.2 * np.abs(plain - plain[:, 1:2] - apart).max()


def test_the_selectors_fast_form_takes_tokens_that_are_all_alike():
    tokens = np.repeat(np.random.default_rng(0).random((5, 1, 32), np.float32), 3, axis=1)
    logits, spreads = HalfSelector(hierarchical().selector)(tokens)
    assert not spreads.any()
    np.testing.assert_allclose(logits, logits[:, :1].repeat(3, axis=1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_are_those_of_exact_arithmetic(case, monkeypatch, dtype):
    features, _, graph, model = case
    monkeypatch.setattr(selection, "product_dtype", lambda: dtype)
    tokens, logits = float64_nodes(features, graph, model)
    nodes = project_nodes(model, features, graph)
    alike = np.ptp(tokens, axis=1).max(axis=1) < 1e-12  # equal tokens have equal logits; any choice is right
    assert np.count_nonzero(alike) < len(alike) / 10
    np.testing.assert_array_equal(nodes.choice[~alike], logits.argmax(axis=1)[~alike])
    assert len(np.unique(nodes.choice)) == 3
    rows = np.random.default_rng(0).permutation(len(features))[:50]
    expected = tokens[rows, nodes.choice[rows]]
    np.testing.assert_allclose(nodes.embed(rows).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(nodes.in_double().embed(rows).numpy(), expected, atol=1e-6)


@pytest.mark.long
def test_bfloat16_products_leave_little_to_float32(case, monkeypatch):
    """What is chosen for again are the near-ties, and they are chosen for in float32."""
    features, _, graph, model = case
    monkeypatch.setattr(selection, "product_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(selection, "_SAMPLE", 64)
    again = []
    in_float32 = selection._logits
    monkeypatch.setattr(selection, "_logits", lambda s, tokens: again.append(len(tokens)) or in_float32(s, tokens))
    project_nodes(model, features, graph)
    assert sum(again) < 64 + len(features) / 2


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tau1", [0.3, 0.6])
def test_candidates_are_the_stored_entries_of_the_largest_graph(case, monkeypatch, tau1, dtype):
    features, _, graph, model = case
    monkeypatch.setattr(selection, "product_dtype", lambda: dtype)
    p = float64_probabilities(features, graph, model)
    nodes = project_nodes(model, features, graph)
    rows, cols, _ = affinity_edges(graph, SCALES)
    best = np.maximum(p[rows, cols], p[cols, rows])
    wanted = {(i, j): q for i, j, q in zip(rows.tolist(), cols.tolist(), best, strict=True) if i != j and q > tau1}
    edges = parse_affinity(nodes, tau1)
    assert list(zip(edges.rows.tolist(), edges.cols.tolist(), strict=True)) == list(wanted)
    np.testing.assert_allclose(edges.scores, list(wanted.values()), atol=2e-3)
    listed = {(i, j) for i in range(len(features)) for j in graph.ids[i, : SCALES[-1] - 1].tolist() if j >= 0}
    assert edge_set(parse_graph(nodes, tau1)) == {(i, j) for i, j in listed if p[i, j] > tau1}
    np.testing.assert_allclose(edge_probabilities(nodes, rows, cols), p[rows, cols], atol=1e-5)


@pytest.mark.long
@settings(deadline=None, max_examples=25)
@given(st.integers(14, 40), st.integers(0, 2**31 - 1), st.floats(0.02, 0.98), st.sampled_from([0.0, 0.3]))
def test_parsing_the_affinity_equals_its_twin(n, seed, tau1, th_sim):
    """A basic model on random graphs, missing entries and asymmetric similarities among them."""
    features = unit(np.random.default_rng(seed).normal(size=(n, 7)))
    graph = random_graph(n, 12, seed)
    nodes = project_nodes(StarFCModel(7, 24, generator=torch.Generator().manual_seed(seed)), features, graph, th_sim)
    stored = propagation_matrix(graph, th_sim).tocoo()
    rows, cols = (x[stored.row != stored.col] for x in (stored.row, stored.col))
    exact = nodes.in_double()
    best = np.maximum(edge_probabilities(exact, rows, cols), edge_probabilities(exact, cols, rows))
    expected = {(i, j) for i, j, q in zip(rows.tolist(), cols.tolist(), best, strict=True) if q > tau1}
    assert edge_set(parse_affinity(nodes, tau1)) == expected


def test_order_blocks_and_slices_change_no_pair(case, monkeypatch):
    features, _, graph, model = case
    whole = parse_affinity(project_nodes(model, features, graph), 0.5)
    order = np.random.default_rng(0).permutation(len(features)).astype(np.int32)
    for rows, target_bytes in ((7, 7 * 64), (1000, 1 << 30), (50, 100 * 64)):
        monkeypatch.setattr(projections, "ROW_BLOCK", rows)
        again = parse_affinity(project_nodes(model, features, graph, order=order), 0.5, target_bytes)
        np.testing.assert_array_equal(again.indptr, whole.indptr)
        np.testing.assert_array_equal(again.cols, whole.cols)


def test_both_methods_cluster_with_a_hierarchical_model(case):
    features, _, graph, model = case
    dynamic = cluster_dynamic(features, graph, model, tau1=0.5, tau2=0.6)
    pairs = parse_affinity(project_nodes(model, features, graph), 0.5)
    assert dynamic.edges_parsed == len(pairs) // 2
    assert 0 < dynamic.edges_refined < dynamic.edges_parsed
    assert len(dynamic.labels) == len(features)
    basic = cluster(features, graph, model, tau1=0.5, tau2=0.5)
    assert basic.edges_parsed == len(parse_graph(project_nodes(model, features, graph), 0.5))


def test_relabelling_instances_permutes_the_labels(case):
    features, _, _, model = case
    order = np.random.default_rng(0).permutation(len(features))
    run = lambda x: cluster_dynamic(x, build_knn(x, 13), model, tau1=0.5, tau2=0.6).labels  # noqa: E731
    ours, permuted = run(features)[order], run(features[order])
    np.testing.assert_array_equal(ours[:, None] == ours, permuted[:, None] == permuted)


def test_a_graph_too_shallow_for_the_model_is_refused(case):
    features, _, _, model = case
    with pytest.raises(InputError, match=r"k: at least 13 needed by a model with scales of \(6, 9, 13\) neighbours"):
        cluster_dynamic(features, build_knn(features, 12), model, tau1=0.5, tau2=0.6)


def test_fewer_nodes_than_neighbours(case):
    features, _, _, model = case
    few = features[:10].copy()
    result = cluster_dynamic(few, build_knn(few, 9), model, tau1=0.5, tau2=0.6)
    assert len(result.labels) == 10
