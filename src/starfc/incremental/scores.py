"""Score the edges of new instances, with the model that scored the other edges.

A structural model needs first-round logits around both ends of an edge. They are computed for the rows that are needed
and do not have them yet, and then stored. When a new instance enters a row's list, the row's other logits do not
change.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from starfc.data.dataset import Features
from starfc.graph.affinity import Affinity
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import locality_order
from starfc.graph.structure import NO_LOGIT, EdgeLogits, Structure, smooth_rows, smoothing_affinity
from starfc.incremental.lists import Lists
from starfc.models.contextual import Context, ContextualModel
from starfc.models.gcn import StarFCModel
from starfc.models.structural import StructuralModel, logits_of
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.scoring.nodes import NodeEmbeddings
from starfc.scoring.projections import edge_probabilities
from starfc.scoring.structural import ROW_BLOCK, Scoring, on_device, score_first_round

_SPARSE_BLOCK = 8 * ROW_BLOCK  # rows per block if only a few edges per row are scored

Scored = tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.float32]]


def score_new(
    model: StarFCModel | StructuralModel,
    features: Features,
    lists: Lists,
    first: int,
    touched: NDArray[np.integer],
    tau1: float,
    th_sim: float = 0.0,
    context: Context | None = None,
) -> Scored:
    """Return the candidate edges with p > τ1 that have at least one new row (id >= ``first``) as an end.

    Parameters
    ----------
    model : StarFCModel or StructuralModel
    features : Features
        Features of all rows.
    lists : Lists
        The lists after the step. First-round logits are added to them.
    first : int
        The first new row.
    touched : (t,) integers
        Earlier rows whose lists may contain new rows.
    tau1, th_sim : float
        As for :func:`starfc.clustering.pipeline.cluster`.
    context : Context, optional
        The context in which a contextual model scored the earlier rows, with the strangers of all rows.

    Returns
    -------
    rows, cols, scores : (m,) arrays
        Sorted by row, then column. The edges are kNN entries i -> j; with a structural model, each edge is returned in
        both directions.
    """
    if isinstance(model, StructuralModel):
        rows, cols, scores = _structural(model, features, lists, first, touched, tau1, context)
    else:
        rows, cols, scores = _published(model, features, lists, first, touched, tau1, th_sim)
    order = np.lexsort([cols, rows])
    return rows[order], cols[order], scores[order]


def read_context(model: ContextualModel, features: Features, lists: Lists, scratch: Path | None = None) -> Context:
    """Return the context of the rows that have lists (at least two), equal to the one that a clustering would have."""
    rows, n = np.flatnonzero(lists.alive), len(lists)
    place = np.full(n + 1, -1, lists.ids.dtype)  # the last entry is for empty slots, id -1
    place[rows] = np.arange(len(rows))
    graph = KnnGraph(place[lists.ids[rows]], lists.sims[rows])
    context = Scoring(model, features.subset(rows, scratch), graph, scratch=scratch).context
    assert context is not None  # Scoring always sets it for a contextual model
    return replace(context, strangers=context.strangers.placed(rows, n))


def _published(
    model: StarFCModel,
    features: Features,
    lists: Lists,
    first: int,
    touched: NDArray[np.integer],
    tau1: float,
    th_sim: float,
) -> Scored:
    owners = np.concatenate([touched, np.flatnonzero(lists.alive[first:]) + first])
    ids = lists.ids[owners]
    local, slot = np.nonzero((ids >= 0) & ((ids >= first) | (owners >= first)[:, None]))
    rows, cols = owners[local], ids[local, slot].astype(np.int64)
    if not rows.size:
        return rows, cols, np.empty(0, np.float32)
    nodes = NodeEmbeddings.of(model, features, Affinity.of(lists.graph, th_sim))
    p = edge_probabilities(nodes, rows, cols).astype(np.float32, copy=False)
    return rows[p > tau1], cols[p > tau1], p[p > tau1]


def _structural(
    model: StructuralModel,
    features: Features,
    lists: Lists,
    first: int,
    touched: NDArray[np.integer],
    tau1: float,
    context: Context | None,
) -> Scored:
    new = np.flatnonzero(lists.alive[first:]) + first
    if not new.size or np.count_nonzero(lists.alive) < 2:
        return new[:0], new[:0], np.empty(0, np.float32)
    askers = touched[(lists.ids[touched, : model.candidates] >= first).any(axis=1)]
    order = locality_order(lists.graph)

    def ordered(*ids: NDArray[np.integer]) -> NDArray[np.integer]:
        return order[_marked(len(lists), *ids)[order]]

    owners, ends = ordered(askers, new), ordered(askers, new, lists.ids[new, : model.candidates])
    unknown = ends[~lists.known[ends]] if model.rounds == 2 else ends[:0]
    within = ordered(ends, lists.ids[unknown, : model.candidates])
    nodes = np.empty((len(within), features.dim if model.smoothing else 0), np.float16)
    if model.smoothing:
        affinity = smoothing_affinity(lists.graph, model.smoothing, wanted=_marked(len(lists), within))
        smooth_rows(affinity, features, within, np.arange(len(within)), nodes)
    strangers = log_nodes = None
    if isinstance(model, ContextualModel):
        assert context is not None  # State.step computes it as soon as there are two rows
        early, late = model.first.of(context.first), context.late(model)
        strangers, log_nodes = context.strangers, math.log(context.num_nodes)
    else:
        early, late = model.first, [] if model.second is None else [model.second]
    structure = Structure(lists.graph, model.columns, model.candidates, nodes, within, strangers, log_nodes)
    before = None
    if model.rounds == 2:
        before, first_score = EdgeLogits(structure, lists.codes), on_device(early, "cpu")
        score_first_round(first_score, structure, before, unknown, every=True)
        lists.known[unknown] = True
        # A mutual candidate edge already has its code here, from the new row's side; score the others.
        own = slice(0, lists.candidates)
        without = (lists.ids[askers, own] >= first) & (lists.codes[askers, own] == NO_LOGIT)
        score_first_round(
            first_score, structure, before, askers[without.any(axis=1)], every=True, since=first, block=_SPARSE_BLOCK
        )
        before.sum_degrees(ends)
    line, scorers = logit(tau1), [early] if before is None else late

    @torch.inference_mode()
    def last_round(part: slice) -> Scored:
        rows = owners[part]
        if before is None:
            pairs = structure.first_round(rows, since=first)
        else:
            pairs = structure.second_round(rows, before, since=first)
        columns = torch.from_numpy(pairs.features)
        z = (sum(logits_of(scorer, columns) for scorer in scorers) / (len(scorers) * model.temperature)).numpy()
        above = np.flatnonzero(z > line)
        ours = pairs.rows[above]
        return ours, lists.ids[ours, pairs.slots[above]].astype(np.int64), expit(z[above])

    found = threads.results(last_round, slices(len(owners), _SPARSE_BLOCK))
    rows, cols, scores = (np.concatenate(x) for x in zip(*found, strict=True))
    return np.concatenate([rows, cols]), np.concatenate([cols, rows]), np.concatenate([scores, scores])


def _marked(n: int, *ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which of n nodes occur in some arrays of ids, (n,) bool; -1 is ignored."""
    mark = np.zeros(n + 1, np.bool_)
    for some in ids:
        mark[some] = True
    return mark[:n]
