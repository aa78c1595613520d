"""Compare runs on shards with the run in memory: equal files, seconds, memory, bytes read and written.

    python benchmarks/shards.py --features F --out DIR [--workers 1 2] [--engines local ray] [--shard-rows R]
        [--recall R] [--no-edges] [--json OUT]

For each number of workers, ``starfc cluster`` runs in memory with as many threads, and on shards with each engine. All
runs are commands of their own and start after each other, from files that are in the cache of the system. Runs of the
first 16,384 rows come before them, so that all kernels are compiled. ``equal`` says whether lists, edges and labels are
the same bytes; with ``--no-edges``, labels only, and the edges stay in the store. ``ratio`` is seconds on shards / in
memory, of all stages, and ``cpu_ratio`` that of the processors' seconds, which other programs on the machine disturb
less (those of Ray's workers are not counted); ``scaling`` is seconds with the first number of workers / with the last.
The stages of a store have the seconds of their tasks in all, the highest memory of a task, the bytes that tasks read
and those of the arrays that they wrote. A process reads an array once, so fewer processes read less.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from harness import report

SAME = (
    "labels.npy",
    "knn",
    "edges/indptr.npy",
    "edges/cols.npy",
    "edges/scores.npy",
    "edges/logits.npy",
    "edges/kept.npy",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, metavar="F")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engines", nargs="+", choices=("local", "ray"), default=["local"])
    parser.add_argument("--shard-rows", type=int, default=1 << 16)
    parser.add_argument("--recall", type=float, help="default: exact lists")
    parser.add_argument("--no-edges", action="store_true")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    files = SAME[:1] if arguments.no_edges else SAME
    how = ["--recall", str(arguments.recall)] if arguments.recall else []
    how += ["--no-edges"] if arguments.no_edges else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    first = arguments.out / "first.npy"
    np.save(first, np.load(arguments.features, mmap_mode="r")[: 1 << 14])
    run(first, arguments.out, "first", how)
    run(first, arguments.out, "first", [*how, "--engine", "local", "--workers", "1"])
    runs: list[dict[str, Any]] = []
    for workers in arguments.workers:
        whole = run(arguments.features, arguments.out, f"memory-{workers}", [*how, "--threads", str(workers)])
        runs.append({"engine": "memory", "workers": workers, **whole})
        for engine in arguments.engines:
            name = f"{engine}-{workers}"
            store = arguments.out / f"{name}.store"
            shutil.rmtree(store, ignore_errors=True)
            more = ["--engine", engine, "--workers", str(workers), "--store", str(store)]
            rows = ["--shard-rows", str(arguments.shard_rows)]
            found = run(arguments.features, arguments.out, name, [*how, "--threads", str(workers), *more, *rows])
            equal = {file: same(arguments.out, f"memory-{workers}", name, file) for file in files}
            runs.append(
                {
                    "engine": engine, "workers": workers, **found, "ratio": found["seconds"] / whole["seconds"],
                    "cpu_ratio": found["cpu_seconds"] / whole["cpu_seconds"],
                    "equal": equal, "stages_of_store": stages_of(store),
                }
            )  # fmt: skip
            shutil.rmtree(store)
    scaling = {
        engine: seconds_of(runs, engine, arguments.workers[0]) / seconds_of(runs, engine, arguments.workers[-1])
        for engine in ("memory", *arguments.engines)
    }
    report({"runs": runs, "scaling": scaling}, max(arguments.workers), arguments.json)


def run(features: Path, folder: Path, name: str, more: list[str]) -> dict[str, Any]:
    """Run ``starfc cluster``, and return its seconds and highest memory in MB, of all stages and by stage."""
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    print(name, flush=True)
    command = [sys.executable, "-m", "starfc", "cluster", str(features), "-o", str(out), *more]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    stages = json.loads((out / "run.json").read_text())["stages"]
    return {
        "seconds": sum(stage["seconds"] for stage in stages),
        "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_mb": max(stage["peak_rss_mb"] for stage in stages),
        "stages": {stage["name"]: [round(stage["seconds"], 2), round(stage["peak_rss_mb"])] for stage in stages},
    }


def stages_of(store: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "starfc", "status", str(store), "--json"]
    stages = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["stages"]
    for stage in stages:
        stage["bytes_written"] = sum(path.stat().st_size for path in (store / stage["stage"]).glob("*.npy"))
        del stage["at"]
    return stages


def same(out: Path, one: str, other: str, file: str) -> bool:
    """Return whether a file is the same in two runs; ``knn`` are the lists of the graph."""
    found = [sorted((out / run).glob("knn/*/*.npy" if file == "knn" else file)) for run in (one, other)]
    return len(found[0]) > 0 and [path.read_bytes() for path in found[0]] == [path.read_bytes() for path in found[1]]


def seconds_of(runs: list[dict[str, Any]], engine: str, workers: int) -> float:
    return next(run["seconds"] for run in runs if (run["engine"], run["workers"]) == (engine, workers))


if __name__ == "__main__":
    main()
