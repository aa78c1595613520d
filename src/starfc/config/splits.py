"""The splits that a config names, and their kNN graphs."""

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
from starfc.runtime.stages import Stages
from starfc.runtime.words import advice, word

MS1M_HINT = (
    "docs/ms1m.md says where these files come from and how they are laid out; "
    "the bundled sample runs with: python test_final.py --config configs/cfg_gcn_glyph.py"
)


def open_train_split(config: Config) -> Split:
    """The configured training split; it must have labels."""
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
    """The configured test split and its kNN graph's path, or the user's own file (no path: kept in the outputs).

    ``features`` may be the user's own file as a split that is open, with its labels.
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
            f"{word('labels')}: goes with {word('features')}; the configured split's labels are test_data.label_path"
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
    """Bytes that features may take which have to be held."""
    return Stages(config.memory_limit_bytes()).memory_left()


def search_of(config: Config) -> Search:
    """How a config asks to search for neighbours."""
    return Search(config.knn_method, config.knn_params, config.seed, config.knn_recall)


def stored_graph(path: str | Path) -> Path:
    """The kNN graph that a user names, which must be there."""
    found = find_graph(Path(path))
    if found is None:
        raise MissingFileError(f"{path}: no kNN graph there{advice('; {} makes one', 'starfc knn')}")
    return found


def knn_graph(config: Config, features: Features, path: Path | None, out: Path | None) -> KnnGraph:
    """The kNN graph stored at ``path`` where there is one, else a new one, which is then stored.

    Where there is no path (a file of the user's own) or it cannot be written, the graph is kept below ``out``, if any.
    """
    search, place = search_of(config), None
    if path is not None and (find_graph(path) or _writable(path)):
        place = Place.named(path)
    elif out is not None:
        place = Place.within(out, features, config.knn, search)
    return open_or_build(features, config.knn, search, place)


def graph_source(
    config: Config, structural: bool, path: Path | None, out: Path | None
) -> tuple[Callable[[Features, int, bool], KnnGraph], Path | None]:
    """What gives :func:`starfc.clustering.arrays.prepare` the kNN graph of the rows that are clustered.

    And the graph that is stored at ``path`` if a structural model is to use it for all rows, copies among them.
    """
    stored = path if structural and path is not None and find_graph(path) is not None else None

    def make_graph(rows: Features, k: int, as_asked: bool) -> KnnGraph:
        # what is named is the graph of all rows
        return knn_graph(replace(config, knn=k), rows, path if stored is not None or as_asked else None, out)

    return make_graph, stored


def _writable(path: Path) -> bool:
    """Whether a file or folder can be made at ``path``: its nearest existing parent decides."""
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    return os.access(parent, os.W_OK)
