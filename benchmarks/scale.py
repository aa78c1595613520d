"""Cluster rising numbers of synthetic nodes: measure time and memory by stage, and fit the law time = a N^b.

    python benchmarks/scale.py --nodes 100000 1000000 3000000 10000000 --folder DIR [--model MODEL] [--method exact]
        [--json OUT] [options of python -m starfc.data.synthetic, such as --kind]

Every size runs in its own process in DIR/N. Its parts are synthetic data, kNN graph, clustering (all stages of ``starfc
cluster``, down to the files that it writes), and two baselines on the same graph, each at the threshold that is best on
the answers: single link, and the map equation of Infomap on the first 50 neighbours. They show how hard the data are.
The result of a part is stored with its record: seconds and peak memory of each stage. A finished part is not repeated,
so that a size may take several runs. A killed run continues within the data and within the kNN graph; the record then
says ``resumed``, and its seconds are those of the last run.

The model is the packaged one, with the default options of ``starfc cluster``. With ``--model published`` it is the
published model, which is first trained on 120,000 other synthetic nodes; a folder names any other.

All scores are for synthetic data (starfc.data.synthetic).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from baselines.communities import map_equation
from baselines.connected import sweep_single_link
from harness import report
from starfc.config.config import load_config
from starfc.config.recipes import model_config
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels
from starfc.evaluation.metrics import evaluate
from starfc.graph.opening import Search
from starfc.graph.store import read_graph, write_graph
from starfc.models.checkpoint import PRETRAINED
from starfc.models.judge import first_round_judge
from starfc.runs.cluster import run_inference
from starfc.runtime.defaults import METRICS, RECALL
from starfc.runtime.machine import set_threads
from starfc.runtime.memory import release
from starfc.runtime.stages import Stages
from starfc.storage.atomic import write_json
from starfc.training.trainer import run_training

ROOT = Path(__file__).resolve().parent.parent
TRAINING_NODES, TRAINING_SEED = 120_000, 1
SINGLE_LINK = np.round(np.arange(0.5, 0.99, 0.02), 2).tolist()
INFOMAP, INFOMAP_K = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9), 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Cluster rising numbers of synthetic nodes, and measure time and memory."
    )
    parser.add_argument("--nodes", type=int, nargs="+", required=True, metavar="N")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="folder for data, graphs and labels")
    parser.add_argument("--model", metavar="MODEL", help="published, or a folder; default: the packaged model")
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument("--method", choices=("ivf", "exact"), default="ivf", help="how lists are searched")
    parser.add_argument("--recall", type=float, default=RECALL, help="target recall of the edges that matter")
    parser.add_argument(
        "--infomap", type=float, nargs="+", default=INFOMAP, metavar="S", help="least similarities that are tried"
    )
    parser.add_argument("--memory-limit", type=float, default=20.0, metavar="GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    arguments, of_data = parser.parse_known_args()
    set_threads(arguments.threads)
    if arguments.side:
        run_size(arguments, of_data, arguments.nodes[0], arguments.folder)
        return
    model: str | Path = arguments.model or PRETRAINED
    if model == "published":
        model = trained_model(arguments.folder, of_data)
    sizes = {}
    for nodes in arguments.nodes:
        folder = arguments.folder / str(nodes)
        options = {
            "knn": arguments.knn,
            "method": arguments.method,
            "recall": arguments.recall,
            "memory-limit": arguments.memory_limit,
        }
        options |= {"threads": arguments.threads, "model": model, "folder": folder, "infomap": arguments.infomap}
        words = [str(word) for key, value in options.items() for word in (f"--{key}", *np.atleast_1d(value))]
        done = subprocess.run([sys.executable, __file__, "--side", "--nodes", str(nodes), *words, *of_data])
        if done.returncode:
            sys.exit(done.returncode)
        sizes[nodes] = summary(json.loads((folder / "record.json").read_text()))
    report(
        {"synthetic": True, "data": of_data, "model": Path(model).name, "sizes": sizes, "laws": laws(sizes)},
        arguments.threads,
        arguments.json,
    )


def trained_model(folder: Path, of_data: list[str]) -> Path:
    """Return the folder of a published model that is trained on synthetic nodes of the same kind and another seed."""
    model = folder / "model"
    if not (model / "thresholds.json").is_file():
        made = ["--nodes", str(TRAINING_NODES), "--seed", str(TRAINING_SEED), "--name", "train", *of_data]
        made_data([*made, "--out", str(folder / "training")])
        overrides = {"prefix": str(folder / "training"), "train_name": "train"}
        run_training(load_config(ROOT / "configs" / "cfg_gcn_glyph.py", overrides), model)
    return model


def made_data(options: list[str]) -> None:
    """Make synthetic data; its command says what is wrong with the options."""
    done = subprocess.run([sys.executable, "-m", "starfc.data.synthetic", *options])
    if done.returncode:
        sys.exit(done.returncode)


class Record:
    """``record.json`` of a size: its finished stages, with seconds, peak memory and results."""

    def __init__(self, folder: Path, memory_limit: float) -> None:
        self.path, self.limit = folder / "record.json", int(memory_limit * 2**30)
        self.content: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def require(self, options: dict[str, Any]) -> None:
        """End unless the finished parts were made with the same options."""
        if not self.content:
            self.content["options"] = options
        if self.content.get("options") != options:
            sys.exit(f"{self.path}: made with {self.content.get('options')}, not {options}; name another --folder")

    def done(self, name: str) -> bool:
        return name in self.content

    def stages(self) -> Stages:
        return Stages(self.limit)

    def write(self, name: str, stages: Stages, **results: Any) -> None:
        self.content[name] = {"stages": [vars(stage) for stage in stages.finished], **results}
        write_json(self.path, self.content)


def run_size(arguments: argparse.Namespace, of_data: list[str], nodes: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder, arguments.memory_limit)
    record.require(
        {
            "data": of_data,
            "knn": arguments.knn,
            "method": arguments.method,
            "recall": arguments.recall,
            "model": Path(arguments.model).name,
        }
    )
    if not record.done("data"):
        stages, resumed = record.stages(), (folder / "synthetic.json").is_file()
        with stages.stage("data"):
            made = ["--nodes", str(nodes), "--out", str(folder), "--threads", str(arguments.threads), *of_data]
            made_data(made)
        record.write("data", stages, resumed=resumed)
    features = Features(read_features(folder / "features" / "synthetic.npy"), "synthetic")
    if not record.done("knn"):
        stages, resumed = record.stages(), (folder / "knn.partial" / "done.json").is_file()
        with stages.stage("features"):
            features.require_valid()
        search = Search(arguments.method, recall=arguments.recall, judge=first_round_judge)
        with stages.stage("kNN graph", needs=search.bytes(features, arguments.knn)):
            graph = search.build(features, arguments.knn, folder / "knn.partial")
            write_graph(folder / "knn", graph, features)
        record.write("knn", stages, resumed=resumed, **graph.info)
        del graph
        release(features.array)  # its pages count as memory of the process
    if not record.done("clustering"):
        options = {"memory_limit": f"{arguments.memory_limit}GB", "threads": arguments.threads, "device": "cpu"}
        done = run_inference(
            model_config(arguments.model, options | {"knn": arguments.knn, "knn_method": arguments.method}),
            model_folder=arguments.model,
            features=folder / "features" / "synthetic.npy",
            labels=folder / "labels" / "synthetic.npy",
            knn_graph=folder / "knn",
            out=folder / "run",
            keep_edges=True,
        )
        kept = ("thresholds", "num_clusters", "choices", "estimate", "metrics", "diagnostics")
        record.content["clustering"] = {name: done[name] for name in ("stages", *kept)}
        write_json(record.path, record.content)
    truth = read_labels(folder / "labels" / "synthetic.npy", nodes)
    if not record.done("single link"):
        stages, graph = record.stages(), read_graph(folder / "knn", features, arguments.knn)
        with stages.stage("single link"):
            best = max(sweep_single_link(graph, truth, SINGLE_LINK), key=lambda point: point.fscore)
        record.write("single link", stages, **best._asdict())
    if not record.done("infomap"):
        stages, graph, tried = record.stages(), read_graph(folder / "knn", features, arguments.knn), {}
        with stages.stage("infomap"):
            for min_sim in arguments.infomap:
                tried[min_sim] = evaluate(
                    truth, map_equation(graph, min_sim=min_sim, k=min(INFOMAP_K, arguments.knn)), METRICS[:2]
                )
        best_sim = max(tried, key=lambda min_sim: tried[min_sim]["pairwise"]["fscore"])
        record.write("infomap", stages, threshold=best_sim, **tried[best_sim])


# stages of `starfc cluster` that repeat a part of the benchmark: the graph is read, not built
REPEATED = {"features": "features again", "kNN graph": "kNN graph again"}


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return seconds and peak memory by stage, their sum and maximum, and scores of one size."""
    stages = record["knn"]["stages"]
    stages += [stage | {"name": REPEATED.get(stage["name"], stage["name"])} for stage in record["clustering"]["stages"]]
    return {
        "seconds": {stage["name"]: stage["seconds"] for stage in stages},
        "peak_rss_mb_by_stage": {stage["name"]: stage["peak_rss_mb"] for stage in stages},
        "total_seconds": sum(stage["seconds"] for stage in stages),
        "peak_rss_mb": max(stage["peak_rss_mb"] for stage in stages),
        "data_seconds": record["data"]["stages"][0]["seconds"],
        "resumed": record["knn"]["resumed"],
        "knn": {key: value for key, value in record["knn"].items() if key in ("backend", "params", "recalls")},
        "clusters": record["clustering"]["num_clusters"],
        "choices": record["clustering"]["choices"],
        **record["clustering"]["metrics"],
        "single_link": {key: record["single link"][key] for key in ("threshold", "precision", "recall", "fscore")},
        "infomap": {key: record["infomap"][key] for key in ("threshold", "pairwise", "bcubed")},
    }


def laws(sizes: dict[int, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Fit time = a N^b by least squares of the logarithms, for their sum and each stage that all sizes have."""
    if len(sizes) < 2:
        return {}
    nodes, found = np.array(list(sizes), float), {}
    first, *others = (list(size["seconds"]) for size in sizes.values())
    names = [name for name in first if all(name in other for other in others)]
    for name in ("total", *names):
        seconds = [s["total_seconds"] if name == "total" else s["seconds"][name] for s in sizes.values()]
        b, log_a = np.polyfit(np.log(nodes), np.log(np.maximum(seconds, 1e-3)), 1)
        found[name] = {"a": float(np.exp(log_a)), "b": float(b)}
    return found


if __name__ == "__main__":
    main()
