"""Compare methods that turn scored edges into clusters, each in its own process.

The methods are components with node intimacy, Infomap, Leiden and Louvain.

    python benchmarks/partition.py --edges E.npz --folder DIR --tau1 0.5 [--copies R] [--methods ...] [--json OUT]
    python benchmarks/partition.py --edges E.npz --features F --labels L --model DIR ...    first makes E.npz
    python benchmarks/partition.py --edges E.npz --run RUN --prefix DATA ...    the same for a structural training run

E.npz has an edge list (indptr, cols, scores, symmetric) and the identities (labels). The edges are directed edges of a
model with node embeddings, or undirected edges of a structural model on the test split of the run. With --run the
thresholds of components are those of its thresholds.json. Code lengths of edge lists with different tau1 cannot be
compared.

Results of every method: pairwise and BCubed F; clusters; seconds from the edge list with p > tau1 to the labels
(including the time in which a package builds its own graph, without imports and compilation); peak memory (for
package-infomap-split only that of the parent process); the code length in bits of the two-level map equation on the
whole graph and with an index for every component (starfc.clustering.partition).

--copies R measures the time on a larger graph, a random lift. It has R copies of the nodes, and one shift s for every
pair of identities: edges between the two go from copy c to copy c + s (mod R). Scores, degrees and edges between
look-alikes stay the same, and components grow. The F scores have no further meaning. With --disjoint all s are 0: there
are R copies without edges between them, so there are more components of the same sizes.

The packages infomap, igraph and networkit are compared if they are installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from harness import finish_side, report, run_side
from starfc.clustering.components import components
from starfc.clustering.partition import infomap, leiden
from starfc.clustering.refinement import node_intimacy, refine
from starfc.config.config import load_config
from starfc.config.splits import knn_graph, open_test_split
from starfc.config.thresholds import load_thresholds
from starfc.data.files import read_features, read_labels
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate
from starfc.graph.edges import EdgeList, row_pointers, undirected
from starfc.graph.knn import exact_knn
from starfc.graph.order import locality_order
from starfc.models.checkpoint import load_model
from starfc.models.structural import StructuralModel
from starfc.runs.cluster import open_model
from starfc.runtime.infomap import modules_here
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.scoring.projections import parse_graph, project_nodes
from starfc.scoring.structural import parse_structure

LOWEST = 0.05  # lowest p of the edges in a file that this script makes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=Path, required=True, metavar="E")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="folder for files of the sides")
    parser.add_argument("--tau1", type=float, help="default: 0.7 with --run, else 0.5")
    parser.add_argument("--components-tau1", type=float, help="default: the run's, else --tau1")
    parser.add_argument("--tau2", type=float, help="for components only; default: the run's, else 0.84")
    parser.add_argument(
        "--copies", type=int, default=1, metavar="R", help="measure the time on R copies of the graph, see above"
    )
    parser.add_argument("--disjoint", action="store_true", help="without edges between the copies")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cpm", type=float, nargs="+", default=[0.05, 0.1, 0.15], help="resolutions")
    parser.add_argument(
        "--modularity", type=float, nargs="+", default=[1, 300], help="resolutions, multiplied by the copies"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for the methods that use threads")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument(
        "--run", type=Path, metavar="RUN", help="work_dir of a structural train.py, in place of --model"
    )
    parser.add_argument(
        "--prefix", type=Path, metavar="DATA", help="folder of the run's data; default: as in its config"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    fill_thresholds(arguments)
    if arguments.side:
        run_method(arguments)
        return
    set_threads(max(arguments.threads))
    if not arguments.edges.is_file():
        make = make_edges if arguments.run is None else make_structural_edges
        make(arguments)
    prepared = prepare(arguments)
    results = {}
    common = ("--edges", arguments.edges, "--tau1", arguments.tau1, "--components-tau1", arguments.components_tau1)
    for side in sides(arguments):
        results[side] = run_side(__file__, side, arguments.folder, *common)
        print(json.dumps({side: results[side]}), flush=True)
    options = {key: getattr(arguments, key) for key in ("tau1", "components_tau1", "tau2", "copies", "disjoint")}
    report({**options, **prepared, "methods": results}, max(arguments.threads), arguments.json)


def fill_thresholds(arguments: argparse.Namespace) -> None:
    """Set thresholds that were not given; those of components are in thresholds.json of the run."""
    of_run = (None, None) if arguments.run is None else load_thresholds(arguments.run)
    if arguments.tau1 is None:
        arguments.tau1 = 0.5 if arguments.run is None else 0.7
    if arguments.components_tau1 is None:
        arguments.components_tau1 = arguments.tau1 if arguments.run is None else of_run[0]
    if arguments.tau2 is None:
        arguments.tau2 = 0.84 if arguments.run is None else of_run[1]


def make_edges(arguments: argparse.Namespace) -> None:
    """Write the edges of the exact kNN graph with a score above LOWEST."""
    features = np.array(read_features(arguments.features), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    graph = exact_knn(features, arguments.knn)
    nodes = project_nodes(load_model(arguments.model), features, graph, order=locality_order(graph))
    edges = parse_graph(nodes, LOWEST)
    labels = read_labels(arguments.labels, len(features))
    save_edges(arguments.edges, edges, labels)


def make_structural_edges(arguments: argparse.Namespace) -> None:
    """Write the candidate edges of the run's test split with a score above LOWEST. Keep its kNN graph in --folder."""
    overrides = {} if arguments.prefix is None else {"prefix": str(arguments.prefix.absolute())}
    config = load_config(arguments.run / "config.json", overrides)
    split, stored = open_test_split(config, None, None)
    model = open_model(config, arguments.run)
    if split.labels is None or not isinstance(model, StructuralModel):
        raise InputError(f"--run: needs a structural model and a labelled test split; found {type(model).__name__}")
    split.features.require_valid()
    graph = knn_graph(config, split.features, stored, arguments.folder)
    edges, _ = parse_structure(model, split.features, graph, LOWEST, locality_order(graph), scratch=arguments.folder)
    save_edges(arguments.edges, edges, split.labels)


def save_edges(path: Path, edges: EdgeList, labels: np.ndarray) -> None:
    arrays = {"indptr": edges.indptr, "cols": edges.cols, "scores": edges.scores}
    np.savez(path, **arrays, symmetric=edges.symmetric, labels=labels)


def prepare(arguments: argparse.Namespace) -> dict[str, int]:
    """Write the lifted edges that the sides read, and return the sizes of the graph with p > τ1."""
    with np.load(arguments.edges) as file:
        symmetric = "symmetric" in file and bool(file["symmetric"])
        edges, labels = EdgeList(file["indptr"], file["cols"], file["scores"], symmetric), file["labels"]
    edges = edges.select(edges.scores > min(arguments.tau1, arguments.components_tau1))
    edges, labels = lift(edges, labels, arguments.copies, disjoint=arguments.disjoint)
    save_edges(arguments.folder / "edges.npz", edges, labels)
    edges = edges.select(edges.scores > arguments.tau1)
    sizes = np.bincount(components(edges))
    return {
        "nodes": edges.num_nodes,
        "edges": edges.num_edges,
        "components": int(np.count_nonzero(sizes)),
        "largest_component": int(sizes.max()),
    }


def lift(
    edges: EdgeList, labels: np.ndarray, copies: int, seed: int = 0, disjoint: bool = False
) -> tuple[EdgeList, np.ndarray]:
    """Make R copies of the nodes. Edges from identity a to b > a go from copy c to c + s_ab (mod R).

    Edges from b to a go back to the same copies. ``disjoint``: all s are 0.
    """
    n, m = edges.num_nodes, len(edges)
    _, identity = np.unique(labels, return_inverse=True)
    a, b = identity[edges.rows], identity[edges.cols]
    pair = np.minimum(a, b) * (int(identity.max()) + 1) + np.maximum(a, b)
    pairs, pair = np.unique(pair, return_inverse=True)
    shift = np.random.default_rng(seed).integers(0, 1 if disjoint else copies, len(pairs))[pair] * np.sign(b - a)
    cols = np.empty(copies * m, edges.cols.dtype)
    for copy in range(copies):
        cols[copy * m : (copy + 1) * m] = edges.cols + n * ((copy + shift) % copies)
    lifted = EdgeList(row_pointers(np.tile(np.diff(edges.indptr), copies)), cols, np.tile(edges.scores, copies))
    if edges.symmetric:
        lifted = undirected(lifted)  # sorts the columns again
    step = int(identity.max()) + 1
    return lifted, np.concatenate([identity + copy * step for copy in range(copies)])


def sides(arguments: argparse.Namespace) -> list[str]:
    """Return the names of the sides, 'method threads parameter', for the packages that are installed."""
    found = []
    for method in arguments.methods:
        package, threads, resolutions = METHODS[method][1:]
        if package and importlib.util.find_spec(package) is None:
            print(f"{method}: left out, {package} is not installed")
            continue
        parameters = {"tau2": [arguments.tau2], "cpm": arguments.cpm, None: [0]}
        parameters["modularity"] = [g * arguments.copies for g in arguments.modularity]
        for count in arguments.threads if threads else [1]:
            found += [f"{method} {count} {parameter:g}" for parameter in parameters[resolutions]]
    return found


def run_method(arguments: argparse.Namespace) -> None:
    method, count, parameter = arguments.side.split()
    set_threads(int(count))
    os.environ["OMP_NUM_THREADS"] = count
    with np.load(arguments.folder / "edges.npz") as file:
        edges = EdgeList(file["indptr"], file["cols"], file["scores"], bool(file["symmetric"]))
        labels = file["labels"]
    edges = edges.select(edges.scores > (arguments.components_tau1 if method == "components" else arguments.tau1))
    run = functools.partial(METHODS[method][0], parameter=float(parameter), threads=int(count))
    few = np.array([0, 2, 4, 6]), np.array([1, 2, 0, 2, 0, 1], np.int32), np.full(6, 0.9, np.float32)
    run(EdgeList(*few, edges.symmetric))  # compile
    stages = Stages()
    with stages.stage("partition"):
        found = run(edges)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if all clusters are single nodes, precision is 0 / 0
        scores = evaluate(labels, found, ("pairwise", "bcubed"))
    lengths = {"code_length": code_length(edges, found)}
    lengths["code_length_by_component"] = code_length(edges, found, components(edges))
    finish_side(arguments.side, arguments.folder, stages, clusters=len(np.unique(found)), **scores, **lengths)


def code_length(edges: EdgeList, found: np.ndarray, pieces: np.ndarray | None = None) -> float:
    """Return the two-level map equation in bits per step for undirected edges. Each of ``pieces`` has its own index."""
    rows, total = edges.rows, 2 * edges.scores.sum(dtype=np.float64)
    _, first, module = np.unique(found, return_index=True, return_inverse=True)
    crossing = module[rows] != module[edges.cols]
    flow, leave = np.zeros(edges.num_nodes), np.zeros(len(first))
    for end in (rows, edges.cols):
        flow += np.bincount(end, edges.scores, edges.num_nodes) / total
        leave += np.bincount(module[end[crossing]], edges.scores[crossing], len(first)) / total
    of_module = np.zeros(len(first), np.int64) if pieces is None else pieces[first]
    index = np.bincount(of_module, leave)
    both = leave + np.bincount(module, flow, len(first))
    return float(_plogp(index) - 2 * _plogp(leave) + _plogp(both) - _plogp(flow))


def _plogp(x: np.ndarray) -> float:
    return (x[x > 0] * np.log2(x[x > 0])).sum()


def refined_components(edges: EdgeList, parameter: float, threads: int) -> np.ndarray:
    return components(refine(edges, node_intimacy(edges), parameter))


def our_infomap(edges: EdgeList, parameter: float, threads: int) -> np.ndarray:
    return infomap(edges)


def our_infomap_whole(edges: EdgeList, parameter: float, threads: int) -> np.ndarray:
    return infomap(edges, pieces=np.zeros(edges.num_nodes, np.int32))


def package_infomap(edges: EdgeList, parameter: float, threads: int, directed: bool = False) -> np.ndarray:
    """Run the package once on the whole graph, in the process of this side, which never imports faiss."""
    return by_package(edges, modules_here, directed)


def by_package(edges: EdgeList, run: Callable[..., np.ndarray], directed: bool = False) -> np.ndarray:
    """Return the communities of ``run``, which is ``modules`` or ``modules_here`` of :mod:`starfc.runtime.infomap`."""
    links = np.column_stack([edges.rows, edges.cols, edges.scores]).astype(np.float64)
    found = run([links], edges.num_nodes, directed=directed, seed=1)
    return np.where(found < 0, np.arange(edges.num_nodes), edges.num_nodes + found)


def split_infomap(edges: EdgeList, parameter: float, threads: int) -> np.ndarray:
    """Run the package on every component. Each batch of components has its own process."""
    pieces, n = components(edges), edges.num_nodes
    order = np.argsort(pieces, kind="stable")
    starts = np.append(np.flatnonzero(np.diff(pieces[order], prepend=-1)), n)
    local = np.empty(n, np.int64)
    local[order] = np.arange(n) - np.repeat(starts[:-1], np.diff(starts))
    jobs = []
    for part in np.array_split(np.flatnonzero(np.diff(starts) > 1), 4 * threads):
        batch = []
        for c in part:
            nodes = order[starts[c] : starts[c + 1]]
            at = np.concatenate([np.arange(*edges.indptr[i : i + 2]) for i in nodes])
            rows = np.repeat(np.arange(len(nodes)), np.diff(edges.indptr)[nodes])
            batch.append((nodes, EdgeList.from_rows(rows, local[edges.cols[at]], edges.scores[at], len(nodes))))
        jobs.append(batch)
    found = np.arange(n)
    with ExitStack() as stack:
        each = map if threads == 1 else stack.enter_context(ProcessPoolExecutor(threads, get_context("spawn"))).map
        for batch in each(_infomap_batch, jobs):
            for nodes, modules in batch:
                found[nodes] = nodes[modules]  # the name of a module is the position of a member in the component
    return found


def _infomap_batch(batch: list[tuple[np.ndarray, EdgeList]]) -> list[tuple[np.ndarray, np.ndarray]]:
    found = [(nodes, package_infomap(part, 0, 1)) for nodes, part in batch]
    return [(nodes, np.unique(modules, return_inverse=True)[1]) for nodes, modules in found]


def networkit_communities(edges: EdgeList, parameter: float, threads: int, algorithm: str) -> np.ndarray:
    """Run parallel Louvain ('PLM') or 'ParallelLeiden' with modularity."""
    import networkit
    import scipy.sparse as sp

    networkit.setNumberOfThreads(threads)
    networkit.setSeed(1, False)
    n = edges.num_nodes
    one_way = sp.csr_matrix((edges.scores, edges.cols, edges.indptr), (n, n))
    pairs = sp.triu(one_way + one_way.T).tocoo()
    graph = networkit.GraphFromCoo((pairs.data.astype(float), (pairs.row, pairs.col)), n=n, weighted=True)
    return np.array(getattr(networkit.community, algorithm)(graph, gamma=parameter).run().getPartition().getVector())


def igraph_leiden(edges: EdgeList, parameter: float, threads: int, objective: str) -> np.ndarray:
    return leiden(edges, objective, parameter)


METHODS = {  # function, package, whether it has threads, its parameter
    "components": (refined_components, None, True, "tau2"),
    "infomap": (our_infomap, None, True, None),
    "infomap-whole": (our_infomap_whole, None, False, None),
    "package-infomap-directed": (functools.partial(package_infomap, directed=True), "infomap", False, None),
    "package-infomap": (package_infomap, "infomap", False, None),
    "package-infomap-split": (split_infomap, "infomap", True, None),
    "igraph-leiden-cpm": (functools.partial(igraph_leiden, objective="cpm"), "igraph", False, "cpm"),
    "igraph-leiden-modularity": (
        functools.partial(igraph_leiden, objective="modularity"), "igraph", False, "modularity"
    ),
    "networkit-plm": (functools.partial(networkit_communities, algorithm="PLM"), "networkit", True, "modularity"),
    "networkit-leiden": (
        functools.partial(networkit_communities, algorithm="ParallelLeiden"), "networkit", True, "modularity"
    ),
}  # fmt: skip


if __name__ == "__main__":
    main()
