"""Small clusterings for tests that add and remove instances."""

from __future__ import annotations

import numpy as np
import torch

from helpers.paths import STRUCTURAL
from helpers.samples import blobs
from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.pipeline import cluster
from starfc.clustering.refinement import node_intimacy
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, undirected
from starfc.graph.knn import exact_knn
from starfc.incremental.edges import Changed
from starfc.incremental.state import State, make_rule
from starfc.models.checkpoint import load_model
from starfc.models.gcn import StarFCModel

NONE = np.empty(0, np.int64)


def graph_of(pairs: dict[tuple[int, int], float], n: int, lost: tuple[tuple[int, int], ...] = ()) -> Changed:
    """Kept edges with their scores, symmetric; ``lost`` ones are parsed and no longer kept."""
    every = {**pairs, **dict.fromkeys(lost, 0.5)}
    rows, cols = np.array(list(every)).T
    scores = np.array(list(every.values()), np.float32)
    order = np.lexsort([cols, rows])
    edges = undirected(EdgeList.from_rows(rows[order], cols[order].astype(np.int32), scores[order], n))
    kept = np.array([
        (min(i, j), max(i, j)) in pairs for i, j in zip(edges.rows.tolist(), edges.cols.tolist(), strict=True)
    ])  # fmt: skip
    entries = np.arange(len(edges))
    parsed = ParsedEdges(edges, np.full(len(edges), 0.9, np.float32), kept)
    return Changed(parsed, entries, np.ones(len(edges), bool), np.ones(n, bool))


def clustering(kind: str, dim: int = 16):
    features, labels = blobs(identities=14, size=16, dim=dim, noise=0.9, seed=3)
    if kind == "structural":
        return features, labels, load_model(STRUCTURAL), 80, (0.8, 0.7)
    model = StarFCModel(dim, 32, init="metric", generator=torch.Generator().manual_seed(0))
    return features, labels, model, 20, (0.6, 0.6)


def state_of(
    features: np.ndarray, rows: int, model, k: int, taus: tuple[float, float], partition: str = "components"
) -> State:
    first = Features(features[:rows])
    graph = exact_knn(first, k)
    result = cluster(first, graph, model, tau1=taus[0], tau2=taus[1], partition=partition, keep_edges=True)
    rule = make_rule(model, *taus, 0.0, "fixed", partition)
    return State.of(rule, first, graph, np.arange(rows), result.parsed, result.labels)


def check_communities(state: State) -> None:
    """What holds after every step: kept edges are those within a cluster, and removed rows have none."""
    parsed, labels = state.clustered, state.labels
    np.testing.assert_array_equal(parsed.kept, labels[parsed.edges.rows] == labels[parsed.edges.cols])
    assert (labels[parsed.edges.rows] >= 0).all()
    np.testing.assert_array_equal(parsed.intimacy, node_intimacy(parsed.edges))
