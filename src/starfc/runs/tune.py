"""Choose thresholds on labelled data, or show what each pair does: `starfc tune`, `scripts/choose_thresholds.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.arrays import Clustered, cluster_prepared, prepare
from starfc.config.config import Config
from starfc.config.splits import graph_source, open_test_split, stored_graph
from starfc.config.thresholds import Thresholds
from starfc.data.dataset import Split
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate, labelled, require_pairs, say_unlabelled
from starfc.evaluation.surface import text
from starfc.evaluation.thresholds import OUTLINED, Outline, Point, choose_and_store, outline
from starfc.models.checkpoint import THRESHOLDS, Model, copied_files
from starfc.runs.cluster import open_model, settings_of
from starfc.runtime.device import device_limit
from starfc.runtime.extras import require
from starfc.runtime.machine import choose_device, set_threads
from starfc.runtime.stages import Stages
from starfc.runtime.words import word
from starfc.storage.atomic import replacing
from starfc.storage.commit import changing
from starfc.storage.owners import TUNE
from starfc.training.data import held_back_graph, holdout_text, read_training_data


def run_choice(
    config: Config,
    *,
    model_folder: str | Path | None = None,
    features: str | Path | Split | None = None,
    labels: str | Path | None = None,
    knn_graph: str | Path | None = None,
    out: str | Path | None = None,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
) -> dict[str, Point] | dict[str, list[Outline]]:
    """Choose thresholds (τ1, τ2) for the fixed and for the dynamic refinement, and store them.

    The data for the choice depend on the parameters:

    * ``features`` and ``labels``: these data.
    * neither: the identities that training held out of the config's training split. They are the same identities if
      the split, the seed and ``validation`` of the config did not change since training.
    * ``features`` alone: nothing is chosen. The clustering at every pair of the grid is summarised instead.

    If the model makes communities at a τ1 from the data by default, these are scored on the same labels too.

    Parameters
    ----------
    config : Config
        All other settings.
    model_folder : path, optional
        Folder of the weights. Default: ``config.pretrained``.
    features, labels : path, optional
        A file of the user, and the identities of its rows. ``features`` may also be an open split that holds both.
    knn_graph : path, optional
        Path of a stored kNN graph of these features. Default: a graph is built, and not stored.
    out : path, optional
        Folder for the results. Default: the folder of the weights, where clustering finds the thresholds.
    inputs : paths, optional
        Other files that were read. The results must not replace them; ``features`` and ``labels`` are protected too.
    overwrite : bool
        Whether to replace files that neither a training nor an earlier choice wrote.

    Returns
    -------
    dict
        The chosen point of 'fixed' and 'dynamic', and as 'default' the score of the model's default communities.
        Without labels: all outlines of 'fixed' and 'dynamic'. :func:`tune_text` prints the dict as text.

    Raises
    ------
    InputError
        There is a mistake in the input. Nothing has been written.
    """
    require("matplotlib", "the picture of the thresholds")
    set_threads(config.threads)
    device = choose_device(config.device)
    model_folder = Path(os.path.normpath(config.pretrained if model_folder is None else model_folder))
    model = open_model(config, model_folder)
    read = [path for path in (features, labels, *inputs) if isinstance(path, str | Path)]
    out = model_folder if out is None else Path(out)
    elsewhere = not (out.exists() and out.samefile(model_folder))
    files = copied_files(model_folder) if elsewhere else {}  # clustering reads thresholds and weights from one folder
    with changing(out, TUNE, also=files, inputs=read, overwrite=overwrite) as change:
        with device_limit(config.device_memory_bytes()):
            found = _run(config, model, features, labels, knn_graph, change.place, device)
        if isinstance(found["fixed"], Point):
            for name, path in files.items():
                with (
                    replacing(change.place / name) as temporary,
                    path.open("rb") as source,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file)  # not copyfile: its error for a full disk would name the source
        return found


def _run(
    config: Config,
    model: Model,
    features: str | Path | Split | None,
    labels: str | Path | None,
    knn_graph: str | Path | None,
    out: Path,
    device: torch.device,
) -> dict[str, Point] | dict[str, list[Outline]]:
    given: dict[str, Any] = {"th_sim": config.th_sim, "device": device}
    if features is None and labels is None:
        if config.validation.holdout_share == 0:
            raise InputError(
                f"{word('validation.holdout_share')}: is 0, so this training held out no identities to choose "
                f"thresholds on; give labelled data that the model was not trained on as {word('features')} and "
                f"{word('labels')}"
            )
        data = read_training_data(config)
        held = held_back_graph(config, data)
        assert data.held is not None  # there is a share to hold back
        assert held is not None
        where = holdout_text(config, data.held)
        return choose_and_store(
            out, held.features, held.graph, held.labels, model, scored=held.held, **given, chosen_on=where
        )
    split, _ = open_test_split(config, features, labels)
    if split.labels is not None:
        say_unlabelled(split.labels, "the choice")
    settings = settings_of(config, Thresholds(None, None), "fixed")
    stages = Stages(config.memory_limit_bytes())
    path = None if knn_graph is None else stored_graph(knn_graph)
    make_graph, stored = graph_source(config, model.kind.structural, path, None)
    # the same preparation as for clustering
    prepared = prepare(split.features, model, settings, make_graph=make_graph, graph_of_all=stored, stages=stages)
    valid, graph = prepared.features, prepared.graph
    if split.labels is None:
        return outline(out, valid, graph, model, **given)
    identities = split.labels[prepared.rows]
    require_pairs(identities, split.features.name, "choosing thresholds")
    known = identities[labelled(identities)]
    where = f"{split.features.name}: {len(np.unique(known))} identities ({len(known)} instances)"
    default = {}
    if model.kind.contextual and config.partition.type != "components":
        own = cluster_prepared(prepared, model, settings, device=device, stages=stages)
        default = {"default": _point(own, identities)}
    return choose_and_store(out, valid, graph, identities, model, **given, chosen_on=where, beside=default)


def _point(done: Clustered, identities: NDArray[np.int64]) -> Point:
    """Score a clustering on its prepared rows, one per direction. ``identities`` (m,) int64 belong to these rows."""
    labels = done.result.labels[done.prepared.rows]
    scores, clusters = evaluate(identities, labels, ("pairwise", "bcubed")), labels[labelled(identities)]
    pairs: Any = scores["pairwise"]
    cubed: Any = scores["bcubed"]
    values = pairs["precision"], pairs["recall"], pairs["fscore"], cubed["fscore"]
    return Point(done.tau1, 0.0, *values, len(np.unique(clusters)))


def tune_text(found: dict[str, Point] | dict[str, list[Outline]], out: str | Path) -> str:
    """Return the result of :func:`run_choice` as text. ``out`` is the folder that it was written to."""
    outlines = {refinement: surface for refinement, surface in found.items() if isinstance(surface, list)}
    if outlines:
        return _outlines(outlines, out)
    points = {refinement: point for refinement, point in found.items() if isinstance(point, Point)}
    names = f"{'precision':>11}{'recall':>9}{'F':>8}{'BCubed F':>10}{'clusters':>10}"
    lines = [f"{'refinement':<12}{'tau1':>8}{'tau2':>8}{names}"]
    for refinement, p in points.items():
        scores = f"{100 * p.precision:>11.2f}{100 * p.recall:>9.2f}{100 * p.fscore:>8.2f}{100 * p.bcubed:>10.2f}"
        lines.append(f"{refinement:<12}{p.tau1:>8g}{p.tau2:>8g}{scores}{p.num_clusters:>10,}")
    if "default" in points:
        lines.append(_verdict(points))
    return "\n".join([*lines, f"written to {out}: {THRESHOLDS}, threshold_surface.csv, threshold_surface.png"])


def _verdict(found: dict[str, Point]) -> str:
    """Return a sentence that says whether the chosen thresholds beat the model's default, which does not use them."""
    best = max(("fixed", "dynamic"), key=lambda refinement: found[refinement].fscore)
    gain = 100 * (found[best].fscore - found["default"].fscore)
    if gain > 0:
        how = {"fixed": "partition components", "dynamic": "refinement dynamic"}[best]
        return f"{best} thresholds beat the default by {gain:.2f} points of F; they are used only with {how}"
    return (
        "the default (communities, tau1 chosen from the data) is at least as good; cluster with the default settings "
        "(the chosen thresholds are used only with partition components or refinement dynamic)"
    )


def _outlines(outlines: dict[str, list[Outline]], out: str | Path) -> str:
    tables = [
        f"{refinement} refinement, {what}\n{text(surface, field)}\n"
        for refinement, surface in outlines.items()
        for field, what in OUTLINED.items()
    ]
    return "\n".join(
        [*tables, f"no labels: nothing was chosen; written to {out}: threshold_outline.csv, threshold_outline.png"]
    )
