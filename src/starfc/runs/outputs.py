"""Write and read the files of a run's folder: labels.npy, labels.meta, clusters.parquet, run.json and the edges.

``edges/`` holds the parsed edges, if the run stores them:

================  ==================================================================================================
``indptr.npy``    (N + 1,) int64
``cols.npy``      (E,) int32 or int64
``scores.npy``    (E,) float32: p of each edge
``intimacy.npy``  (E,) float32: node intimacy of each edge
``kept.npy``      (E,) bool: whether the edge was kept
``logits.npy``    (N, k) int8, of a structural model
``context.npz``   of a contextual model (:class:`starfc.models.contextual.Context`)
``manifest.json`` number of nodes, number of entries, and whether the edges are symmetric
================  ==================================================================================================

``clusters.parquet`` has one row for every instance: ``row`` and ``label`` int64, ``confidence`` float32. If the run
stores its edges, it also has diagnostics of the cluster: ``cohesion``, ``suspicion``, ``weakest_bridge_a``,
``weakest_bridge_b`` and ``weakest_bridge_score`` (:func:`starfc.review.measures.instance_columns`). If the files of
the instances are known, ``file`` holds their absolute paths as text (:mod:`starfc.data.instance_files`).
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from starfc.clustering.parsing import ParsedEdges
from starfc.data.files import write_labels
from starfc.data.formats.parquet import opened_parquet
from starfc.data.instance_files import Files, file_column
from starfc.errors import InputError, MissingFileError
from starfc.graph.checks import require_both_ways, require_ids, require_numbers, require_rows
from starfc.graph.edges import EdgeList
from starfc.models.contextual import Context
from starfc.runtime.words import advice, anew, word
from starfc.storage.atomic import replacing, save_array, save_arrays, write_json
from starfc.storage.opened import OpenedFolder, opened
from starfc.storage.records import EdgesManifest, RunRecord
from starfc.storage.safe import read_own_npz

log = logging.getLogger("starfc")


def write_clustering(
    folder: Path, labels: NDArray[np.int64], confidence: NDArray[np.float32], measures: dict[str, pa.Array]
) -> None:
    """Write labels.npy (int64), labels.meta (text), and the table clusters.parquet.

    Parameters
    ----------
    folder : path
        Folder to write to.
    labels : (N,) int64
        Cluster of every row.
    confidence : (N,) float32
        Confidence of every row.
    measures : dict
        Further columns of the table, by name; (N,) each.
    """
    write_labels(folder / "labels.npy", labels)
    write_labels(folder / "labels.meta", labels)
    columns = {"row": np.arange(len(labels), dtype=np.int64), "label": labels, "confidence": confidence}
    with replacing(folder / "clusters.parquet") as temporary, temporary.open("wb") as file:
        pq.write_table(pa.table(columns | measures), file)  # an open file, because Arrow accepts only UTF-8 file names


def read_instances(folder: str | Path | OpenedFolder, rows: int) -> tuple[NDArray[np.float32], Files | None]:
    """Read confidence (N,) and files of all instances from clusters.parquet; None if it names no files.

    Raises
    ------
    InputError
        The table is damaged, or does not have this number of rows.
    """
    path = opened(folder).verified("clusters.parquet")
    with opened_parquet(path) as file:
        found = file.schema_arrow.names
        table = file.read(columns=[name for name in ("confidence", "file") if name in found])
        text = "file" in found and pa.types.is_string(table["file"].type)
        names = table["file"].to_pylist() if text else None
    if table.num_rows != rows or "confidence" not in table.column_names:
        raise InputError(f"{path}: does not have a confidence for each of {rows:,} rows; {anew('cluster')}")
    if not pa.types.is_floating(table["confidence"].type) or table["confidence"].null_count:
        raise InputError(f"{path}: the column confidence needs a number in each row; {anew('cluster')}")
    confidence = table["confidence"].to_numpy().astype(np.float32)
    return confidence, None if names is None else [Path(name) if name else None for name in names]


def files_after(folder: Path, record: dict[str, Any], given: Files | None) -> dict[str, pa.Array]:
    """Return the column ``file`` after the last step of ``record``; nothing if no files are known.

    Earlier rows keep their files; new rows have the ``given`` ones.
    """
    step = record["steps"][-1]
    first, added = step["first_row"], step["added"]
    try:
        before = read_instances(folder, first)[1]
    except InputError as error:
        log.info("%s; files of earlier rows are not known any more", error)
        before = None
    if before is None and given is None:
        return {}
    return {"file": file_column([*(before or [None] * first), *(given or [None] * added)])}


def write_edges(folder: Path, parsed: ParsedEdges) -> None:
    """Write the parsed edges to ``folder/edges``."""
    place, edges = folder / "edges", parsed.edges
    arrays: dict[str, NDArray] = {"indptr": edges.indptr, "cols": edges.cols, "scores": edges.scores}
    arrays |= {"intimacy": parsed.intimacy, "kept": parsed.kept}
    for name, array in (arrays if parsed.logits is None else arrays | {"logits": parsed.logits}).items():
        save_array(place / f"{name}.npy", array)
    if parsed.context is not None:
        save_arrays(place / "context.npz", parsed.context.arrays())
    write_json(
        place / "manifest.json",
        {"num_nodes": edges.num_nodes, "num_entries": len(edges), "symmetric": edges.symmetric},
    )


def read_edges(folder: str | Path | OpenedFolder) -> ParsedEdges:
    """Open the parsed edges of a run's folder, memory-mapped, and check the properties that other code relies on.

    Raises
    ------
    MissingFileError, InputError
        The run stored no edges, or they are damaged, or the files are of different runs.
    """
    folder = opened(folder)
    place = folder.folder / "edges"
    if not folder.has("edges/manifest.json"):
        raise MissingFileError(
            f"{folder.folder}: the run stored no edges, which this needs (edges/manifest.json is missing); "
            + (_with_edges(folder) or anew("cluster"))
        )
    manifest = folder.json("edges/manifest.json", EdgesManifest)
    floats, n = np.float32, manifest.num_nodes
    kinds: dict[str, tuple[DTypeLike, ...]] = {"indptr": (np.int64,), "cols": (np.int32, np.int64)}
    kinds |= {"scores": (floats,), "intimacy": (floats,), "kept": (np.bool_,)}
    arrays = [folder.npy(f"edges/{name}.npy", 1, *types) for name, types in kinds.items()]
    logits = folder.npy("edges/logits.npy", 2, np.int8) if folder.has("edges/logits.npy") else None
    if tuple(map(len, arrays)) != (n + 1, *[manifest.num_entries] * 4) or (logits is not None and len(logits) != n):
        raise InputError(f"{place}: the sizes of the arrays differ from manifest.json; {anew('cluster')}")
    indptr, cols, scores, intimacy, kept = arrays
    try:
        require_rows(indptr, cols, manifest.symmetric)
        require_numbers("scores", scores, 0, 1)
        # of directed edges more nodes can lead to j than j's own degree counts, so NI can be above 1
        require_numbers("intimacy", intimacy, 0, 1 if manifest.symmetric else len(indptr) - 1)
        require_ids("kept", kept.view(np.uint8), 0, 2)
        if manifest.symmetric:
            require_both_ways(indptr, cols, scores, intimacy, kept)
    except ValueError as error:
        raise InputError(f"{place}: damaged edges ({error}); {anew('cluster')}") from None
    context = _read_context(folder, n) if folder.has("edges/context.npz") else None
    return ParsedEdges(EdgeList(indptr, cols, scores, manifest.symmetric), intimacy, kept, logits, context)


def _with_edges(folder: OpenedFolder) -> str:
    """Return advice to cluster the features of a run with stored edges, or "" if the interface in use cannot."""
    if not folder.has("run.json"):
        return ""
    record = folder.json("run.json", RunRecord).as_dict()
    given = [record["features"], "-o", "DIR", "--model", record["model"]]
    if record["features"].endswith(".bin"):
        given += ["--feature-dim", str(record["feature_dim"])]
    if record.get("key"):
        given += ["--key", str(record["key"])]
    if record["refinement"] == "dynamic":
        given += ["--refinement", "dynamic"]
    stores_none = advice("the results of test_final.py, test_dynamic.py and {} --no-edges hold none", "starfc cluster")
    return stores_none and f"{stores_none}; run {word('starfc cluster')} {shlex.join(given)}"


def _read_context(folder: OpenedFolder, n: int) -> Context:
    path = folder.verified("edges/context.npz")
    try:
        context = Context.from_arrays(read_own_npz(path))
        if len(context.strangers.node_median) != n:
            raise ValueError(f"it has {len(context.strangers.node_median):,} rows, but the edges have {n:,}")
    except (ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        what = f"damaged context, or that of another version of starfc ({error})"
        raise InputError(f"{path}: {what}; {anew('cluster')}") from None
    return context


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """Write the run's record to run.json."""
    write_json(folder / "run.json", record)
