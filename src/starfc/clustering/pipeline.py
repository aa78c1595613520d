"""The pipeline: features and kNN graph -> clusters. Command line, estimator and training all call :func:`cluster`.

kNN graph -> propagation matrix -> GCN -> edge scores -> graph parsing -> node intimacy -> components
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.components import components, largest_first
from starfc.clustering.edges import EdgeList
from starfc.clustering.refinement import node_intimacy, refine
from starfc.clustering.scoring import ROW_BLOCK, parse_graph, project_nodes
from starfc.errors import InputError
from starfc.graph.affinity import propagate_graph
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import inverse, locality_order, permuted
from starfc.models.gcn import StarFCModel
from starfc.runtime.stages import Stages


@dataclass(frozen=True)
class Clustering:
    """Labels (N,) int64, largest cluster first; confidence (N,) float32; edges kept by parsing and by refinement."""

    labels: NDArray[np.int64]
    confidence: NDArray[np.float32]
    edges_parsed: int
    edges_refined: int

    @property
    def num_clusters(self) -> int:
        return int(self.labels.max()) + 1


def cluster(
    features: NDArray[np.float32],
    graph: KnnGraph,
    model: StarFCModel,
    *,
    tau1: float,
    tau2: float,
    th_sim: float = 0.0,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
) -> Clustering:
    """Cluster the nodes of a kNN graph (spec section 6).

    Parameters
    ----------
    features : (N, d) float32
        L2-normalised.
    graph : KnnGraph
        kNN graph of these features.
    tau1, tau2 : float in [0, 1]
        Edges with p > τ1, and of those with node intimacy > τ2, stay.
    th_sim : float
        kNN entries below this similarity do not enter the affinity graph; they are candidate edges all the same.

    Returns
    -------
    Clustering
        ``confidence`` of an instance is the mean p of the refined edges at it, 0 where it has none.
    """
    for name, tau in (("tau1", tau1), ("tau2", tau2)):
        if not 0 <= tau <= 1:
            raise InputError(f"{name}: between 0 and 1 needed; found {tau!r}")
    if features.shape[1] != model.feature_dim:
        raise InputError(
            f"features: {features.shape[1]}-d where the model takes {model.feature_dim}-d; "
            "use a model trained on such features"
        )
    stages = stages or Stages()
    n, d = features.shape
    entries = int((graph.ids >= 0).sum())
    with stages.stage("node order", needs=8 * graph.ids.size + 4 * n * d + 16 * n):
        order = locality_order(graph)
        graph, features = permuted(graph, order), features[order]
    with stages.stage("propagation", needs=entries * 8 + 4 * n * d):
        aggregated = propagate_graph(graph, features, th_sim)
    with stages.stage("GCN and projections", needs=8 * n * model.nhid + 16 * ROW_BLOCK * model.nhid):
        nodes = project_nodes(model, features, aggregated, device)
        del aggregated, features
    with stages.stage("edge scores", needs=entries * 12 + ROW_BLOCK * graph.k * 32):
        parsed = parse_graph(graph, nodes, tau1)
        del nodes
    with stages.stage("refinement", needs=len(parsed) * 24):
        refined = refine(parsed, node_intimacy(parsed), tau2)
    with stages.stage("components", needs=len(refined) * 24 + 32 * n):
        place = inverse(order)
        labels = largest_first(order[components(refined)[place]])
        confidence = edge_confidence(refined)[place]
    return Clustering(labels, confidence, len(parsed), len(refined))


def edge_confidence(edges: EdgeList) -> NDArray[np.float32]:
    """Mean score of the edges at every node, either direction: (N,) float32, 0 for a node without an edge."""
    total = np.zeros(edges.num_nodes, np.float64)
    count = np.zeros(edges.num_nodes, np.int64)
    for ends in (edges.rows, edges.cols):
        total += np.bincount(ends, weights=edges.scores, minlength=edges.num_nodes)
        count += np.bincount(ends, minlength=edges.num_nodes)
    return (total / np.maximum(count, 1)).astype(np.float32)


def with_singletons(result: Clustering, rows: NDArray[np.integer]) -> Clustering:
    """Insert instances at the given final positions, each a cluster of its own with confidence 0."""
    if not rows.size:
        return result
    n = len(result.labels) + len(rows)
    others = np.setdiff1d(np.arange(n), rows)
    labels, confidence = np.empty(n, np.int64), np.zeros(n, np.float32)
    labels[others], confidence[others] = result.labels, result.confidence
    labels[rows] = result.num_clusters + np.arange(len(rows))
    return replace(result, labels=labels, confidence=confidence)
