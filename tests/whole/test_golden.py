"""Compare every step with the published reference implementation, on its own inputs and outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from helpers.devices import as_on_a_gpu
from helpers.graphs import propagate_scales
from helpers.samples import same_partition
from starfc.clustering.components import components, largest_first
from starfc.clustering.pipeline import cluster, cluster_dynamic
from starfc.clustering.refinement import node_intimacy, node_intimacy_undirected, refine
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels
from starfc.evaluation.metrics import evaluate
from starfc.graph.affinity import propagation_matrix
from starfc.graph.edges import EdgeList, undirected
from starfc.graph.knn import build_knn
from starfc.graph.store import read_graph
from starfc.models.checkpoint import load_model
from starfc.scoring.projections import edge_probabilities, parse_graph, project_nodes

THRESHOLDS = [(0.7, 0.72), (0.5, 0.5), (0.9, 0.3)]


@pytest.fixture(scope="module")
def case(golden):
    """Inputs, reference outputs, and every intermediate result of ours."""
    features = Features(read_features(golden / "data/features/part1_test.bin", 256))
    graph = read_graph(golden / "data/knns/part1_test/faiss_k_80.npz", features, 80)
    matrix, model = features.all(), load_model(golden)
    adjacency = propagation_matrix(graph)
    with np.load(golden / "reference_outputs.npz", allow_pickle=False) as file:
        reference = dict(file)
    return {
        "matrix": matrix,
        "graph": graph,
        "model": model,
        "adjacency": adjacency,
        "nodes": project_nodes(model, matrix, graph),
        "labels": read_labels(golden / "data/labels/part1_test.meta"),
        "published_ids": np.load(golden / "data/knns/part1_test/faiss_k_80.npz")["data"][:, 0].astype(np.int64),
        "reference": reference,
        "results": json.loads((golden / "reference_results.json").read_text()),
    }


@pytest.mark.long
def test_propagation_matrix(case):
    ours, reference = case["adjacency"], case["reference"]
    np.testing.assert_array_equal(ours.indptr, reference["adj_indptr"])
    np.testing.assert_array_equal(ours.indices, reference["adj_indices"])
    np.testing.assert_allclose(ours.data, reference["adj_data"], rtol=1e-5)


def test_backbone(case):
    f = torch.from_numpy(case["matrix"])
    a = torch.from_numpy(propagate_scales(case["graph"], case["matrix"], None)[0])
    with torch.inference_mode():
        nodes = case["model"].backbone(f, a).numpy()
    reference = case["reference"]
    np.testing.assert_allclose(
        nodes[reference["backbone_sample_rows"]], reference["backbone_sample"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(nodes.sum(axis=1), reference["backbone_row_sums"], rtol=1e-5)


@pytest.mark.long
def test_edge_probabilities(case):
    ids = case["published_ids"]
    rows = np.repeat(np.arange(len(ids)), ids.shape[1])
    ours = edge_probabilities(case["nodes"], rows, ids.ravel()).reshape(ids.shape)
    reference = case["reference"]["edge_prob"]
    known = ~np.isnan(reference)
    np.testing.assert_array_equal(known, ids != np.arange(len(ids))[:, None])
    np.testing.assert_allclose(ours[known], reference[known], rtol=1e-5, atol=1e-6)


def test_parsed_edges_and_intimacy(case):
    edges = parse_graph(case["nodes"], 0.7)
    reference = case["reference"]
    order = np.lexsort((edges.cols, edges.rows))
    expected = np.lexsort((reference["edges_0.7"][:, 1], reference["edges_0.7"][:, 0]))
    np.testing.assert_array_equal(np.stack([edges.rows, edges.cols], axis=1)[order], reference["edges_0.7"][expected])
    np.testing.assert_allclose(node_intimacy(edges)[order], reference["intimacy_0.7"][expected], rtol=1e-5)


@pytest.mark.parametrize(("tau1", "tau2"), THRESHOLDS)
def test_labels_and_metrics(case, tau1, tau2):
    result = cluster(case["matrix"], case["graph"], case["model"], tau1=tau1, tau2=tau2)
    expected = case["results"][f"{tau1}_{tau2}"]
    assert same_partition(result.labels, case["reference"][f"labels_{tau1}_{tau2}"])
    assert (result.edges_parsed, result.edges_refined) == (expected["edges_parsed"], expected["edges_refined"])
    assert result.num_clusters == expected["clusters"]
    metrics = evaluate(case["labels"], result.labels)
    for name in ("pairwise", "bcubed"):
        np.testing.assert_allclose(list(metrics[name].values()), expected[name], rtol=0, atol=1e-9)
    assert metrics["nmi"] == pytest.approx(expected["nmi"], abs=1e-9)


@pytest.mark.long
def test_labels_computed_as_on_a_gpu(case):
    """Torch functions, in several blocks of nodes."""
    with as_on_a_gpu(limit=64 << 20):
        result = cluster(case["matrix"], case["graph"], case["model"], tau1=0.7, tau2=0.72)
    expected = case["results"]["0.7_0.72"]
    assert same_partition(result.labels, case["reference"]["labels_0.7_0.72"])
    assert (result.edges_parsed, result.edges_refined) == (expected["edges_parsed"], expected["edges_refined"])


def test_our_own_knn_graph_gives_the_same_labels(case):
    graph = build_knn(case["matrix"], 80)
    result = cluster(case["matrix"], graph, case["model"], tau1=0.7, tau2=0.72)
    assert same_partition(result.labels, case["reference"]["labels_0.7_0.72"])


def test_refinement_of_the_reference_edges(case):
    """Refinement alone, from the reference's own parsed edges."""
    rows, cols = case["reference"]["edges_0.7"].T
    edges = EdgeList.from_rows(rows, cols.copy(), np.ones(len(rows), np.float32), len(case["labels"]))
    labels = largest_first(components(refine(edges, node_intimacy(edges), 0.72)))
    assert same_partition(labels, case["reference"]["labels_0.7_0.72"])


@pytest.mark.long
@pytest.mark.parametrize("tau1", [0.5, 0.85])
def test_undirected_intimacy(case, tau1):
    """Spec section 8, steps 2: the entries of Â with p > τ1 as undirected edges; the reference lists self loops too."""
    reference, adjacency = case["reference"], case["adjacency"].tocoo()
    p = edge_probabilities(case["nodes"], adjacency.row, adjacency.col)
    kept = (p > tau1) & (adjacency.row != adjacency.col)
    rows, cols = adjacency.row[kept], adjacency.col[kept]
    both = undirected(EdgeList.from_rows(rows, cols, p[kept], len(case["labels"])))
    ours = {
        (i, j): value
        for i, j, value in zip(both.rows.tolist(), both.cols.tolist(), node_intimacy_undirected(both), strict=True)
    }
    pairs = reference[f"dynamic_edges_{tau1}"]
    pairs = pairs if pairs.shape[1] == 2 else pairs.T
    others = pairs[:, 0] != pairs[:, 1]
    assert {(min(e), max(e)) for e in pairs[others].tolist()} == {(i, j) for i, j in ours if i < j}
    found = [ours[i, j] for i, j in pairs[others].tolist()]
    np.testing.assert_allclose(found, reference[f"dynamic_intimacy_{tau1}"][others], rtol=1e-5)


@pytest.mark.parametrize("tau1", [0.5, 0.85])
def test_dynamic_labels_and_metrics(case, tau1):
    """The extended refinement on a single graph; the reference's count of parsed pairs has the self loops in it."""
    result = cluster_dynamic(case["matrix"], case["graph"], case["model"], tau1=tau1, tau2=0.78)
    expected, pairs = case["results"][f"dynamic_{tau1}"], case["reference"][f"dynamic_edges_{tau1}"]
    pairs = pairs if pairs.shape[1] == 2 else pairs.T
    loops = int((pairs[:, 0] == pairs[:, 1]).sum())
    assert same_partition(result.labels, case["reference"][f"dynamic_labels_{tau1}"])
    assert (result.edges_parsed + loops, result.edges_refined) == (expected["edges_parsed"], expected["edges_refined"])
    assert result.num_clusters == expected["clusters"]
    metrics = evaluate(case["labels"], result.labels)
    for name in ("pairwise", "bcubed"):
        np.testing.assert_allclose(list(metrics[name].values()), expected[name], rtol=0, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("tau1", [0.5, 0.7, 0.9])
def test_half_precision_changes_no_edge_and_p_within_1e_3(case, tau1):
    graph, nodes = case["graph"], case["nodes"]
    rows, column = np.nonzero(graph.ids >= 0)
    p = edge_probabilities(nodes, rows, graph.ids[rows, column])
    edges = parse_graph(nodes, tau1)
    expected = {(i, j): q for i, j, q in zip(rows.tolist(), graph.ids[rows, column].tolist(), p, strict=True)}
    ours = dict(zip(zip(edges.rows.tolist(), edges.cols.tolist(), strict=True), edges.scores, strict=True))
    wrong = set(ours) ^ {pair for pair, q in expected.items() if q > tau1}
    assert all(abs(expected[pair] - tau1) < 1e-6 for pair in wrong)  # ties that float64 decides
    np.testing.assert_allclose(list(ours.values()), [expected[pair] for pair in ours], atol=1e-3)
