"""Read the labelled instances of a training: those to train on, and those held out to choose thresholds on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.config.config import Config
from starfc.config.splits import knn_graph, open_test_split, open_train_split
from starfc.errors import InputError
from starfc.evaluation.labelled import Labelled, LabelledGraph
from starfc.evaluation.metrics import labelled, require_pairs, say_unlabelled
from starfc.graph.knn import exact_knn, fitting_k
from starfc.runtime.words import word
from starfc.training.holdout import hold_back
from starfc.training.sampling import identity_centres
from starfc.training.streams import holdout_stream

log = logging.getLogger("starfc")


@dataclass(frozen=True)
class TrainingData:
    """The training split.

    Attributes
    ----------
    train : Labelled
        The N instances to train on.
    rows : (N,) int64
        Their rows in the user's file.
    identities : (C,) integer
        The label in the user's file of each of their C identities.
    held : Labelled or None
        The instances that are held out.
    fingerprint : str
        Fingerprint of the features in the file.
    """

    train: Labelled
    rows: NDArray[np.int64]
    identities: NDArray[np.integer]
    held: Labelled | None
    fingerprint: str


def read_training_data(config: Config) -> TrainingData:
    """Read the training split, and hold out the share of identities that the config sets.

    Raises
    ------
    InputError
        There are fewer than two identities to train on, no identity has two instances, or the share to hold out leaves
        too few identities on one side.
    """
    split = open_train_split(config)
    named = split.labels
    assert named is not None  # open_train_split raises an error without labels
    valid, invalid = split.features.valid(config.invalid_rows)
    features = valid.all()
    rows = np.delete(np.arange(len(named)), invalid)
    require_pairs(named[rows], split.features.name, "training")
    known = labelled(named[rows])
    if not known.all():
        say_unlabelled(named[rows], "training")
        features, rows = features[known], rows[known]
    names, labels = np.unique(named[rows], return_inverse=True)
    fingerprint, share = split.features.check.fingerprint, config.validation.holdout_share
    if share == 0:
        return TrainingData(Labelled(features, labels), rows, names, None, fingerprint)
    centres = identity_centres(features, labels)
    held = hold_back(centres, share, config.validation.holdout_group, holdout_stream(config.seed))
    if not held.size or len(names) - len(held) < 2:
        raise InputError(
            f"{word('validation.holdout_share')}: {share} of {len(names)} identities leaves too few on one side: to "
            "train on, or to hold out"
        )
    is_held = np.isin(labels, held)
    kept, kept_labels = np.unique(labels[~is_held], return_inverse=True)
    return TrainingData(
        Labelled(features[~is_held], kept_labels),
        rows[~is_held],
        names[kept],
        Labelled(features[is_held], labels[is_held]),
        fingerprint,
    )


def held_back_graph(config: Config, data: TrainingData) -> LabelledGraph | None:
    """Return the held-out instances with the kNN graph in which they are scored. None if there are none.

    The graph has only the held-out instances. For the structural model it is :func:`whole_graph`.
    """
    if data.held is None:
        return None
    if config.kind.structural:
        return whole_graph(config, data)
    features, labels = data.held.features, data.held.labels
    k = fitting_k(config.knn, len(labels), "the held-out identities")
    return LabelledGraph(features, labels, exact_knn(features, k), np.ones(len(labels), bool))


def whole_graph(config: Config, data: TrainingData) -> LabelledGraph:
    """Build the kNN graph of the whole training split: training instances, then held-out ones, with distinct labels."""
    features, labels, num_held = data.train.features, data.train.labels, 0
    if data.held is not None:
        num_held = len(data.held.labels)
        features = np.concatenate([features, data.held.features])
        labels = np.concatenate([labels, len(data.identities) + data.held.labels])
    k = fitting_k(config.knn, len(labels), config.train_name)
    held = np.arange(len(labels)) >= len(labels) - num_held
    return LabelledGraph(features, labels, exact_knn(features, k), held)


def validation_data(config: Config, held: LabelledGraph | None, work_dir: Path) -> LabelledGraph | None:
    """Return the validation data that ``validation.source`` sets. None if there are none."""
    if config.validation.source != "test":
        return held if config.validation.source == "holdout" else None
    split, graph_path = open_test_split(config, None, None)
    if split.labels is None:
        log.warning("validation: the test split %s has no labels; validation is skipped", split.name)
        return None
    split.features.require_valid()
    k = fitting_k(config.knn, len(split), split.features.name)
    matrix = split.features.all()
    graph = knn_graph(replace(config, knn=k), split.features, graph_path, work_dir)
    return LabelledGraph(matrix, split.labels, graph, labelled(split.labels))


def holdout_text(config: Config, held: Labelled) -> str:
    """Describe the held-out data that thresholds were chosen on."""
    return (
        f"{len(np.unique(held.labels))} identities ({len(held.labels)} instances) held out of {config.train_name}, "
        f"in groups of {config.validation.holdout_group}, seed {config.seed}"
    )
