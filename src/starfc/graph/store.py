"""Read and write kNN graphs on disk: this project's folder, and the published ``faiss_k_80.npz``.

A graph folder has the files ``ids.npy``, ``sims.npy`` and ``manifest.json`` (N, d, k, metric, backend and its
parameters, recall, fingerprint of the features, version). All three are written in one change. A graph is refused if
its fingerprint differs from that of the features.

The published file has one array ``data`` (N, 2, k) float64: ``[:, 0]`` are ids, ``[:, 1]`` are distances 1 - s. The
node itself is usually the first entry. The file has no fingerprint; instead, some of its distances are compared with
the features.
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
_TOLERANCE = 5e-3  # allowed difference of a similarity; errors of float16 features and float32 sums are far below


def find_graph(path: Path) -> Path | None:
    """Return the path of the stored graph that a config names: ``path`` itself, or ``path`` + '.npz'; None if absent.

    For a name like ``exact_k_80``, ``faiss_k_80`` is tried too: its name in the published layout and in earlier runs.
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
    """Read a stored kNN graph, and check that it belongs to the features: N, k and fingerprint must agree.

    The arrays of a graph folder are memory-mapped.

    Raises
    ------
    MissingFileError
        If there is no graph.
    InputError
        If the graph cannot be read, has another N or k, or was built from other features (stale).
    """
    return _read_npz(path, features, k) if path.suffix == ".npz" else _read_folder(path, features, k)


@contextmanager
def building(
    path: Path, partial: Path | None = None, *, inputs: Iterable[str | Path] = (), overwrite: bool = False
) -> Iterator[Callable[[KnnGraph, Features], None]]:
    """Reserve the place of a graph while it is built. Yield a function that writes the graph.

    A graph folder appears when the block ends without an error. A ``.npz`` is written when the function is called.

    Parameters
    ----------
    path : path
        A folder, or a ``.npz`` for the published layout.
    partial : path, optional
        Folder with the progress of the search. It is removed once the graph is written.
    inputs : paths, optional
        Files that are read during the build; they must not be overwritten.
    overwrite : bool
        Whether files that are not a kNN graph may be replaced.

    Raises
    ------
    InputError
        If ``path`` must not be replaced, another process writes there, or it cannot be written.
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
    """Write a graph as a folder, or in the published layout if ``path`` ends with .npz."""
    with building(path) as write:
        write(graph, features)


def _require_replaceable(path: Path, inputs: Iterable[str | Path], overwrite: bool) -> None:
    if not path.exists():
        return
    if any(Path(source).exists() and path.samefile(source) for source in inputs):
        raise InputError(f"{path}: this command reads the file and must not overwrite it; name another output file")
    if overwrite:
        return
    try:
        with Npz(path) as file:
            ours = file.names == ["data"]
    except InputError:
        ours = False
    if not ours:
        remedy = advice(", or add {} to replace it", "overwrite")
        raise InputError(f"{path}: the file exists and is not a kNN graph; name another file{remedy}")


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
    """Write the published layout: each row has the node itself (distance 0), then its nearest, k entries in total.

    A row with k neighbours (the node's own id was not found because of duplicates) is written as it is. Empty slots
    repeat the node itself, which all readers of the format ignore.
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
                f"{path}: a kNN graph in the published layout has one array 'data'; found {archive.listed()}"
            )
        with archive.open("data") as (file, (shape, fortran, dtype)):
            if len(shape) != 3 or shape[1] != 2 or dtype.kind not in "fiu" or fortran:
                raise InputError(
                    f"{path}: 'data' of shape (N, 2, k), numbers in C order, needed; found {shape}, {dtype}"
                )
            _require_shape(path, shape[0], shape[2], features, k)
            lists = npy_numbers(file, str(path), (shape[0], 2 * k), False, dtype)
            at = 0
            for part in lists.parts:
                rows = slice(at, at + len(part))
                ids[rows], sims[rows] = _published(path, part.reshape(-1, 2, k), rows, len(features))
                at = rows.stop
            file.read(1)  # reading to the end of the member compares its checksum
    graph = KnnGraph(ids, sims)
    _require_similarities(path, graph, features)
    return KnnGraph(ids, sims, {"backend": "read", "file": str(path), "params": {}, "recall": None})


def _published(
    path: Path, data: NDArray, rows: slice, num_nodes: int
) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
    """Check some rows of the published layout; return their ids and similarities, following the contract."""
    numbers, distances = data[:, 0].astype(np.float64), data[:, 1].astype(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = np.argwhere(~((np.abs(numbers) < 2.0**53) & (numbers == np.floor(numbers))))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"{path}: row {rows.start + row}, column {column} (from 0): a whole number needed as id; found "
            f"{numbers[row, column]}; was the file damaged?"
        )
    ids = numbers.astype(np.int64)
    owners = np.arange(rows.start, rows.stop)
    try:
        require_ids("ids", np.maximum(ids, 0), 0, num_nodes)  # ids below 0 are empty slots
        require_numbers("distances", np.where(ids < 0, 0, distances))
        graph = tidy(ids, 1.0 - distances, owners, num_nodes)
        require_lists(graph.ids, graph.sims, owners, num_nodes)
    except ValueError as error:
        raise InputError(
            f"{path}: damaged kNN graph, or one of another split: from row {rows.start:,} on: {error}; "
            f"{ANEW}{elsewhere()}"
        ) from None
    return graph.ids, graph.sims


def _read_folder(path: Path, features: Features, k: int) -> KnnGraph:
    folder = opened(path)
    if not folder.has("manifest.json"):
        raise MissingFileError(f"{path}: no kNN graph found (no manifest.json)")
    manifest = folder.json("manifest.json", GraphManifest)
    if manifest.format != FORMAT_VERSION:
        raise InputError(f"{path}: graph format {FORMAT_VERSION} needed; found {manifest.format}; delete the folder")
    ids, sims = folder.npy("ids.npy", 2, np.int32, np.int64), folder.npy("sims.npy", 2, np.float32)
    if ids.shape != (manifest.num_nodes, manifest.k) or sims.shape != ids.shape:
        raise InputError(f"{path}: the shapes {ids.shape} and {sims.shape} differ from the manifest; delete the folder")
    _require_shape(path, manifest.num_nodes, manifest.k, features, k)
    if manifest.fingerprint != features.check.fingerprint:
        raise InputError(
            f"{path}: stale kNN graph: it was built from other features (fingerprint {manifest.fingerprint}) than "
            f"{features.name} (fingerprint {features.check.fingerprint}); {ANEW}{elsewhere()}"
        )
    try:
        require_lists(ids, sims, np.arange(len(ids)), len(ids))
    except ValueError as error:
        raise InputError(f"{path}: damaged kNN graph: {error}; {ANEW}") from None
    kept = manifest.as_dict()
    return KnnGraph(
        ids, sims, {key: kept[key] for key in ("backend", "params", "recall", "recall_rows", "recalls") if key in kept}
    )


ANEW = "delete it, and it will be built again"


def elsewhere() -> str:
    """Return the advice to name another kNN graph, if the interface has a parameter for it."""
    return advice(", or point {} elsewhere", "knn_graph_path")


def _require_shape(path: Path, num_nodes: int, k: int, features: Features, wanted_k: int) -> None:
    if num_nodes != len(features):
        raise InputError(
            f"{path}: {len(features):,} nodes needed, the instances of {features.name}; found a kNN graph of "
            f"{num_nodes:,} nodes, of another split; {ANEW}{elsewhere()}"
        )
    if k != wanted_k:
        raise InputError(
            f"{path}: {word('knn')} = {wanted_k} needed; found a kNN graph of k = {k}; {ANEW}"
            f"{advice(', set {} to ' + str(k), 'knn')}{elsewhere()}"
        )


def _require_similarities(path: Path, graph: KnnGraph, features: Features) -> None:
    """Raise unless the stored similarities of sampled rows agree with the features."""
    rows = np.unique(np.linspace(0, graph.num_nodes - 1, _CHECKED_ROWS).astype(np.int64))
    worst = 0.0
    for row in rows:
        ids = graph.ids[row][graph.ids[row] >= 0]
        if ids.size:
            worst = max(worst, float(np.abs(_similarities(features, row, ids) - graph.sims[row][: ids.size]).max()))
    if not worst <= _TOLERANCE:
        raise InputError(
            f"{path}: stale kNN graph: its similarities differ from those of {features.name} by up to {worst:.3f}; it "
            f"was built from other features; {ANEW}{elsewhere()}"
        )


def _similarities(features: Features, row: int, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    return np.clip(features.rows(ids) @ features.rows(slice(row, row + 1))[0], 0, 1)
