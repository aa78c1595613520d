"""Plot the training loss of several runs: python benchmarks/loss_curves.py RUN_DIR ... --out FILE.png

A run is a work directory of train.py; its metrics.jsonl gives the mean loss of every subgraph. Needs matplotlib (the
extra `plot`). The same curves are written as CSV beside the picture.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read_run(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Training loss of several runs, against subgraphs and seconds.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=Path("loss_curves.png"), metavar="FILE.png")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    rows = []
    for folder in arguments.runs:
        seconds = 0.0
        entries = read_run(folder)
        for entry in entries:
            seconds += entry["seconds"]
            rows.append(
                {"run": folder.name, "subgraph": entry["step"], "seconds": round(seconds, 2), "loss": entry["loss"]}
            )
        mine = [row for row in rows if row["run"] == folder.name]
        for axis, key in zip(axes, ("subgraph", "seconds"), strict=True):
            axis.plot([row[key] for row in mine], [row["loss"] for row in mine], label=folder.name)
            axis.set(xlabel={"subgraph": "subgraphs", "seconds": "seconds of training"}[key])
            axis.grid(alpha=0.3)
    axes[0].set(ylabel="cross-entropy, mean of a subgraph")
    axes[1].legend()
    figure.savefig(arguments.out, dpi=110)
    with arguments.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {arguments.out}, {arguments.out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
