"""Cluster sets of few rows, without labels, beside baselines.

    python benchmarks/few_rows.py --sets FEATURES=LABELS ... [--rows 60 100 150 220] [--largest 0 4] [--seeds 3]
        [--threads 1] [--json OUT]

Each set is cut from labelled features: identities in random order until there are N rows. With ``--largest m``, at most
m rows of an identity are used (0: all), so that most identities are small. On each set, ``StarFC().fit(X)`` is told
nothing. Infomap and HDBSCAN have the parameters that are best on part0_train of glyph (part0_parameters.json).
*Average linkage, tuned* is hierarchical clustering with the cosine threshold that is best on the labels of the set: an
upper bound that nobody can reach without labels.

A row of the table is the mean over seeds: pairwise F / BCubed F of each method, and the F that ours expects.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from baselines import BASELINES
from harness import cluster, report
from starfc import StarFC
from starfc.data.dataset import Features, Split
from starfc.data.files import read_features, read_labels
from starfc.evaluation.metrics import evaluate
from starfc.graph.knn import build_knn
from starfc.runtime.machine import set_threads

UNTUNED = ("infomap", "hdbscan")
DISTANCES = np.linspace(0.02, 1.4, 70)
PARAMETERS = Path(__file__).parent / "part0_parameters.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cluster sets of few rows, without labels, beside baselines.")
    parser.add_argument("--sets", nargs="+", required=True, metavar="FEATURES=LABELS")
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 100, 150, 220], metavar="N")
    parser.add_argument("--largest", type=int, nargs="+", default=[0, 4], metavar="m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    logging.getLogger("starfc").setLevel(logging.ERROR)
    found = []
    for pair in arguments.sets:
        path, _, of_labels = pair.partition("=")
        features = read_features(Path(path))
        labels = read_labels(Path(of_labels), len(features))
        for largest in arguments.largest:
            for rows in arguments.rows:
                some = [of_few_rows(labels, rows, largest, seed) for seed in range(arguments.seeds)]
                scores = [scores_of(np.asarray(features[at], np.float32), labels[at]) for at in some]
                row: dict[str, Any] = {"set": Path(path).stem, "largest": largest, "rows": rows}
                row |= {
                    name: np.round(np.mean([one[name] for one in scores], axis=0), 1).tolist() for name in scores[0]
                }
                found.append(row)
                print(json.dumps(row), flush=True)
    report({"sets": found, "seeds": arguments.seeds}, arguments.threads, arguments.json)


def of_few_rows(labels: NDArray[np.int64], rows: int, largest: int, seed: int) -> NDArray[np.int64]:
    """Return ``rows`` rows of identities in random order; at most ``largest`` of each, unless that is 0."""
    rng, order = np.random.default_rng(seed), np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    chosen: list[NDArray[np.int64]] = []
    for at in rng.permutation(len(members)):
        chosen.append(rng.permutation(members[at])[:largest] if largest else members[at])
        if sum(map(len, chosen)) >= rows:
            break
    return rng.permutation(np.concatenate(chosen))[:rows]


def scores_of(features: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, list[float]]:
    """Return pairwise F and BCubed F of each method, in per cent; ``expected`` has the F that ours expects."""
    ours = StarFC().fit(features)
    assert ours.estimate_ is not None
    found = {"ours": scored(labels, ours.labels_), "expected": [100 * ours.estimate_["fscore"]]}
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    split, told = Split(Features(unit), labels, "few"), json.loads(PARAMETERS.read_text())["methods"]
    graph = build_knn(split.features, min(80, len(unit)))
    for name in UNTUNED:
        found[name] = scored(labels, cluster(BASELINES[name], graph, split, told[name]["parameters"]))
    tree = linkage(unit.astype(np.float64), "average")
    cuts = [scored(labels, fcluster(tree, distance, "distance") - 1) for distance in DISTANCES]
    return found | {"average linkage, tuned": max(cuts)}


def scored(labels: NDArray[np.int64], found: NDArray[np.integer]) -> list[float]:
    scores = evaluate(labels, found.astype(np.int64), ("pairwise", "bcubed"))
    return [100 * scores[name]["fscore"] for name in ("pairwise", "bcubed")]


if __name__ == "__main__":
    main()
