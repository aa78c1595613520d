"""Plot the training loss of several runs: python benchmarks/loss_curves.py RUN_DIR ... --out FILE.png

A run is the --work-dir of train.py. Its metrics.jsonl has the mean loss of every subgraph. The curves are also written
as CSV to the folder of the picture.
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
    parser = argparse.ArgumentParser(description="Training loss of several runs, subgraph by subgraph.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=Path("loss_curves.png"), metavar="FILE.png")
    arguments = parser.parse_args()
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    rows = []
    for folder in arguments.runs:
        entries = read_run(folder)
        axis.plot([e["step"] for e in entries], [e["loss"] for e in entries], label=folder.name)
        rows += [{"run": folder.name, "subgraph": e["step"], "loss": e["loss"]} for e in entries]
    axis.set(xlabel="subgraphs", ylabel="cross-entropy, mean of a subgraph")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(arguments.out, dpi=110)
    with arguments.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {arguments.out}, {arguments.out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
