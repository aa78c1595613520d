"""Test the whole pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.samples import blobs, unit
from starfc.clustering.pipeline import cluster
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate
from starfc.evaluation.thresholds import best, sweep_thresholds
from starfc.graph.knn import build_knn
from starfc.models.gcn import StarFCModel
from starfc.scoring.projections import parse_graph, project_nodes


@pytest.fixture(scope="module")
def scored():
    features, labels = blobs()
    features = unit(features)
    graph = build_knn(features, 12)
    model = StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0))
    return features, labels, graph, model, project_nodes(model, features, graph)


@pytest.mark.long
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


def test_nothing_kept_is_all_singletons(scored):
    features, _, graph, model, _ = scored
    result = cluster(features, graph, model, tau1=1.0, tau2=0.5)
    assert (result.edges_parsed, result.num_clusters) == (0, len(features))
    np.testing.assert_array_equal(np.sort(result.labels), np.arange(len(features)))
    assert not result.confidence.any()


def test_features_of_another_dimension_are_refused(scored):
    features, _, graph, model, _ = scored
    with pytest.raises(InputError, match="16 columns needed by the model; found 8"):
        cluster(features[:, :8].copy(), graph, model, tau1=0.5, tau2=0.5)
