"""Add instances to the folder of a finished run, and remove instances from it.

A call of :func:`assign` is a step. The first creates ``state/``, which holds all that later steps need of the run:

================== ================================================================================================
``features.bin``   all rows as given, row-major, in the dtype of the run's features; new rows are appended
``scale``          factor that normalises each row, .npy (N,) float32
``ids``, ``sims``  kNN lists, .npy (n, k), in the state of some steps ago
``step-*.npz``     the changes that each later step made to the lists (:class:`starfc.incremental.lists.Step`)
``alive``          whether a row has a list, .npy (N,) bool; invalid rows, removed rows and copies have none
``clusters``       cluster of every row, .npy (N,) int64; labels.npy may show -1 for small clusters instead
``manifest.json``  number of rows, dimension and dtype of the features, names of the steps, next cluster id, run
================== ================================================================================================

The files of a step replace the earlier files all at once (:mod:`starfc.storage.commit`). Only features.bin is appended
to in place. If a step is killed, rows remain behind those that the manifest counts; the next step overwrites them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from starfc.answers.constraints import apart
from starfc.answers.names import carried
from starfc.clustering.copies import copies_among
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels
from starfc.data.fingerprint import fingerprint
from starfc.data.formats.parquet import opened_parquet
from starfc.data.instance_files import Files, files_beside, read_files
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate, labelled
from starfc.graph.structure import NO_LOGIT
from starfc.incremental.lists import Lists
from starfc.incremental.state import Assigned, State
from starfc.review.measures import COLUMNS, instance_columns
from starfc.runs.folder import STATE, Run
from starfc.runs.marked import CLUSTERS, NAMES, hold, read_kept, read_names, write_names
from starfc.runs.outputs import files_after, write_clustering, write_edges, write_run
from starfc.runs.state import FORMAT_VERSION, first_state, read_state
from starfc.runs.table import Columns
from starfc.runtime.stages import Stages
from starfc.runtime.words import word
from starfc.storage.atomic import replacing, save_array, write_bytes, write_json, writes
from starfc.storage.commit import changing
from starfc.storage.opened import opened
from starfc.storage.owners import ASSIGN
from starfc.storage.safe import first_line, open_regular

log = logging.getLogger("starfc")

_SHARE = 8  # rewrite the lists when the steps since the last time take more than 1 / _SHARE of the lists' bytes,
_STEPS = 64  # or when there are this many steps


def assign(
    folder: str | Path,
    features: str | Path | NDArray[np.floating] | None = None,
    *,
    remove: Sequence[int] | NDArray[np.integer] = (),
    apply_merges: bool = False,
    labels: str | Path | NDArray[np.integer] | None = None,
    key: str | None = None,
    files: str | Path | None = None,
    stages: Stages | None = None,
) -> Assigned:
    """Add instances to a finished run, remove some, and update its folder.

    Parameters
    ----------
    folder : path
        Folder of a run with stored edges and fixed refinement. Its clusters may be components or communities.
    features : path or (m, d) array, optional
        New instances. Their row ids follow the existing ones. They are normalised like the features of the run and
        stored in the same dtype.
    remove : integers
        Row ids to remove. These rows get label -1, and their row ids are not used again.
    apply_merges : bool
        Make the merges and splits that the edges propose. If False, they are only listed. Merges that the marks of the
        run forbid are neither.
    labels : path or (N + m,) integers, optional
        Identities of all rows, to compute the metrics.
    key : str, optional
        Name of the array in an .npz of features, or of the dataset in an .h5.
    files : path, optional
        Files of the new instances, for the column ``file`` of clusters.parquet (:mod:`starfc.data.instance_files`).
        Default: those that a table of features names.
    stages : Stages, optional
        Measures the time of each stage, and checks the memory limit.

    Returns
    -------
    Assigned
        The result of the step. It is also appended to ``folder/assign.json``, without the labels.

    Raises
    ------
    MissingFileError, InputError
        There is no such run, the run is of another kind, a file is damaged, or another process writes to the folder.
        The folder is unchanged then.
    """
    folder, stages = Path(folder), stages or Stages()
    if not folder.is_dir():
        Run.open(folder)  # raises the error
    if files is not None and features is None:
        raise InputError(f"{word('files')}: are those of new instances, but there are none; leave it out")
    read = [path for path in (features, labels, files) if isinstance(path, str | Path)]
    with changing(folder, ASSIGN, inputs=read) as change:
        started, place = time.perf_counter(), change.place
        with stages.stage("open"):
            run = Run.open(folder)
            state, logged = read_state(run) or (first_state(run), None)
        new, invalid = _new_rows(run, features, key)
        truth = _truth(labels, len(state.labels) + len(new))
        of_new = files_beside(features, len(new)) if isinstance(features, str | Path) else None
        if files is not None:
            of_new = read_files(files, len(new), known=of_new)
        change.append(f"{STATE}/features.bin")
        with stages.stage("features", needs=new.array.nbytes):
            every = _append(folder, place, state.features, new, is_first=logged is None)
        earlier = state.labels.copy()
        kept, names = read_kept(opened(folder), len(run.labels)), read_names(opened(folder))
        assigned = state.step(
            every,
            invalid=invalid,
            remove=remove,
            apply_merges=apply_merges,
            apart=partial(apart, marks=kept.marks),
            stages=stages,
            scratch=folder,
        )
        if len(kept.marks):
            hold(state, kept.marks, earlier)
            assigned.labels, assigned.num_clusters = state.labels[assigned.first_row :], state.num_clusters
        names, lost = carried(names, earlier, state.labels)
        for one in lost:
            log.warning("%s", one.text())
        record = _record(run, state, assigned, features, truth)
        with stages.stage("write"):
            logged = _write(folder, place, state, record, assigned, logged, names, of_new)
        change.removed.append(CLUSTERS)
        steps = (path.name for path in (folder / STATE).glob("step-*.npz"))
        change.removed += [f"{STATE}/{name}" for name in steps if name not in logged]
    assigned.seconds = time.perf_counter() - started
    return assigned


def _new_rows(
    run: Run, features: str | Path | NDArray[np.floating] | None, key: str | None
) -> tuple[Features, NDArray[np.int64]]:
    """Return the new instances (m, d), checked, and the row ids (i,) in the run of those without a direction."""
    first, dim = len(run.labels), run.record["feature_dim"]
    if features is None:
        return Features(np.empty((0, dim), np.float32)), np.empty(0, np.int64)
    name = str(features) if isinstance(features, str | Path) else "features"
    array = read_features(features, dim, key) if isinstance(features, str | Path) else np.asarray(features)
    if array.ndim != 2 or array.shape[1] != dim or array.dtype.kind != "f":
        raise InputError(
            f"features: need shape (m, {dim}) and a float type, like the run's; found {array.shape}, {array.dtype}"
        )
    new = Features(array, name, run.record["normalise"])
    _, invalid = new.valid(run.record["config"]["invalid_rows"])
    return new, invalid + first


def _append(folder: Path, place: Path, before: Features, new: Features, is_first: bool) -> Features:
    """Write all rows to features.bin: the first step writes a new file, which is committed; later steps append."""
    dtype = before.array.dtype.newbyteorder("=")
    row = dtype.itemsize * before.dim
    path = opened(place if is_first else folder).path(f"{STATE}/features.bin")
    path.parent.mkdir(parents=True, exist_ok=True)
    (place / STATE).mkdir(exist_ok=True)
    with writes(path, folder), path.open("wb" if is_first else "r+b") as file:
        if is_first:
            for rows in before.blocks():
                file.write(np.ascontiguousarray(before.array[rows], dtype).data)
        file.truncate(len(before) * row)
        file.seek(len(before) * row)
        for rows in new.blocks():
            # the run's dtype may be too narrow for these values; normalised rows fit into every dtype
            block = new.array[rows] if new.array.dtype == dtype or not new.normalise else new.rows(rows)
            file.write(np.ascontiguousarray(block, dtype).data)
        file.flush()
        os.fsync(file.fileno())
    shape = (len(before) + len(new), before.dim)
    array = np.memmap(path, dtype, "r", shape=shape) if shape[0] else np.empty(shape, dtype)
    return Features(array, str(folder / STATE / "features.bin"), before.normalise, before.scale)


def _truth(labels: str | Path | NDArray[np.integer] | None, rows: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    truth = read_labels(labels) if isinstance(labels, str | Path) else np.asarray(labels)
    if truth.shape != (rows,):
        raise InputError(
            f"{word('labels')}: need one label for each of the {rows:,} rows, old and new; found shape {truth.shape}"
        )
    return truth


def _record(
    run: Run,
    state: State,
    assigned: Assigned,
    features: str | Path | NDArray[np.floating] | None,
    truth: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """Return the content of run.json after the step."""
    record, there = dict(run.record), state.labels >= 0
    sizes = np.bincount(state.labels[there])
    metrics: dict[str, Any] = {}
    if truth is not None and labelled(truth[there]).any():
        metrics = evaluate(truth[there], state.labels[there], tuple(record["config"]["metrics"]))
    step = {
        "added": len(assigned.labels),
        "first_row": assigned.first_row,
        "removed": assigned.removed,
        "joined": assigned.joined,
        "created": len(assigned.created),
        "merges": len(assigned.merges),
        "splits": len(assigned.splits),
        "applied": assigned.applied,
        "next_label": state.next_label,
        "features": str(Path(features).absolute()) if isinstance(features, str | Path) else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    small = record.get("min_cluster_size", 1)
    return record | {
        "metrics": metrics,
        "labelled": truth is not None,
        "num_unlabelled": 0 if truth is None else int(np.count_nonzero(~labelled(truth[there]))),
        "num_clusters": assigned.num_clusters,
        "num_instances": len(state.labels),
        "num_removed": int(np.count_nonzero(~there)),
        "num_copies": int(np.count_nonzero(copies_among(state.representative))),
        "num_singletons": int(np.count_nonzero(sizes == 1)),
        "num_left_out": int(sizes[sizes < small].sum()),
        "doubts": [*record.get("doubts", []), *assigned.doubts],
        "steps": [*record.get("steps", []), step],
    }


def _write(
    folder: Path,
    place: Path,
    state: State,
    record: dict[str, Any],
    assigned: Assigned,
    logged: list[str] | None,
    names: dict[int, str],
    of_new: Files | None,
) -> list[str]:
    """Write the files that the step changed, and return the files of the steps since the lists were written.

    ``logged`` are these files before this step. The lists are written if they were not stored yet (``logged`` is None)
    or if the steps would take too much space. If not, only the step is written.
    """
    lists, labels, small = state.lists, state.labels, record.get("min_cluster_size", 1)
    assert isinstance(lists, Lists)  # true after every step
    if small > 1:
        sizes = np.bincount(labels[labels >= 0])
        labels = np.where((labels < 0) | (sizes[labels] >= small), labels, -1)
    lists.codes[~lists.known] = NO_LOGIT
    parsed, scale = state.clustered, state.features.factors
    kept = {"alive": lists.alive, "clusters": state.labels, "scale": scale}
    step = state.last
    size = sum((folder / STATE / name).stat().st_size for name in logged or [])
    # a state that was computed again may have other clusters than those that were measured
    measured = None if logged is None else _earlier_measures(folder, assigned.first_row)
    too_much = step is None or _SHARE * (step.nbytes + size) > lists.ids.nbytes + lists.sims.nbytes
    if logged is None or len(logged) == _STEPS or too_much:
        kept, logged = kept | {"ids": lists.ids, "sims": lists.sims}, []
    else:
        logged = [*logged, f"step-{len(record['steps'])}.npz"]
        with replacing(place / STATE / logged[-1]) as temporary:
            np.savez(temporary, **vars(step))
    with ThreadPoolExecutor(1) as writer:  # writes files while this thread measures the clusters
        pending = [writer.submit(save_array, place / STATE / f"{name}.npy", array) for name, array in kept.items()]
        pending.append(writer.submit(write_edges, place, parsed))
        measures = instance_columns(parsed, state.labels, measured, state.touched)
        columns = Columns(state.confidence, measures, files_after(folder, record, of_new))
        write_clustering(place, labels, columns.confidence, columns.with_names(labels, names))
        for written in pending:
            written.result()
    array = state.features.array
    write_json(
        place / STATE / "manifest.json",
        {
            "format": FORMAT_VERSION,
            "run": record["started"],
            "num_rows": len(labels),
            "feature_dim": state.features.dim,
            "dtype": array.dtype.str,
            "normalise": state.features.normalise,
            "fingerprint": fingerprint(array),
            "next_label": state.next_label,
            "suspects": state.suspects.tolist(),
            "steps": logged,
        },
    )
    at = opened(folder)
    earlier = at.verified("assign.json") if len(record["steps"]) > 1 and at.has("assign.json") else None
    what = {key: value for key, value in assigned.record().items() if key != "labels"}
    write_bytes(place / "assign.json", _with_step(earlier, what | {"metrics": record["metrics"]}))
    write_run(place, record)
    if names or at.has(NAMES):
        write_names(place / NAMES, names)
    return logged


def _with_step(earlier: Path | None, step: dict[str, Any]) -> bytes:
    """Return the JSON list of steps in ``earlier`` with one step appended, as text: a long list is not parsed."""
    last = json.dumps([step], indent=1).encode() + b"\n"
    if earlier is None:
        return last
    with open_regular(earlier, "JSON file", follow=False) as file:
        text = file.read().strip()
    if len(text) < 3 or text[:1] + text[-1:] != b"[]":
        raise InputError(f"{earlier}: needs a list of steps in JSON, and holds something else; move it elsewhere")
    return text[:-1].rstrip() + b"," + last[1:]


def _earlier_measures(folder: Path, rows: int) -> pa.Table | None:
    """Read the measures of the clusters before the step from clusters.parquet. Return None if it cannot be used."""
    path = folder / "clusters.parquet"
    try:
        with opened_parquet(opened(folder).verified(path.name)) as file:
            found = [file.schema_arrow.field(name).type for name in COLUMNS]
            if file.metadata.num_rows == rows and found == list(COLUMNS.values()):
                return file.read(columns=list(COLUMNS))
        log.info("%s: does not have the %d rows of this run; all clusters are measured again", path, rows)
    except Exception as error:  # the parser may raise any error for a damaged table
        log.info("%s: cannot be read (%s); all clusters are measured again", path, first_line(error))
    return None
