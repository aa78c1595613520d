"""Make the tables of suite.py, the summary over all sets, and the picture. All scores are in per cent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from baselines import BASELINES
from starfc.storage.atomic import replacing

TRAINED, TOLD = "†", "‡"
HEADS = (
    "set", "kind", "N", "identities", "F", "BCubed F", "NMI", "estimated F", "best tuned F", "best tuned BCubed F",
    "Infomap, part0", "regret F", "regret BCubed F", "seconds", "peak MB", "warnings",
)  # fmt: skip


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and worst F, BCubed F and regret over the sets, the worst sets, and the estimate's mean error."""
    found: dict[str, Any] = {}
    for metric, worst in (("fscore", min), ("bcubed", min), ("regret", max), ("regret_bcubed", max)):
        values = {row["name"]: row[metric] for row in rows if row.get(metric) is not None}
        found[f"mean_{metric}"] = round(float(np.mean(list(values.values()))), 4) if values else None
        name = worst(values, key=values.__getitem__, default=None)
        found[f"worst_{metric}"] = values.get(name)
        found[f"worst_{metric}_set"] = name
    errors = [abs(row["estimated_fscore"] - row["fscore"]) for row in rows if row.get("estimated_fscore") is not None]
    return found | {"estimate_error": round(float(np.mean(errors)), 4) if errors else None}


def per_set(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of the sets, then tables of the baselines' F and BCubed F, tuned and with part0 parameters."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|" + "---:|" * (len(HEADS) - 2)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    notes = [f"{row['name']}: {row['refused']}" for row in rows if row.get("refused")]
    marks = [f"{TRAINED} the model was trained on this set"] * any(row["trained"] for row in rows)
    methods = [method for method in BASELINES if any(method in row["baselines"] for row in rows)]
    for part, title in (("tuned", "tuned on the answers"), ("part0", "with the parameters from part0_train")):
        if any(part in found for row in rows for found in row["baselines"].values()):
            lines += ["", f"Baselines {title}, F / BCubed F:", ""]
            lines += ["| set | " + " | ".join(_named(method) for method in methods) + " |"]
            lines += ["|---|" + "---:|" * len(methods)]
            for row in rows:
                cells = [_pair(row["baselines"].get(method, {}).get(part)) for method in methods]
                lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    failed = [
        f"{row['name']}, {found['name']}: not run, {found['not_run']}"
        for row in rows
        for found in row["baselines"].values()
        if "not_run" in found
    ]
    marks += [f"{TOLD} told the true number of clusters"] * any(BASELINES[method].told_clusters for method in methods)
    return lines + [line for note in (*marks, *notes, *failed) for line in ("", note)]


def summary_lines(result: dict[str, Any]) -> list[str]:
    """Return the summary over all sets, one value per line."""
    lines = []
    for metric, name in (
        ("fscore", "F"), ("bcubed", "BCubed F"), ("regret", "regret F"), ("regret_bcubed", "regret BCubed F")
    ):  # fmt: skip
        if result[f"mean_{metric}"] is not None:
            worst = f"{result[f'worst_{metric}']:.2f} ({result[f'worst_{metric}_set']})"
            lines.append(f"{name}: mean {result[f'mean_{metric}']:.2f}, worst {worst}")
    if result["estimate_error"] is not None:
        lines.append(f"estimate error: {result['estimate_error']:.2f}")
    return ["; ".join([f"{result['name']}, {len(result['sets'])} sets", *lines])]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot estimated against true F, one point for each set that has both, and the diagonal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row.get("estimated_fscore") is not None]
    figure, axis = plt.subplots(figsize=(6, 6), layout="constrained")
    axis.set(xlabel="pairwise F, %", ylabel="F as estimated without labels, %")
    low = min(min(row["fscore"], row["estimated_fscore"]) for row in shown)
    axis.plot([low, 100], [low, 100], c="0.6", lw=1)
    axis.grid(alpha=0.3)
    for row in shown:
        axis.plot(row["fscore"], row["estimated_fscore"], "o", ms=6, c="C0")
        place = (row["fscore"], row["estimated_fscore"])
        axis.annotate(row["name"], place, (5, 4), textcoords="offset points", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi, format="png")
    plt.close(figure)


def _cells(row: dict[str, Any]) -> list[str]:
    best = [_best(row, "fscore", "best"), _best(row, "bcubed", "best_bcubed")]
    given = len(row["warnings"]) if "warnings" in row else None
    return [
        row["name"] + f" {TRAINED}" * row["trained"],
        row["kind"],
        f"{row['instances']:,}",
        f"{row['identities']:,}",
        *(_number(row.get(metric)) for metric in ("fscore", "bcubed", "nmi", "estimated_fscore")),
        *best,
        _pair(row["baselines"].get("infomap", {}).get("part0")),
        *(_number(row.get(metric)) for metric in ("regret", "regret_bcubed")),
        _number(row.get("seconds")),
        _number(row.get("peak_mb"), 0),
        _number(given, 0),
    ]


def _best(row: dict[str, Any], metric: str, key: str) -> str:
    found = row[key]
    return "" if found is None else f"{_named(found['method'])} {found[metric]:.2f}"


def _named(method: str) -> str:
    return BASELINES[method].name + f" {TOLD}" * BASELINES[method].told_clusters


def _pair(scores: dict[str, Any] | None) -> str:
    return "" if scores is None else f"{scores['fscore']:.2f} / {scores['bcubed']:.2f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
