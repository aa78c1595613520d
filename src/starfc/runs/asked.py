"""Keep what questions are made of in a run's folder, so that only the first call of `starfc ask` computes it.

``asked/`` in the folder of the run, a folder with its own ``files.json`` (:mod:`starfc.storage.commit`), so that a run
that is held open elsewhere does not change when it is written:

=======================  ===========================================================================================
``indptr.npy``, …        the candidate edges with p > 0.005 (:func:`starfc.answers.evidence.evidence_of`): ``indptr``
                         (N + 1,) int64, ``cols`` (E,) int32 or int64, ``scores`` (E,) float32, both directions
``divisions.npz``        divisions of all clusters that can be divided (:class:`starfc.answers.candidates.Divisions`):
                         their ``rows``, the ``sizes`` (C,) of the clusters, their number of divisions ``counts`` (C,),
                         all ``masks`` one after the other, and the ``measures`` (Σ counts, 19)
``manifest.json``        ``key``: what the edges were computed from; ``labels``: digest of the clusters that the
                         measures belong to
=======================  ===========================================================================================

The edges depend on the features, the kNN lists, the model, the run's edges and this version of the package, all of
which are in the key. If it differs, nothing of ``asked/`` is used. Masks depend on the rows of their cluster, too, and
measures on all clusters: if the labels differ, masks of unchanged clusters are used, but no measures. Marks and names
are read at each call and are not stored here. A damaged or missing ``asked/`` is computed again, and where it cannot
be written, questions are asked without it.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

import starfc
from starfc.answers.candidates import Divisions
from starfc.answers.evidence import Evidence, evidence_of
from starfc.answers.measures import MEASURES
from starfc.answers.questions import Asker
from starfc.errors import InputError
from starfc.graph.checks import require_both_ways, require_ids, require_numbers, require_rows
from starfc.graph.edges import EdgeList
from starfc.runs.folder import Run
from starfc.runs.state import first_state, read_state
from starfc.runtime.stages import Stages
from starfc.storage.atomic import save_array, save_arrays, write_json
from starfc.storage.commit import changing, read_files
from starfc.storage.opened import FILES, OpenedFolder
from starfc.storage.owners import ASK
from starfc.storage.records import AskedManifest
from starfc.storage.safe import digest, read_own_npz

log = logging.getLogger("starfc")

FOLDER = "asked"
_FORMAT = 1  # raise it when the same run gives other edges, divisions or measures
_OF_CLUSTERS = ("edges/kept.npy", "state/clusters.npy", "state/manifest.json")  # `apply` changes these


def asker_of(run: Run, at: OpenedFolder, labels: NDArray[np.int64], stages: Stages | None = None) -> Asker:
    """Return what finds the questions of a run: from ``asked/`` if that is valid, otherwise computed from the run.

    Parameters
    ----------
    run, at : Run, OpenedFolder
        The run, and the folder that it was opened from.
    labels : (N,) int64
        Cluster of every row; -1 for removed rows.
    stages : Stages, optional
        Records time and memory.
    """
    key = _key(run, at)
    found = None if key is None else _read(run, at, key, labels)
    if found is not None:
        return found
    stored, scratch = read_state(run), run.folder if os.access(run.folder, os.W_OK) else None
    return Asker(evidence_of(first_state(run) if stored is None else stored[0], scratch, stages))


def keep(run: Run, at: OpenedFolder, asker: Asker, labels: NDArray[np.int64]) -> None:
    """Write ``asked/`` if it does not have the edges and divisions of these clusters. ``asker`` was asked about them.

    Nothing is written if the run has no ``files.json`` or another command changed it since it was opened, if the folder
    cannot be written to, or if another process writes there.
    """
    key, edges = _key(run, at), asker.evidence.edges
    if key is None or key != _key(run, OpenedFolder(run.folder)):
        return
    manifest = AskedManifest(key=key, labels=_labels_digest(labels))
    try:
        if _intact(at) == manifest:
            return
        with changing(at.path(FOLDER), ASK, overwrite=_ours(at.path(FOLDER))) as change:
            for name in ("indptr", "cols", "scores"):
                save_array(change.place / f"{name}.npy", getattr(edges, name))
            save_arrays(change.place / "divisions.npz", _packed(asker.divided))
            write_json(change.place / "manifest.json", manifest.model_dump())
    except (InputError, OSError) as error:
        log.info("%s: what questions are made of is not kept: %s", run.folder, error)


def kept_names(folder: Path) -> list[str]:
    """Return the names of the files of ``asked/`` in a run's folder, none if `starfc ask` did not write them."""
    place = folder / FOLDER
    if place.is_symlink() or not _ours(place):
        return []
    return [f"{FOLDER}/{name}" for name in (*ASK.names, FILES) if (place / name).is_file()]


def _key(run: Run, at: OpenedFolder) -> str | None:
    """Return a digest of all that the edges are computed from; None if the run has no ``files.json``."""
    listed = at.digests
    if not listed:
        return None
    record, config = run.record, run.record["config"]
    parts = {name: value for name, value in listed.items() if name.startswith(("edges/", "knn/", "state/"))}
    weights = Path(record["model"])
    content = {
        "version": [starfc.__version__, _FORMAT],
        "files": {name: value for name, value in sorted(parts.items()) if name not in _OF_CLUSTERS},
        "features": [record.get("features_fingerprint"), record["normalise"]],
        "lists": record.get("knn_graph"),
        "steps": record.get("steps", []),
        "model": {path.name: digest(path, follow=True) for path in sorted(weights.glob("*.pth"))},
        "config": [config[name] for name in ("knn", "knn_method", "knn_params", "knn_recall", "th_sim", "seed")],
        "copies": [config.get("copies"), record.get("num_copies", 0)],
    }
    return f"xxh3:{xxhash.xxh3_128_hexdigest(json.dumps(content, default=str).encode())}"


def _labels_digest(labels: NDArray[np.int64]) -> str:
    return f"xxh3:{xxhash.xxh3_128_hexdigest(np.ascontiguousarray(labels).view(np.uint8).data)}"


def _place(at: OpenedFolder) -> OpenedFolder:
    return OpenedFolder(at.path(FOLDER))  # refuses a link


def _manifest(at: OpenedFolder) -> AskedManifest | None:
    place = _place(at)
    return place.json("manifest.json", AskedManifest) if place.has("manifest.json") else None


def _ours(place: Path) -> bool:
    """Return whether ``asked/`` lists its files, so that damaged ones may be replaced; remove a damaged list."""
    listed = place / FILES
    if listed.is_symlink() or not listed.is_file():
        return False
    try:
        read_files(place)
    except InputError:
        listed.unlink()
    return True


def _intact(at: OpenedFolder) -> AskedManifest | None:
    """Return the manifest if all files of ``asked/`` are as they were written, otherwise None."""
    place = _place(at)
    with suppress(ValueError):
        if all(place.verified(name).exists() for name in ASK.names):
            return _manifest(at)
    return None


def _read(run: Run, at: OpenedFolder, key: str, labels: NDArray[np.int64]) -> Asker | None:
    """Read ``asked/``. Return None if it is missing, damaged, or was computed from something else."""
    features = run.features()  # outside the try: nothing can replace damaged features
    try:
        manifest = _manifest(at)
        if manifest is None or manifest.key != key:
            return None
        place, n = _place(at), len(labels)
        edges = EdgeList(
            np.array(place.npy("indptr.npy", 1, np.int64)),
            np.array(place.npy("cols.npy", 1, np.int32, np.int64)),
            np.array(place.npy("scores.npy", 1, np.float32)),
            symmetric=True,
        )
        if edges.num_nodes != n or len(edges.scores) != len(edges.cols):
            raise InputError(f"edges of {edges.num_nodes:,} rows, and a run of {n:,}")
        require_rows(edges.indptr, edges.cols, ordered=True)
        require_numbers("scores", edges.scores, 0, 1)
        require_both_ways(edges.indptr, edges.cols, edges.scores, edges.scores, np.ones(len(edges.cols), np.bool_))
        divided = _unpacked(read_own_npz(place.verified("divisions.npz")), n)
    except (ValueError, OSError) as error:
        log.info("%s: cannot be used, and is computed again: %s", run.folder / FOLDER, str(error).split(";")[0])
        return None
    return Asker(Evidence(edges, features), divided, manifest.labels == _labels_digest(labels))


def _packed(divided: dict[bytes, Divisions]) -> dict[str, NDArray]:
    """Return divisions as the arrays of a file."""
    rows = [np.frombuffer(key, np.int64) for key in divided]
    masks = [one.masks.ravel() for one in divided.values()]
    return {
        "rows": np.concatenate([np.empty(0, np.int64), *rows]),
        "sizes": np.array([len(one) for one in rows], np.int64),
        "counts": np.array([len(one.masks) for one in divided.values()], np.int64),
        "masks": np.concatenate([np.empty(0, np.bool_), *masks]),
        "measures": np.concatenate([np.empty((0, MEASURES)), *(one.measures for one in divided.values())]),
    }


def _unpacked(arrays: dict[str, NDArray], n: int) -> dict[bytes, Divisions]:
    """Return the divisions that arrays of a file describe. Raise ValueError if they are damaged; n is the rows."""
    kinds = {"rows": ("i8", 1), "sizes": ("i8", 1), "counts": ("i8", 1), "masks": ("b1", 1), "measures": ("f8", 2)}
    found = {name: (array.dtype.str[1:], array.ndim) for name, array in arrays.items()}
    if found != kinds:
        raise InputError(f"divisions.npz: needs {kinds}; found {found}")
    rows, sizes, counts, masks, measures = (arrays[name] for name in kinds)
    require_ids("masks", masks.view(np.uint8), 0, 2)
    require_ids("rows", rows, 0, n)
    require_ids("sizes", sizes, 0, n + 1)
    require_ids("counts", counts, 0, len(measures) + 1)
    require_numbers("measures", measures)
    if len(sizes) != len(counts) or (len(rows), len(masks), measures.shape) != (
        sizes.sum(), (sizes * counts).sum(), (counts.sum(), MEASURES),
    ):  # fmt: skip
        raise InputError("divisions.npz: the sizes of the arrays do not fit together")
    of_rows, of_masks, of_measures = (
        np.split(array, np.cumsum(each)[:-1])
        for array, each in ((rows, sizes), (masks, sizes * counts), (measures, counts))
    )
    divided = {
        ours.tobytes(): Divisions(mask.reshape(count, len(ours)), measure)
        for ours, mask, measure, count in zip(of_rows, of_masks, of_measures, counts.tolist(), strict=False)
    }
    if not all(one.masks.any(axis=1).all() and not one.masks.all(axis=1).any() for one in divided.values()):
        raise InputError("divisions.npz: a side without rows")
    return divided
