"""Compare our method, told nothing, with tuned baselines at five sizes of the glyph set, as papers do with MS1M.

    python benchmarks/glyph_scale.py --data FOLDER --out DIR [--parts 1 3 5 7 9] [--methods ours infomap ...]
        [--recall R] [--threads 2] [--json OUT]

FOLDER is one that scripts/make_glyph.py made. Ours is ``starfc cluster`` with its defaults: packaged weights, and no
labels, which only score the result. Parameters of each baseline, also the length of its neighbour lists and their least
similarity, are those of the best pairwise F on part0_train, among the grid of suite_grids.py and its refinement. A
baseline then runs once on each test part.

All methods get the same 80-NN graph of a part: exact, or with --recall from approximate search with this target.
Seconds are those after the graph, with libraries and compiled code loaded for baselines, and with their loading for
ours. Memory is the peak resident memory of the process, graph files included. Infomap and FC-ES run the package infomap
in a separate process: the seconds include its start, but the memory does not include this process.

Every graph, choice of parameters and result is made in a process of its own and stored in DIR; what is stored for the
same data is not made again. Start with a few parts or methods, and add others later: the tables have all that is
stored. A method that failed is in the tables with its exit status, and the next call tries it again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from baselines import BASELINES
from harness import cluster, finish_side, finished, run_side, small_graph, with_environment
from starfc.data.dataset import Split, open_split
from starfc.errors import InputError, MissingFileError
from starfc.evaluation.metrics import evaluate
from starfc.graph.neighbours import KnnGraph
from starfc.graph.store import read_graph
from starfc.runtime.entry import run_command
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.storage.atomic import prepare_folder, replacing, write_json
from suite_grids import GRIDS, search

K = 80  # neighbours per node of the graph, the node itself included
TRAIN = "part0_train"
PARTS = (1, 3, 5, 7, 9)
OURS = "ours"
METHODS = (OURS, "single_link", "leiden", "infomap", "fc_es")
NOT_OURS = ("features", "kNN graph", "metrics", "write")  # stages that the seconds of baselines do not include either


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="made by scripts/make_glyph.py")
    parser.add_argument("--out", type=Path, default=Path("outputs/glyph_scale"), metavar="DIR")
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--methods", nargs="+", choices=(OURS, *BASELINES), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--recall", type=float, help="approximate neighbour lists with this target recall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT", help="default: DIR/glyph_scale.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--split", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recall is not None and not 0 < arguments.recall <= 1:
        raise InputError(f"--recall: must be above 0 and at most 1; found {arguments.recall}")
    set_threads(arguments.threads)
    if arguments.side is None:
        compare(arguments)
    else:
        what, method = arguments.side.split("_", 1)
        {"tune": tune, "test": test}[what](arguments, method)


def compare(arguments: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the libraries in the processes started here
    lists = "exact" if arguments.recall is None else f"recall-{arguments.recall:g}"
    out = prepare_folder(arguments.out / lists)
    missing = {method: BASELINES[method].package for method in arguments.methods if method != OURS}
    missing = {method: package for method, package in missing.items() if not BASELINES[method].available}
    for method, package in missing.items():
        say(f"{method} is left out: it needs the package {package} (pip install 'starfc[baselines]')")
    for part in sorted(arguments.parts):
        name = f"part{part}_test"
        for method in (method for method in arguments.methods if method not in missing):
            attempt(arguments, out, name, method)
    rows = stored(arguments, out)
    result = {"unit": "fraction", "k": K, "lists": lists, "chosen_by": f"pairwise F on {TRAIN}", **rows}
    write_json(arguments.json or arguments.out / "glyph_scale.json", with_environment(result, arguments.threads))
    with replacing(out / "glyph_scale.md") as temporary:
        temporary.write_text(table(rows["methods"]) + "\n", encoding="utf-8")
    print(table(rows["methods"]))


def attempt(arguments: argparse.Namespace, out: Path, name: str, method: str) -> None:
    """Make the result of a method on a part, unless it is stored. A failure is stored too, and tried again later."""
    place = prepare_folder(out / name)
    result = place / f"test_{method}.json"
    key = {"data": data_of(arguments, name)}
    if method != OURS:
        key |= {"train": data_of(arguments, TRAIN), "grid": repr(GRIDS[method])}
    known = finished(result)
    if known is not None and known.get("key") == key and "failed" not in known:
        return
    try:
        make_graph(arguments, out, name)
        if method == OURS:
            say(f"{name}: ours")
            found = run_ours(arguments, place, name)
        else:
            chosen = out / TRAIN / f"tune_{method}.json"
            tuned = finished(chosen)
            if tuned is None or tuned["key"] != {k: key[k] for k in ("train", "grid")}:
                make_graph(arguments, out, TRAIN)
                say(f"{TRAIN}: {method}")
                tuned = run_side(__file__, f"tune_{method}", out / TRAIN, *common(arguments, TRAIN))
                write_json(chosen, tuned | {"key": {k: key[k] for k in ("train", "grid")}})
            say(f"{name}: {method}")
            found = run_side(__file__, f"test_{method}", place, *common(arguments, name))
    except subprocess.CalledProcessError as error:
        found = {"failed": f"exit status {error.returncode}"}
    write_json(result, found | {"key": key})


def make_graph(arguments: argparse.Namespace, out: Path, name: str) -> None:
    """Build the kNN graph of a split with ``starfc knn``, unless it is stored. An interrupted search goes on."""
    place, data = out / name, data_of(arguments, name)
    known = finished(place / "graph.json")
    if known is not None and known["data"] == data:
        return
    say(f"{name}: kNN graph")
    more = [] if arguments.recall is None else ["--recall", arguments.recall]
    found = starfc(
        arguments, "knn", features_of(arguments, name), "-o", prepare_folder(place) / "graph", "--k", K, *more
    )
    kept = {key: found[key] for key in ("backend", "params", "recall", "seconds", "peak_rss_mb")}
    write_json(place / "graph.json", {"data": data, **kept})


def run_ours(arguments: argparse.Namespace, place: Path, name: str) -> dict[str, Any]:
    """Run ``starfc cluster`` with its defaults, and return the scores, what it chose itself, seconds and memory."""
    labels, files = labels_of(arguments, name), ["--knn-graph", place / "graph", "--no-edges", "-o", place / "ours"]
    found = starfc(arguments, "cluster", features_of(arguments, name), "--labels", labels, *files)
    stages = {stage["name"]: stage["seconds"] for stage in found["stages"]}
    return {
        **flat(found["metrics"]),
        "num_clusters": found["num_clusters"],
        "seconds": sum(seconds for stage, seconds in stages.items() if stage not in NOT_OURS),
        "peak_rss_mb": max(stage["peak_rss_mb"] for stage in found["stages"]),
        "stages": stages,
        "thresholds": found["thresholds"],
        "choices": found["choices"],
        "estimate": found["estimate"],
    }


def starfc(arguments: argparse.Namespace, command: str, *words: object) -> dict[str, Any]:
    """Run a command of the package in a new process, and return its JSON."""
    more = ["--threads", arguments.threads, "--overwrite", "--json"]
    line = [sys.executable, "-m", "starfc", command, *words, *more]
    return json.loads(subprocess.run(list(map(str, line)), check=True, stdout=subprocess.PIPE).stdout)


def tune(arguments: argparse.Namespace, method: str) -> None:
    """Run the grid of a baseline on part0, and store every point and the best."""
    split, graph = load(arguments)
    stages = Stages()

    def run(parameters: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        labels = cluster(BASELINES[method], graph, split, parameters)
        return {**scores(split.labels, labels), "seconds": time.perf_counter() - started}

    with stages.stage("tuning"):
        points, best = search(GRIDS[method], graph, run)
    finish_side(f"tune_{method}", arguments.folder, stages, points=points, best=best)


def test(arguments: argparse.Namespace, method: str) -> None:
    """Run a baseline once on a part, with the parameters chosen on part0."""
    baseline = BASELINES[method]
    parameters = finished(arguments.folder.parent / TRAIN / f"tune_{method}.json")["best"]["parameters"]
    split, graph = load(arguments)
    cluster(baseline, *small_graph(K), parameters)  # loads libraries and compiled code
    stages = Stages()
    with stages.stage("clustering"):
        labels = cluster(baseline, graph, split, parameters)
    finish_side(f"test_{method}", arguments.folder, stages, parameters=parameters, **scores(split.labels, labels))


def load(arguments: argparse.Namespace) -> tuple[Split, KnnGraph]:
    places = features_of(arguments, arguments.split), labels_of(arguments, arguments.split)
    split = open_split(*places, feature_dim=None, name=arguments.split)
    return split, read_graph(arguments.folder / "graph", split.features, K)


def common(arguments: argparse.Namespace, split: str) -> list[object]:
    """Return the arguments that a side needs too."""
    return ["--data", arguments.data, "--split", split, "--threads", arguments.threads]


def features_of(arguments: argparse.Namespace, name: str) -> Path:
    path = arguments.data / "features" / f"{name}.npy"
    if not path.is_file():
        raise MissingFileError(f"--data: {path}: no such file; make the set with scripts/make_glyph.py")
    return path


def labels_of(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.data / "labels" / f"{name}.meta"


def data_of(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what identifies the files of a split, without reading them: rows, bytes and time of change."""
    path = features_of(arguments, name)
    status = path.stat()
    return {"rows": len(np.load(path, "r")), "bytes": status.st_size, "changed": int(status.st_mtime)}


def scores(truth: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return flat(evaluate(truth, labels)) | {"num_clusters": int(labels.max()) + 1}


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    return {**metrics["pairwise"], "bcubed": metrics["bcubed"]["fscore"], "nmi": metrics["nmi"]}


def stored(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Return all that is stored: the splits with their graphs, and of each method the choice and the results."""
    splits, methods = {}, {}
    for name in (TRAIN, *(f"part{part}_test" for part in PARTS)):
        if graph := finished(out / name / "graph.json"):
            splits[name] = {"instances": graph["data"]["rows"], "knn": {k: v for k, v in graph.items() if k != "data"}}
            names = np.unique(np.loadtxt(labels_of(arguments, name), dtype=np.int64))
            splits[name] |= {"identities": len(names)}
    for method in (OURS, *BASELINES):
        row: dict[str, Any] = {"name": OURS if method == OURS else BASELINES[method].name, "parts": {}}
        for part in PARTS:
            if found := finished(out / f"part{part}_test" / f"test_{method}.json"):
                row["parts"][str(part)] = {
                    key: value for key, value in found.items() if key not in ("key", "parameters")
                }
        if row["parts"]:
            if tuned := finished(out / TRAIN / f"tune_{method}.json"):
                best = tuned["best"]
                row |= {"parameters": best["parameters"], "train_fscore": best["fscore"], "tried": len(tuned["points"])}
            methods[method] = row
    return {"splits": splits, "methods": methods}


def table(methods: dict[str, dict[str, Any]]) -> str:
    """Return pairwise and BCubed F in per cent, and seconds, of each method at each size, as a Markdown table."""
    parts = sorted({int(part) for row in methods.values() for part in row["parts"]})
    heads = ["method", *(f"part{part}: F / B / s" for part in parts)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * len(parts)]
    for row in methods.values():
        cells = [cell(row["parts"].get(str(part))) for part in parts]
        chosen = ", ".join(f"{key} {value}" for key, value in row.get("parameters", {}).items())
        lines.append("| " + " | ".join([row["name"] + (f" ({chosen})" if chosen else ""), *cells]) + " |")
    return "\n".join(lines)


def cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    if "failed" in found:
        return found["failed"]
    return f"{100 * found['fscore']:.2f} / {100 * found['bcubed']:.2f} / {found['seconds']:,.0f}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
