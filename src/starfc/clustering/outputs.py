"""What a run leaves in its folder: labels.npy, labels.meta, clusters.parquet and run.json, all of one change.

Where they were kept, the parsed edges are in ``edges/``: ``indptr.npy`` (N + 1,) int64, ``cols.npy``, ``scores.npy``,
``intimacy.npy`` float32, ``kept.npy`` bool (E,) each, ``logits.npy`` int8 (N, k) of a structural model, ``context.npz``
of a contextual one (:class:`starfc.models.contextual.Context`), and ``manifest.json``.

``clusters.parquet`` has a row for every instance: ``row``, ``label`` int64, ``confidence`` float32. Where edges were
kept, also what is doubtful about its cluster: ``cohesion``, ``suspicion``, ``weakest_bridge_a``, ``weakest_bridge_b``
and ``weakest_bridge_score`` (:func:`starfc.review.measures.instance_columns`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starfc.clustering.edges import EdgeList
from starfc.clustering.pipeline import ParsedEdges
from starfc.data.formats import write_labels
from starfc.errors import InputError, MissingFileError
from starfc.models.contextual import Context
from starfc.runtime.atomic import replacing, save_array, write_json


def write_clustering(
    folder: Path, labels: NDArray[np.int64], confidence: NDArray[np.float32], measures: dict[str, pa.Array]
) -> None:
    """Labels as int64 .npy and as text, and the table clusters.parquet with what is measured of the clusters."""
    write_labels(folder / "labels.npy", labels)
    write_labels(folder / "labels.meta", labels)
    columns = {"row": np.arange(len(labels), dtype=np.int64), "label": labels, "confidence": confidence}
    with replacing(folder / "clusters.parquet") as temporary, temporary.open("wb") as file:
        pq.write_table(pa.table(columns | measures), file)


def write_edges(folder: Path, parsed: ParsedEdges) -> None:
    """The parsed edges, as ``folder/edges``."""
    place, edges = folder / "edges", parsed.edges
    arrays = {"indptr": edges.indptr, "cols": edges.cols, "scores": edges.scores}
    arrays |= {"intimacy": parsed.intimacy, "kept": parsed.kept}
    for name, array in (arrays if parsed.logits is None else arrays | {"logits": parsed.logits}).items():
        save_array(place / f"{name}.npy", array)
    if parsed.context is not None:
        with replacing(place / "context.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **parsed.context.arrays())
    write_json(
        place / "manifest.json",
        {"num_nodes": edges.num_nodes, "num_entries": len(edges), "symmetric": edges.symmetric},
    )


def read_edges(folder: Path) -> ParsedEdges:
    """The parsed edges of a run's folder, memory-mapped.

    Raises
    ------
    MissingFileError, InputError
        The run kept no edges; they are not whole.
    """
    place = folder / "edges"
    if not (place / "manifest.json").is_file():
        raise MissingFileError(
            f"{folder}: the run kept no edges ({place.name}/manifest.json); run starfc cluster again"
        )
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        names = ("indptr", "cols", "scores", "intimacy", "kept")
        arrays = [np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
        coded = (place / "logits.npy").is_file()
        logits = np.load(place / "logits.npy", mmap_mode="r", allow_pickle=False) if coded else None
        context = None
        if (place / "context.npz").is_file():
            with np.load(place / "context.npz", allow_pickle=False) as stored:
                context = Context.from_arrays(stored)
        whole = (manifest["num_nodes"] + 1,), *[(manifest["num_entries"],)] * 4
        symmetric = bool(manifest["symmetric"])
        if context is not None and len(context.strangers.node_median) != manifest["num_nodes"]:
            raise ValueError(f"context.npz: of {len(context.strangers.node_median)} rows")
    except (ValueError, OSError, EOFError, KeyError, BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{place}: unreadable edges ({error}); run starfc cluster again") from None
    if tuple(array.shape for array in arrays) != whole or (coded and len(logits) != len(arrays[0]) - 1):
        raise InputError(f"{place}: arrays that are not what the manifest says; run starfc cluster again")
    indptr, cols, scores, intimacy, kept = arrays
    return ParsedEdges(EdgeList(indptr, cols, scores, symmetric), intimacy, kept, logits, context)


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """The run's record, run.json."""
    write_json(folder / "run.json", record)
