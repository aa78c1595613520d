"""Compare the bytes and the memory of runs on shards with formulas, and print a table of very large runs.

    python benchmarks/shard_costs.py --features F1 F2 --out DIR [--shard-rows R] [--workers H] [--json OUT]

For each file of features, ``starfc cluster --no-edges`` runs with exact lists and the packaged model, in H processes.
``read`` are the bytes that the tasks of a stage read (``starfc status``) and those of the formula, in MB; ``peak`` is
the highest memory of its tasks and that of the formula. The formulas are those of docs/cluster.md: N, k and d are those
of the set, R the rows of a shard, and these figures are counted in the store of the run:

* e: edges with p > 0.1 of each row
* h: rows around a shard that are candidates of its rows, as a share of R; g: rows around these that are in their lists
* t: shards that hold the rows around a shard, itself included

A process keeps what it read, so it reads an array once. With H processes, the tasks of one are S / H random shards of
S = N / R, so it touches the share f = 1 - (1 - t / S)^(S / H) of an array whose rows around a shard are read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from harness import report
from starfc.shards.run import ShardRun
from starfc.shards.store import Store

ID, COLUMNS = 4, 79  # bytes of an id; neighbours that the packaged model uses
LARGE = ((10**8, 8), (10**8, 64), (10**9, 8), (10**9, 64))  # rows and hosts of the table
# the arrays that the tasks of a stage are the first to read: those of their shard (own), those around it (near), or all
READS = {
    "exact": {"features": "all"},
    "near": {"lists": "own"},
    "smooth": {"lists": "near", "listings": "near"},
    "first": {"smoothed": "near", "strangers": "near"},
    "codes": {"logits": "own", "passed": "near"},
    "second-0": {"codes": "near"},
    "edges-0": {"pairs": "near"},
    "forest-0": {"edges": "own"},
    "modules-0": {"edges": "near", "packs": "own"},
    "within-0": {"tables": "near"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, nargs="+", required=True, metavar="F")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shard-rows", type=int, default=1 << 13)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    runs = [measured(arguments, path) for path in arguments.features]
    halo = runs[-1]["halo"]
    large = {f"{n:.0e} rows, {hosts} hosts": table(n, hosts, halo) for n, hosts in LARGE}
    report({"runs": runs, "large": large}, arguments.workers, arguments.json)


def measured(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Run on shards; return measured and predicted figures of each stage."""
    name = f"{path.parent.parent.name}-{path.stem}-{arguments.workers}"
    out, store = arguments.out / name, arguments.out / f"{name}.store"
    for folder in (out, store):
        shutil.rmtree(folder, ignore_errors=True)
    starfc = [sys.executable, "-m", "starfc"]
    command = [*starfc, "cluster", str(path), "-o", str(out), "--no-edges", "-q", "--engine", "local"]
    command += ["--workers", str(arguments.workers), "--threads", "1", "--store", str(store)]
    subprocess.run([*command, "--shard-rows", str(arguments.shard_rows)], check=True)
    found = json.loads(
        subprocess.run([*starfc, "status", str(store), "--json"], check=True, capture_output=True).stdout
    )
    run, by_name = ShardRun.open(Store(str(store))), {stage["stage"]: stage for stage in found["stages"]}
    halo = counted(run)
    sizes, touched = bytes_of_row(run.manifest.dim, run.manifest.k, halo), {}
    base = by_name["exact"]["peak_rss_mb"] - memory(run, halo, "exact") / 2**20
    stages = {}
    for stage, reads in READS.items():
        predicted = 0.0
        for array, how in reads.items():
            more = touch(how, halo, arguments.workers) - touched.get(array, 0.0)
            touched[array] = touched.get(array, 0.0) + max(more, 0.0)
            predicted += run.manifest.n * sizes[array] * max(more, 0.0)
        peak, expected = by_name[stage]["peak_rss_mb"], base + memory(run, halo, stage) / 2**20
        stages[stage] = {
            "read": [round(by_name[stage]["bytes_read"] / 1e6, 2), round(predicted / 1e6, 2)],
            "peak": [round(peak), round(expected)],
        }
    total = [sum(stage["read"][at] for stage in stages.values()) for at in (0, 1)]
    size = {"n": run.manifest.n, "shard_rows": run.manifest.shard_rows}
    return size | {"halo": halo, "stages": stages, "read": total, "base_mb": round(base)}


def counted(run: ShardRun) -> dict[str, float]:
    """Count e, h, g and t, and the entries that shards pass to each other, by row."""
    n, size = run.manifest.n, run.manifest.shard_rows
    shards = range(len(run.shards))
    around, beyond, places = [], [], []
    for shard in run.shards:
        own = np.arange(shard.start, shard.stop)
        ends = run.some(own, run.lists(own, run.structural.candidates)[0]).places
        ends = np.sort(ends)
        every = run.some(ends, run.lists(ends)[0]).places
        around.append(len(ends) / len(own) - 1)
        beyond.append((len(every) - len(ends)) / len(own))
        places.append(len(np.unique(every // size)))

    def entries(stage: str, part: str) -> float:
        return sum(len(run.load(stage, index, part)) for index in shards) / n

    return {
        "e": entries("second-0", "target"),
        "h": float(np.mean(around)),
        "g": float(np.mean(beyond)),
        "t": float(np.mean(places)),
        "shards": n / size,
        "sources": entries("near", "source"),
        "listed": entries("near", "listed_target"),
        "passed": entries("first", "target"),
    }


def bytes_of_row(d: int, k: int, halo: dict[str, float], itemsize: int = 2) -> dict[str, float]:
    """Return the bytes of each array, by row."""
    return {
        "features": d * itemsize + 4 + ID,  # with the factors that normalise, and the names
        "strangers": 8,
        "lists": k * (ID + 4),
        "listings": halo["sources"] * 2 * ID + halo["listed"] * (ID + 8),
        "smoothed": 2 * d + 8,
        "logits": COLUMNS,
        "passed": halo["passed"] * (ID + 3),
        "codes": COLUMNS + 4,
        "pairs": halo["e"] * (2 * ID + 4),
        "edges": 8 + 2 * halo["e"] * (ID + 4),
        "packs": 6 * ID,
        "tables": 6 * ID,
    }


def touch(how: str, halo: dict[str, float], hosts: int) -> float:
    """Return how often an array is read, by all hosts together."""
    shards = halo["shards"]
    share = 1 - (1 - min(halo["t"] / shards, 1.0)) ** (shards / hosts)
    return {"own": 1.0, "near": max(1.0, hosts * share), "all": float(hosts)}[how]


def memory(run: ShardRun, halo: dict[str, float], stage: str) -> float:
    """Return the memory of a task beyond that of an idle process, in bytes, with all mapped arrays of the stage."""
    return memory_of(stage, run.manifest.n, run.manifest.dim, run.manifest.k, run.manifest.shard_rows, halo)


def memory_of(stage: str, n: int, d: int, k: int, rows: int, halo: dict[str, float]) -> float:
    ends = rows * (1 + halo["h"])
    every = ends + rows * halo["g"]
    entries = 2 * rows * halo["e"]
    return {
        "exact": 4.0 * n * d + 24 * n + (26 * k + 2 * d) * rows,
        "near": 40.0 * rows * k,
        "smooth": 2 * d * every + 24 * k * every,
        "first": (8 * every + 24 * ends) * k + 2 * d * ends,
        "codes": 2.0 * rows * k,
        "second": (8 * every + 26 * ends) * k + 2 * d * ends,
        "edges": 60 * entries,
        "forest": 60 * entries,
        "modules": 60 * entries,
        "within": 60 * entries,
    }[stage.partition("-")[0]]


def table(n: int, hosts: int, halo: dict[str, float], d: int = 256, k: int = 80, rows: int = 1 << 16) -> dict[str, Any]:
    """Return, of a run of n rows on hosts, what the store holds and each host reads in TB, and memory in GB."""
    large = halo | {"shards": n / rows}
    sizes, touched, read = bytes_of_row(d, k, large), {}, 0.0
    for stage, reads in READS.items():
        for array, how in reads.items():
            if stage == "exact":  # exact lists of so many rows are out of reach
                continue
            more = max(touch(how, large, hosts) - touched.get(array, 0.0), 0.0)
            touched[array] = touched.get(array, 0.0) + more
            read += n * sizes[array] * more
    kept = n * sum(sizes.values())
    peak = max(memory_of(stage, 0, d, k, rows, large) for stage in READS if stage != "exact")
    return {
        "store_tb": round(kept / 1e12, 2),
        "read_by_each_host_tb": round(read / hosts / 1e12, 3),
        "memory_of_a_task_gb": round(peak / 1e9, 2),
        "memory_of_the_command_gb": round(100 * n / 1e9),
    }


if __name__ == "__main__":
    main()
