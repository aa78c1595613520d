"""Labelled instances and their kNN graph, for training and evaluation of models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.graph.neighbours import KnnGraph


@dataclass(frozen=True)
class Labelled:
    """Labelled instances: features (N, d) and labels (N,); for training, the labels must be 0..C-1."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class LabelledGraph(Labelled):
    """Labelled instances with their kNN graph; ``held`` (N,) is True for instances held back from training."""

    graph: KnnGraph
    held: NDArray[np.bool_]
