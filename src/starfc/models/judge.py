"""Judge single edges by a contextual model, given only the lists of their ends.

This has two uses. :func:`first_round_judge` measures which edges that matter an approximate kNN graph has
(:mod:`starfc.graph.recall`). :func:`context_change` says how the context of a set changes if its lists are approximate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from starfc.data.dataset import Features
from starfc.graph.neighbours import KnnGraph
from starfc.graph.recall import Edges, Judgement, Sample
from starfc.graph.strangers import Strangers
from starfc.graph.structure import Structure, smooth
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.contextual import CONTEXT_FIRST, RANK_QUANTILES, ContextualModel, first_context, mutually_nearest


def first_round_judge(
    features: Features, edges: Edges, in_lists: NDArray[np.float32], context: NDArray[np.float32] | None = None
) -> Judgement:
    """Return the packaged model's first-round p of edges (:class:`starfc.graph.recall.Judge`).

    If no context is given, it is computed from the judged edges.
    """
    model = load_model(PRETRAINED)
    assert isinstance(model, ContextualModel)
    strangers = Strangers.of(Features(features.rows(edges.rows), features.name, normalise=False))
    columns, owned = _first_round_columns(model, features, edges, in_lists, strangers)
    found = ~np.isnan(columns[:, 0])
    probability = np.zeros(len(found), np.float32)
    if context is None:
        known = _context(columns, owned, edges, features, strangers)
        context = model.first.neutral if known is None else known
    with torch.inference_mode():
        probability[found] = expit(model.first.of(context)(torch.from_numpy(columns[found])).numpy())
    return Judgement(probability, context)


def context_change(
    model: ContextualModel,
    features: Features,
    graph: KnnGraph,
    strangers: Strangers,
    in_lists_of: Callable[[NDArray[np.integer]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return how much the first round's context would change if the lists of ``graph`` were exact, (151,) float32.

    Approximate lists of neighbours in one place have the same gaps, so strangers in this place have more common
    neighbours than under exact lists. A scorer would read this from the context as a property of the embedding, and
    trust the common neighbours of all pairs more. Therefore the context must be that of exact lists. It is measured on
    1,000 rows, three candidate edges of each, and the edges to their nearest neighbours: once with exact lists, and
    once with those of ``graph``.
    ``strangers`` are those of the set, and ``in_lists_of`` returns the numbers (2, t) of lists that have each of some
    rows (:class:`starfc.graph.structure.Structure`). The quantiles of ranks stay as they are: they are logs of whole
    numbers, which jump from one sample to the next.

    Notes
    -----
    Needs 5,000 N products.
    """
    sample = Sample.draw(features, graph.k, np.random.default_rng(0))
    contexts = []
    for edges in (sample.edges, sample.edges_in(graph)):
        known = strangers.of_some(edges.rows)
        columns, owned = _first_round_columns(model, features, edges, in_lists_of(edges.rows), known)
        context = _context(columns, owned, edges, features, strangers)
        if context is None:
            return np.zeros(CONTEXT_FIRST, np.float32)
        contexts.append(context)
    change = contexts[0] - contexts[1]
    change[RANK_QUANTILES] = 0
    return change


def _context(
    columns: NDArray[np.float32],
    owned: NDArray[np.bool_],
    edges: Edges,
    features: Features,
    strangers: Strangers,
) -> NDArray[np.float32] | None:
    """Return the context of the set from its judged edges. None if there are no random edges.

    A set's context counts each edge to a nearest neighbour once. If both ends have each other as nearest neighbour, the
    edge is chosen at both ends; then only the one at its owner counts.
    """
    random = columns[owned & ~edges.nearest]
    if not len(random):
        return None
    once = owned | ~mutually_nearest(columns)
    nearest = columns[edges.nearest & ~np.isnan(columns[:, 0]) & once]
    return first_context(random, len(features), features.dim, strangers, nearest)


def _first_round_columns(
    model: ContextualModel,
    features: Features,
    edges: Edges,
    in_lists: NDArray[np.float32],
    strangers: Strangers,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the first round's features of edges, and which edges are owned by their first end.

    The features (m, 31) are NaN for edges that are not candidates. They need only the lists of both ends, and the
    features of the rows in these lists. ``in_lists`` (2, t) are the numbers of lists that have each row
    (:class:`starfc.graph.structure.Structure`), and ``strangers`` are those of these t rows. A context counts each edge
    once, at its owner.
    """
    rows, lists = edges.rows, edges.lists
    names = np.union1d(rows, lists.ids[lists.ids >= 0])
    places, n = np.searchsorted(names, rows), len(names)
    ids, sims = np.full((n, lists.k), -1, lists.ids.dtype), np.zeros((n, lists.k), np.float32)
    ids[places] = np.where(lists.ids >= 0, np.searchsorted(names, lists.ids), -1)
    sims[places] = lists.sims
    graph = KnnGraph(ids, sims)
    near = Features(features.rows(names), features.name, normalise=False)
    counts = np.zeros((2, n), np.float32)
    counts[:, places] = in_lists
    structure = Structure(
        graph, model.columns, model.candidates, smooth(graph, near, model.smoothing),
        strangers=strangers.placed(places, n), log_nodes=float(np.log(len(features))), in_lists=counts,
    )  # fmt: skip
    columns = np.full((len(edges.first), structure.num_features), np.nan, np.float32)
    owned = np.zeros(len(columns), np.bool_)
    for ends in ((edges.first, edges.second), (edges.second, edges.first)):
        missing = np.flatnonzero(np.isnan(columns[:, 0]))
        own, other = (places[end[missing]] for end in ends)
        pairs = structure.first_round(np.unique(own), every=True)
        others = graph.ids[pairs.rows, pairs.slots]
        keys = pairs.rows.astype(np.int64) * n + others
        order = np.argsort(keys)
        at = np.searchsorted(keys, own * n + other, sorter=order)
        at = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(own), np.int64)
        held = keys[at] == own * n + other if len(order) else np.zeros(len(own), np.bool_)
        columns[missing[held]] = pairs.features[at[held]]
        if ends[0] is edges.first:
            mutual = (pairs.back >= 0) & (pairs.back < model.candidates)
            owned[missing[held]] = (~mutual | (pairs.rows < others))[at[held]]
    return columns, owned
