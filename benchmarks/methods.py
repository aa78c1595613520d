"""Compare basic with hierarchical training, and fixed with dynamic thresholds: equal training time, several seeds.

    python benchmarks/methods.py --prefix FOLDER --folder RUNS [--seeds 0 1 2] [--seconds 300] [--threads 2]
        [--json OUT]

For every seed the script trains configs/cfg_gcn_glyph.py (also with knn=60) and configs/cfg_gcn_glyph_hierarchical.py
on part0_train for the given seconds each. A short run measures how many subgraphs this time allows. Thresholds are
chosen on the identities that the run holds out. Then part1_test is clustered with test_final.py and test_dynamic.py.
The dynamic refinement differs from the fixed one in two ways: undirected edges, and a threshold by degree. To separate
the two, undirected edges with one threshold for all are scored as well. Prints a table of mean and spread (lowest to
highest) over the seeds, and writes the figures of every run. Runs are kept in RUNS. A finished run is not repeated; a
training run that was killed is continued.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from harness import report
from starfc.config.config import load_config
from starfc.config.splits import open_test_split
from starfc.evaluation.thresholds import GRIDS, best, sweep_thresholds
from starfc.graph.edges import EdgeList
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import locality_order
from starfc.models.checkpoint import Model, load_model
from starfc.runtime.machine import set_threads
from starfc.scoring.projections import parse_affinity, project_nodes
from starfc.storage.atomic import write_json
from starfc.training.data import held_back_graph, read_training_data

ROOT = Path(__file__).resolve().parent.parent
# the middle graph of hierarchical training has 60 neighbours; basic_k60 shows the effect of such a graph alone
TRAINING = {
    "basic": ("cfg_gcn_glyph.py", []),
    "basic_k60": ("cfg_gcn_glyph.py", ["knn=60"]),
    "hierarchical": ("cfg_gcn_glyph_hierarchical.py", []),
}
REFINEMENTS = {"fixed": "test_final.py", "dynamic": "test_dynamic.py"}
CALIBRATION = 12  # subgraphs of the short run; the first two do not count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", type=Path, required=True, help="folder of part0_train and part1_test")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--training", nargs="+", choices=TRAINING, default=list(TRAINING))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=300, help="training time of a run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    subgraphs = {method: _subgraphs(arguments, method) for method in arguments.training}
    runs = []
    for seed in arguments.seeds:
        for method in arguments.training:
            folder = _train(arguments, method, seed, subgraphs[method], arguments.folder / f"{method}_{seed}")
            ours = [_cluster(arguments, method, seed, refinement, folder) for refinement in REFINEMENTS]
            runs += [*ours, _undirected(arguments, folder) | {"training": method, "seed": seed}]
            print(json.dumps(runs[-3:], indent=1), flush=True)
    print(table(runs))
    result = {"seconds": arguments.seconds, "subgraphs": subgraphs, "runs": runs}
    report(result, arguments.threads, arguments.json)


def table(runs: list[dict]) -> str:
    """Return a table of mean, lowest and highest value over the seeds for every combination."""
    columns = {"pairwise": "pairwise F", "bcubed": "BCubed F", "nmi": "NMI", "training_seconds": "training s"}
    columns |= {"seconds": "after kNN s", "peak_rss_mb": "peak MB"}
    lines = ["| training, refinement | " + " | ".join(columns.values()) + " |", "|---" * 7 + "|"]
    for method in dict.fromkeys(r["training"] for r in runs):
        for refinement in ("fixed", "undirected", "dynamic"):
            ours = [r for r in runs if (r["training"], r["refinement"]) == (method, refinement)]
            cells = [_spread([r[key] for r in ours if key in r]) for key in columns]
            lines.append(f"| {method}, {refinement} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    scale, digits = (100, 2) if max(values) <= 1 else (1, 1)
    return " ".join(
        [
            f"{scale * np.mean(values):.{digits}f}",
            f"({scale * min(values):.{digits}f} to {scale * max(values):.{digits}f})",
        ]
    )


def _subgraphs(arguments: argparse.Namespace, method: str) -> int:
    """Measure in a short run how many subgraphs take the given time."""
    folder = _train(arguments, method, 0, CALIBRATION, arguments.folder / f"{method}_short")
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [e["seconds"] for e in entries if e["kind"] == "train"][2:]
    return round(arguments.seconds / np.mean(seconds))


def _train(arguments: argparse.Namespace, method: str, seed: int, subgraphs: int, folder: Path) -> Path:
    if not (folder / "thresholds.json").is_file():
        name, more = TRAINING[method]
        options = [f"seed={seed}", f"sampling.subgraphs_per_epoch={subgraphs}", "test_name=part1_test", *more]
        config = ROOT / "configs" / name
        _run(arguments, "train.py", "--config", config, "--work-dir", folder, "--resume", "auto", options=options)
    return folder


def _cluster(arguments: argparse.Namespace, method: str, seed: int, refinement: str, folder: Path) -> dict[str, object]:
    out = folder / "results" / refinement
    if not (out / "run.json").is_file():
        _run(arguments, REFINEMENTS[refinement], "--run", folder, "--out", out)
    record, training = (json.loads((place / "run.json").read_text()) for place in (out, folder))
    before = ("features", "kNN graph")
    return {
        "training": method,
        "refinement": refinement,
        "seed": seed,
        "pairwise": record["metrics"]["pairwise"]["fscore"],
        "precision": record["metrics"]["pairwise"]["precision"],
        "recall": record["metrics"]["pairwise"]["recall"],
        "bcubed": record["metrics"]["bcubed"]["fscore"],
        "nmi": record["metrics"]["nmi"],
        "thresholds": record["thresholds"],
        "training_seconds": next(s["seconds"] for s in training["stages"] if s["name"] == "training"),
        "training_peak_mb": max(s["peak_rss_mb"] for s in training["stages"]),
        "seconds": sum(s["seconds"] for s in record["stages"] if s["name"] not in (*before, "metrics", "write")),
        "peak_rss_mb": record["peak_rss_mb"],
    }


def _undirected(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Score undirected edges with one threshold, chosen on the held-out identities of the run, on the test split.

    In a list with each edge in both directions, the directed node intimacy equals the undirected one.
    """
    place = folder / "results" / "undirected.json"
    if not place.is_file():
        config = load_config(folder / "config.json", {"prefix": str(arguments.prefix.resolve())})
        model = load_model(folder, scales=tuple(config.hierarchical.scales))
        held = held_back_graph(config, read_training_data(config))
        chosen = best(sweep_thresholds(_symmetric(model, held.features, held.graph), held.labels, "fixed"))
        split, _ = open_test_split(config, None, None)
        features = split.features.all()
        edges = _symmetric(model, features, exact_knn(features, config.knn), chosen.tau1)
        (point,) = sweep_thresholds(edges, split.labels, "fixed", ((chosen.tau1,), (chosen.tau2,)))
        write_json(place, {"pairwise": point.fscore, "bcubed": point.bcubed, "thresholds": [point.tau1, point.tau2]})
    return {"refinement": "undirected", **json.loads(place.read_text())}


def _symmetric(model: Model, features: np.ndarray, graph: KnnGraph, tau1: float = GRIDS["fixed"][0][0]) -> EdgeList:
    return parse_affinity(project_nodes(model, features, graph, order=locality_order(graph)), tau1)


def _run(arguments: argparse.Namespace, script: str, *more: object, options: list[str] | None = None) -> None:
    options = [f"prefix={arguments.prefix.resolve()}", f"threads={arguments.threads}", *(options or [])]
    subprocess.run([sys.executable, ROOT / script, *map(str, more), "--cfg-options", *options], check=True)


if __name__ == "__main__":
    main()
