"""Compare every array of runs on shards with those of the run in memory, byte for byte.

    python benchmarks/shards_equal.py --features F [--model DIR] [--refinements fixed dynamic] [--engines local ray]
        [--workers 1 2 4] [--lists exact approximate] [--shard-rows R] [--json OUT]

Runs a model (the packaged one by default) in this process, and on shards with each engine and number of workers, whose
stores are in the system's temporary folder. ``approximate`` lists have two partitions of three cells per row and one
sweep, also of small sets. ``dynamic`` takes the lists of the run before it from the store. The table has a row for each
run, and a column for each array: neighbour lists, edges with p, node intimacy with the edges that are kept, and labels
with their confidence; of the packaged model also the first round's logits and the context of the set.
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
from starfc.clustering.pipeline import REFINEMENTS
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
    parser.add_argument("--model", type=Path, default=PRETRAINED, metavar="DIR")
    parser.add_argument("--refinements", nargs="+", choices=tuple(REFINEMENTS), default=["fixed"])
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
                for refinement, arrays in expected.items():
                    equal = {name: same(found[refinement][name], array) for name, array in arrays.items()}
                    run = {"lists": lists, "engine": engine, "workers": workers, "refinement": refinement}
                    runs.append(run | {"equal": equal})
                    print(line(runs[-1]), flush=True)
    print(table(runs))
    rows = len(np.load(arguments.features, mmap_mode="r"))
    report({"rows": rows, "model": load_model(arguments.model).kind.name, "runs": runs}, 1, arguments.json)


def arrays_of(
    arguments: argparse.Namespace, search: Search, engine: str | None = None, workers: int = 1
) -> dict[str, dict[str, list[NDArray]]]:
    """Return the arrays by refinement and name; without an engine, of the runs in memory."""
    features, model = Features(np.load(arguments.features, mmap_mode="r")), load_model(arguments.model)

    def arrays(folder: Path | None, **how: Any) -> dict[str, dict[str, list[NDArray]]]:
        found = {}
        for refinement in arguments.refinements:
            tau1, tau2 = model.kind.thresholds[refinement]
            settings = Settings(tau1, tau2, refinement, search=search, partition=model.kind.partition)
            done = cluster_features(features, model, settings, keep_edges=True, **how)
            found[refinement] = named(done, folder)
        return found

    if engine is None:
        return arrays(None)
    with tempfile.TemporaryDirectory() as folder, engine_of(engine, workers, None) as running:
        shards = Shards(Store(f"{folder}/store"), running, model, search, arguments.shard_rows)
        return arrays(Path(folder), make_graph=shards.graph, make_parser=shards.parser)


def named(found: Any, folder: Path | None) -> dict[str, list[NDArray]]:
    graph = found.prepared.graph if folder is None else whole(found.prepared.graph, folder)
    parsed, result = found.result.parsed, found.result
    arrays = {"lists": [graph.ids, graph.sims]}
    if parsed.logits is not None:
        arrays["first logits"] = [parsed.logits]
    if parsed.context is not None:
        arrays["context"] = list(parsed.context.arrays().values())
    return arrays | {
        "edges": [parsed.edges.indptr, parsed.edges.cols, parsed.edges.scores],
        "intimacy": [parsed.intimacy, parsed.kept],
        "labels": [result.labels, result.confidence],
    }


def same(ours: list[NDArray], theirs: list[NDArray]) -> bool:
    """Return whether arrays have the same types, shapes and bytes."""
    return len(ours) == len(theirs) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in zip(ours, theirs, strict=True)
    )


def table(runs: list[dict[str, Any]]) -> str:
    names = list(runs[0]["equal"])
    head = ["lists", "engine", "workers", "refinement", *names]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *map(line, runs)])


def line(run: dict[str, Any]) -> str:
    equal = ["equal" if yes else "**different**" for yes in run["equal"].values()]
    return f"| {' | '.join([run['lists'], run['engine'], str(run['workers']), run['refinement'], *equal])} |"


if __name__ == "__main__":
    main()
