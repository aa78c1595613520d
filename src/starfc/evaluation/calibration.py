"""Calibrate the probability p of edges by a temperature, and measure the calibration error.

A logit z becomes p = σ(z / T). T > 0 maximises the likelihood of labelled edges on which the network was not trained
(temperature scaling, arXiv 1706.04599). T does not change the order of the edges. It makes p equal to the observed
frequency, so that a threshold of p means the same on other data.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from starfc.data.dataset import Features
from starfc.evaluation.metrics import labelled
from starfc.evaluation.surface import drawable
from starfc.graph.neighbours import KnnGraph
from starfc.graph.structure import CandidateEdges
from starfc.models.structural import StructuralModel
from starfc.scoring.structural import score_edges
from starfc.storage.atomic import replacing

if TYPE_CHECKING:
    from starfc.evaluation.labelled import LabelledGraph

log = logging.getLogger("starfc")

BINS = 15  # number of bins of p


def labelled_logits(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    labels: NDArray[np.integer],
    scored: NDArray[np.bool_],
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return z / T (m,) of candidate edges, and whether the two ends of each edge are one identity (m,) bool.

    Only edges whose two ends have a label and are ``scored`` (N,) bool are returned.
    """
    judged = scored & labelled(labels)

    def take(pairs: CandidateEdges, logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, ends = pairs.rows, graph.ids[pairs.rows, pairs.slots]
        ours = judged[rows] & judged[ends]
        return logits[ours], labels[rows[ours]] == labels[ends[ours]]

    logits, same = zip(*score_edges(model, features, graph, take, device=device), strict=True)
    return np.concatenate(logits), np.concatenate(same)


def fit_temperature(logits: NDArray[np.float32], same: NDArray[np.bool_]) -> float:
    """Return the T in [1/20, 20] that minimises the cross-entropy of σ(z / T)."""
    signed = np.where(same, logits, -logits).astype(np.float64)
    found = minimize_scalar(
        lambda t: np.logaddexp(0, -signed * np.exp(-t)).mean(), bounds=(-np.log(20), np.log(20)), method="bounded"
    )
    return float(np.exp(found.x))


def reliability(p: NDArray[np.floating], same: NDArray[np.bool_], bins: int = BINS) -> list[dict[str, float]]:
    """Group edges by p in bins of equal width; return number, mean p and share of one identity of each bin.

    Empty bins are left out.
    """
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    mean, share = (np.bincount(which, v, bins) / np.maximum(count, 1) for v in (p, same))
    return [
        {"low": b / bins, "high": (b + 1) / bins, "edges": int(count[b]), "p": float(mean[b]), "same": float(share[b])}
        for b in np.flatnonzero(count).tolist()
    ]


def calibration_error(table: list[dict[str, float]]) -> float:
    """Return the expected calibration error: the mean over all edges of |mean p - share of one identity| per bin."""
    total = sum(row["edges"] for row in table)
    return sum(row["edges"] * abs(row["p"] - row["same"]) for row in table) / total


def calibrate(model: StructuralModel, data: LabelledGraph, folder: Path, device: torch.device) -> dict[str, Any]:
    """Set a model's temperature from the held-back part of a graph, and write the reliability tables.

    The files are ``reliability.csv`` and, as a picture, ``reliability.png`` in ``folder``.

    Returns
    -------
    dict
        Temperature, number of edges, expected calibration error before and after. Without edges the temperature is 1,
        and no file is written.
    """
    logits, same = labelled_logits(model, data.features, data.graph, data.labels, data.held, device)
    if not len(same):
        log.warning("calibration: no candidate edge connects two held-back instances; the temperature stays 1")
        return {"temperature": 1.0, "edges": 0}
    temperature = fit_temperature(logits, same) if 0 < same.sum() < len(same) else 1.0
    model.temperature.fill_(temperature)
    tables = {f"T = {t:.3f}": reliability(expit(logits / t), same) for t in dict.fromkeys((1.0, temperature))}
    errors = [calibration_error(table) for table in tables.values()]
    write_reliability(folder, tables, f"{len(same):,} held-back edges")
    return {"temperature": temperature, "edges": len(same), "error_before": errors[0], "error_after": errors[-1]}


def write_reliability(folder: Path, tables: dict[str, list[dict[str, float]]], title: str) -> None:
    """Write ``reliability.csv`` and ``reliability.png``: share of one identity against p, one line per table."""
    with replacing(folder / "reliability.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "low", "high", "edges", "p", "same"])
        writer.writeheader()
        writer.writerows({"name": name, **row} for name, table in tables.items() for row in table)
    if not drawable(folder / "reliability.png"):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # object-oriented, as in starfc.evaluation.surface
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name, table in tables.items():
        axes.plot([row["p"] for row in table], [row["same"] for row in table], marker="o", markersize=3, label=name)
    axes.set(xlabel="edge confidence p", ylabel="share of one identity", title=title)
    axes.legend()
    with replacing(folder / "reliability.png") as temporary:
        canvas.print_png(temporary)
