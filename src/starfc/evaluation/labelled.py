"""Labelled instances, and their kNN graph: what models learn from and are judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.graph.neighbours import KnnGraph


@dataclass(frozen=True)
class Labelled:
    """Features (N, d) and labels (N,) of instances, 0..C-1 where they are to be trained on."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class LabelledGraph(Labelled):
    """Labelled instances with their kNN graph; ``held`` (N,) says which were held back from training."""

    graph: KnnGraph
    held: NDArray[np.bool_]
