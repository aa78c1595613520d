"""Plot time and peak memory against the number of nodes, log-log, from a JSON of scale.py.

python benchmarks/plots.py SCALE.json --out FILE.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = {
    "kNN graph": ("kNN graph",),
    "edge scores": ("node order", "node projections", "edge scores"),
    "choice, adaptation": ("choice", "adaptation"),
    "samples": ("samples",),
    "refinement, clusters": ("communities", "refinement", "edges of clusters", "clusters", "estimate"),
    "metrics, write": ("metrics", "write"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot time and memory of scale.py against the number of nodes.")
    parser.add_argument("record", type=Path, metavar="SCALE.json")
    parser.add_argument("--out", type=Path, default=Path("scale.png"), metavar="FILE.png")
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text(encoding="utf-8"))
    sizes = {int(nodes): size for nodes, size in record["sizes"].items()}
    nodes = np.array(sorted(sizes))
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    met = {stage for size in sizes.values() for stage in size["seconds"]}
    for name, stages in SHOWN.items():
        if not met.intersection(stages):
            continue
        time.plot(nodes, [sum(sizes[n]["seconds"].get(s, 0) for s in stages) for n in nodes], ".-", label=name)
    time.plot(nodes, [sizes[n]["total_seconds"] for n in nodes], "ko-", label="features to metrics")
    law = record["laws"].get("total")
    if law:
        time.plot(nodes, law["a"] * nodes ** law["b"], "k:", label=f"{law['a']:.1e} N^{law['b']:.2f}")
    memory.plot(nodes, [sizes[n]["peak_rss_mb"] / 1024 for n in nodes], "ko-")
    time.set(xlabel="nodes", ylabel="seconds")
    memory.set(xlabel="nodes", ylabel="peak resident memory, GiB")
    for axis in (time, memory):
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    time.legend(fontsize=7)
    figure.savefig(arguments.out, dpi=110)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
