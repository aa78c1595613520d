"""Open the data splits that a config names, and their kNN graphs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from starfc.config.config import Config
from starfc.data.dataset import Features, Split, open_split
from starfc.data.files import LABEL_SUFFIXES
from starfc.errors import InputError, MissingFileError
from starfc.graph.neighbours import KnnGraph
from starfc.graph.opening import Place, Search, open_or_build
from starfc.graph.store import find_graph
from starfc.models.judge import first_round_judge
from starfc.runtime.machine import choose_device
from starfc.runtime.stages import Stages
from starfc.runtime.words import advice, word

MS1M_HINT = (
    "docs/ms1m.md says where to get these files and describes their format; to run the sample in this repository: "
    "python test_final.py --config configs/cfg_gcn_glyph.py"
)


def open_train_split(config: Config) -> Split:
    """Open the training split of a config. It must have labels."""
    data = config.train_data
    try:
        split = open_split(
            config.path(data.feat_path),
            config.path(data.label_path),
            feature_dim=config.model.kwargs.feature_dim,
            normalise=data.is_norm_feat,
            name=config.train_name,
            key=data.key,
            room=_room(config),
            labels_needed=False,
        )
    except MissingFileError as error:
        raise MissingFileError(f"{error}; {MS1M_HINT}") from None
    if split.labels is None:
        raise MissingFileError(
            f"{config.path(data.label_path)}: no labels file ({', '.join(LABEL_SUFFIXES)}); training needs identities"
        )
    return split


def open_test_split(
    config: Config, features: str | Path | Split | None, labels: str | Path | None
) -> tuple[Split, Path | None]:
    """Open the test split of a config, or the user's own file.

    Parameters
    ----------
    config : Config
        The config.
    features, labels : path, optional
        The user's own file, and the labels of its rows. ``features`` may also be an open split that holds both.

    Returns
    -------
    Split
        Features, and labels if there are any.
    path or None
        Path of the kNN graph of the config's split. None for the user's own file, whose graph is stored in the output
        folder.
    """
    if isinstance(features, Split):
        return features, None
    dim, data = config.model.kwargs.feature_dim, config.test_data
    if features is not None:
        return open_split(
            features, labels, feature_dim=dim, normalise=data.is_norm_feat, key=data.key, room=_room(config)
        ), None
    if labels is not None:
        raise InputError(
            f"{word('labels')}: needs {word('features')}; set labels of the config's test split as test_data.label_path"
        )
    try:
        split = open_split(
            config.path(data.feat_path),
            None if data.label_path is None else config.path(data.label_path),
            feature_dim=dim,
            normalise=data.is_norm_feat,
            name=config.test_name,
            key=data.key,
            room=_room(config),
            labels_needed=False,
        )
    except MissingFileError as error:
        raise MissingFileError(f"{error}; {MS1M_HINT}") from None
    return split, config.test_graph_path


def _room(config: Config) -> int | None:
    """Return the bytes of memory that features may take if they cannot be memory-mapped."""
    return Stages(config.memory_limit_bytes()).memory_left()


def search_of(config: Config) -> Search:
    """Return the neighbour search that a config sets."""
    device = choose_device(config.device)
    return Search(config.knn_method, config.knn_params, config.seed, config.knn_recall, first_round_judge, device)


def stored_graph(path: str | Path) -> Path:
    """Return the path of the kNN graph that a user names. Raise MissingFileError if there is none."""
    found = find_graph(Path(path))
    if found is None:
        raise MissingFileError(f"{path}: no kNN graph found{advice('; {} makes one', 'starfc knn')}")
    return found


def knn_graph(
    config: Config, features: Features, path: Path | None, out: Path | None, stages: Stages | None = None
) -> KnnGraph:
    """Open the kNN graph stored at ``path``, or build a graph and store it there.

    Without a path (for the user's own file), or if it cannot be written, the graph is stored in ``out``, if given.
    ``stages`` check the memory limit before a graph is built.
    """
    search, place = search_of(config), None
    if path is not None and (find_graph(path) or _writable(path)):
        place = Place.named(path)
    elif out is not None:
        place = Place.within(out, features, config.knn, search)
    return open_or_build(features, config.knn, search, place, stages)


def graph_source(
    config: Config, structural: bool, path: Path | None, out: Path | None
) -> tuple[Callable[[Features, int, bool, Stages], KnnGraph], Path | None]:
    """Return the two arguments that :func:`starfc.clustering.arrays.prepare` needs to get a kNN graph.

    Returns
    -------
    callable
        Function (features, k, as_asked, stages) that opens or builds the kNN graph of the rows to cluster.
    path or None
        The graph stored at ``path``, if there is one and the model is structural. It has all rows, copies included.
    """
    stored = path if structural and path is not None and find_graph(path) is not None else None

    def make_graph(rows: Features, k: int, as_asked: bool, stages: Stages) -> KnnGraph:
        # the graph at the given path is that of all rows
        return knn_graph(replace(config, knn=k), rows, path if stored is not None or as_asked else None, out, stages)

    return make_graph, stored


def _writable(path: Path) -> bool:
    """Return whether a file or folder can be created at ``path``. This depends on its nearest existing parent."""
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    return os.access(parent, os.W_OK)
