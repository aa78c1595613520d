"""Names and numbers that configs and the code share. Nothing is imported here, so that options are read quickly."""

from __future__ import annotations

METRICS = ("pairwise", "bcubed", "nmi")
PARTITIONS = ("components", "infomap", "leiden")
RESOLUTION = 0.1  # of Leiden

KNN_METHODS = ("exact", "faiss_gpu", "ivf")
KNN_FORMER = {"faiss": "exact"}  # what published configs and earlier runs call exact search
KNN_PARAMS = {"ivf": ("nlist", "nprobe")}
RECALL = 0.99  # of approximate search

MOST_NEIGHBOURS = 253  # of structural features: places in a list fit into a byte
OFFSETS = (5, 10, 15, 20, 25, 30)  # of the graphs of several scales
SCALES = (80, 100, 120)
