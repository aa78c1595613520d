"""Baselines: clustering methods without training. All of them use the same kNN graph and the same call.

    labels = BASELINES["infomap"].run(graph, features, min_sim=0.6)

``graph`` is a :class:`~starfc.graph.neighbours.KnnGraph` of N nodes. ``features`` are the
:class:`~starfc.data.dataset.Features` that it was built from (or unit vectors (N, d) float32). The labels are (N,)
int64, 0..C-1, largest cluster first. An instance that a method calls noise is a cluster of its own. ``grid`` has the
parameters that a comparison tries on a training split.

===================================  ==============================================================
:mod:`~baselines.connected`   single link, approximate rank order
:mod:`~baselines.density`     DBSCAN, HDBSCAN
:mod:`~baselines.communities` Chinese Whispers, Leiden, Infomap, FC-ES
:mod:`~baselines.means`       FINCH, mini-batch k-means
===================================  ==============================================================
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.communities import chinese_whispers, fc_es, infomap, leiden
from baselines.connected import rank_order, single_link
from baselines.density import knn_dbscan, knn_hdbscan
from baselines.means import finch, kmeans


@dataclass(frozen=True)
class Baseline:
    """A method: its name in tables, its publication, its function, and the parameters to choose from.

    ``package`` is the optional package that it needs. A method with ``told_clusters`` is given the true number of
    clusters as the further parameter ``num_clusters``.
    """

    name: str
    citation: str
    run: Callable[..., NDArray[np.int64]]
    grid: tuple[dict[str, Any], ...]
    package: str | None = None
    told_clusters: bool = False

    @property
    def available(self) -> bool:
        """Return whether its package is installed."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


def grid(**values: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    """Return every combination of the values of the named parameters."""
    return tuple(dict(zip(values, choice, strict=True)) for choice in product(*values.values()))


BASELINES: dict[str, Baseline] = {
    "single_link": Baseline(
        "single link",
        "Sibson, The Computer Journal 1973",
        single_link,
        grid(min_sim=np.arange(0.4, 0.905, 0.01).round(2).tolist()),
    ),
    "knn_dbscan": Baseline(
        "kNN-DBSCAN",
        "Ester et al., KDD 1996",
        knn_dbscan,
        grid(min_points=(3, 6, 12), min_sim=np.arange(0.5, 0.9, 0.025).round(3).tolist()),
    ),
    "hdbscan": Baseline(
        "HDBSCAN",
        "Campello, Moulavi, Sander, PAKDD 2013",
        knn_hdbscan,
        grid(min_cluster_size=(5, 10, 20), min_samples=(1, 3, 5), selection=("eom", "leaf")),
    ),
    "chinese_whispers": Baseline(
        "Chinese Whispers",
        "Biemann, TextGraphs 2006",
        chinese_whispers,
        grid(k=(20, 30, 40, 80), min_sim=(0.5, 0.55, 0.6, 0.65, 0.7)),
    ),
    "rank_order": Baseline(
        "approximate rank order",
        "Otto, Wang, Jain, TPAMI 2018",
        rank_order,
        grid(k=(10, 15, 20, 30), threshold=(0.6, 0.8, 1.0, 1.2, 1.4, 1.6)),
    ),
    "leiden": Baseline(
        "Leiden",
        "Traag, Waltman, van Eck, Scientific Reports 2019",
        leiden,
        grid(k=(6, 8, 10, 15, 20), min_sim=(0.4, 0.5, 0.6), resolution=(0.0025, 0.005, 0.01, 0.02))
        + grid(k=(80,), min_sim=(0.4, 0.5), resolution=(0.2, 0.3)),
        package="igraph",
    ),
    "infomap": Baseline(
        "Infomap",
        "Rosvall, Bergstrom, PNAS 2008",
        infomap,
        grid(k=(15, 20, 30, 50), min_sim=(0.5, 0.55, 0.6, 0.65)),
        package="infomap",
    ),
    "finch": Baseline(
        "FINCH",
        "Sarfraz, Sharma, Stiefelhagen, CVPR 2019",
        finch,
        grid(level=(1, 2, 3, 4, 5)),
    ),
    "fc_es": Baseline(
        "FC-ES",
        "Liu, arXiv 2408.13431",
        fc_es,
        grid(k=(20, 30, 50, 80), theta=(0.1, 0.2, 0.3, 0.4)),
        package="infomap",
    ),
    "kmeans": Baseline(
        "mini-batch k-means",
        "Sculley, WWW 2010",
        kmeans,
        grid(init=("k-means++", "random"), batch_size=(1024, 4096, 16384)),
        told_clusters=True,
    ),
}
