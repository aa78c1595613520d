"""What a run leaves in its folder: labels.npy, labels.meta, clusters.parquet and run.json, each written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from starfc.clustering.pipeline import Clustering
from starfc.data.formats import write_labels
from starfc.runtime.atomic import replacing, write_json


def write_clustering(folder: Path, result: Clustering) -> None:
    """Labels as int64 .npy and as text, and a table of row, label and confidence."""
    write_labels(folder / "labels.npy", result.labels)
    write_labels(folder / "labels.meta", result.labels)
    table = pa.table(
        {
            "row": np.arange(len(result.labels), dtype=np.int64),
            "label": result.labels,
            "confidence": result.confidence,
        }
    )
    with replacing(folder / "clusters.parquet") as temporary:
        pq.write_table(table, temporary)


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """The run's record, run.json."""
    write_json(folder / "run.json", record)


def metrics_table(metrics: dict[str, Any]) -> str:
    """Metrics in percent, as text."""
    lines = [f"{'metric':<12}{'precision':>10}{'recall':>10}{'F-score':>10}"]
    for name, value in metrics.items():
        if isinstance(value, dict):
            cells = [f"{100 * value[key]:.2f}" for key in ("precision", "recall", "fscore")]
        else:
            cells = ["", "", f"{100 * value:.2f}"]
        lines.append(f"{name:<12}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)
