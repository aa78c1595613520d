"""Open a stored kNN graph, or build it and store it for the next time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.approximate import chooses
from starfc.graph.knn import build_knn, search_bytes
from starfc.graph.neighbours import KnnGraph
from starfc.graph.partial import remove_search
from starfc.graph.recall import Judge
from starfc.graph.store import ANEW, building, elsewhere, find_graph, read_graph
from starfc.runtime.defaults import RECALL
from starfc.runtime.stages import Stages
from starfc.runtime.words import advice, word
from starfc.storage.commit import settle
from starfc.storage.opened import OpenedFolder, opened
from starfc.storage.owners import KNN

log = logging.getLogger("starfc")


@dataclass(frozen=True)
class Search:
    """The search options: the parameters of :func:`starfc.graph.knn.build_knn`, except features and k."""

    method: str = "exact"
    params: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    recall: float = RECALL
    judge: Judge | None = None
    device: str | torch.device = "cpu"

    def build(self, features: Features, k: int, folder: Path | None = None) -> KnnGraph:
        """Build the kNN graph of features; ``folder`` stores the progress of an approximate search."""
        return build_knn(features, k, self.method, self.params, self.seed, self.recall, folder, self.judge, self.device)

    def bytes(self, features: Features, k: int) -> int:
        """Return the memory that :meth:`build` will need, in bytes."""
        return search_bytes(features, k, self.method, self.params, self.device)


@dataclass(frozen=True)
class Place:
    """The paths of a stored graph.

    Attributes
    ----------
    path : path
        The graph: a folder, or a .npz in the published layout.
    partial : path
        Folder with the progress of an interrupted search.
    own : bool
        Whether the graph is inside the folder of the run that uses it.
    """

    path: Path
    partial: Path
    own: bool = False

    @classmethod
    def named(cls, path: Path) -> Place:
        """Return the place of a graph at ``path``; the progress of its search is next to it."""
        return cls(path, path.with_name(path.name + ".partial"))

    @classmethod
    def within(cls, folder: str | Path | OpenedFolder, features: Features, k: int, search: Search) -> Place:
        """Return the place of a graph in a run's folder."""
        name = f"knn/{graph_name(features, k, search)}"
        return cls(opened(folder).path(name), opened(folder).path(f"{name}.partial"), own=True)


def graph_name(features: Features, k: int, search: Search) -> str:
    """Return the name of a graph's folder: start of the features' fingerprint, search method and k.

    ``GRAPHS`` of :mod:`starfc.storage.owners` is its pattern.
    """
    return f"{features.check.fingerprint[:12]}_{search.method}_k_{k}"


def open_or_build(
    features: Features, k: int, search: Search, place: Place | None = None, stages: Stages | None = None
) -> KnnGraph:
    """Return the kNN graph that is stored at ``place``; if there is none, build it and store it there.

    The progress of an interrupted search is used. If ``place`` is None, the graph is built and not stored. ``stages``
    check the memory limit before a graph is built.

    Raises
    ------
    InputError
        If the stored graph has other features, another k, other parameters, or a lower recall than requested.
    """
    stages = stages or Stages()
    if place is None:
        stages.require("kNN graph", search.bytes(features, k))
        return search.build(features, k)
    # An interruption between writing the graph and removing the search's files leaves these files behind.
    if place.own and find_graph(place.path) is not None:
        settle(place.path, KNN)
        remove_search(place.partial)
    graph = open_graph(features, k, search, place.path)
    if graph is None:
        stages.require("kNN graph", search.bytes(features, k))
        build_graph(features, k, search, place)
        log.info("kNN graph: written to %s", place.path)
        graph = read_graph(place.path, features, k)
    return graph


def open_graph(features: Features, k: int, search: Search, path: Path) -> KnnGraph | None:
    """Return the stored kNN graph of features, or None if there is none. Errors are as for :func:`open_or_build`."""
    stored = find_graph(path)
    if stored is None:
        return None
    log.info("kNN graph: read from %s", stored)
    graph = read_graph(stored, features, k)
    used = graph.info.get("params", {})
    other = {key: used[key] for key, value in search.params.items() if used.get(key, value) != value}
    if other:
        raise InputError(
            f"{stored}: {word('knn_params')} {dict(search.params)} needed; found a kNN graph built with {other}; "
            f"{ANEW}{elsewhere()}"
        )
    reached = graph.info.get("recall")
    if search.method == "ivf" and chooses(search.params) and (reached or 1.0) < search.recall:
        raise InputError(
            f"{stored}: {word('knn_recall')} {search.recall} needed; found a kNN graph of recall {reached:.4f}; "
            f"{ANEW}{advice(', or lower {}', 'knn_recall')}"
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
