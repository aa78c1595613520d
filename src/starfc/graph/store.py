"""kNN graphs on disk: this project's folder, and the published ``faiss_k_80.npz``.

A graph folder holds ``ids.npy``, ``sims.npy`` and ``manifest.json`` (N, d, k, metric, backend, its parameters, recall,
fingerprint of the features, version), all of one change. A graph whose fingerprint is not that of the features is
refused.

The published file has one array ``data`` of shape (N, 2, k): ``[:, 0]`` ids, ``[:, 1]`` distances 1 - s, float64, the
node itself normally first. It has no fingerprint; some of its distances are compared with the features instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.data.formats.npy import npy_numbers
from starfc.errors import InputError, MissingFileError
from starfc.graph.checks import require_ids, require_lists, require_numbers
from starfc.graph.neighbours import KnnGraph, id_dtype, tidy
from starfc.graph.partial import remove_search
from starfc.runtime.defaults import KNN_FORMER
from starfc.runtime.words import advice, word
from starfc.storage.atomic import replacing, save_array, write_json
from starfc.storage.commit import changing
from starfc.storage.opened import current, opened
from starfc.storage.owners import KNN
from starfc.storage.records import GraphManifest
from starfc.storage.safe import Npz

FORMAT_VERSION = 1
_CHECKED_ROWS = 256
_TOLERANCE = 5e-3  # of a similarity: float16 features and float32 sums stay far below it


def find_graph(path: Path) -> Path | None:
    """The stored graph that a config's path means: the folder or .npz itself, or ``path`` + '.npz'; None if absent.

    For ``exact_k_80`` that may be ``faiss_k_80``, its name in the published layout and in earlier runs.
    """
    former = [
        path.with_name(path.name.replace(f"{now}_k_", f"{before}_k_"))
        for before, now in KNN_FORMER.items()
        if f"{now}_k_" in path.name
    ]
    return next((found for place in (path, *former) if (found := _stored(place)) is not None), None)


def _stored(path: Path) -> Path | None:
    if path.suffix == ".npz":
        return path if path.is_file() else None
    published = path.with_name(path.name + ".npz")
    if current(path, "manifest.json").is_file():
        return path
    return published if published.is_file() else None


def read_graph(path: Path, features: Features, k: int) -> KnnGraph:
    """Read a stored kNN graph and make sure that it is this one's: N, k and features must agree.

    The arrays of a graph folder are memory-mapped.

    Raises
    ------
    MissingFileError, InputError
        No such graph, an unreadable one, one of another N or k, or one of other features (stale).
    """
    return _read_npz(path, features, k) if path.suffix == ".npz" else _read_folder(path, features, k)


@contextmanager
def building(
    path: Path, partial: Path | None = None, *, inputs: Iterable[str | Path] = (), overwrite: bool = False
) -> Iterator[Callable[[KnnGraph, Features], None]]:
    """Hold the place of a graph while it is built: yields what writes it, once the block has ended well.

    Parameters
    ----------
    path : path
        A folder, or a ``.npz`` for the published layout.
    partial : path, optional
        Where the search keeps what it has found: it goes when the graph is there.
    inputs : paths, optional
        Files that are read meanwhile, which are not written over.
    overwrite : bool
        Whether files that are no kNN graph may be replaced.

    Raises
    ------
    InputError
        Something there is not to be replaced; another process is at it; it cannot be written.
    """
    if path.suffix == ".npz":
        _require_replaceable(path, inputs, overwrite)
        yield lambda graph, features: write_npz(path, graph)
        if partial is not None:
            remove_search(partial)
        return
    with changing(path, KNN, inputs=inputs, overwrite=overwrite) as change:
        if partial is not None:
            change.afterwards.append(lambda: remove_search(partial))
        yield lambda graph, features: _write_folder(change.place, graph, features)


def write_graph(path: Path, graph: KnnGraph, features: Features) -> None:
    """Write a graph as a folder, or as the published .npz where the path says so."""
    with building(path) as write:
        write(graph, features)


def _require_replaceable(path: Path, inputs: Iterable[str | Path], overwrite: bool) -> None:
    if not path.exists():
        return
    if any(Path(source).exists() and path.samefile(source) for source in inputs):
        raise InputError(f"{path}: is read by this command, which would write a file of that name; name another")
    if overwrite:
        return
    try:
        with Npz(path) as file:
            ours = file.names == ["data"]
    except InputError:
        ours = False
    if not ours:
        remedy = advice(", or add {} to replace it", "overwrite")
        raise InputError(f"{path}: no kNN graph; name another file{remedy}")


def _write_folder(path: Path, graph: KnnGraph, features: Features) -> None:
    save_array(path / "ids.npy", graph.ids)
    save_array(path / "sims.npy", graph.sims)
    write_json(
        path / "manifest.json",
        {
            "format": FORMAT_VERSION,
            "num_nodes": graph.num_nodes,
            "feature_dim": features.dim,
            "k": graph.k,
            "metric": "inner product of L2-normalised features, clipped to [0, 1]",
            "fingerprint": features.check.fingerprint,
            **graph.info,
        },
    )


def write_npz(path: Path, graph: KnnGraph) -> None:
    """Write the published layout: the node itself first (distance 0), then its nearest, k entries in all.

    A row of k others (its own id had fallen out among duplicates) is written as it is. Slots without a neighbour
    repeat the node itself, which every reader of the format leaves out.
    """
    n, k = graph.ids.shape
    own = np.arange(n, dtype=np.float64)[:, None]
    full = (graph.ids[:, -1] >= 0)[:, None]
    ids = np.where(full, graph.ids, np.concatenate([own, graph.ids[:, : k - 1]], axis=1))
    sims = np.where(full, graph.sims, np.concatenate([np.ones((n, 1)), graph.sims[:, : k - 1]], axis=1))
    missing = ids < 0
    data = np.stack([np.where(missing, own, ids), np.where(missing, 0.0, 1.0 - sims)], axis=1)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, data=data)


def _read_npz(path: Path, features: Features, k: int) -> KnnGraph:
    ids, sims = np.empty((len(features), k), id_dtype(len(features))), np.empty((len(features), k), np.float32)
    with Npz(path) as archive:
        if "data" not in archive.names:
            raise InputError(
                f"{path}: not a kNN graph in the published layout, one array 'data'; found {archive.listed()}"
            )
        with archive.open("data") as (file, (shape, fortran, dtype)):
            if len(shape) != 3 or shape[1] != 2 or dtype.kind not in "fiu" or fortran:
                raise InputError(f"{path}: 'data' is numbers of shape (N, 2, k), in C order; found {shape}, {dtype}")
            _require_shape(path, shape[0], shape[2], features, k)
            lists = npy_numbers(file, str(path), (shape[0], 2 * k), False, dtype)
            at = 0
            for part in lists.parts:
                rows = slice(at, at + len(part))
                ids[rows], sims[rows] = _published(path, part.reshape(-1, 2, k), rows, len(features))
                at = rows.stop
            file.read(1)  # at the end of the member its checksum is compared
    graph = KnnGraph(ids, sims)
    _require_similarities(path, graph, features)
    return KnnGraph(ids, sims, {"backend": "read", "file": str(path), "params": {}, "recall": None})


def _published(
    path: Path, data: NDArray, rows: slice, num_nodes: int
) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
    """Ids and similarities of some rows of the published layout, checked and under the contract."""
    numbers, distances = data[:, 0].astype(np.float64), data[:, 1].astype(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = np.argwhere(~((np.abs(numbers) < 2.0**53) & (numbers == np.floor(numbers))))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"{path}: row {rows.start + row}, column {column} (from 0): id {numbers[row, column]}, which is no whole "
            "number; was the file damaged?"
        )
    ids = numbers.astype(np.int64)
    owners = np.arange(rows.start, rows.stop)
    try:
        require_ids("ids", np.maximum(ids, 0), 0, num_nodes)  # below 0 there is none
        require_numbers("distances", np.where(ids < 0, 0, distances))
        graph = tidy(ids, 1.0 - distances, owners, num_nodes)
        require_lists(graph.ids, graph.sims, owners, num_nodes)
    except ValueError as error:
        raise InputError(
            f"{path}: damaged kNN graph, or another split's: rows {rows.start:,} and on: {error}; {ANEW}{elsewhere()}"
        ) from None
    return graph.ids, graph.sims


def _read_folder(path: Path, features: Features, k: int) -> KnnGraph:
    folder = opened(path)
    if not folder.has("manifest.json"):
        raise MissingFileError(f"{path}: no kNN graph there (no manifest.json)")
    manifest = folder.json("manifest.json", GraphManifest)
    if manifest.format != FORMAT_VERSION:
        raise InputError(
            f"{path}: graph format {FORMAT_VERSION} is read here; found {manifest.format}; delete the folder"
        )
    ids, sims = folder.npy("ids.npy", 2, np.int32, np.int64), folder.npy("sims.npy", 2, np.float32)
    if ids.shape != (manifest.num_nodes, manifest.k) or sims.shape != ids.shape:
        raise InputError(
            f"{path}: arrays {ids.shape} and {sims.shape} are not what its manifest says; delete the folder"
        )
    _require_shape(path, manifest.num_nodes, manifest.k, features, k)
    if manifest.fingerprint != features.check.fingerprint:
        raise InputError(
            f"{path}: stale kNN graph: it was built from other features (fingerprint {manifest.fingerprint}) than "
            f"{features.name} ({features.check.fingerprint}); {ANEW}{elsewhere()}"
        )
    try:
        require_lists(ids, sims, np.arange(len(ids)), len(ids))
    except ValueError as error:
        raise InputError(f"{path}: damaged kNN graph: {error}; {ANEW}") from None
    kept = manifest.as_dict()
    return KnnGraph(
        ids, sims, {key: kept[key] for key in ("backend", "params", "recall", "recall_rows") if key in kept}
    )


ANEW = "delete it and it is built anew"


def elsewhere() -> str:
    """Advice to name another kNN graph, where that can be named."""
    return advice(", or point {} elsewhere", "knn_graph_path")


def _require_shape(path: Path, num_nodes: int, k: int, features: Features, wanted_k: int) -> None:
    if num_nodes != len(features):
        raise InputError(
            f"{path}: a kNN graph of {num_nodes:,} nodes for the {len(features):,} instances of {features.name}; "
            f"it belongs to another split: {ANEW}{elsewhere()}"
        )
    if k != wanted_k:
        raise InputError(
            f"{path}: a kNN graph of k = {k} where {word('knn')} is {wanted_k}; {ANEW}"
            f"{advice(', set {} to ' + str(k), 'knn')}{elsewhere()}"
        )


def _require_similarities(path: Path, graph: KnnGraph, features: Features) -> None:
    """Compare a sample of stored similarities with the features'."""
    rows = np.unique(np.linspace(0, graph.num_nodes - 1, _CHECKED_ROWS).astype(np.int64))
    worst = 0.0
    for row in rows:
        ids = graph.ids[row][graph.ids[row] >= 0]
        if ids.size:
            worst = max(worst, float(np.abs(_similarities(features, row, ids) - graph.sims[row][: ids.size]).max()))
    if not worst <= _TOLERANCE:
        raise InputError(
            f"{path}: stale kNN graph: its similarities differ from those of {features.name} by up to {worst:.3f}; it "
            f"was built from other features: {ANEW}{elsewhere()}"
        )


def _similarities(features: Features, row: int, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    return np.clip(features.rows(ids) @ features.rows(slice(row, row + 1))[0], 0, 1)
