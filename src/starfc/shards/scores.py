"""The stages of scoring on shards, with a structural model (:mod:`starfc.scoring.structural`).

======= ================================================================================================================
near    for each shard: which of its rows list rows of another shard first, and how many lists have each row
smooth  the smoothed features, and the number of lists that have each row
first   the first round's logits: those of the shard's rows, and those at the other ends of edges
codes   the first round's logits of a shard's rows, from all shards, and the degrees
second  the edges with p > τ1 that the rows of a shard own, by the shard of the other end
======= ================================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from starfc.clustering.adaptation import Adapted
from starfc.graph.affinity import Affinity
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.structure import PROBABILITY, EdgeLogits, Structure, smooth_rows
from starfc.graph.structure_kernels import NO_LOGIT, longest, row_sums
from starfc.models.structural import EdgeScorer
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.scoring.structural import ROW_BLOCK, mass_of, on_device, score_first_round
from starfc.shards.buckets import bucketed, received
from starfc.shards.places import Places, Some
from starfc.shards.run import ShardRun

NEAR = 10  # as for :class:`starfc.graph.structure.Structure`


def near(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return who lists whom, by the shard of the listed row; for a structural model also how often."""
    shard, size, count = run.shards[index], run.manifest.shard_rows, len(run.shards)
    own = np.arange(shard.start, shard.stop)
    ids, _ = run.lists(own, run.averaged_columns)
    row, column = np.nonzero(ids >= 0)
    # one entry for each shard that a row lists
    keys = np.unique((ids[row, column] // size).astype(np.int64) * run.manifest.n + shard.start + row)
    dtype = id_dtype(run.manifest.n)
    listing = (keys % run.manifest.n).astype(dtype)
    found = bucketed((keys // run.manifest.n * size).astype(dtype), {"source": listing}, size, count)
    if not run.model.kind.structural:
        return found
    lists, _ = run.untied(own)
    lists = lists[:, : run.structural.columns]
    places, counts = np.unique(lists[lists >= 0], return_counts=True)
    first, of_first = np.unique(lists[:, :NEAR][lists[:, :NEAR] >= 0], return_counts=True)
    in_first = np.zeros(len(places), np.int32)
    in_first[np.searchsorted(places, first)] = of_first
    listed = bucketed(places, {"first": in_first, "all": counts.astype(np.int32)}, size, count)
    return (
        found
        | {f"listed_{name}": array for name, array in listed.items()}
        | {"width": np.array([longest(np.ascontiguousarray(lists))])}
    )


def smooth(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the smoothed features of a shard (:func:`starfc.graph.structure.smooth`), and its in-degrees (m, 2)."""
    shard = run.shards[index]
    own = np.arange(shard.start, shard.stop)
    in_lists = np.zeros((len(own), 2), np.float32)
    for task in range(len(run.shards)):
        starts = run.load("near", task, "listed_starts")
        part = slice(int(starts[index]), int(starts[index + 1]))
        if part.start < part.stop:
            at = run.load("near", task, "listed_target")[part] - shard.start
            for column, name in enumerate(("first", "all")):
                in_lists[at, column] += run.load("near", task, f"listed_{name}")[part]
    found = {"in_lists": in_lists}
    if run.structural.smoothing == 0:
        return found | {"smoothed": np.empty((len(own), 0), np.float16)}
    rows, affinity = affinity_around(run, own, received(run, "near", index, ("source",))[1])
    out = np.zeros((len(own), run.manifest.dim), np.float16)
    order = np.sort(rows.numbers(own))
    smooth_rows(affinity, run.features(rows.places), order, rows.places[order] - shard.start, out)
    return found | {"smoothed": out}


def affinity_around(
    run: ShardRun, places: NDArray[np.integer], sources: NDArray[np.integer], th_sim: float = 0.0
) -> tuple[Some, Affinity]:
    """Return the affinity graph around some places, and its rows: these, their neighbours, and those that list them.

    Parameters
    ----------
    places : (m,) integers
        The places whose neighbours in the affinity graph are complete.
    sources : (s,) integers
        Places, with all those whose lists have one of ``places``.
    th_sim : float
        As for :meth:`starfc.graph.affinity.Affinity.of`.
    """
    width = run.averaged_columns
    rows = run.some(places, run.lists(places, width)[0], sources)
    ids, sims = run.lists(rows.places, width)
    # neighbours that are not among these rows become empty slots
    graph = KnnGraph(rows.numbers(ids), np.ascontiguousarray(sims))
    wanted = np.zeros(len(rows), np.bool_)
    wanted[rows.numbers(places)] = True
    return rows, Affinity.of(graph, th_sim, wanted=wanted)


@dataclass(frozen=True)
class Around:
    """Some rows, and the part of the kNN graph around them that the scores of their edges depend on.

    Attributes
    ----------
    rows : Some
        The rows, their neighbours, and the neighbours of their candidates.
    own : (m,) integers
        Numbers of the rows whose edges are scored, increasing.
    ends : (u,) integers
        Numbers of the rows that can be an end of such an edge, increasing.
    structure : Structure
        Structural features of these edges.
    before : EdgeLogits, optional
        The first round's logits, if there were any.
    """

    rows: Some
    own: NDArray[np.integer]
    ends: NDArray[np.integer]
    structure: Structure
    before: EdgeLogits | None = None

    @classmethod
    def of(cls, run: ShardRun, places: NDArray[np.integer], codes: str | None = None) -> Around:
        """Read what is around some places; ``codes`` is the stage of the first round's logits."""
        model, k = run.structural, run.manifest.k
        candidates, _ = run.lists(places, model.candidates)
        ends = Places.of(run.manifest.n, places, candidates).places
        lists, values = run.untied(ends)
        rows = run.some(ends, lists)
        at = rows.numbers(ends)
        ids, sims = np.full((len(rows), k), -1, id_dtype(1)), np.zeros((len(rows), k), np.float32)
        ids[at], sims[at] = rows.numbers(lists), values
        order = np.argsort(at)
        at = at[order]
        counts, strangers = np.zeros((2, len(rows)), np.float32), None
        counts[:, at] = run.rows("smooth", "in_lists", rows.places[at]).T
        if run.contextual is not None:
            strangers = run.strangers(rows.places[at]).placed(at, len(rows))
        structure = Structure(
            KnnGraph(ids, sims), model.columns, model.candidates,
            run.rows("smooth", "smoothed", rows.places[at]), within=at, strangers=strangers,
            log_nodes=float(np.log(run.manifest.n)), in_lists=counts, width=width_of(run),
        )  # fmt: skip
        before = None
        if codes is not None:
            whole = np.full(structure.ids.shape, NO_LOGIT, np.int8)
            whole[at] = run.rows(codes, "codes", rows.places[at])
            before = EdgeLogits(structure, whole)
            before.degrees[at] = run.rows(codes, "degrees", rows.places[at])
        return cls(rows, np.sort(rows.numbers(places)), at, structure, before)


def width_of(run: ShardRun) -> int:
    """Return the length of the longest list that the model sees."""
    return int(run.store.read_json("width.json")["width"])


def first(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Score the edges that a shard owns in the first round."""
    shard = run.shards[index]
    around = Around.of(run, np.arange(shard.start, shard.stop))
    rows, structure = around.rows, around.structure
    logits = EdgeLogits(structure)
    scorer = scorer_of(run, stage)
    score_first_round(on_device(scorer, "cpu"), structure, logits, around.own)
    mine = rows.numbers(np.arange(shard.start, shard.stop))
    others = np.setdiff1d(around.ends, mine)
    row, slot = np.nonzero(logits.codes[others] != NO_LOGIT)
    values: dict[str, NDArray] = {"slot": slot.astype(np.int16), "code": logits.codes[others[row], slot]}
    targets = rows.places[others[row]].astype(id_dtype(run.manifest.n))
    out = bucketed(targets, values, run.manifest.shard_rows, len(run.shards))
    return out | {"own": logits.codes[mine]}


def codes(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the first round's logits of a shard, (m, width) int8, and its degrees (m,)."""
    shard, before = run.shards[index], run.asked(stage)["first"]
    out = np.array(run.load(before, index, "own"))
    target, slot, code = received(run, before, index, ("slot", "code"))
    out[target - shard.start, slot] = code
    degrees = np.zeros(len(out), np.float32)
    row_sums(np.arange(len(out)), out, PROBABILITY, degrees)
    return {"codes": out, "degrees": degrees}


def second(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Score the edges that a shard owns in the last round, and return those with p > τ1, by the shard of their end.

    ``source`` is the place of the owner, ``target`` of the other end, and ``score`` p; ``sums`` are the number of
    candidates and Σ p, in units of 2^-24.
    """
    asked, shard = run.asked(stage), run.shards[index]
    places = np.arange(shard.start, shard.stop)
    around = Around.of(run, places, asked["codes"])
    rows, structure = around.rows, around.structure
    score, line = last_round(run, stage, rows), logit(asked["tau1"])
    temperature = np.float32(float(run.structural.temperature))

    def work(part: slice) -> tuple[NDArray, NDArray, NDArray, int, int]:
        own = around.own[part]
        pairs = structure.first_round(own) if around.before is None else structure.second_round(own, around.before)
        ends = structure.graph.ids[pairs.rows, pairs.slots]
        z = score(pairs.features, pairs.rows, ends) / temperature
        above = np.flatnonzero(z > line)
        found = rows.places[ends[above]], rows.places[pairs.rows[above]], expit(z[above])
        return *found, len(z), mass_of(expit(z))

    found = threads.results(work, slices(len(around.own), ROW_BLOCK))
    target, source, score = (np.concatenate(arrays) for arrays in list(zip(*found, strict=True))[:3])
    target, source = (places.astype(id_dtype(run.manifest.n)) for places in (target, source))
    sums = np.array([sum(part[3] for part in found), sum(part[4] for part in found)], np.int64)
    out = bucketed(target, {"source": source, "score": score}, run.manifest.shard_rows, len(run.shards))
    return out | {"sums": sums}


def arrays_of(scorers: Sequence[EdgeScorer], half: NDArray[np.int8] | None = None) -> dict[str, NDArray]:
    """Return scorers as arrays to store; with ``half`` (N,), by name, they are adapted scorers."""
    with torch.no_grad():
        values = {
            f"{number}-{name}": value.numpy()
            for number, scorer in enumerate(scorers)
            for name, value in scorer.state_dict().items()
        }
    return values | ({} if half is None else {"half": half})


def scorer_of(run: ShardRun, stage: str, number: int = 0) -> EdgeScorer:
    """Return a scorer that a stage was asked with."""
    names = [part for part in run.asked(stage)["arrays"][0] if part.startswith(f"{number}-")]
    values = {name.partition("-")[2]: torch.from_numpy(np.array(run.asked_array(stage, name))) for name in names}
    hidden, features = values["layers.0.weight"].shape
    scorer = EdgeScorer(features, hidden, members=hidden // values["layers.1.weight"].shape[1])
    scorer.load_state_dict(values)
    return scorer.eval()


def last_round(run: ShardRun, stage: str, rows: Some) -> Any:
    """Return a function that computes the logits of edges, from their features and the numbers of their ends."""
    if "half" not in run.asked(stage)["arrays"][0]:
        score = on_device(scorer_of(run, stage), "cpu")
        return lambda features, *ends: score(features)
    half = np.asarray(run.asked_array(stage, "half")[rows.names])
    return Adapted((scorer_of(run, stage, 0), scorer_of(run, stage, 1)), half).logits
