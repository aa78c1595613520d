"""Calibration of edge confidence: a temperature, and how far probabilities are from frequencies.

A network's logit z becomes p = σ(z / T), with the T > 0 of the highest likelihood on labelled edges that it was not
trained on (temperature scaling, arXiv 1706.04599). One number cannot change which of two edges is the more likely; it
makes p mean what it says, so that a threshold on p means the same on other data.
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

BINS = 15


def labelled_logits(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    labels: NDArray[np.integer],
    scored: NDArray[np.bool_],
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """z / T of the candidate edges of ``scored`` (N,) and labelled ends, and whether these are one identity."""
    found: dict[int, tuple[NDArray, NDArray]] = {}
    judged = scored & labelled(labels)

    def take(at: int, pairs: CandidateEdges, logits: NDArray[np.float32]) -> None:
        rows, ends = pairs.rows, graph.ids[pairs.rows, pairs.slots]
        ours = judged[rows] & judged[ends]
        found[at] = logits[ours], labels[rows[ours]] == labels[ends[ours]]

    score_edges(model, features, graph, take, device=device)
    logits, same = zip(*(found[at] for at in sorted(found)), strict=True)
    return np.concatenate(logits), np.concatenate(same)


def fit_temperature(logits: NDArray[np.float32], same: NDArray[np.bool_]) -> float:
    """The T in [1/20, 20] of the least cross-entropy of σ(z / T)."""
    signed = np.where(same, logits, -logits).astype(np.float64)
    found = minimize_scalar(
        lambda t: np.logaddexp(0, -signed * np.exp(-t)).mean(), bounds=(-np.log(20), np.log(20)), method="bounded"
    )
    return float(np.exp(found.x))


def reliability(p: NDArray[np.floating], same: NDArray[np.bool_], bins: int = BINS) -> list[dict[str, float]]:
    """Edges by their p, in bins of equal width: how many, mean p, share of one identity. Empty bins are left out."""
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    mean, share = (np.bincount(which, v, bins) / np.maximum(count, 1) for v in (p, same))
    return [
        {"low": b / bins, "high": (b + 1) / bins, "edges": int(count[b]), "p": float(mean[b]), "same": float(share[b])}
        for b in np.flatnonzero(count).tolist()
    ]


def calibration_error(table: list[dict[str, float]]) -> float:
    """Expected calibration error: mean over edges of |p - share| of their bin."""
    total = sum(row["edges"] for row in table)
    return sum(row["edges"] * abs(row["p"] - row["same"]) for row in table) / total


def calibrate(model: StructuralModel, data: LabelledGraph, folder: Path, device: torch.device) -> dict[str, Any]:
    """Give a model its temperature by the held-back part of a graph, and write its reliability.

    Writes ``reliability.csv`` and, as a picture, ``reliability.png`` into the folder.

    Returns
    -------
    dict
        Temperature, number of edges, expected calibration error before and after; without edges the temperature is 1,
        and nothing is written.
    """
    logits, same = labelled_logits(model, data.features, data.graph, data.labels, data.held, device)
    if not len(same):
        log.warning("calibration: no candidate edge joins two held-back instances; the temperature stays 1")
        return {"temperature": 1.0, "edges": 0}
    temperature = fit_temperature(logits, same) if 0 < same.sum() < len(same) else 1.0
    model.temperature.fill_(temperature)
    tables = {f"T = {t:.3f}": reliability(expit(logits / t), same) for t in dict.fromkeys((1.0, temperature))}
    errors = [calibration_error(table) for table in tables.values()]
    write_reliability(folder, tables, f"{len(same):,} held-back edges")
    return {"temperature": temperature, "edges": len(same), "error_before": errors[0], "error_after": errors[-1]}


def write_reliability(folder: Path, tables: dict[str, list[dict[str, float]]], title: str) -> None:
    """``reliability.csv`` and ``reliability.png``: share of one identity against p, a line for every table."""
    with replacing(folder / "reliability.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "low", "high", "edges", "p", "same"])
        writer.writeheader()
        writer.writerows({"name": name, **row} for name, table in tables.items() for row in table)
    if not drawable(folder / "reliability.png"):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # as in starfc.evaluation.surface
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
