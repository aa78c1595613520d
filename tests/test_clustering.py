"""Refinement, components, metrics and the pipeline: by hand, against twins, and as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import blobs, random_graph, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import pair_confusion_matrix

from starfc.clustering.components import components, largest_first
from starfc.clustering.pipeline import cluster
from starfc.clustering.refinement import (
    dynamic_thresholds,
    node_intimacy,
    node_intimacy_undirected,
    refine,
    refine_dynamic,
)
from starfc.errors import InputError
from starfc.evaluation.metrics import bcubed, contingency, evaluate, nmi, pairwise
from starfc.evaluation.thresholds import best, sweep_thresholds
from starfc.graph.affinity import propagation_matrix
from starfc.graph.edges import EdgeList, edge_confidence, undirected
from starfc.graph.knn import build_knn
from starfc.models.gcn import StarFCModel
from starfc.scoring import projections
from starfc.scoring.projection_kernels import score_rows, score_rows_torch
from starfc.scoring.projections import edge_probabilities, own_candidates, parse_graph, project_nodes, score_entries


def edge_list(pairs, n, scores=None) -> EdgeList:
    pairs = np.array(sorted(pairs), np.int32).reshape(-1, 2)
    scores = np.ones(len(pairs), np.float32) if scores is None else np.asarray(scores, np.float32)
    return EdgeList.from_rows(pairs[:, 0], pairs[:, 1].copy(), scores, n)


@st.composite
def edge_lists(draw):
    n = draw(st.integers(1, 25))
    pairs = draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])))
    return edge_list(pairs, n)


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


def test_undirected_edges_keep_the_higher_score():
    both = undirected(edge_list([(0, 1), (1, 0), (2, 1)], 3, [0.25, 0.75, 0.5]))
    np.testing.assert_array_equal(both.rows, [0, 1, 1, 2])
    np.testing.assert_array_equal(both.cols, [1, 0, 2, 1])
    np.testing.assert_array_equal(both.scores, np.float32([0.75, 0.75, 0.5, 0.5]))


@settings(deadline=None, max_examples=50)
@given(edge_lists(), st.integers(0, 2**32 - 1))
def test_the_order_in_which_nodes_are_taken_changes_no_intimacy(edges, seed):
    order = np.random.default_rng(seed).permutation(edges.num_nodes)
    np.testing.assert_array_equal(node_intimacy(edges, order), node_intimacy(edges))


@settings(deadline=None, max_examples=60)
@given(edge_lists())
def test_components_equal_a_union_find(edges):
    parent = list(range(edges.num_nodes))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in zip(edges.rows, edges.cols, strict=True):
        parent[root(i)] = root(j)
    expected = np.array([root(i) for i in range(edges.num_nodes)])
    roots = components(edges)
    labels = largest_first(roots)
    assert labels.dtype == np.int64
    assert all(roots[i] == np.flatnonzero(roots == roots[i])[0] for i in range(edges.num_nodes))
    np.testing.assert_array_equal(labels[:, None] == labels, expected[:, None] == expected)
    sizes = np.bincount(labels)
    assert (np.diff(sizes) <= 0).all()
    assert set(labels) == set(range(len(sizes)))


def test_equal_sizes_are_ordered_by_their_first_member():
    np.testing.assert_array_equal(largest_first(np.array([4, 3, 4, 3, 0])), [0, 1, 0, 1, 2])


labelings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(-3, 8), min_size=n, max_size=n) for _ in range(2)))
)


@pytest.mark.filterwarnings("ignore:pairwise")
@settings(deadline=None, max_examples=100)
@given(labelings)
def test_metrics_equal_their_twins(labels):
    truth, predicted = map(np.array, labels)
    table = contingency(truth, predicted)
    (_, false_pairs), (missed, true_pairs) = pair_confusion_matrix(truth, predicted)
    score = pairwise(table)
    assert score.precision == pytest.approx(true_pairs / (true_pairs + false_pairs) if true_pairs + false_pairs else 0)
    assert score.recall == pytest.approx(true_pairs / (true_pairs + missed) if true_pairs + missed else 0)
    same_truth, same_predicted = truth[:, None] == truth, predicted[:, None] == predicted
    both = (same_truth & same_predicted).sum(axis=1)
    assert bcubed(table).precision == pytest.approx((both / same_predicted.sum(axis=1)).mean())
    assert bcubed(table).recall == pytest.approx((both / same_truth.sum(axis=1)).mean())
    assert nmi(table) == pytest.approx(normalized_mutual_info_score(truth, predicted), abs=1e-9)


def test_singletons_have_no_precision_and_say_so():
    with pytest.warns(UserWarning, match="no two instances share a cluster"):
        score = evaluate([0, 0, 1], [0, 1, 2], ("pairwise",))["pairwise"]
    assert score == {"precision": 0.0, "recall": 0.0, "fscore": 0.0}


def test_metrics_refuse_other_lengths():
    with pytest.raises(InputError, match="same length"):
        evaluate([0, 1], [0, 1, 2])


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


def edge_set(edges) -> set[tuple[int, int]]:
    return set(zip(edges.rows.tolist(), edges.cols.tolist(), strict=True))


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
    whole = edge_set(parse_graph(nodes, 0.4))
    order = np.random.default_rng(0).permutation(len(features)).astype(np.int32)
    for rows, target_bytes in ((1, 1 << 30), (7, 7 * 64), (1000, 1 << 30), (50, 100 * 64)):
        monkeypatch.setattr(projections, "ROW_BLOCK", rows)
        again = parse_graph(project_nodes(model, features, graph, order=order), 0.4, target_bytes)
        assert edge_set(again) == whole
        assert len(again) == len(whole)


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


@pytest.mark.parametrize(("first", "count"), [(0, 180), (30, 100), (170, 10)])
@pytest.mark.parametrize("line", [-np.inf, -0.4, 0.0, 4.0])
def test_every_devices_scoring_keeps_the_same_edges(scored, line, first, count):
    """The path that GPUs take, run on the CPU, against the compiled one."""
    _, _, _, _, nodes = scored
    target = torch.from_numpy(nodes.target[first : first + count])
    candidates = own_candidates(nodes, np.arange(20, 90))
    arguments = (
        candidates, nodes.source[20:90], target, first, nodes.source_term[20:90], nodes.target_term, nodes.error,
        nodes.scorer, line,
    )  # fmt: skip
    ours, torchs = score_rows(*arguments), score_rows_torch(*arguments)
    np.testing.assert_array_equal(ours.counts, torchs.counts)
    np.testing.assert_array_equal(ours.cols, torchs.cols)
    np.testing.assert_array_equal(ours.doubtful, torchs.doubtful)
    np.testing.assert_allclose(ours.scores, torchs.scores, rtol=1e-4)


def test_relabelling_instances_permutes_the_labels(scored):
    features, _, _, model, _ = scored
    order = np.random.default_rng(0).permutation(len(features))
    run = lambda x: cluster(x, build_knn(x, 12), model, tau1=0.5, tau2=0.5).labels  # noqa: E731
    ours, permuted = run(features)[order], run(features[order])
    np.testing.assert_array_equal(ours[:, None] == ours, permuted[:, None] == permuted)


def test_clusters_are_found_and_thresholds_can_be_chosen(scored):
    features, labels, graph, model, nodes = scored
    grid = ((0.1, 0.3, 0.5, 0.7), (0.0, 0.3, 0.5, 0.7))
    points = sweep_thresholds(parse_graph(nodes, 0.05), labels, "fixed", grid)
    point = best(points)
    result = cluster(features, graph, model, tau1=point.tau1, tau2=point.tau2)
    assert evaluate(labels, result.labels)["pairwise"]["fscore"] == pytest.approx(point.fscore)
    assert result.num_clusters == point.num_clusters
    assert point.fscore > 0.5


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


def test_nothing_kept_is_all_singletons(scored):
    features, _, graph, model, _ = scored
    result = cluster(features, graph, model, tau1=1.0, tau2=0.5)
    assert (result.edges_parsed, result.num_clusters) == (0, len(features))
    np.testing.assert_array_equal(np.sort(result.labels), np.arange(len(features)))
    assert not result.confidence.any()


def test_features_of_another_dimension_are_refused(scored):
    features, _, graph, model, _ = scored
    with pytest.raises(InputError, match="16-d"):
        cluster(features[:, :8].copy(), graph, model, tau1=0.5, tau2=0.5)
