"""Open the state from which `starfc assign` continues: as the last step stored it, or computed from the run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.copies import copies_among
from starfc.data.copies import find_copies
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.checks import require_ids, require_lists, require_numbers
from starfc.graph.neighbours import KnnGraph, empty_graph
from starfc.graph.opening import Search, graph_name, open_graph
from starfc.graph.structure import NO_LOGIT
from starfc.incremental.copies import known_by_edges, left_out
from starfc.incremental.lists import Step, StoredLists
from starfc.incremental.state import Rule, State, columns_of, make_rule
from starfc.models.checkpoint import load_model
from starfc.models.judge import first_round_judge
from starfc.runs.folder import STATE, Run, stored_features
from starfc.runs.marked import whole_clusters
from starfc.runtime.defaults import MOST_NEIGHBOURS, RESOLUTION
from starfc.runtime.words import anew
from starfc.storage.opened import OpenedFolder, opened
from starfc.storage.records import StateManifest
from starfc.storage.safe import read_own_npz

log = logging.getLogger("starfc")

FORMAT_VERSION = 2


def read_state(run: Run) -> tuple[State, list[str]] | None:
    """Read the state that an earlier step stored, and the files of the steps since its lists were written.

    Return None if there is no state or if it is damaged; the caller then computes a new one.
    """
    at, rule = opened(run.folder), _rule(run)
    if "steps" not in run.record or not at.has(f"{STATE}/manifest.json"):
        return None
    features = stored_features(at)  # outside the try: nothing can replace damaged features
    try:
        manifest = at.json(f"{STATE}/manifest.json", StateManifest)
        if manifest.format > FORMAT_VERSION or manifest.run != run.record["started"]:
            return None
        lists, labels = _stored_lists(at, manifest, run, rule)
        n, most = len(labels), manifest.next_label
        if len(features) != n or most > run.most_labels:
            raise InputError(f"{len(features):,} features, {n:,} rows, {most:,} clusters")
        require_ids("clusters", labels, -1, most)
        suspects = np.array(manifest.suspects, np.int64)
        require_ids("suspects", suspects, 0, most)
    except ValueError as error:
        log.info("%s: damaged (%s); it is computed again", run.folder / STATE, error)
        return None
    representative = known_by_edges(run.parsed, lists.alive)
    parsed = left_out(run.parsed, representative)
    state = State(rule, features, lists, parsed, np.array(labels), most, suspects, representative, _collapse(run, rule))
    return state, manifest.steps


def _stored_lists(
    at: OpenedFolder, manifest: StateManifest, run: Run, rule: Rule
) -> tuple[StoredLists, NDArray[np.int64]]:
    """Read the lists of a state and the cluster of every row, (N,) int64. Raise ValueError if they are damaged."""
    ids, sims = at.npy(f"{STATE}/ids.npy", 2, np.int32, np.int64), at.npy(f"{STATE}/sims.npy", 2, np.float32)
    alive, labels = at.npy(f"{STATE}/alive.npy", 1, np.bool_), at.npy(f"{STATE}/clusters.npy", 1, np.int64)
    n = len(run.labels)
    if not len(ids) <= len(alive) == len(labels) == n or (len(ids) < n and not manifest.steps):
        raise InputError(f"lists of {len(ids):,} rows, {len(labels):,} clusters, and a run of {n:,} rows")
    require_lists(ids, sims, np.arange(len(ids)), len(ids))
    require_ids("alive", alive.view(np.uint8), 0, 2)
    steps = [_read_step(at.verified(f"{STATE}/{name}"), n, ids.shape[1]) for name in manifest.steps]
    columns, candidates = columns_of(rule.model, ids.shape[1])
    codes = np.full((n, columns), NO_LOGIT, np.int8) if run.parsed.logits is None else run.parsed.logits
    if codes.shape[1] != columns:
        raise InputError(f"logits of {codes.shape[1]} neighbours where {columns} are needed")
    return StoredLists(ids, sims, steps, alive, codes, candidates), labels


def _read_step(path: Path, n: int, k: int) -> Step:
    """Read a step. Raise ValueError if it is damaged or does not fit lists of n rows and k columns."""
    arrays = read_own_npz(path)
    kinds = {"removed": ("q", 1), "queries": ("q", 1), "ids": ("iq", 2), "sims": ("f", 2)}
    kinds |= {"rows": ("iq", 1), "cols": ("iq", 1), "values": ("f", 1)}
    if {name: array.ndim for name, array in arrays.items()} != {name: ndim for name, (_, ndim) in kinds.items()}:
        raise InputError(f"{path}: does not hold the arrays of a step")
    step = Step(**arrays)
    if any(array.dtype not in [np.dtype(code) for code in kinds[name][0]] for name, array in arrays.items()):
        raise InputError(f"{path}: holds arrays of wrong types")
    if step.ids.shape[1] != k or not len(step.rows) == len(step.cols) == len(step.values):
        raise InputError(f"{path}: needs {k} neighbours, entries of one length; found {step.ids.shape[1]} neighbours")
    for name in ("removed", "queries", "rows", "cols"):
        require_ids(name, arrays[name], 0, n)
    require_lists(step.ids, step.sims, step.queries, n)
    require_numbers("values", step.values)
    if (np.diff(step.rows) < 0).any() or (step.rows == step.cols).any():
        raise InputError(f"{path}: entries are not sorted by row, or join a row with itself")
    return step


def first_state(run: Run) -> State:
    """Compute the state of a run that has none: as `starfc cluster` left it, or after the state was lost."""
    features, rule = run.features(), _rule(run)
    if run.parsed.logits is not None:
        columns, _ = columns_of(rule.model, run.record["config"]["knn"])
        found = run.parsed.logits.shape[1]
        if found > columns:
            raise InputError(
                f"{run.folder / 'edges' / 'logits.npy'}: must have at most {columns} columns; found {found}; "
                + anew("cluster")
            )
    alive = np.ones(len(features), np.bool_)
    alive[features.invalid_rows] = False
    if "steps" in run.record:  # removed rows keep -1; rows of small clusters, -1 in labels.npy, get ids again
        alive[run.removed] = False
    rows, representative = np.flatnonzero(alive), np.arange(len(features))
    if run.record.get("num_copies", 0):
        representative = find_copies(features, rows)
        rows = rows[~copies_among(representative)[rows]]
    searched = features if len(rows) == len(features) else features.subset(rows, run.folder)
    k = run.record["config"]["knn"]
    if k > max(4096, len(features)) or (rule.model.kind.structural and k > MOST_NEIGHBOURS + 1):
        path = run.folder / "run.json"
        raise InputError(f"{path}: config.knn is {k:,}, which is too many; the file is damaged, {anew('cluster')}")
    lowest = run.record["steps"][-1]["next_label"] if "steps" in run.record else run.record.get("next_label") or 0
    labels = whole_clusters(opened(run.folder), run)
    fitting = min(k, len(rows)) if rule.model.kind.structural else k
    graph = _knn_graph(run, searched, fitting) if len(rows) > 1 else empty_graph(len(rows), max(fitting, 1))
    state = State.of(
        rule, features, graph, rows, run.parsed,
        run.labels if labels is None else labels, lowest, k=k, representative=representative,
        collapse=_collapse(run, rule),
    )  # fmt: skip
    if "steps" in run.record:
        state.labels[run.removed] = -1
    return state


def _collapse(run: Run, rule: Rule) -> bool:
    """Return whether a new row that has the same direction as an earlier row is treated as its copy."""
    return rule.model.kind.structural and run.record["config"].get("copies", "collapse") == "collapse"


def _knn_graph(run: Run, valid: Features, k: int) -> KnnGraph:
    """Open the run's kNN graph, in the run's folder or where its config says. If it is gone, build it again."""
    config = run.record["config"]
    search = Search(config["knn_method"], config["knn_params"], config["seed"], config["knn_recall"], first_round_judge)
    named = config["test_data"].get("knn_graph_path")
    for path in (run.folder / "knn" / graph_name(valid, k, search), Path(named) if named else None):
        try:
            graph = None if path is None else open_graph(valid, k, search, path)
        except InputError as error:
            log.info("kNN graph: %s", error)
            continue
        if graph is not None:
            return graph
    log.info("kNN graph: the graph of this run is gone; it is built again")
    return search.build(valid, k)


def _rule(run: Run) -> Rule:
    record = run.record
    config, refinement, partition = record["config"], record["refinement"], record["partition"]
    resolution, seed = config.get("partition", {}).get("resolution", RESOLUTION), config["seed"]
    model = load_model(record["model"])
    return make_rule(model, run.tau1, run.tau2, config["th_sim"], refinement, partition, resolution, seed)
