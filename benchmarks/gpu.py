"""Compare each stage on a device with the same stage on the CPU, and its speed with the limits of the device.

    python benchmarks/gpu.py --features F [--labels L] [--device cuda] [--json OUT]
    python benchmarks/gpu.py --rows 1000000 [--kind glyph] [--stages exact approximate labels] [--json OUT]

A stage runs on a few rows first, which loads compiled code and libraries, then on all rows: on the device, where it is
timed between two synchronisations, and on the CPU, from the same input. The record has, for each stage:

* ``seconds`` on the device and ``cpu_seconds``;
* ``equal``, the share of rows (lists), edges or labels that are the same, and ``difference``, the largest difference
  of a number, where there are numbers;
* ``tflops`` and ``gb_per_second``, where it is known: the least work that the stage needs divided by its seconds; and
  both as a share of ``limits``, the rates of a large product of bfloat16 matrices and of a large copy on this device;
* ``peak_device_mb``, the peak of what torch has taken on the device (0 on the CPU).

``exact`` compares all lists up to --compare rows, above that those of 1,000 sampled rows. Stages that take their input
from another stage (the graph) take that of the device. Without --cpu, stages of more than --compare rows other than
``exact`` are not run on the CPU, and have no ``equal``. ``--device cpu`` compares the torch functions with the compiled
ones where there are both, on any machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import report
from inference import same_partition
from starfc.clustering.pipeline import cluster
from starfc.clustering.refinement import node_intimacy
from starfc.config.schema import size_in_bytes
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels
from starfc.data.synthetic import KINDS, sample
from starfc.evaluation.metrics import evaluate
from starfc.graph.approximate import approximate_search
from starfc.graph.device_search import device_search
from starfc.graph.edges import EdgeList
from starfc.graph.exact import exact_search, nearest_of_rows
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.gcn import StarFCModel
from starfc.runtime import device as device_module
from starfc.runtime.device import device_limit
from starfc.runtime.machine import choose_device, set_threads
from starfc.scoring.projections import parse_graph, project_nodes
from starfc.scoring.structural import Scoring
from starfc.storage.atomic import temporary_folder

FEW = 2000  # rows of the run before the measured one
CPU = torch.device("cpu")
PARAMETERS = {"nprobe": 8, "partitions": 2, "sweeps": 1}  # of the approximate search, the same on both
HIDDEN = 512  # width of the published model
TAU = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Each stage on a device against the CPU and the limits of the device.")
    parser.add_argument("--features", type=Path, metavar="F", help="default: synthetic rows")
    parser.add_argument("--labels", type=Path, metavar="L")
    parser.add_argument("--rows", type=int, default=100_000, metavar="N", help="synthetic rows, or the first N of F")
    parser.add_argument("--kind", choices=KINDS, default="glyph", help="of synthetic rows")
    parser.add_argument("--dim", type=int, default=256, help="of synthetic rows")
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--device-memory", metavar="SIZE", help="limit, such as 8GB; default: what is free")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--compare", type=int, default=200_000, metavar="N")
    parser.add_argument("--cpu", action="store_true", help="run all stages on the CPU too, whatever the number of rows")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    threads = set_threads(arguments.threads)
    data = open_data(arguments)
    with device_limit(size_in_bytes(arguments.device_memory)), by_torch():
        result = {
            "rows": len(data.features),
            "dim": data.features.dim,
            "knn": data.k,
            "device_memory": arguments.device_memory,
            "gpu": torch.cuda.get_device_name(data.device) if data.device.type == "cuda" else None,
            "limits": limits(data.device),
            "stages": {name: data.measured(name) for name in STAGES if name in arguments.stages},
        }
    report(result, threads, arguments.json)


@contextmanager
def by_torch(yes: bool = True) -> Iterator[None]:
    """Let the device 'cpu' be one on which torch functions do the work, or not, while the block runs."""
    before = set(device_module.COMPILED)
    device_module.COMPILED.clear()
    device_module.COMPILED.update(set() if yes else {"cpu"})
    try:
        yield
    finally:
        device_module.COMPILED.clear()
        device_module.COMPILED.update(before)


@dataclass
class Data:
    """The input of the stages, and the graphs that earlier stages made."""

    features: Features
    labels: np.ndarray | None
    k: int
    device: torch.device
    compared: int
    on_cpu: bool
    graph: KnnGraph | None = None

    def few(self) -> Data:
        return Data(
            Features(self.features.array[:FEW]), None, min(self.k, FEW // 4), self.device, self.compared, self.on_cpu
        )

    def the_graph(self) -> KnnGraph:
        """Return the exact graph, searched on the device."""
        if self.graph is None:
            self.graph = exact(self, self.device)
        return self.graph

    def measured(self, name: str) -> dict[str, Any]:
        """Run a stage on the device and on the CPU; return what the record has of it."""
        stage = STAGES[name]
        if stage.of_graph:
            self.the_graph()
        on_device(self.device, stage.run, self.few())
        found, seconds, peak = on_device(self.device, stage.run, self)
        flop, moved = stage.work(self, found)
        record: dict[str, Any] = {"seconds": seconds, "peak_device_mb": peak / 2**20}
        for rate, amount in (("tflops", flop / 1e12), ("gb_per_second", moved / 1e9)):
            if amount:
                record[rate] = amount / seconds
                record[f"share_of_{rate}"] = record[rate] / limits(self.device)[rate]
        if name == "exact":
            self.graph = found
        if name == "labels" and self.labels is not None:
            record["metrics"] = evaluate(self.labels, found, ("pairwise", "bcubed"))
        if self.on_cpu or len(self.features) <= self.compared or name == "exact":
            with by_torch(False):
                stage.twin(self.few(), CPU)
                started = time.perf_counter()
                expected = stage.twin(self, CPU)
                record["cpu_seconds"] = time.perf_counter() - started
            record |= stage.compare(found, expected)
        print(name, record, flush=True)
        return record


def open_data(arguments: argparse.Namespace) -> Data:
    if arguments.features is None:
        array, labels = sample(arguments.rows, KINDS[arguments.kind], dim=arguments.dim)
    else:
        array, labels = read_features(arguments.features)[: arguments.rows], None
        if arguments.labels is not None:
            labels = read_labels(arguments.labels)[: len(array)]
    features = Features(array)
    features.require_valid()
    features.scaled  # noqa: B018 reads and normalises the features before the time starts
    return Data(features, labels, arguments.knn, choose_device(arguments.device), arguments.compare, arguments.cpu)


def on_device(device: torch.device, run: Callable[[Data, torch.device], Any], data: Data) -> tuple[Any, float, int]:
    """Return the result of a stage, its seconds between two synchronisations, and the peak memory of the device."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    found = run(data, device)
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return found, seconds, torch.cuda.max_memory_allocated(device) if cuda else 0


_limits: dict[str, float] = {}


def limits(device: torch.device) -> dict[str, float]:
    """Return the rates of a large product of bfloat16 matrices and of a large copy on a device, best of ten."""
    if not _limits:
        side = 8192 if device.type == "cuda" else 1024
        a = torch.ones(side, side, dtype=torch.bfloat16, device=device)
        b = torch.ones(side * side * 4, dtype=torch.uint8, device=device)
        product, copied = torch.empty_like(a), torch.empty_like(b)
        best = [
            min(on_device(device, lambda *_, run=run: run(), None)[1] for _ in range(10))  # type: ignore[arg-type]
            for run in (lambda: torch.mm(a, a, out=product), lambda: copied.copy_(b))
        ]
        _limits["tflops"], _limits["gb_per_second"] = 2 * side**3 / best[0] / 1e12, 2 * b.nbytes / best[1] / 1e9
    return _limits


def exact(data: Data, device: torch.device) -> KnnGraph:
    sims, ids = device_search(data.features, data.k, device)
    return tidy(ids, sims, np.arange(len(ids)), len(ids))


def exact_on_cpu(data: Data, device: torch.device) -> tuple[np.ndarray, KnnGraph]:
    """Return some rows, and their exact lists by compiled kernels."""
    n = len(data.features)
    if n <= data.compared:
        rows, (sims, ids) = np.arange(n), exact_search(data.features, data.k)
    else:
        rows = np.sort(np.random.default_rng(0).choice(n, min(n, 1000), replace=False))
        sims, ids = nearest_of_rows(data.features, rows, data.k)
    return rows, tidy(ids, sims, rows, n)


def compare_exact(found: KnnGraph, expected: tuple[np.ndarray, KnnGraph]) -> dict[str, float]:
    rows, graph = expected
    return compare_lists(KnnGraph(found.ids[rows], found.sims[rows]), graph) | {"compared_rows": len(rows)}


def compare_lists(found: KnnGraph, expected: KnnGraph) -> dict[str, float]:
    same = (found.ids == expected.ids).all(axis=1)
    difference = float(np.abs(found.sims - expected.sims).max(initial=0))
    return {"equal": float(same.mean()), "difference": difference}


def approximate(data: Data, device: torch.device) -> KnnGraph:
    with temporary_folder() as folder:
        return approximate_search(data.features, data.k, PARAMETERS, 0, 1.0, folder / "search", device=device)


def compare_approximate(found: KnnGraph, expected: KnnGraph) -> dict[str, Any]:
    recalls = {"recall": found.info["recall"], "cpu_recall": expected.info["recall"]}
    return compare_lists(found, expected) | recalls


def rounds(data: Data, device: torch.device) -> tuple[Scoring, EdgeList]:
    """Smoothing, structure, both rounds, and the parsed edges of the packaged model."""
    scoring = Scoring(load_model(PRETRAINED), data.features, data.the_graph(), device=device)
    return scoring, scoring.parse(TAU)[0]


def compare_rounds(found: tuple[Scoring, EdgeList], expected: tuple[Scoring, EdgeList]) -> dict[str, float]:
    record = compare_edges(found[1], expected[1])
    (own, _), (other, _) = found, expected
    codes = np.abs(own.codes.astype(np.int16) - other.codes)
    smoothed = np.abs(own.structure.nodes.astype(np.float32) - other.structure.nodes).max(initial=0)
    return record | {
        "equal_first_round": float((codes == 0).mean()),
        "difference_first_round": int(codes.max(initial=0)),
        "difference_smoothed": float(smoothed),
    }


def compare_edges(found: EdgeList, expected: EdgeList) -> dict[str, float]:
    """Return the share of the edges of either list that both have, and the largest difference of p of these."""
    n = found.num_nodes
    keys = [edges.rows.astype(np.int64) * n + edges.cols for edges in (found, expected)]
    (_, own, other), union = np.intersect1d(*keys, return_indices=True), np.union1d(*keys)
    difference = np.abs(found.scores[own] - expected.scores[other]).max(initial=0)
    return {"equal": len(own) / max(len(union), 1), "difference": float(difference), "edges": len(keys[0])}


def labels(data: Data, device: torch.device) -> np.ndarray:
    """All stages after the graph, with the packaged model and its defaults."""
    model = load_model(PRETRAINED)
    found = cluster(
        data.features, data.the_graph(), model, tau1=None, tau2=None, partition=model.kind.partition, device=device
    )
    return found.labels


def compare_labels(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    return {"equal": float((found == expected).mean()), "same_partition": bool(same_partition(found, expected))}


def published(data: Data, device: torch.device) -> Any:
    """Propagation, backbone and projections of the published model, with random weights."""
    model = StarFCModel(data.features.dim, HIDDEN, generator=torch.Generator().manual_seed(0))
    return project_nodes(model, data.features, data.the_graph(), device=device)


def compare_published(found: Any, expected: Any) -> dict[str, float]:
    own, other = (nodes.source[slice(0, nodes.graph.num_nodes)] for nodes in (found, expected))
    close = np.isclose(own, other, rtol=1e-4, atol=1e-5).all(axis=1)
    return {"equal": float(close.mean()), "difference": float(np.abs(own - other).max(initial=0))}


def edge_head(data: Data, device: torch.device) -> EdgeList:
    """All of the published model: projections, edge head, parsed edges and their node intimacy."""
    edges = parse_graph(published(data, device), TAU)
    return EdgeList(edges.indptr, edges.cols, node_intimacy(edges, device=device))


def lists_of(data: Data) -> float:
    return data.features.array.shape[0] * data.k * 8.0


def work_of_search(data: Data, found: Any) -> tuple[float, float]:
    """Each pair of rows is a product of d terms; the features are read and the lists written once."""
    n, d = data.features.array.shape
    return 2.0 * n * n * d, 2.0 * n * d + lists_of(data)


def work_of_lists(data: Data, found: Any) -> tuple[float, float]:
    """The lists of both ends of each candidate edge are read, about 0.55 x 40 edges for each row."""
    n = len(data.features)
    return 0.0, 0.55 * 40 * n * 2 * data.k * 5.0 + lists_of(data)


def work_of_projections(data: Data, found: Any) -> tuple[float, float]:
    """ÂF gathers k rows of each row; the products of the backbone and of both projections."""
    n, d = data.features.array.shape
    return 2.0 * n * (2 * d * HIDDEN + 2 * HIDDEN * HIDDEN), n * data.k * d * 2.0


def work_of_edge_head(data: Data, found: Any) -> tuple[float, float]:
    """The same, and for each entry a gathered row of the projection in float16."""
    flop, moved = work_of_projections(data, found)
    entries = len(data.features) * data.k
    return flop + 4.0 * entries * HIDDEN, moved + 2.0 * entries * HIDDEN


def not_counted(data: Data, found: Any) -> tuple[float, float]:
    return 0.0, 0.0


@dataclass(frozen=True)
class Stage:
    """A stage: how it runs on a device and on the CPU, how both are compared, and its least work (FLOP, bytes)."""

    run: Callable[[Data, torch.device], Any]
    compare: Callable[[Any, Any], dict[str, Any]]
    work: Callable[[Data, Any], tuple[float, float]] = not_counted
    of_graph: bool = True
    cpu: Callable[[Data, torch.device], Any] | None = None

    @property
    def twin(self) -> Callable[[Data, torch.device], Any]:
        return self.cpu or self.run


STAGES = {
    "exact": Stage(exact, compare_exact, work_of_search, of_graph=False, cpu=exact_on_cpu),
    "approximate": Stage(approximate, compare_approximate, of_graph=False),
    "rounds": Stage(rounds, compare_rounds, work_of_lists),
    "labels": Stage(labels, compare_labels),
    "projections": Stage(published, compare_published, work_of_projections),
    "edge_head": Stage(edge_head, compare_edges, work_of_edge_head),
}

if __name__ == "__main__":
    main()
