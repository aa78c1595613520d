"""The splits that a config names, and their kNN graphs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from starfc.config import Config
from starfc.data.dataset import Features, Split, open_split
from starfc.data.formats import LABEL_SUFFIXES
from starfc.errors import InputError, MissingFileError
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.partial import remove_search
from starfc.graph.store import ANEW, building, elsewhere, find_graph, read_graph
from starfc.runtime.commit import settle
from starfc.runtime.kinds import KNN
from starfc.runtime.opened import opened
from starfc.runtime.stages import Stages
from starfc.words import advice, word

log = logging.getLogger("starfc")

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
            config.path(data.label_path),
            feature_dim=dim,
            normalise=data.is_norm_feat,
            name=config.test_name,
            key=data.key,
            room=_room(config),
            labels_needed=False,
        )
    except MissingFileError as error:
        raise MissingFileError(f"{error}; {MS1M_HINT}") from None
    return split, config.path(data.knn_graph_path)


def _room(config: Config) -> int | None:
    """Bytes that features may take which have to be held."""
    return Stages(config.memory_limit_bytes()).memory_left()


def knn_graph(config: Config, features: Features, path: Path | None, out: Path) -> KnnGraph:
    """The kNN graph stored at ``path`` where there is one, else a new one, which is then stored.

    Where there is no path (a file of the user's own) or it cannot be written, the graph is kept below ``out``, in a
    folder named after the features' fingerprint. What a killed search had found is kept beside it, and used.
    """
    name = f"{features.check.fingerprint[:12]}_{config.knn_method}_k_{config.knn}"
    named = path is not None and (find_graph(path) or _writable(path))
    place = path if named else opened(out).path(f"knn/{name}")
    partial = place.with_name(place.name + ".partial") if named else opened(out).path(f"knn/{name}.partial")
    stored = find_graph(place)
    if stored is not None:
        if not named:  # a search for these results was perhaps killed once its graph was there
            settle(place, KNN)
            remove_search(partial)
        log.info("kNN graph: read from %s", stored)
        graph = read_graph(stored, features, config.knn)
        used = graph.info.get("params", {})
        other = {key: used[key] for key, value in config.knn_params.items() if used.get(key, value) != value}
        if other:
            raise InputError(
                f"{stored}: a kNN graph built with {other} where {word('knn_params')} asks for {config.knn_params}; "
                f"{ANEW}{elsewhere()}"
            )
        reached = graph.info.get("recall")
        if config.knn_method == "ivf" and "nprobe" not in config.knn_params and (reached or 1.0) < config.knn_recall:
            raise InputError(
                f"{stored}: a kNN graph of recall {reached:.4f} where {word('knn_recall')} asks for "
                f"{config.knn_recall}; {ANEW}{advice(', or lower {}', 'knn_recall')}"
            )
        return graph
    with building(place, partial) as write:
        graph = build_knn(
            features, config.knn, config.knn_method, config.knn_params, config.seed, config.knn_recall, partial
        )
        write(graph, features)
        del graph
    log.info("kNN graph: written to %s", place)
    return read_graph(place, features, config.knn)


def _writable(path: Path) -> bool:
    """Whether a file or folder can be made at ``path``: its nearest existing parent decides."""
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    return os.access(parent, os.W_OK)
