"""The unsupervised baselines of the benchmarks: single link against scipy, Infomap on a graph that falls apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import ROOT, blobs, same_partition, unit

from starfc.evaluation.metrics import contingency, pairwise
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph


@pytest.fixture
def baselines(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import baselines

    return baselines


def test_single_link_is_the_components_at_each_threshold(baselines, tmp_path):
    features, labels = blobs()
    graph = build_knn(unit(features), 12)
    for name in ("ids", "sims"):
        np.save(tmp_path / f"{name}.npy", getattr(graph, name))
    mapped = KnnGraph(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("ids", "sims")))
    thresholds = [0.0, 0.75, 0.8, 0.85, 0.9, 1.0]
    points = baselines.single_link(mapped, labels, thresholds)
    assert [point.threshold for point in points] == thresholds[::-1]
    for point in points:
        kept = (graph.ids >= 0) & (graph.sims >= np.float32(point.threshold))
        edges = (np.ones(kept.sum()), (np.nonzero(kept)[0], graph.ids[kept]))
        count, predicted = sp.csgraph.connected_components(sp.csr_matrix(edges, (len(labels), len(labels))))
        score = pairwise(contingency(labels, predicted))
        assert point[1:] == (score.precision, score.recall, score.fscore, count)
    assert len({point.num_clusters for point in points}) >= 3


def test_missing_neighbours_join_nothing(baselines):
    graph = KnnGraph(np.array([[1, -1], [-1, -1], [-1, -1]], np.int32), np.zeros((3, 2), np.float32))
    (point,) = baselines.single_link(graph, np.array([0, 0, 1]), [0.0])
    assert (point.fscore, point.num_clusters) == (1.0, 2)


def test_infomap_finds_groups_and_leaves_single_nodes_alone(baselines):
    pytest.importorskip("infomap", reason="infomap is not installed: the extra `baselines`")
    ids = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4], [0, 1]], np.int32)
    sims = np.full(ids.shape, 0.9, np.float32)
    sims[6] = 0.1
    labels = baselines.infomap_labels(KnnGraph(ids, sims), min_sim=0.5)
    assert labels.dtype == np.int64
    assert same_partition(labels, np.array([0, 0, 0, 1, 1, 1, 2]))
    labels = baselines.infomap_labels(KnnGraph(ids, sims), min_sim=0.95)
    np.testing.assert_array_equal(np.sort(labels), np.arange(7))
