"""Measure on sampled rows what an approximate kNN graph has found.

1,000 rows are drawn, and their exact neighbours are searched. For clustering it does not matter whether a list holds
its 70th stranger. The measure that decides is therefore the *recall of edges that matter*: of the edges from sampled
rows that have p > 0.5 under exact lists, the share that the approximate lists hold among their candidates, with p > 0.5
too. p is the first round's probability of the packaged model. It depends on the lists of both ends, so three neighbours
of each sampled row are drawn, and their exact lists are searched too. It also depends on the context of the set, which
tells how far nearest neighbours stand out. For it, the edge to each sampled row's nearest neighbour is judged too.

The opposite error is measured on the same edges: the share of those with p > 0.5 under approximate lists that have not
p > 0.5 under exact lists.

The recall of edges that matter is also given by density. The sampled rows are divided into four groups of equal size by
the similarity of their 20th neighbour, the sparsest group first; so a dense majority cannot hide a lost minority.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.graph.device_search import device_search
from starfc.graph.exact import nearest_of_rows
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.runtime.device import uses_torch

RECALL_ROWS = 1000  # number of sampled rows
_PARTNERS = 3  # neighbours of each sampled row whose edges are judged
COLUMNS = 79  # neighbours of each row that the packaged model uses
CANDIDATES = 40  # neighbours of each row that are candidate edges of the packaged model
_DENSITY = 20  # the similarity of this neighbour is the density of a row
_GROUPS = 4
MATTERS = 0.5  # an edge matters if its p is above this


@dataclass(frozen=True)
class Edges:
    """Some edges, and the lists of their ends.

    Attributes
    ----------
    rows : (t,) int64
        The rows that are an end of an edge.
    lists : KnnGraph
        Their lists, (t, k).
    first, second : (m,) int64
        Positions of the ends of each edge in ``rows``.
    nearest : (m,) bool
        Whether an edge was chosen because it leads to the nearest neighbour of its first end. The others are random
        edges among the candidates of their first end.
    """

    rows: NDArray[np.int64]
    lists: KnnGraph
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    nearest: NDArray[np.bool_]


@dataclass(frozen=True)
class Judgement:
    """The probabilities p (m,) of edges, and the context (c,) of the set in which they were computed."""

    probability: NDArray[np.float32]
    context: NDArray[np.float32]


class Judge(Protocol):
    """Returns the probability that edges join two rows of one identity, given only the lists of their ends."""

    def __call__(
        self,
        features: Features,
        edges: Edges,
        in_lists: NDArray[np.float32],
        context: NDArray[np.float32] | None = None,
    ) -> Judgement:
        """Return p of the edges; 0 for edges that are not candidates.

        ``in_lists`` (2, t) is the number of lists of the whole graph that have each row among their first ten, and
        among their first 79 neighbours. Without ``context``, the context is that of the judged edges.
        """


@dataclass(frozen=True)
class Recalls:
    """What an approximate graph has found, as shares from 0 to 1.

    Attributes
    ----------
    neighbours : float
        Share of the k nearest neighbours of sampled rows.
    nearest : float
        Share of the 40 nearest neighbours, the candidate edges.
    edges : float, optional
        Share of the edges that matter; None without a judge.
    edges_by_density : list of float or None
        The same for four groups of sampled rows, the sparsest first; None for a group without such an edge.
    rows : int
        Number of sampled rows.
    gained : float, optional
        Of the edges with p > 0.5 under approximate lists, the share without p > 0.5 under exact lists.
    """

    neighbours: float
    nearest: float
    edges: float | None
    edges_by_density: list[float | None]
    rows: int
    gained: float | None = None

    @property
    def reached(self) -> float:
        """The share that must reach the target: of edges that matter, or of neighbours without a judge."""
        return self.neighbours if self.edges is None else self.edges

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def text_of(stored: dict[str, Any]) -> str:
        """Return the text of recalls stored as a dict, which can also hold ``same_identity``."""
        same = stored.get("same_identity")
        recalls = Recalls(**{name: value for name, value in stored.items() if name != "same_identity"})
        return recalls.text("" if same is None else f", {same:.4f} of the neighbours of the same identity")

    def text(self, more: str = "") -> str:
        """Return the shares as part of a sentence; ``more`` is another share that was found."""
        shares = f"{self.nearest:.4f} of the {CANDIDATES} nearest neighbours, {self.neighbours:.4f} of all neighbours"
        if self.edges is None:
            return f"found {shares}{more}"
        groups = ", ".join("none" if share is None else f"{share:.3f}" for share in self.edges_by_density)
        matter = f"{self.edges:.4f} of the edges that matter (from sparse to dense rows: {groups})"
        gained = "" if self.gained is None else f"; {self.gained:.4f} of its edges would have p <= 0.5 on exact lists"
        return f"found {matter}, {shares}{more}{gained}"


@dataclass(frozen=True)
class Sample:
    """Sampled rows with their exact neighbours.

    Attributes
    ----------
    rows : (t,) int64
        The rows whose exact neighbours are known.
    exact : KnnGraph
        Their lists, (t, k).
    sampled : (s,) int64
        Positions of the s sampled rows in ``rows``.
    first, second : (m,) int64
        Positions in ``rows`` of the ends of the judged edges: a sampled row, and one of its first 40 neighbours.
    ranks : (m,) int64
        Position of the second end in the exact list of the first, from 0.
    nearest : (m,) bool
        Whether an edge was chosen because it leads to the nearest neighbour. These edges are judged for the context.
    """

    rows: NDArray[np.int64]
    exact: KnnGraph
    sampled: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    ranks: NDArray[np.int64]
    nearest: NDArray[np.bool_]

    @classmethod
    def draw(
        cls,
        features: Features,
        k: int,
        rng: np.random.Generator,
        *,
        judged: bool = True,
        device: str | torch.device = "cpu",
    ) -> Sample:
        """Draw up to 1,000 rows and search their exact lists.

        If ``judged``, also search those of the nearest neighbour and of three random candidates of each row.
        """
        n = len(features)
        rows = np.sort(rng.choice(n, min(RECALL_ROWS, n), replace=False))
        exact = _exact(features, rows, k, device)
        if not judged:
            none = np.empty(0, np.int64)
            return cls(rows, exact, np.arange(len(rows)), none, none, none, none.astype(np.bool_))
        near = exact.ids[:, :CANDIDATES]
        ranks = np.argsort(np.where(near >= 0, rng.random(near.shape), 2), axis=1)[:, :_PARTNERS]
        sampled = np.concatenate([np.repeat(np.arange(len(rows)), ranks.shape[1]), np.arange(len(rows))])
        nearest = np.arange(len(sampled)) >= ranks.size
        ranks = np.concatenate([ranks.ravel(), np.zeros(len(rows), np.int64)])
        there = near[sampled, ranks] >= 0
        sampled, ranks, nearest = sampled[there], ranks[there], nearest[there]
        partners = near[sampled, ranks].astype(np.int64)
        others = np.setdiff1d(partners, rows)
        lists = _exact(features, others, k, device)
        whole = KnnGraph(np.concatenate([exact.ids, lists.ids]), np.concatenate([exact.sims, lists.sims]))
        both = np.concatenate([rows, others])
        return cls(both, whole, np.arange(len(rows)), sampled, _positions(both, partners), ranks, nearest)

    @property
    def edges(self) -> Edges:
        """The judged edges under exact lists."""
        return Edges(self.rows, self.exact, self.first, self.second, self.nearest)

    def edges_in(self, graph: KnnGraph) -> Edges:
        """Return the edges at the same positions of the sampled rows' lists in a whole graph, under its lists."""
        rows = self.rows[self.sampled]
        partners = graph.ids[rows][self.first, self.ranks].astype(np.int64)  # the sampled rows come first in `rows`
        there = partners >= 0
        both = np.union1d(rows, partners[there])
        lists = KnnGraph(graph.ids[both], graph.sims[both])
        first, second = _positions(both, rows[self.first[there]]), _positions(both, partners[there])
        return Edges(both, lists, first, second, self.nearest[there])

    def recall(self, lists: KnnGraph, columns: int | None = None) -> float:
        """Return the share of the exact neighbours of the sampled rows that their approximate lists hold.

        A neighbour counts as found if it is at least as similar as the row's last exact neighbour. So another
        neighbour of the same similarity does not count as missed.

        Parameters
        ----------
        lists : KnnGraph
            The approximate lists of ``rows``.
        columns : int, optional
            Count only this many exact neighbours of each row.
        """
        exact = KnnGraph(self.exact.ids[self.sampled, :columns], self.exact.sims[self.sampled, :columns])
        wanted = (exact.ids >= 0).sum(axis=1)
        last = np.take_along_axis(exact.sims, np.maximum(wanted - 1, 0)[:, None], axis=1) - 1e-6
        held = (lists.sims[self.sampled] >= last) & (lists.ids[self.sampled] >= 0)
        return float(np.minimum(held.sum(axis=1), wanted).sum() / max(wanted.sum(), 1))

    def recall_of(self, graph: KnnGraph) -> float:
        """Return the share of the exact neighbours of the sampled rows that a whole graph holds (:meth:`recall`)."""
        return self.recall(KnnGraph(graph.ids[self.rows], graph.sims[self.rows]))

    def measure(
        self,
        features: Features,
        lists_of: Callable[[NDArray[np.int64]], KnnGraph],
        in_lists_of: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        judge: Judge | None,
    ) -> Recalls:
        """Compare the approximate lists of the sample's rows with the exact ones.

        Parameters
        ----------
        features : Features
            The features of all rows.
        lists_of, in_lists_of : functions
            Return the approximate lists of some rows, and the numbers ``in_lists`` that a judge needs.
        judge : Judge, optional
            Without it, edges that matter are not measured.
        """
        lists = lists_of(self.rows)
        measured: tuple[float | None, list[float | None], float | None] = None, [], None
        if judge is not None:
            measured = self._edges(features, lists, in_lists_of(self.rows), judge)
        share, groups, gained = measured
        return Recalls(self.recall(lists), self.recall(lists, CANDIDATES), share, groups, len(self.sampled), gained)

    def _edges(
        self, features: Features, lists: KnnGraph, in_lists: NDArray[np.float32], judge: Judge
    ) -> tuple[float | None, list[float | None], float | None]:
        """Return the share of the edges that matter that were found and kept, the same by density, and ``gained``."""
        random = ~self.nearest
        exact = judge(features, self.edges, in_lists)
        true = exact.probability[random] > MATTERS
        approximate = Edges(self.rows, lists, self.first, self.second, self.nearest)
        found = judge(features, approximate, in_lists, exact.context).probability[random] > MATTERS
        density = self.exact.sims[self.sampled, min(_DENSITY, self.exact.k) - 1]
        group = np.argsort(np.argsort(density)) * _GROUPS // max(len(density), 1)
        at = group[self.first[random]]  # the sampled rows come first in `rows`
        shares = [_share(found[true & (at == g)]) for g in range(_GROUPS)]
        return _share(found[true]), shares, _share(~true[found])


def same_identity_recall(features: Features, graph: KnnGraph, identities: NDArray[np.integer], seed: int = 0) -> float:
    """Return the share of the exact neighbours of the same identity that a graph holds, measured on 1,000 rows.

    ``identities`` (N,) are the true labels; rows with a negative label are left out.
    """
    rows = np.sort(np.random.default_rng(seed).choice(len(features), min(RECALL_ROWS, len(features)), replace=False))
    rows = rows[identities[rows] >= 0]
    exact = _exact(features, rows, graph.k).ids
    same = (exact >= 0) & (identities[exact] == identities[rows][:, None])
    held = [np.isin(wanted[at], own).sum() for wanted, own, at in zip(exact, graph.ids[rows], same, strict=True)]
    return float(sum(held) / max(same.sum(), 1))


def _share(found: NDArray[np.bool_]) -> float | None:
    return float(found.mean()) if found.size else None


def _positions(rows: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of ``wanted`` rows in ``rows``, which holds each of them once."""
    order = np.argsort(rows)
    return order[np.searchsorted(rows, wanted, sorter=order)]


def _exact(features: Features, rows: NDArray[np.int64], k: int, device: str | torch.device = "cpu") -> KnnGraph:
    """Return the exact lists of some rows."""
    if uses_torch(device):
        sims, ids = device_search(features, k, torch.device(device), rows)
    else:
        sims, ids = nearest_of_rows(features, rows, k)
    return tidy(ids, sims, rows, len(features))
