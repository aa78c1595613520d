"""Propagation over whole graphs, from the rows that the package propagates."""

from __future__ import annotations

import numpy as np

from starfc.data.dataset import as_features
from starfc.graph.affinity import Affinity


def propagate_scales(graph, features, scales, th_sim=0.0):
    """Return ÂF of every scale: (S, N, d)."""
    features = as_features(features)
    return Affinity.of(graph, th_sim, scales=scales).aggregate(features, np.arange(len(features)))
