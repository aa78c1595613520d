"""The content of the first view of the review page: warnings, the record of the run, the threshold surface."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from starfc.clustering.diagnostics import surprising
from starfc.errors import InputError
from starfc.review.measures import Review
from starfc.storage.records import changed_since
from starfc.storage.safe import first_line, open_regular


def warnings_of(found: Review, n: int, record: dict[str, Any] | None) -> list[str]:
    """Return warnings of clusters that hold a large share of the n instances, and of many instances that are alone."""
    share, columns, precision, thresholds = 0.1, 0, None, "tau1 or tau2"
    if record is not None:
        if record.get("refinement") == "fixed" and record.get("partition") != "components":
            thresholds = "tau1"  # communities ignore tau2
        share, columns = record["diagnostics"]["giant_share"], record["knn_graph"]["k"] - 1
        if "steps" not in record:  # the estimate holds only for the first clustering
            precision = (record.get("estimate") or {}).get("precision")
    sizes = [{"label": c, "size": found.sizes[c]} for c in np.flatnonzero(found.sizes > share * n)]
    giants = [giant["label"] for giant in surprising(sizes, columns, precision)]
    lines = [
        f"Cluster {c} holds {found.sizes[c]:,} of {n:,} instances ({found.sizes[c] / n:.1%}). A few wrong edges may "
        f"have joined many identities: raise {thresholds}."
        for c in giants
    ]
    alone = int((found.sizes == 1).sum())
    if alone > 0.3 * n:
        lines.append(
            f"{alone:,} instances ({alone / n:.0%}) are alone. If the data are not like that, the thresholds are too "
            "high, or k is too low."
        )
    return lines


def of_record(record: dict[str, Any] | None) -> dict[str, Any]:
    """Return metrics, numbers of edges and general information from the record of a run."""
    if record is None:
        return {"metrics": {}, "stages": None, "run": None}
    diagnostics, steps = record["diagnostics"], record.get("steps", [])
    stages = {"candidates": diagnostics["candidates"], **{k: diagnostics[k] for k in ("parsed", "refined")}}
    return {
        "metrics": record["metrics"],
        "stages": None
        if steps
        else stages,  # these numbers hold only for the first clustering; the page counts the present edges
        "run": {
            "features": Path(record["features"]).name,
            "model": Path(record["model"]).name,
            "started": record["started"],
            "changed": changed_since(record),
            "k": record["knn_graph"]["k"],
            "seconds": round(sum(stage["seconds"] for stage in record["stages"]), 1),
        },
    }


def surface_of(path: Path, refinement: str) -> dict[str, Any] | None:
    """Read the threshold surface of a refinement: its values of τ1 and τ2, and one value for each pair.

    The value is the F-score if the file has it, otherwise the largest share, otherwise the number of clusters.
    """
    try:
        return _values(path, refinement)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(
            f"{path}: not a threshold surface ({first_line(error)}); delete it, or create it again"
        ) from None


def _values(path: Path, refinement: str) -> dict[str, Any] | None:
    with open_regular(path, "threshold surface") as raw, io.TextIOWrapper(raw, "utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line.get("refinement") == refinement]
    value = next((name for name in ("fscore", "largest_share", "num_clusters") if lines and name in lines[0]), None)
    if value is None:
        return None
    tau1, tau2 = (sorted({float(line[name]) for line in lines}) for name in ("tau1", "tau2"))
    known = {(float(line["tau1"]), float(line["tau2"])): float(line[value]) for line in lines}
    return {"value": value, "tau1": tau1, "tau2": tau2, "rows": [[known.get((x, y)) for y in tau2] for x in tau1]}
