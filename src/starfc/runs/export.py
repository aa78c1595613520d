"""Write the clusters of a run for other programs: row, file, cluster, name and confidence of every instance.

``row``         row of the features; removed rows are left out
``file``        absolute path of the instance's file, if it is known
``cluster``     id of its cluster; -1: it is in none
``name``        name of its cluster, if it has one
``confidence``  the probability that the instance belongs to its cluster: mean p of its edges in it; 0 for a cluster of
                one instance
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from starfc.data.instance_files import SUFFIXES, Files, file_column, read_files
from starfc.data.tables import TABLE_FORMATS, require_new, rows_of, write_json_rows, write_table
from starfc.errors import InputError, MissingFileError
from starfc.graph.checks import require_ids
from starfc.runs.folder import most_labels
from starfc.runs.folders import write_folders
from starfc.runs.marked import read_names
from starfc.runs.outputs import read_instances
from starfc.runtime.words import advice, anew, word
from starfc.storage.atomic import prepare_folder, replacing
from starfc.storage.opened import opened
from starfc.storage.records import Removals

FORMATS = (*TABLE_FORMATS, "folders", "fiftyone")


@dataclass(frozen=True)
class Exported:
    """The clusters of N instances.

    Attributes
    ----------
    rows : (N,) int64
        Rows of the features.
    labels : (N,) int64
        Cluster of each instance; -1: none.
    confidence : (N,) float32
        Confidence of each instance.
    names : mapping
        Name of a cluster, by its id. Clusters without a name are not in it.
    files : list of path or None
        File of each instance; None if no file is known.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    confidence: NDArray[np.float32]
    names: Mapping[int, str]
    files: Files | None = None

    @property
    def single(self) -> NDArray[np.bool_]:
        """Return which instances are alone in their cluster or in none, (N,)."""
        _, which, sizes = np.unique(self.labels, return_inverse=True, return_counts=True)
        return (self.labels < 0) | (sizes[which] == 1)

    def table(self) -> pa.Table:
        """Return the table: row, file, cluster, name, confidence."""
        files = pa.nulls(len(self.rows), pa.string()) if self.files is None else file_column(self.files)
        names = pa.array([self.names.get(label) for label in self.labels.tolist()], pa.string())
        columns = {"row": self.rows, "file": files, "cluster": self.labels, "name": names}
        return pa.table({**columns, "confidence": self.confidence})


def read_clusters(folder: str | Path, files: str | Path | None = None) -> Exported:
    """Read the clusters of a run's folder. Stored edges are not needed.

    Parameters
    ----------
    folder : path
        Folder of the run.
    files : path, optional
        Files of the instances (:mod:`starfc.data.instance_files`). Default: those of clusters.parquet. If that names
        files and ``files`` is a folder, they are found there by their paths or names.

    Raises
    ------
    MissingFileError, InputError
        There is no finished run, a file is damaged, or the folder lacks some of the files.
    """
    at = opened(folder)
    if not at.has("run.json"):
        raise MissingFileError(f"{folder}: no finished run there (no run.json)")
    labels = np.array(at.npy("labels.npy", 1, np.int64))
    confidence, known = read_instances(at, len(labels))
    there = np.ones(len(labels), np.bool_)
    steps = at.json("run.json", Removals).steps
    removed = np.array([row for step in steps for row in step.removed], np.int64)
    most = most_labels(len(labels), len(steps))
    for name, what, values, low, high in (
        ("labels.npy", "clusters", labels, -1, most),
        ("run.json", "steps, removed", removed, 0, len(labels)),
    ):
        try:
            require_ids(what, values, low, high)
        except ValueError as error:
            raise InputError(f"{at.folder / name}: {error}; it is damaged, {anew('cluster')}") from None
    there[removed] = False
    rows = np.flatnonzero(there)
    if known is not None:
        known = [file if here else None for file, here in zip(known, there.tolist(), strict=True)]
    if files is not None:
        known = read_files(files, len(labels), known=known)
    kept = None if known is None else [known[row] for row in rows.tolist()]
    return Exported(rows, labels[rows], confidence[rows], read_names(opened(at)), kept)


def export(
    folder: str | Path,
    to: str | None,
    out: str | Path,
    *,
    files: str | Path | None = None,
    copy: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the clusters of a run for another program (:func:`write_clusters`).

    Parameters
    ----------
    folder : path
        Folder of the run.
    to, out, copy, overwrite
        As for :func:`write_clusters`.
    files : path, optional
        Files of the instances (:mod:`starfc.data.instance_files`). Default: those that the run knows. Needed to copy
        files, because a run may be from another person. By a list in the folder of the run only pictures are copied.

    Raises
    ------
    MissingFileError, InputError
        There is no finished run, a file is damaged, or the results cannot be written.
    """
    if copy and files is None:
        raise InputError(
            f"{word('copy')}: needs the files that are to be copied ({word('files')}), because a run can be from "
            f"another person; name their folder or a list, or {Path(folder) / 'clusters.parquet'} if you trust what it "
            "names"
        )
    clusters = read_clusters(folder, files)
    if copy and to == "folders" and Path(os.path.realpath(files or "")).is_relative_to(os.path.realpath(folder)):
        _require_pictures(folder, [file for file in clusters.files or () if file is not None])
    return write_clusters(clusters, to, out, copy=copy, overwrite=overwrite)


def _require_pictures(folder: str | Path, named: list[Path]) -> None:
    """Raise InputError unless the files that only a run names are pictures."""
    other = [file for file in named if Path(os.path.realpath(file)).suffix.lower() not in SUFFIXES]
    if other:
        raise InputError(
            f"{word('copy')}: {len(other):,} of the files that {folder} names are no pictures, such as {other[0]}; a "
            f"run can be from another person, so name the files that are to be copied ({word('files')})"
        )


def write_clusters(
    clusters: Exported, to: str | None, out: str | Path, *, copy: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write clusters for another program.

    Parameters
    ----------
    clusters : Exported
        The clusters.
    to : {'csv', 'parquet', 'json', 'folders', 'fiftyone'}, optional
        A table; a folder of links to the files for each cluster (:mod:`starfc.runs.folders`); or ``samples.json`` of a
        folder that FiftyOne imports. Default: the table that the suffix of ``out`` names.
    out : path
        The file; or for 'folders' and 'fiftyone' the folder.
    copy : bool
        For 'folders': copy the files instead of linking to them.
    overwrite : bool
        Whether to replace an existing file. 'folders' never replaces anything.

    Returns
    -------
    dict
        ``to``, ``rows``, ``clusters``, ``named`` (clusters with a name), ``without_file`` (rows without a file). For
        'folders' also ``written``, ``kept`` (they were there) and ``missing`` (files that do not exist).

    Raises
    ------
    InputError
        No files are known, or for 'folders' none of them exists, or the results cannot be written or would replace
        something.
    """
    suffix = Path(out).suffix[1:]
    to = suffix if to is None else to
    if to not in FORMATS:
        raise InputError(f"{word('to')}: must be one of {', '.join(FORMATS)}; found {to!r}")
    if to in TABLE_FORMATS and suffix in TABLE_FORMATS and suffix != to:
        raise InputError(f"{out}: ends in .{suffix}, but {word('to')} is {to}; name a file that ends in .{to}")
    if copy and to != "folders":
        raise InputError(f"{word('copy')}: only for folders; {to} holds no files; leave it out")
    unknown = len(clusters.rows) if clusters.files is None else sum(file is None for file in clusters.files)
    ids = np.unique(clusters.labels[clusters.labels >= 0])
    record: dict[str, Any] = {
        "to": to,
        "rows": len(clusters.rows),
        "clusters": len(ids),
        "named": sum(label in clusters.names for label in ids.tolist()),
        "without_file": unknown,
    }
    if to in TABLE_FORMATS:
        write_table(out, clusters.table(), to, overwrite)
        return record
    if clusters.files is None:
        raise InputError(
            f"{to}: needs the files of the instances{advice('; name them with {}', 'files')} (a list, a folder of "
            "pictures or a table with paths)"
        )
    if to == "folders":
        return record | write_folders(Path(out), clusters.table(), clusters.files, clusters.single, copy)
    place = prepare_folder(out) / "samples.json"
    require_new(place, overwrite)
    with replacing(place) as temporary:
        samples = (_sample(row, alone) for row, alone in zip(rows_of(clusters.table()), clusters.single, strict=True))
        write_json_rows(temporary, (one for one in samples if one["filepath"]), '{"samples": ', "}")
    return record


def _sample(row: dict[str, Any], alone: np.bool_) -> dict[str, Any]:
    """Return a row as a sample of FiftyOne, with the cluster as a classification."""
    label = row["name"] or str(row["cluster"])
    return {
        "filepath": row["file"],
        "tags": ["single"] if alone else [],
        "row": row["row"],
        "cluster": {"_cls": "Classification", "label": label, "confidence": row["confidence"]},
        "cluster_id": row["cluster"],
    }
