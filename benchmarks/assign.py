"""Compare adding instances to a clustering with clustering everything at once: F scores and seconds.

    python benchmarks/assign.py --features FILE --labels FILE --out DIR [--threads 1] [--added 1000]

Quality: a random 90 % of the rows are clustered, and the others are added in ten steps. After each step the pairwise
and BCubed F of the present rows are computed, without and with --apply-merges. At the last step they are compared with
a clustering of all rows at once.

Time: all rows except four times ``--added`` rows are clustered. The others are added in four steps; the first one also
creates the state of the folder. The time is compared with that of clustering all rows. Each side runs in its own
process. It first clusters and adds a few rows, to load libraries and compiled code. Then the measured work starts,
including reading and writing of files. The time is given in seconds and in CPU seconds; the latter hardly depend on
other work on the machine.

Weights and thresholds are the packaged structural ones. Writes quality.csv, time.csv and assign.json to DIR. Runs and
rows are kept in DIR/work. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from harness import report, run_side
from starfc.config.config import load_config
from starfc.data.files import read_features, read_labels
from starfc.evaluation.metrics import evaluate
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages, peak_rss_mb
from starfc.storage.atomic import write_json

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10
ADDING = {f"add-{which}": f"adding, the {which} time" for which in ("first", "second", "third", "fourth")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare adding instances to a clustering with clustering everything.")
    parser.add_argument("--features", type=Path, metavar="FILE")
    parser.add_argument("--labels", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--added", type=int, default=1000, metavar="M", help="rows per step in the measurement of time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        run(arguments.side, arguments.folder, arguments.threads, arguments.added)
        return
    work = arguments.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    features, labels = read_features(arguments.features), read_labels(arguments.labels)
    order = np.random.default_rng(arguments.seed).permutation(len(features))
    np.save(work / "features.npy", features[order])
    np.save(work / "labels.npy", labels[order])
    del features

    def side(name: str) -> dict[str, Any]:
        return run_side(__file__, name, work, "--threads", arguments.threads, "--added", arguments.added)

    side("before")  # compiles kernels that are not in the cache yet
    sides = {name: side(name) for name in ("at-once", "before", *ADDING, "steps", "steps-merged")}
    quality = quality_rows(sides)
    times = time_rows(sides)
    write_csv(arguments.out / "quality.csv", quality)
    write_csv(arguments.out / "time.csv", times)
    with contextlib.redirect_stdout(io.StringIO()):
        report({"sides": sides}, arguments.threads, arguments.out / "assign.json")
    print(markdown(quality), "", markdown(times), sep="\n")


def run(side: str, work: Path, threads: int, added: int) -> None:
    """Run one side, and write its result to ``work/SIDE.json``."""
    features, labels = np.load(work / "features.npy", mmap_mode="r"), np.load(work / "labels.npy")
    n, few = len(features), min(len(features) // 2, 2000)
    cluster(features[:few], work, work / "few", threads)
    for start in (few, few + 100):  # the first step creates the state, the second one reads it
        assign(work / "few", features[start : start + 100])
    started, cpu = time.perf_counter(), time.process_time()
    if side == "at-once":
        stages = cluster(features, work, work / side, threads)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        result = {"seconds": seconds, "cpu": cpu, "stages": stages, "rows": n, **scores(work / side, labels)}
    elif side == "before":
        rows = n - len(ADDING) * added
        stages = cluster(features[:rows], work, work / side, threads)
        result = {"seconds": time.perf_counter() - started, "stages": stages, "rows": rows}
    elif side in ADDING:
        first = len(Run.open(work / "before").labels)
        before = Run.open(work / "before").labels.copy()
        new = np.array(features[first : first + added])
        started, cpu, stages = time.perf_counter(), time.process_time(), Stages()
        assigned = assign(work / "before", new, stages=stages)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        result = {
            "seconds": seconds,
            "cpu": cpu,
            "rows": first + added,
            "stages": {stage.name: stage.seconds for stage in stages.finished},
            "joined": assigned.joined,
            "created": len(assigned.created),
            "merges": len(assigned.merges),
            "splits": len(assigned.splits),
            "earlier_labels_changed": int((Run.open(work / "before").labels[:first] != before).sum()),
        }
    else:
        result = {"steps": steps(features, labels, work, side, threads)}
    write_json(work / f"{side}.json", {**result, "peak_rss_mb": peak_rss_mb()})


def cluster(features: np.ndarray, work: Path, out: Path, threads: int) -> dict[str, float]:
    """Cluster some rows with the packaged weights, store the edges, and return the seconds by stage."""
    path = work / f"{out.name}.npy"
    np.save(path, features)
    config = load_config(
        ROOT / "configs" / "cfg_gcn_structural_ms1m.py",
        {"threads": threads, "metrics": (), "model.kwargs.feature_dim": features.shape[1]},
    )
    with contextlib.redirect_stdout(sys.stderr):
        record = run_inference(config, features=path, out=out, keep_edges=True)
    return {stage["name"]: stage["seconds"] for stage in record["stages"]}


def scores(folder: Path, labels: np.ndarray) -> dict[str, float]:
    found = Run.open(folder).labels
    metrics = evaluate(labels[: len(found)], found, ("pairwise", "bcubed"))
    return {name: 100 * metrics[name]["fscore"] for name in ("pairwise", "bcubed")}


def steps(features: np.ndarray, labels: np.ndarray, work: Path, side: str, threads: int) -> list[dict[str, Any]]:
    """Cluster 90 % of the rows, add the others in ten steps, and return the F scores after each step."""
    n = len(features)
    bounds = np.linspace(int(0.9 * n), n, STEPS + 1).astype(int).tolist()
    cluster(features[: bounds[0]], work, work / side, threads)
    found = [{"rows": bounds[0], **scores(work / side, labels)}]
    for first, last in pairwise(bounds):
        before = Run.open(work / side).labels.copy()
        assigned = assign(work / side, np.array(features[first:last]), apply_merges=side == "steps-merged")
        kept = Run.open(work / side).labels[:first]
        found.append(
            {
                "rows": last,
                **scores(work / side, labels),
                "seconds": assigned.seconds,
                "joined": assigned.joined,
                "created": len(assigned.created),
                "merges": len(assigned.merges),
                "splits": len(assigned.splits),
                "earlier_labels_changed": int((kept != before).sum()),
            }
        )
    return found


def quality_rows(sides: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a table row for each step, and a last one for clustering everything at once."""
    rows = []
    for listed, merged in zip(sides["steps"]["steps"], sides["steps-merged"]["steps"], strict=True):
        rows.append(
            {
                "rows": listed["rows"],
                "pairwise F": round(listed["pairwise"], 2),
                "BCubed F": round(listed["bcubed"], 2),
                "merges listed": listed.get("merges", 0),
                "splits listed": listed.get("splits", 0),
                "labels changed": listed.get("earlier_labels_changed", 0),
                "pairwise F, applied": round(merged["pairwise"], 2),
                "BCubed F, applied": round(merged["bcubed"], 2),
                "seconds": round(listed.get("seconds", 0), 2),
            }
        )
    once = sides["at-once"]
    last = dict.fromkeys(rows[0], "")
    last |= {"rows": f"{once['rows']} at once"}
    last |= {"pairwise F": round(once["pairwise"], 2), "BCubed F": round(once["bcubed"], 2)}
    return [*rows, last]


def time_rows(sides: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    once = sides["at-once"]
    return [
        {
            "what": what,
            "rows then": sides[name]["rows"],
            "seconds": round(sides[name]["seconds"], 2),
            "of clustering all": f"1/{once['seconds'] / sides[name]['seconds']:.1f}",
            "processor seconds": round(sides[name]["cpu"], 2),
            "of clustering all's": f"1/{once['cpu'] / sides[name]['cpu']:.1f}",
            "peak MB": round(sides[name]["peak_rss_mb"]),
            "labels changed": sides[name].get("earlier_labels_changed", ""),
        }
        for name, what in {"at-once": "clustering all", **ADDING}.items()
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
