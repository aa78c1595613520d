"""Compare the geometry of synthetic embeddings with that of real ones, and measure how it changes with their number.

    python benchmarks/synthetic_fit.py [--kinds glyph strong weak] [--seeds 1 2 3] [--no-clustering] [--threads 1]
        [--scale 100000 1000000 ...] [--out benchmarks/results]

A kind of :mod:`starfc.data.synthetic` is generated with the identity sizes, rows and dimension of the real set that it
is fitted to. Both are measured in the same way; faces are centred first (mean of all rows removed, then normalised).
The figures of the synthetic data are means over ``--seeds``; the parameters were fitted on other seeds.

- **dimension of strangers**: local intrinsic dimension by maximum likelihood (Levina and Bickel 2004; averaged as by
  MacKay and Ghahramani 2005) from the distances to the nearest 100 rows of other identities, exact, for 3,000 rows
- **dimension of identities**: the same of the identities' mean directions, from 20 neighbours
- **stranger 1, stranger 80**: mean similarity to the first and the 80th row of other identities
- **same identity, 10 / 50 / 90 %**: quantiles of the similarity of a row and another row of its identity; every row
  counts once, because most pairs of LFW are of one identity
- **probes, all / same identity**: the share of cells (k-means, 3 sqrt(N) cells) that have to be read to
  find 95 % of the 79 neighbours, or of those of the same identity; interpolated between whole cells
- **participation ratio**: (sum of eigenvalues)² / sum of squares, of the covariance of the rows
- **in no first ten**: share of rows that are not among the first ten neighbours of any other row

Pairwise and BCubed F of single link (k = 80, the threshold with the best pairwise F) and of ``StarFC()``, which is told
nothing, are compared besides. They were not used for fitting. For more than 20,000 rows they are those of the first
seed only.

``--scale`` also measures each kind with profile ms1m, d = 256 and seed 1 at the given numbers of rows, for 300 rows.
Faces are centred by the mean of the first 65,536 rows.

Writes synthetic_fit.json and synthetic_fit.md to ``--out``. Kinds and numbers of rows that are not measured again stay
in them. A real set that is missing is left out with a message.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.connected import single_link, sweep_single_link
from harness import with_environment
from starfc.commands.scripts import run_command
from starfc.data.dataset import open_split
from starfc.data.synthetic import KINDS, Population
from starfc.errors import MissingFileError
from starfc.evaluation.metrics import bcubed, contingency, pairwise
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.runtime.machine import set_threads
from starfc.storage.atomic import prepare_folder, replacing, write_json
from suite_sets import SHARED

# kind of synthetic data: the real set that it is fitted to, and whether this is centred
SETS = {
    "glyph": ("glyph/part1_test", False),
    "strong": ("faces/lfw_dlib", True),
    "weak": ("faces/celeba_mobileface", True),
}
NAMES = {
    "dimension_of_strangers": "dimension of strangers",
    "dimension_of_identities": "dimension of identities",
    "stranger_1": "similarity to stranger 1",
    "stranger_80": "similarity to stranger 80",
    "same_10": "same identity, 10 %",
    "same_50": "same identity, 50 %",
    "same_90": "same identity, 90 %",
    "probes_all": "probes, all, % of cells",
    "probes_same": "probes, same identity, % of cells",
    "participation_ratio": "participation ratio",
    "in_no_first_ten": "in no first ten, %",
}
HELD_OUT = {
    "single_link": "single link, F",
    "single_link_bcubed": "single link, BCubed F",
    "starfc": "`StarFC()`, F",
    "starfc_bcubed": "`StarFC()`, BCubed F",
}
QUERIES, STRANGERS, SCALE_QUERIES, BLOCK, SMALL = 3000, 100, 300, 1 << 16, 20_000


class Rows(NamedTuple):
    features: NDArray[np.float32]  # (N, d), norm 1
    labels: NDArray[np.int64]  # (N,), identities 0..C-1


@dataclass(frozen=True)
class Matched(Population):
    """Synthetic instances whose identities have given sizes, (C,) integers."""

    real_sizes: NDArray[np.integer] | None = None

    @property
    def ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.real_sizes, dtype=np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--no-clustering", action="store_true", help="without the pairwise F")
    parser.add_argument("--scale", nargs="*", type=int, default=[], metavar="N")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    out = prepare_folder(arguments.out)
    record = out / "synthetic_fit.json"
    result: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {"fit": {}, "scale": {}}
    for kind in arguments.kinds:
        try:
            compared = compare(kind, arguments.seeds, not arguments.no_clustering)
            result["fit"][kind] = with_environment(compared, arguments.threads)
        except MissingFileError as error:
            say(f"{kind} is left out: {error}; STARFC_SHARED names the folder that holds datasets/")
        for nodes in arguments.scale:
            result["scale"].setdefault(kind, {})[str(nodes)] = at_scale(kind, nodes)
            say(f"{kind}, {nodes:,} rows: {result['scale'][kind][str(nodes)]}")
        write_json(record, result)
        with replacing(out / "synthetic_fit.md") as temporary:
            temporary.write_text(tables(result), encoding="utf-8")
    print(tables(result))


def compare(kind: str, seeds: list[int], clustering: bool) -> dict[str, Any]:
    """Return the figures of a real set, those of synthetic data of its kind, and their ratios."""
    name, centred = SETS[kind]
    path = SHARED / "datasets" / name
    split = open_split(path, path, feature_dim=None)
    if split.labels is None:
        raise MissingFileError(f"{path}.meta: no such labels file")
    real = prepared(split.features.all(), np.unique(split.labels, return_inverse=True)[1], centred)
    found, ours = measure(real, clustering), []
    say(f"{kind}, real: {found}")
    for number, seed in enumerate(seeds):
        sizes = np.bincount(real.labels)
        population = Matched(len(real.labels), KINDS[kind], seed, real.features.shape[1], real_sizes=sizes)
        made = prepared(*population.rows(0, len(real.labels)), centred)
        ours.append(measure(made, clustering and (number == 0 or len(made.labels) <= SMALL)))
        say(f"{kind}, seed {seed}: {ours[-1]}")
    mean = {key: float(np.mean([one[key] for one in ours if key in one])) for key in found}
    return {
        "set": Path(name).name,
        "seeds": seeds,
        "real": found,
        "synthetic": mean,
        "by_seed": ours,
        "ratio": {key: mean[key] / found[key] for key in found},
    }


def prepared(features: NDArray[np.floating], labels: NDArray[np.integer], centred: bool) -> Rows:
    rows = unit(features.astype(np.float32))
    return Rows(unit(rows - rows.mean(axis=0)) if centred else rows, labels.astype(np.int64))


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(rows: Rows, clustering: bool) -> dict[str, float]:
    """Return all figures of a set of rows, and the pairwise F in per cent if wanted."""
    features, labels = rows
    queries = np.sort(np.random.default_rng(0).permutation(len(labels))[:QUERIES])
    found = neighbourhoods([(0, rows)], queries, Rows(features[queries], labels[queries]))
    centres = torch.zeros(int(labels.max()) + 1, features.shape[1]).index_add_(
        0, torch.from_numpy(labels), torch.from_numpy(features)
    )
    graph = build_knn(features, 80)
    found["dimension_of_identities"] = dimension(nearest_others(unit(centres.numpy()), 20))
    found |= probes(features, labels, graph, queries)
    values = np.linalg.eigvalsh(np.cov(features.T))
    found["participation_ratio"] = float(values.sum() ** 2 / (values**2).sum())
    found["in_no_first_ten"] = 100 * float((np.bincount(graph.ids[:, :10].ravel(), minlength=len(labels)) == 0).mean())
    if clustering:
        thresholds = np.arange(0.1, 0.995, 0.01).round(6).tolist()
        best = max(sweep_single_link(graph, labels, thresholds), key=lambda point: point.fscore)
        found |= scores("single_link", labels, single_link(graph, min_sim=best.threshold))
        found |= scores("starfc", labels, clustered(features))
    return {key: found[key] for key in {**NAMES, **HELD_OUT} if key in found}


def neighbourhoods(blocks: Iterable[tuple[int, Rows]], queries: NDArray[np.int64], asked: Rows) -> dict[str, float]:
    """Return the figures of strangers and of pairs of an identity, for the rows ``asked`` with the numbers ``queries``.

    ``blocks`` are all rows in parts, each with the number of its first row.
    """
    points, own = torch.from_numpy(asked.features), torch.from_numpy(asked.labels)[:, None]
    top, same, of = torch.full((len(queries), STRANGERS), -2.0), [], []
    for start, block in blocks:
        labels = torch.from_numpy(block.labels)
        for part in torch.arange(len(queries)).split(256):
            sims = points[part] @ torch.from_numpy(block.features).T
            alike = own[part] == labels
            inside = (queries[part] >= start) & (queries[part] < start + len(labels))
            mine = torch.zeros_like(alike)
            mine[np.flatnonzero(inside), queries[part][inside] - start] = True
            same.append(sims[alike & ~mine])
            of.append(part[(alike & ~mine).nonzero()[:, 0]])
            sims[alike] = -2
            top[part] = torch.cat([top[part], sims.topk(min(STRANGERS, len(labels))).values], 1).topk(STRANGERS).values
    pairs, first = torch.cat(same).numpy(), torch.cat(of).numpy()
    order = np.argsort(pairs)
    weights = np.cumsum((1 / np.bincount(first, minlength=len(queries)).clip(1))[first][order])
    quantiles = pairs[order][np.searchsorted(weights, np.array([0.1, 0.5, 0.9]) * weights[-1])]
    return {
        "dimension_of_strangers": dimension(top.numpy()),
        "stranger_1": float(top[:, 0].mean()),
        "stranger_80": float(top[:, 79].mean()),
        **{f"same_{per}": float(value) for per, value in zip((10, 50, 90), quantiles, strict=True)},
    }


def dimension(sims: NDArray[np.float32]) -> float:
    """Return the local intrinsic dimension from the similarities (n, k) to the nearest k, in falling order."""
    distances = np.sqrt(np.maximum(2 - 2 * sims.astype(np.float64), 1e-9))
    return float(1 / np.log(distances[:, -1:] / distances[:, :-1]).mean())


def nearest_others(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    points, found = torch.from_numpy(rows), []
    for part in torch.arange(len(rows)).split(1024):
        sims = points[part] @ points.T
        sims[torch.arange(len(part)), part] = -2
        found.append(sims.topk(count).values)
    return torch.cat(found).numpy()


def probes(
    features: NDArray[np.float32], labels: NDArray[np.int64], graph: KnnGraph, queries: NDArray[np.int64]
) -> dict[str, float]:
    """Return the per cent of cells that hold 95 % of the neighbours of the queries, and of those of their identity."""
    points = torch.from_numpy(features)
    centroids = k_means(points, round(3 * len(labels) ** 0.5))
    cell_of = torch.cat([(part @ centroids.T).argmax(dim=1) for part in points.split(BLOCK)]).numpy()
    neighbours = graph.ids[queries, : graph.k - 1]  # the last of k entries is free: the row itself is left out
    by_nearness = (points[queries] @ centroids.T).argsort(dim=1, descending=True)
    ranks = np.take_along_axis(by_nearness.argsort(dim=1).numpy(), cell_of[neighbours], 1)
    same = labels[neighbours] == labels[queries][:, None]
    return {"probes_all": _until(ranks.ravel(), len(centroids)), "probes_same": _until(ranks[same], len(centroids))}


def k_means(points: torch.Tensor, count: int) -> torch.Tensor:
    """Return the centroids (count, d) of spherical k-means: 6 iterations on 64 points per centroid, seed 0.

    The cells of :mod:`starfc.graph.cells` are made for speed and may change; these figures should not change with them.
    """
    rng = np.random.default_rng(0)
    sample = points[np.sort(rng.choice(len(points), min(len(points), 64 * count), replace=False))]
    centroids = sample[rng.choice(len(sample), count, replace=False)]
    for _ in range(6):
        nearest = torch.cat([(part @ centroids.T).argmax(dim=1) for part in sample.split(BLOCK)])
        sums = torch.zeros_like(centroids).index_add_(0, nearest, sample)
        empty = torch.bincount(nearest, minlength=count) == 0
        sums[empty] = sample[rng.choice(len(sample), int(empty.sum()), replace=False)]
        centroids = torch.nn.functional.normalize(sums, dim=1)
    return centroids


def _until(ranks: NDArray[np.int64], cells: int, recall: float = 0.95) -> float:
    reached = np.concatenate([[0], np.cumsum(np.bincount(ranks, minlength=cells)) / len(ranks)])
    return 100 * float(np.interp(recall, reached, np.arange(cells + 1))) / cells


def clustered(features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the clusters of ``StarFC()``, (N,) int64."""
    from starfc.estimator import StarFC  # imports scikit-learn, which the figures do not need

    return StarFC().fit_predict(features)


def scores(name: str, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[str, float]:
    """Return pairwise and BCubed F in per cent."""
    table = contingency(labels, predicted)
    return {name: 100 * pairwise(table).fscore, f"{name}_bcubed": 100 * bcubed(table).fscore}


def at_scale(kind: str, nodes: int) -> dict[str, float]:
    """Return the figures of neighbourhoods in N synthetic rows, which are generated block by block."""
    population, centred = Population(nodes, KINDS[kind], seed=1), SETS[kind][1]
    first = population.rows(0, min(BLOCK, nodes))[0].astype(np.float32)
    mean = first.mean(axis=0) if centred else np.zeros(population.dim, np.float32)

    def block(start: int, stop: int) -> Rows:
        features, labels = population.rows(start, stop)
        return Rows(unit(features.astype(np.float32) - mean), labels)

    starts = range(0, nodes, BLOCK)
    blocks = ((start, block(start, min(start + BLOCK, nodes))) for start in starts)
    count = min(SCALE_QUERIES, nodes)  # rows are in random order, so the first ones are a sample
    return neighbourhoods(blocks, np.arange(count), block(0, count))


def tables(result: dict[str, Any]) -> str:
    """Return the tables of docs/synthetic.md."""
    lines, fit = [], {kind: result["fit"][kind] for kind in SETS if kind in result["fit"]}
    if fit:
        lines += ["| figure | " + " | ".join(f"{one['set']} | `{kind}` | ratio" for kind, one in fit.items()) + " |"]
        lines += ["|---|" + "---|---|---|" * len(fit)]
    for key, name in {**NAMES, **HELD_OUT}.items() if fit else ():
        cells = [
            f"{one['real'][key]:.3g} | {one['synthetic'][key]:.3g} | {one['ratio'][key]:.2f}"
            if key in one["real"]
            else "– | – | –"
            for one in fit.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for kind in (kind for kind in SETS if kind in result["scale"]):
        by_nodes = sorted(result["scale"][kind].items(), key=lambda item: int(item[0]))
        lines += ["", f"| `{kind}` | " + " | ".join(f"{int(nodes):,}" for nodes, _ in by_nodes) + " |"]
        lines += ["|---|" + "---|" * len(by_nodes)]
        for key in by_nodes[0][1]:
            lines.append(f"| {NAMES[key]} | " + " | ".join(f"{one[key]:.3g}" for _, one in by_nodes) + " |")
    return "\n".join(lines) + "\n"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
