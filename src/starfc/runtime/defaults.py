"""Names and numbers that configs and code share. This module imports nothing, so that option parsing stays quick."""

from __future__ import annotations

METRICS = ("pairwise", "bcubed", "nmi")
PARTITIONS = ("components", "infomap", "leiden")
RESOLUTION = 0.1  # resolution of Leiden

KNN_METHODS = ("exact", "torch", "faiss_gpu", "ivf")
KNN_FORMER = {"faiss": "exact"}  # published configs and earlier runs call exact search "faiss"
KNN_PARAMS = {"ivf": ("nlist", "nprobe", "partitions", "sweeps")}
RECALL = 0.98  # default target of approximate search: share of the edges that matter

MOST_NEIGHBOURS = 253  # limit for structural features: a position in a neighbour list must fit into a byte
OFFSETS = (5, 10, 15, 20, 25, 30)  # differences in k that the hierarchical model draws from to train on nested graphs
SCALES = (80, 100, 120)  # k of the nested graphs of the hierarchical model at inference
