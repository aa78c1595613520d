"""Measure the value of each part of structure-aware edge confidence: train without it, with several seeds.

Also compare the subgraphs of the training with kNN graphs that are built only from their nodes.

    python benchmarks/structural.py --train FOLDER/part0_train --test FOLDER/part1_test --out DIR
        [--variants full one_round ...] [--seeds 0 1 2] [--shift 20] [--threads 2]

``--train`` and ``--test`` are as for compare.py. If DIR is the same, the kNN graph that compare.py made in DIR/test is
used. Every variant is trained once per seed, as train.py trains configs/cfg_gcn_structural_glyph.py. It clusters the
test split with the thresholds that its run chose on held-out identities. On the test split the script also measures the
accuracy of p > 0.5, the cross-entropy, and the expected calibration error with and without the run's temperature.

``--shift N`` draws N training subgraphs. It compares the candidate edges of their nodes in a kNN graph of only these
instances, as in the training of the published method, with the edges of the same nodes in the graph of the whole split.

Writes structural.md, structural.csv and structural.json to DIR. Finished results are kept in DIR and not repeated.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from compare import flat, open_data
from harness import finish_side, finished, report, run_side
from starfc.clustering.pipeline import cluster
from starfc.commands.scripts import run_command
from starfc.config.config import Config, load_config
from starfc.config.thresholds import load_thresholds
from starfc.data.dataset import Split
from starfc.evaluation.calibration import calibration_error, labelled_logits, reliability
from starfc.evaluation.metrics import evaluate
from starfc.graph.knn import build_knn, exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.store import find_graph, read_graph, write_graph
from starfc.graph.structure import Structure, smooth
from starfc.models.checkpoint import load_model
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.storage.atomic import prepare_folder, replacing
from starfc.training.data import read_training_data, whole_graph
from starfc.training.sampling import SubgraphSampler
from starfc.training.streams import subgraph_stream
from starfc.training.trainer import run_training

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "cfg_gcn_structural_glyph.py"
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_node_features": {"structural.smoothing": 0},
    "one_round": {"structural.rounds": 1},
    "one_round_no_node_features": {"structural.rounds": 1, "structural.smoothing": 0},
}
COLUMNS = {
    "fscore": "F", "bcubed": "BCubed F", "infomap_fscore": "Infomap F", "infomap_bcubed": "Infomap BCubed F",
    "accuracy": "edge accuracy", "cross_entropy": "cross-entropy", "calibration_error": "ECE",
    "calibration_error_before": "ECE, T = 1",
}  # fmt: skip
PERCENT = ("fscore", "bcubed", "infomap_fscore", "infomap_bcubed", "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--test", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--out", type=Path, default=Path("outputs/structural"), metavar="DIR")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--shift", type=int, default=0, metavar="N", help="subgraphs to compare with the whole graph")
    parser.add_argument("--subgraphs", type=int, help="training subgraphs, instead of the config's")
    parser.add_argument("--feature-dim", type=int, help="for a raw .bin")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        stage, _, name = arguments.side.partition("-")
        {"train": train, "test": test, "shift": shift}[stage](arguments, name)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    out = prepare_folder(arguments.out)
    rows = []
    for variant in arguments.variants:
        runs = [one_run(arguments, f"{variant}-{seed}", out) for seed in arguments.seeds]
        rows.append({"variant": variant, "runs": runs, **spread(runs)})
    found = None
    if arguments.shift:
        found = finished(out / "shift.json") or run_side(__file__, "shift", out, *common(arguments))
    write_tables(rows, arguments.seeds, out)
    report({"seeds": arguments.seeds, "rows": rows, "shift": found}, arguments.threads, out / "structural.json")
    print((out / "structural.md").read_text())


def one_run(arguments: argparse.Namespace, name: str, out: Path) -> dict[str, Any]:
    trained = finished(out / f"train-{name}.json") or run_side(__file__, f"train-{name}", out, *common(arguments))
    tested = finished(out / f"test-{name}.json") or run_side(__file__, f"test-{name}", out, *common(arguments))
    return tested | {"training_seconds": trained["seconds"], "training_peak_rss_mb": trained["peak_rss_mb"]}


def common(arguments: argparse.Namespace) -> list[object]:
    """Return the arguments that a side needs too."""
    places = ["--train", arguments.train, "--test", arguments.test, "--out", arguments.out]
    more = [] if arguments.subgraphs is None else ["--subgraphs", arguments.subgraphs]
    more += [] if arguments.feature_dim is None else ["--feature-dim", arguments.feature_dim]
    return [*places, "--threads", arguments.threads, "--shift", arguments.shift, *more]


def spread(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return mean and standard deviation of every measure."""
    keys = (*COLUMNS, "training_seconds")
    values = {key: np.array([run[key] for run in runs]) for key in keys}
    return {key: float(v.mean()) for key, v in values.items()} | {
        f"{key}_std": float(v.std(ddof=1)) if len(v) > 1 else 0.0 for key, v in values.items()
    }


def config_of(arguments: argparse.Namespace, variant: str, seed: int) -> Config:
    split = open_data(arguments, "train")
    options = {
        "train_data.feat_path": str(Path(split.features.name).resolve()),
        "train_data.label_path": str((arguments.train.parent / "labels" / arguments.train.name).resolve()),
        "model.kwargs.feature_dim": split.features.dim,
        "threads": arguments.threads,
        "seed": seed,
    }
    if arguments.subgraphs is not None:
        options["sampling.subgraphs_per_epoch"] = arguments.subgraphs
    return load_config(CONFIG, options | VARIANTS[variant])


def train(arguments: argparse.Namespace, name: str) -> None:
    """Run one training."""
    variant, seed = name.rsplit("-", 1)
    stages = Stages()
    with stages.stage("training"):
        run_training(config_of(arguments, variant, int(seed)), arguments.folder / "runs" / name, resume="auto")
    finish_side(f"train-{name}", arguments.folder, stages)


def test(arguments: argparse.Namespace, name: str) -> None:
    """Cluster the test split with a trained run and its own thresholds."""
    folder = arguments.folder / "runs" / name
    model, (tau1, tau2) = load_model(folder), load_thresholds(folder, "fixed")
    split = open_data(arguments, "test")
    graph, stages = test_graph(arguments, split, model.columns + 1), Stages()
    found = {}
    with stages.stage("test"):
        for prefix, partition in (("", "components"), ("infomap_", "infomap")):
            result = cluster(split.features, graph, model, tau1=tau1, tau2=tau2, partition=partition)
            scores = flat(evaluate(split.labels, result.labels))
            found |= {f"{prefix}{key}": value for key, value in scores.items()}
        everything = np.ones(len(split), bool)
        logits, same = labelled_logits(model, split.features, graph, split.labels, everything)
        signed, temperature = np.where(same, logits, -logits), float(model.temperature)
        found |= {
            "accuracy": float((signed > 0).mean()),
            "cross_entropy": float(np.logaddexp(0, -signed).mean()),
            "calibration_error": calibration_error(reliability(expit(logits), same)),
            "calibration_error_before": calibration_error(reliability(expit(logits * temperature), same)),
            "temperature": temperature,
        }
    finish_side(f"test-{name}", arguments.folder, stages, tau1=tau1, tau2=tau2, **found)


def test_graph(arguments: argparse.Namespace, split: Split, k: int) -> KnnGraph:
    """Return the exact kNN graph of the test split. Build it if it is not in DIR."""
    place = arguments.folder / "test"
    if find_graph(place) is None:
        write_graph(place, build_knn(split.features, k), split.features)
    return read_graph(place, split.features, k)


def shift(arguments: argparse.Namespace, _: str) -> None:
    """Compare the candidate edges of subgraphs' nodes in graphs of only these nodes and in the whole graph."""
    config, stages = config_of(arguments, "full", 0), Stages()
    data = read_training_data(config)
    whole = whole_graph(config, data)
    s, c = config.sampling, config.structural
    sampler = SubgraphSampler(
        data.train.features, data.train.labels, nearest=s.nearest, identities=config.cluster_num,
        instance_share=s.instance_share,
    )  # fmt: skip

    def edges(graph: KnnGraph, features: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float]:
        structure = Structure(graph, config.knn - 1, c.candidates, smooth(graph, features, c.smoothing))
        pairs = structure.first_round(rows, every=True)
        ends = graph.ids[pairs.rows, pairs.slots]
        return pairs.features, float((labels[pairs.rows] == labels[ends]).mean())

    found = {"whole": [], "rebuilt": []}
    with stages.stage("shift"):
        for number in range(arguments.shift):
            rng = subgraph_stream(config.seed, number + 1)
            nodes = np.sort(sampler.sample(int(rng.integers(sampler.num_identities)), rng))
            features, labels = data.train.features[nodes], data.train.labels[nodes]
            found["whole"].append(edges(whole.graph, whole.features, whole.labels, nodes))
            alone = exact_knn(features, config.knn)
            found["rebuilt"].append(edges(alone, features, labels, np.arange(len(nodes))))
    whole_features, rebuilt = (np.concatenate([f for f, _ in found[key]]) for key in ("whole", "rebuilt"))
    moved = (rebuilt.mean(axis=0) - whole_features.mean(axis=0)) / whole_features.std(axis=0)
    finish_side(
        "shift",
        arguments.folder,
        stages,
        subgraphs=arguments.shift,
        same_identity={key: float(np.mean([share for _, share in found[key]])) for key in found},
        shift_in_standard_deviations=[round(float(value), 3) for value in moved],
    )


def write_tables(rows: list[dict[str, Any]], seeds: list[int], out: Path) -> None:
    """Write structural.md with shares in per cent, and structural.csv with fractions."""
    heads = ["variant", *COLUMNS.values(), "training, s"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [row["variant"].replace("_", " "), *(cell(row, key, len(seeds)) for key in COLUMNS)]
        lines.append("| " + " | ".join([*cells, f"{row['training_seconds']:.0f}"]) + " |")
    with replacing(out / "structural.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = ["variant", "seed", *COLUMNS, "tau1", "tau2", "temperature", "training_seconds", "training_peak_rss_mb"]
    with replacing(out / "structural.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            for seed, run in zip(seeds, row["runs"], strict=True):
                writer.writerow(run | {"variant": row["variant"], "seed": seed})


def cell(row: dict[str, Any], key: str, runs: int) -> str:
    scale, digits = (100, 2) if key in PERCENT else (1, 4)
    text = f"{scale * row[key]:.{digits}f}"
    return text if runs == 1 or math.isnan(row[f"{key}_std"]) else f"{text} ± {scale * row[f'{key}_std']:.{digits}f}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
