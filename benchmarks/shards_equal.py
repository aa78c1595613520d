"""Compare every array of runs on shards with those of the run in memory, byte for byte.

    python benchmarks/shards_equal.py --features F [--engines local ray] [--workers 1 2 4] [--lists exact approximate]
        [--shard-rows R] [--json OUT]

Runs the packaged model in this process, and on shards with each engine and number of workers, whose stores are in the
system's temporary folder. ``approximate`` lists have two partitions of three cells per row and one sweep, also of small
sets. The table has a row for each run, and a column for each array: neighbour lists, the first round's logits, the
context of the set, edges in both directions with p, and labels with their confidence.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import report
from starfc.clustering.arrays import Settings, cluster_features
from starfc.data.dataset import Features
from starfc.graph.opening import Search
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.judge import first_round_judge
from starfc.runs.on_shards import whole
from starfc.runtime.machine import set_threads
from starfc.shards.driver import Shards
from starfc.shards.engine import engine_of
from starfc.shards.store import Store

LISTS = {
    "exact": Search("exact", judge=first_round_judge),
    "approximate": Search("ivf", {"nprobe": 3, "partitions": 2, "sweeps": 1}, judge=first_round_judge),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, metavar="F")
    parser.add_argument("--engines", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--lists", nargs="+", choices=tuple(LISTS), default=list(LISTS))
    parser.add_argument("--shard-rows", type=int, default=1 << 10)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    set_threads(1)
    runs: list[dict[str, Any]] = []
    for lists in arguments.lists:
        expected = arrays_of(arguments, LISTS[lists])
        for engine in arguments.engines:
            for workers in arguments.workers:
                found = arrays_of(arguments, LISTS[lists], engine, workers)
                equal = {name: same(found[name], array) for name, array in expected.items()}
                runs.append({"lists": lists, "engine": engine, "workers": workers, "equal": equal})
                print(line(runs[-1]), flush=True)
    print(table(runs))
    report({"rows": len(np.load(arguments.features, mmap_mode="r")), "runs": runs}, 1, arguments.json)


def arrays_of(
    arguments: argparse.Namespace, search: Search, engine: str | None = None, workers: int = 1
) -> dict[str, list[NDArray]]:
    """Return the arrays of a run by name; without an engine, of the run in memory."""
    features, model = Features(np.load(arguments.features, mmap_mode="r")), load_model(PRETRAINED)
    settings = Settings(partition="infomap", search=search)
    if engine is None:
        return named(cluster_features(features, model, settings, keep_edges=True), None)
    with tempfile.TemporaryDirectory() as folder, engine_of(engine, workers, None) as running:
        shards = Shards(Store(f"{folder}/store"), running, model, search, arguments.shard_rows)
        how = {"make_graph": shards.graph, "make_parser": shards.parser}
        return named(cluster_features(features, model, settings, keep_edges=True, **how), Path(folder))


def named(found: Any, folder: Path | None) -> dict[str, list[NDArray]]:
    graph = found.prepared.graph if folder is None else whole(found.prepared.graph, folder)
    parsed, result = found.result.parsed, found.result
    return {
        "lists": [graph.ids, graph.sims],
        "first logits": [parsed.logits],
        "context": list(parsed.context.arrays().values()),
        "edges": [parsed.edges.indptr, parsed.edges.cols, parsed.edges.scores],
        "labels": [result.labels, result.confidence],
    }


def same(ours: list[NDArray], theirs: list[NDArray]) -> bool:
    """Return whether arrays have the same types, shapes and bytes."""
    return len(ours) == len(theirs) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in zip(ours, theirs, strict=True)
    )


def table(runs: list[dict[str, Any]]) -> str:
    names = list(runs[0]["equal"])
    head = ["lists", "engine", "workers", *names]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *map(line, runs)])


def line(run: dict[str, Any]) -> str:
    equal = ["equal" if yes else "**different**" for yes in run["equal"].values()]
    return f"| {' | '.join([run['lists'], run['engine'], str(run['workers']), *equal])} |"


if __name__ == "__main__":
    main()
