"""A kNN graph that is stored, opened; or one that is built, and stored for the next time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.partial import remove_search
from starfc.graph.store import ANEW, building, elsewhere, find_graph, read_graph
from starfc.runtime.defaults import RECALL
from starfc.runtime.words import advice, word
from starfc.storage.commit import settle
from starfc.storage.opened import OpenedFolder, opened
from starfc.storage.owners import KNN

log = logging.getLogger("starfc")


@dataclass(frozen=True)
class Search:
    """How neighbours are searched for: the parameters of :func:`starfc.graph.knn.build_knn` but features and k."""

    method: str = "exact"
    params: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    recall: float = RECALL

    def build(self, features: Features, k: int, folder: Path | None = None) -> KnnGraph:
        """The kNN graph of features; ``folder`` keeps what an approximate search has found."""
        return build_knn(features, k, self.method, self.params, self.seed, self.recall, folder)


@dataclass(frozen=True)
class Place:
    """Where a graph is stored, a folder or a published .npz, and what a killed search had found.

    ``own``: in the folder of the results that it is for.
    """

    path: Path
    partial: Path
    own: bool = False

    @classmethod
    def named(cls, path: Path) -> Place:
        return cls(path, path.with_name(path.name + ".partial"))

    @classmethod
    def within(cls, folder: str | Path | OpenedFolder, features: Features, k: int, search: Search) -> Place:
        """The place in a run's folder."""
        name = f"knn/{graph_name(features, k, search)}"
        return cls(opened(folder).path(name), opened(folder).path(f"{name}.partial"), own=True)


def graph_name(features: Features, k: int, search: Search) -> str:
    """What a graph's folder is called where many may lie: the features' fingerprint and the search."""
    return f"{features.check.fingerprint[:12]}_{search.method}_k_{k}"


def open_or_build(features: Features, k: int, search: Search, place: Place | None = None) -> KnnGraph:
    """The kNN graph that is stored at ``place``, else a new one, which is then stored there.

    Without a place it is built and not stored. What a killed search had found is used.

    Raises
    ------
    InputError
        What is stored there is of other features, of another k, or of a coarser search than asked for.
    """
    if place is None:
        return search.build(features, k)
    if place.own and find_graph(place.path) is not None:  # its search was perhaps killed once the graph was there
        settle(place.path, KNN)
        remove_search(place.partial)
    graph = open_graph(features, k, search, place.path)
    if graph is None:
        build_graph(features, k, search, place)
        log.info("kNN graph: written to %s", place.path)
        graph = read_graph(place.path, features, k)
    return graph


def open_graph(features: Features, k: int, search: Search, path: Path) -> KnnGraph | None:
    """The stored kNN graph of features, None where there is none; as :func:`open_or_build`."""
    stored = find_graph(path)
    if stored is None:
        return None
    log.info("kNN graph: read from %s", stored)
    graph = read_graph(stored, features, k)
    used = graph.info.get("params", {})
    other = {key: used[key] for key, value in search.params.items() if used.get(key, value) != value}
    if other:
        raise InputError(
            f"{stored}: a kNN graph built with {other} where {word('knn_params')} asks for {dict(search.params)}; "
            f"{ANEW}{elsewhere()}"
        )
    reached = graph.info.get("recall")
    if search.method == "ivf" and "nprobe" not in search.params and (reached or 1.0) < search.recall:
        raise InputError(
            f"{stored}: a kNN graph of recall {reached:.4f} where {word('knn_recall')} asks for "
            f"{search.recall}; {ANEW}{advice(', or lower {}', 'knn_recall')}"
        )
    return graph


def build_graph(
    features: Features,
    k: int,
    search: Search,
    place: Place,
    *,
    inputs: Iterable[str | Path] = (),
    overwrite: bool = False,
) -> KnnGraph:
    """Build a kNN graph and store it; ``inputs`` and ``overwrite`` are as for :func:`starfc.graph.store.building`."""
    with building(place.path, place.partial, inputs=inputs, overwrite=overwrite) as write:
        graph = search.build(features, k, place.partial)
        write(graph, features)
    return graph
