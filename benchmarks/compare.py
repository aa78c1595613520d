"""Compare all baselines and trained runs of this project on the same kNN graph.

    python benchmarks/compare.py --train FOLDER/part0_train --test FOLDER/part1_test --out DIR
        [--methods infomap leiden ...] [--run NAME=FOLDER ...] [--k 80] [--threads 2]

``--train`` and ``--test`` name features and labels without a suffix. They are in FOLDER, or in its folders ``features``
and ``labels``. Exact kNN graphs of both splits are built and kept in DIR. For each method the parameters with the best
pairwise F on the training split are chosen from a grid. With these parameters it runs once on the test split, in its
own process. Seconds count only the method after the kNN graph, with libraries and compiled code loaded. Memory is the
peak resident memory of the process, including the file of the graph and about 400 MB for interpreter and libraries.
Mini-batch k-means is given the true number of clusters of each split. Infomap and FC-ES run the package infomap in a
separate process: the seconds include its start, but the memory does not include this process. ``--run`` adds the folder
of a train.py run with its own thresholds (test_final.py --run FOLDER).

Writes compare.md, compare.csv, compare.json (with every point of every grid) and compare.png to DIR. Finished results
are kept in DIR and not computed again. A method that could not run is in the tables, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from baselines import BASELINES, Baseline
from harness import cluster, finish_side, finished, report, run_side, small_features, small_graph
from starfc.commands.scripts import read_source, run_command
from starfc.data.dataset import Split, open_split
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.store import find_graph, read_graph, write_graph
from starfc.runs.cluster import run_inference
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stage, Stages
from starfc.storage.atomic import prepare_folder, replacing

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.transforms import Bbox

SCORES = {"precision": "P", "recall": "R", "fscore": "F", "bcubed": "BCubed F", "nmi": "NMI"}
BESIDE = (
    "features",
    "kNN graph",
    "metrics",
    "write",
)  # stages of inference that the seconds of baselines do not include either
OURS, TOLD = "★", "‡"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--test", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--out", type=Path, default=Path("outputs/compare"), metavar="DIR")
    parser.add_argument("--methods", nargs="*", choices=BASELINES, default=list(BASELINES), metavar="METHOD")
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER", help="a trained run; repeatable")
    parser.add_argument(
        "--k", type=int, default=80, help="neighbours per node of the kNN graph, the node itself included"
    )
    parser.add_argument("--feature-dim", type=int, help="for a raw .bin")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        stage, name = arguments.side.split("_", 1)
        {"tune": tune, "test": test, "run": test_run}[stage](parser, arguments, name)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for scikit-learn in the processes started here
    runs = dict(named_run(text) for text in arguments.run)
    out = prepare_folder(arguments.out)
    splits = {part: describe(arguments, part) for part in ("train", "test")}
    rows = [baseline_row(arguments, method, out) for method in arguments.methods]
    rows += [run_row(arguments, name, folder, out) for name, folder in runs.items()]
    rows.sort(key=lambda row: -row.get("fscore", -1))
    write_tables(rows, out)
    plot(rows, splits["test"]["name"], out / "compare.png")
    result = {"k": arguments.k, "chosen_by": "pairwise F on the training split", "splits": splits, "rows": rows}
    report(result | {"packages": package_versions()}, arguments.threads, out / "compare.json")
    print((out / "compare.md").read_text())


def named_run(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder or "/" in name:
        raise InputError(f"--run: must be NAME=FOLDER, with NAME without '/'; found {text!r}")
    return name, Path(folder)


def open_data(arguments: argparse.Namespace, part: str) -> Split:
    path = getattr(arguments, part)
    places = (path.parent / folder / path.name for folder in ("features", "labels"))
    split = open_split(*places, feature_dim=arguments.feature_dim)
    if split.labels is None:
        raise InputError(f"--{part}: {path} has no labels (.meta, .txt, .npy); a comparison needs identities")
    split.features.require_valid()
    return split


def describe(arguments: argparse.Namespace, part: str) -> dict[str, Any]:
    """Describe a split in a few numbers. Build its kNN graph if it is not in DIR."""
    split, place, seconds = open_data(arguments, part), arguments.out / part, None
    if find_graph(place) is None:
        started = time.perf_counter()
        write_graph(place, build_knn(split.features, arguments.k), split.features)
        seconds = time.perf_counter() - started
    read_graph(place, split.features, arguments.k)  # raises an error for a graph of other data or of another k
    return {
        "name": split.name,
        "instances": len(split),
        "identities": len(np.unique(split.labels)),
        "seconds_knn": seconds,
    }


def baseline_row(arguments: argparse.Namespace, method: str, out: Path) -> dict[str, Any]:
    baseline = BASELINES[method]
    row = {"method": method, "name": baseline.name, "citation": baseline.citation, "ours": False}
    row |= {"told_clusters": baseline.told_clusters}
    if not baseline.available:
        return row | {"not_run": f"package {baseline.package} (pip install 'starfc[baselines]')"}
    if not tried(baseline, arguments.k):
        return row | {"not_run": f"a kNN graph of k >= {min(p['k'] for p in baseline.grid)}"}
    try:
        tuned = finished(out / f"tune_{method}.json")
        if tuned is None or [point["parameters"] for point in tuned["points"]] != tried(baseline, arguments.k):
            tuned = run_side(__file__, f"tune_{method}", out, *common(arguments))
        tested = finished(out / f"test_{method}.json")
        if tested is None or tested["parameters"] != tuned["best"]["parameters"]:
            tested = run_side(__file__, f"test_{method}", out, *common(arguments))
    except subprocess.CalledProcessError as error:
        return row | {"not_run": f"failed with exit status {error.returncode}"}
    chosen = {"train_fscore": tuned["best"]["fscore"], "tuning_seconds": tuned["seconds"], "tried": tuned["points"]}
    return row | tested | chosen


def run_row(arguments: argparse.Namespace, name: str, folder: Path, out: Path) -> dict[str, Any]:
    row = {"method": f"run_{name}", "name": name, "citation": "this project", "ours": True, "told_clusters": False}
    try:
        tested = finished(out / f"run_{name}.json")
        if tested is None or tested["run"] != str(folder):
            tested = run_side(__file__, f"run_{name}", out, *common(arguments))
    except subprocess.CalledProcessError as error:
        return row | {"not_run": f"failed with exit status {error.returncode}"}
    return row | tested


def common(arguments: argparse.Namespace) -> list[object]:
    """Return the arguments that a side needs too."""
    more = [word for run in arguments.run for word in ("--run", run)]
    more += [] if arguments.feature_dim is None else ["--feature-dim", arguments.feature_dim]
    places = ["--train", arguments.train, "--test", arguments.test, "--out", arguments.out]
    return [*places, "--k", arguments.k, "--threads", arguments.threads, *more]


def tune(parser: argparse.ArgumentParser, arguments: argparse.Namespace, method: str) -> None:
    """Run every combination of the grid on the training split."""
    split, graph = load(arguments, "train")
    points, stages = [], Stages()
    with stages.stage("tuning"):
        for parameters in tried(BASELINES[method], arguments.k):
            started = time.perf_counter()
            labels = cluster(BASELINES[method], graph, split, parameters)
            seconds = time.perf_counter() - started
            points.append({"parameters": parameters, **scores(split.labels, labels), "seconds": seconds})
    best = max(points, key=lambda point: point["fscore"])
    finish_side(f"tune_{method}", arguments.folder, stages, points=points, best=best)


def test(parser: argparse.ArgumentParser, arguments: argparse.Namespace, method: str) -> None:
    """Run the best combination once on the test split."""
    baseline = BASELINES[method]
    parameters = finished(arguments.folder / f"tune_{method}.json")["best"]["parameters"]
    split, graph = load(arguments, "test")
    cluster(baseline, *small_graph(arguments.k), parameters)  # loads libraries and compiled code
    stages = Stages()
    with stages.stage("clustering"):
        labels = cluster(baseline, graph, split, parameters)
    found = scores(split.labels, labels)
    finish_side(f"test_{method}", arguments.folder, stages, parameters=parameters, threads=arguments.threads, **found)


def test_run(parser: argparse.ArgumentParser, arguments: argparse.Namespace, name: str) -> None:
    """Cluster the test split with a trained run, as test_final.py does."""
    run, split = dict(named_run(text) for text in arguments.run)[name], open_data(arguments, "test")
    options = {"threads": arguments.threads, "knn_method": "exact", "metrics": ["pairwise", "bcubed", "nmi"]}
    source = read_source(parser, argparse.Namespace(run=run, model=None, cfg_options=options))
    knn = source.config.knn
    options |= {
        "test_data.feat_path": str(Path(split.features.name).resolve()),
        "test_data.label_path": str((arguments.test.parent / "labels" / arguments.test.name).resolve()),
        "test_data.knn_graph_path": str((arguments.out / ("test" if knn == arguments.k else f"test_{knn}")).resolve()),
    }
    source = read_source(parser, argparse.Namespace(run=run, model=None, cfg_options=options))
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        small = Path(temporary) / "features.npy"  # loads compiled code
        np.save(small, small_features(split.features.dim, knn))
        quiet = dataclasses.replace(source.config, giant_share=1.0)
        run_inference(quiet, model_folder=source.model_folder, features=small, out=Path(temporary) / "out")
    record = run_inference(source.config, model_folder=source.model_folder, out=arguments.folder / "runs" / name)
    stages = Stages()
    stages.finished += [Stage(**stage) for stage in record["stages"] if stage["name"] not in BESIDE]
    finish_side(
        f"run_{name}",
        arguments.folder,
        stages,
        run=str(run),
        parameters=record["thresholds"],
        threads=arguments.threads,
        num_clusters=record["num_clusters"],
        **flat(record["metrics"]),
    )


def tried(baseline: Baseline, k: int) -> list[dict[str, Any]]:
    """Return the points of the grid that do not need more neighbours than the graph has."""
    return [parameters for parameters in baseline.grid if parameters.get("k", k) <= k]


def load(arguments: argparse.Namespace, part: str) -> tuple[Split, KnnGraph]:
    split = open_data(arguments, part)
    return split, read_graph(arguments.out / part, split.features, arguments.k)


def scores(truth: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return flat(evaluate(truth, labels)) | {"num_clusters": int(labels.max()) + 1}


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    return {**metrics["pairwise"], "bcubed": metrics["bcubed"]["fscore"], "nmi": metrics["nmi"]}


def write_tables(rows: list[dict[str, Any]], out: Path) -> None:
    """Write compare.md in per cent, and compare.csv in fractions."""
    heads = ["method", "parameters", *SCORES.values(), "clusters", "seconds", "peak MB", "F, training split"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    cells = [[label(row), described(row), *numbers(row)] for row in rows]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    marks = [f"{OURS} this project, with the thresholds stored in the run's folder"] * any(r["ours"] for r in rows)
    marks += [f"{TOLD} told the true number of clusters"] * any(r["told_clusters"] for r in rows)
    with replacing(out / "compare.md") as temporary:
        temporary.write_text("\n".join([*lines, "", "; ".join(marks)]).rstrip("\n; ") + "\n", encoding="utf-8")
    names = ["method", "name", "ours", "told_clusters", "parameters", *SCORES, "num_clusters", "seconds"]
    names += ["peak_rss_mb", "train_fscore", "not_run"]
    with replacing(out / "compare.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"parameters": json.dumps(row.get("parameters", {}))} for row in rows)


def label(row: dict[str, Any]) -> str:
    return row["name"] + f" {OURS}" * row["ours"] + f" {TOLD}" * row["told_clusters"]


def described(row: dict[str, Any]) -> str:
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    return ", ".join(f"{key} {value}" for key, value in row["parameters"].items())


def numbers(row: dict[str, Any]) -> list[str]:
    if "not_run" in row:
        return [""] * (len(SCORES) + 4)
    trained = f"{100 * row['train_fscore']:.2f}" if "train_fscore" in row else ""
    counts = [f"{row['num_clusters']:,}", f"{row['seconds']:.2f}", f"{row['peak_rss_mb']:,.0f}"]
    return [*(f"{100 * row[key]:.2f}" for key in SCORES), *counts, trained]


def plot(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Plot pairwise F against seconds. Each label is at the first free position next to its point."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    axis.set(xscale="log", xlabel="seconds after the kNN graph", ylabel="pairwise F, %", title=name)
    axis.margins(x=0.15, y=0.08)
    axis.grid(alpha=0.3, which="both")
    shown = [row for row in rows if "not_run" not in row]
    for row in shown:
        style = {"marker": "*", "ms": 14, "c": "C3"} if row["ours"] else {"marker": "o", "ms": 6, "c": "C0"}
        axis.plot(row["seconds"], 100 * row["fscore"], **style)
    figure.canvas.draw()
    places = axis.transData.transform([(row["seconds"], 100 * row["fscore"]) for row in shown])
    covered = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in places]
    for row in shown:
        for x, y, side in ((8, -3, "left"), (-8, -3, "right"), (0, 9, "center"), (0, -15, "center")):
            point = (row["seconds"], 100 * row["fscore"])
            text = axis.annotate(
                label(row), point, (x, y), textcoords="offset points", ha=side, fontsize=9, in_layout=False
            )
            box = text.get_window_extent()
            inside = axis.bbox.x0 < box.x0 and box.x1 < axis.bbox.x1
            if inside and not any(box.overlaps(other) for other in covered):
                break
            text.remove()
        else:
            axis.add_artist(text)
        covered.append(box)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi, format="png")
    plt.close(figure)


def package_versions() -> dict[str, str]:
    names = sorted({baseline.package for baseline in BASELINES.values() if baseline.package and baseline.available})
    return {name: importlib.metadata.version(name) for name in names}


if __name__ == "__main__":
    raise SystemExit(run_command(main))
