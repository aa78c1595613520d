"""Compare training steps with the reference twin on the same subgraph, patches and weights, each in its own process.

    python benchmarks/training_step.py --features F --labels L [--nodes 15000] [--patches 6 40] [--steps 50]
        [--threads 2] [--json OUT]

Prints and writes for every number of patches {"speedup": ratio of the optimiser steps per second, "memory_ratio": ours
over twin, "loss_curves_agree": the two loss curves differ by at most 1e-4 (relative) at every step, "loss_difference",
"steps_per_second", "build_seconds", "node_products", ...}. The subgraph has the given number of instances nearest to a
seed identity. A step is one patch of its edges, with the published SGD and without rotation. build_seconds is the time
to build the subgraph (neighbours, propagation matrix, edges); each side makes its own search, and then both train on
one kNN graph. Compiled code is loaded from its cache by one small run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from harness import finish_side, report, run_side
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.gcn import StarFCModel
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.training.basic import step_loss
from starfc.training.sampling import Subgraph, build_subgraph, identity_centres, patches

SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-5}
AGREEMENT = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare optimiser steps per second with the reference twin.")
    parser.add_argument("--features", type=Path, metavar="F")
    parser.add_argument("--labels", type=Path, metavar="L")
    parser.add_argument("--nodes", type=int, default=15000)
    parser.add_argument("--patches", type=int, nargs="+", default=[6, 40])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--side", choices=("ours", "twin"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        {"ours": run_ours, "twin": run_twin}[arguments.side](arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    features = Features(read_features(arguments.features), str(arguments.features))
    features.require_valid()
    matrix, labels = features.all(), read_labels(arguments.labels, len(features))
    instances = neighbourhood(matrix, np.unique(labels, return_inverse=True)[1], arguments.nodes)
    matrix, labels = matrix[instances], labels[instances]
    result = {"num_nodes": len(matrix), "knn": arguments.knn, "steps": arguments.steps}
    with TemporaryDirectory() as name:
        folder = Path(name)
        graph = exact_knn(matrix, arguments.knn)
        for key, array in (("features", matrix), ("labels", labels), ("ids", graph.ids), ("sims", graph.sims)):
            np.save(folder / f"{key}.npy", array)
        for count in arguments.patches:
            common = ("--patches", count, "--steps", arguments.steps, "--threads", arguments.threads)
            ours = run_side(__file__, "ours", folder, *common)
            twin = run_side(__file__, "twin", folder, *common)
            result[f"{count} patches"] = compared(folder, ours, twin, arguments.steps, count)
    report(result, arguments.threads, arguments.json)


def compared(folder: Path, ours: dict, twin: dict, steps: int, count: int) -> dict[str, object]:
    """Compare time and memory of the two sides, and check that their losses agree."""
    losses = {side: np.load(folder / f"{side}_losses.npy") for side in ("ours", "twin")}
    difference = float(np.max(np.abs(losses["ours"] - losses["twin"]) / losses["twin"]))
    rates = {side: steps / record["stages"]["steps"] for side, record in (("ours", ours), ("twin", twin))}
    nodes, dim = np.load(folder / "features.npy", mmap_mode="r").shape
    gflop = products_gflop(nodes, dim, StarFCModel(dim).nhid)
    return {
        "speedup": rates["ours"] / rates["twin"],
        "memory_ratio": ours["peak_rss_mb"] / twin["peak_rss_mb"],
        "loss_curves_agree": difference <= AGREEMENT,
        "loss_difference": difference,
        "steps_per_second": rates,
        "build_seconds": {"ours": ours["stages"]["subgraph"], "twin": twin["stages"]["subgraph"]},
        "peak_rss_mb": {"ours": ours["peak_rss_mb"], "twin": twin["peak_rss_mb"]},
        "node_products": {"gflop_per_step": gflop, "gflop_per_second": gflop * rates["ours"]},
        "losses": {"first": losses["ours"][0], "last": losses["ours"][-1]},
    }


def products_gflop(n: int, d: int, h: int) -> float:
    """Return the GFLOP of our products over nodes per step: X and its dW (2d x h), u, v and their dX, dW (h x 2h)."""
    return 2 * n * (2 * 2 * d * h + 3 * h * 2 * h) / 1e9


def neighbourhood(features: np.ndarray, labels: np.ndarray, nodes: int) -> np.ndarray:
    """Return ``nodes`` instances of the identities most similar to identity 0; those of an identity are consecutive."""
    centres = identity_centres(features, labels)
    rank = np.argsort(np.argsort(-(centres @ centres[0]), kind="stable"))
    return np.argsort(rank[labels], kind="stable")[:nodes]


def steps_of(num_edges: int, arguments: argparse.Namespace) -> list[np.ndarray]:
    """Return the edge numbers of every step, in as many passes over the shuffled patches as needed."""
    (count,), rng = arguments.patches, np.random.default_rng(0)
    passes = -(-arguments.steps // count)
    return [patch for _ in range(passes) for patch in patches(num_edges, count, rng)][: arguments.steps]


def read_inputs(folder: Path) -> tuple[np.ndarray, np.ndarray, KnnGraph]:
    features, labels, ids, sims = (np.load(folder / f"{key}.npy") for key in ("features", "labels", "ids", "sims"))
    return features, labels, KnnGraph(ids, sims)


def fresh_model(features: np.ndarray) -> StarFCModel:
    return StarFCModel(features.shape[1], generator=torch.Generator().manual_seed(0))


def run_ours(arguments: argparse.Namespace) -> None:
    features, labels, _ = read_inputs(arguments.folder)
    warm = build_subgraph(features[:500], labels[:500], 10, 0.0)  # loads the compiled code
    take_steps(warm, [np.arange(100)])
    stages = Stages()
    with stages.stage("subgraph"):
        subgraph = build_subgraph(features, labels, arguments.knn, 0.0)
    steps = steps_of(subgraph.num_edges, arguments)
    with stages.stage("steps"):
        losses = take_steps(subgraph, steps)
    np.save(arguments.folder / "ours_losses.npy", losses)
    finish_side("ours", arguments.folder, stages)


def train_step(model, optimizer, graph, edges, turn=None):
    """Make one optimiser step on some edges, and return the loss."""
    loss = step_loss(model, graph, edges, turn)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def take_steps(subgraph: Subgraph, steps: list[np.ndarray]) -> list[float]:
    model = fresh_model(subgraph.features)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    return [train_step(model, optimizer, subgraph, torch.from_numpy(patch)).item() for patch in steps]


def run_twin(arguments: argparse.Namespace) -> None:
    import reference

    features, labels, graph = read_inputs(arguments.folder)
    model, stages = fresh_model(features), Stages()
    state = model.backbone.state_dict() | model.head.state_dict()
    with stages.stage("subgraph"):
        matrix = reference.propagation_matrix(*reference.knn_through_files(features, arguments.knn, arguments.folder))
        reference.training_edges(matrix, labels)
    matrix = reference.propagation_matrix(graph.ids, graph.sims)
    steps = steps_of(matrix.nnz, arguments)
    with stages.stage("steps"):
        losses = reference.train(state, features, matrix, labels, steps, **SGD)
    np.save(arguments.folder / "twin_losses.npy", losses)
    finish_side("twin", arguments.folder, stages)


if __name__ == "__main__":
    main()
