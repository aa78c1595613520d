"""The stages of scoring on shards, with a model that scores an edge by the embeddings of its ends.

======= ================================================================================================================
near    for each shard: which rows list its rows (:func:`starfc.shards.scores.near`)
project u and v of the rows of a shard, and their neighbours in the affinity graph
parse   the candidate edges of the rows of a shard with p > τ1
======= ================================================================================================================

They compute what :mod:`starfc.scoring.projections` computes, with the same functions. v is stored in float32: a task
rounds what it reads to half precision, and has v for the edges that half precision leaves in doubt.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.graph.edges import positions, row_pointers
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.scoring.nodes import NodeEmbeddings
from starfc.scoring.projection_kernels import Candidates, Entries, Scorer, own_entries, score_rows, stored_entries
from starfc.scoring.projections import (
    DOUBTFUL,
    ROW_BLOCK,
    edge_probabilities,
    logit_of,
    pair_probabilities,
    settled,
)
from starfc.scoring.projections import project as project_block
from starfc.shards.buckets import received
from starfc.shards.places import Places, Some
from starfc.shards.run import ShardRun
from starfc.shards.scores import affinity_around

_AT_ONCE = 1 << 10  # edges that are scored in float64 at a time: what lies around their ends is read for them


def project(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the projections of the rows of a shard, and what parsing needs of the affinity graph.

    ``source`` and ``target`` (m, h) are u and v in float32, ``kinds`` (m, k) those of the list entries, and ``sources``
    the places of the rows that are one-sided neighbours, with row pointers ``indptr``
    (:class:`starfc.graph.affinity.Affinity`).
    """
    shard, model = run.shards[index], run.embedding
    own = np.arange(shard.start, shard.stop)
    rows, nodes = _around(run, own, received(run, "near", index, ("source",))[1], run.asked(stage)["th_sim"])
    mine = rows.numbers(own)
    source, target = (np.empty((len(own), model.nhid), np.float32) for _ in range(2))
    terms = np.empty((3, len(own)), np.float32)

    def work(part: slice) -> None:
        found = project_block(nodes, mine[part])
        source[part], target[part] = found.source.numpy(), found.target.numpy()
        terms[:, part] = found.source_term, found.target_term, found.error

    nodes.in_blocks(work, len(own), ROW_BLOCK)
    affinity = nodes.affinity
    first, counts = affinity.indptr[mine], affinity.indptr[mine + 1] - affinity.indptr[mine]
    return {
        "source": source,
        "target": target,
        **dict(zip(("source_term", "target_term", "error"), terms, strict=True)),
        "kinds": affinity.kinds[mine],
        "indptr": row_pointers(counts),
        "sources": rows.places[affinity.sources[positions(first, counts)]],
    }


def _around(
    run: ShardRun, places: NDArray[np.integer], sources: NDArray[np.integer], th_sim: float
) -> tuple[Some, NodeEmbeddings]:
    """Return the embeddings of some places, and the rows that they depend on (:func:`affinity_around`)."""
    rows, affinity = affinity_around(run, places, sources, th_sim)
    return rows, NodeEmbeddings.of(run.embedding, run.features(rows.places), affinity)


def parse(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the number of kept edges of each row of a shard, the places of their other ends, and p.

    ``candidates`` is their number before the threshold.
    """
    asked, shard = run.asked(stage), run.shards[index]
    own = np.arange(shard.start, shard.stop)
    parts = ("source", "source_term", "kinds", "indptr", "sources")
    u, source_term, kinds, indptr, sources = (np.array(run.load("project", index, part)) for part in parts)
    ids, _ = run.lists(own)
    ends = Places.of(run.manifest.n, ids, *([sources] if asked["undirected"] else []))
    ids, sources = ends.numbers(ids), ends.numbers(sources)
    same = np.arange(len(ends), dtype=ids.dtype)
    half = torch.from_numpy(run.rows("project", "target", ends.places)).half()
    target_term, error = (torch.from_numpy(run.rows("project", part, ends.places)) for part in ("target_term", "error"))
    model = run.embedding.eval()
    scorer = Scorer.of(model.head)

    def candidates(rows: NDArray[np.integer]) -> Candidates:
        if asked["undirected"]:
            return Candidates(*stored_entries(rows, ids, kinds, indptr, sources, same))
        return Candidates(*own_entries(rows, ids, ids.shape[1], same))

    def work(part: slice) -> tuple[tuple[NDArray[np.integer], Entries], int]:
        rows = np.arange(part.start, part.stop)
        some = candidates(rows)
        line = logit_of(asked["tau1"])
        found = score_rows(some, u[part], half, 0, source_term[part], target_term, error, scorer, line)
        return (rows, found), len(some.ids)

    def again(rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.float32]:
        some, at = np.unique(cols, return_inverse=True)
        v = torch.from_numpy(run.rows("project", "target", ends.places[some]))
        p = np.empty(len(rows), np.float32)
        for part in slices(len(rows), DOUBTFUL):
            p[part] = pair_probabilities(model.head, torch.from_numpy(u), v, rows[part], at[part])
        return p

    def in_double(rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.float64]:
        return _in_double(run, own[rows], ends.places[cols], asked["th_sim"])

    done = threads.results(work, slices(len(own), ROW_BLOCK))
    blocks = settled([found for found, _ in done], again, in_double, asked["tau1"])
    counts, cols, scores = (np.concatenate(arrays) for arrays in list(zip(*blocks, strict=True))[1:])
    return {
        "counts": counts,
        "cols": ends.places[cols],
        "scores": scores,
        "candidates": np.array([sum(count for _, count in done)]),
    }


def _in_double(
    run: ShardRun, source: NDArray[np.integer], target: NDArray[np.integer], th_sim: float
) -> NDArray[np.float64]:
    """Return p of the edges between some places, computed in float64 from the features around both ends."""
    p = np.empty(len(source))
    for part in slices(len(source), _AT_ONCE):
        places = np.unique(np.concatenate([source[part], target[part]]))
        rows, nodes = _around(run, places, run.entries("project", ("sources",), places)[1], th_sim)
        p[part] = edge_probabilities(nodes.in_double(), rows.numbers(source[part]), rows.numbers(target[part]))
    return p
