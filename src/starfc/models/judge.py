"""Judge single edges by the packaged model, to measure approximate kNN graphs (:mod:`starfc.graph.recall`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from starfc.data.dataset import Features
from starfc.graph.neighbours import KnnGraph
from starfc.graph.strangers import Strangers
from starfc.graph.structure import Structure, smooth
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.contextual import ContextualModel, first_context


def first_round_judge(
    features: Features,
    rows: NDArray[np.int64],
    lists: KnnGraph,
    in_lists: NDArray[np.float32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the first round's p (m,) of edges between rows whose lists are known (:class:`starfc.graph.recall.Judge`).

    The first round's features of an edge need only the lists of both ends, and the features of the rows in them. The
    context of the set is computed from the judged edges.
    """
    model = load_model(PRETRAINED)
    assert isinstance(model, ContextualModel)
    names = np.union1d(rows, lists.ids[lists.ids >= 0])
    places, n = np.searchsorted(names, rows), len(names)
    ids, sims = np.full((n, lists.k), -1, lists.ids.dtype), np.zeros((n, lists.k), np.float32)
    ids[places] = np.where(lists.ids >= 0, np.searchsorted(names, lists.ids), -1)
    sims[places] = lists.sims
    graph = KnnGraph(ids, sims)
    near = Features(features.rows(names), features.name, normalise=False)
    strangers = Strangers.of(Features(near.rows(places), features.name, normalise=False)).placed(places, n)
    counts = np.zeros((2, n), np.float32)
    counts[:, places] = in_lists
    structure = Structure(
        graph, model.columns, model.candidates, smooth(graph, near, model.smoothing), strangers=strangers,
        log_nodes=float(np.log(len(features))), in_lists=counts,
    )  # fmt: skip
    columns = np.full((len(first), structure.num_features), np.nan, np.float32)
    for ends in ((first, second), (second, first)):
        missing = np.flatnonzero(np.isnan(columns[:, 0]))
        own, other = (places[end[missing]] for end in ends)
        pairs = structure.first_round(np.unique(own), every=True)
        edges = pairs.rows.astype(np.int64) * n + graph.ids[pairs.rows, pairs.slots]
        order = np.argsort(edges)
        at = np.searchsorted(edges, own * n + other, sorter=order)
        at = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(own), np.int64)
        held = edges[at] == own * n + other if len(order) else np.zeros(len(own), np.bool_)
        columns[missing[held]] = pairs.features[at[held]]
    found = ~np.isnan(columns[:, 0])
    probability = np.zeros(len(first), np.float32)
    if found.any():
        context = first_context(columns[found], len(features), features.dim, strangers)
        with torch.inference_mode():
            probability[found] = expit(model.first.of(context)(torch.from_numpy(columns[found])).numpy())
    return probability
