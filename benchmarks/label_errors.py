"""Plant wrong labels in labelled data, and measure how well `starfc evaluate --errors` finds them.

    python benchmarks/label_errors.py --run RUN --labels sample.meta --name sample [--out label_errors.json]

A share of the rows change places among each other: their labels are permuted. Rows that keep their label by chance are
right. For each share and seed the script measures the average precision of the scores, also among the rows with an edge
only (of others nothing is known), the expected number of wrong labels beside the true one, and how often the proposed
label is the right one. The calibration table joins all seeds of
a share: mean score and share of planted errors in bins of the score. Errors that the labels had before count as right,
so precision is a lower bound. Identities are then divided and joined: half of the instances of 20 identities get a new
label, and 20 pairs of identities one label.

Of clusters of two instances or more the script also compares the confidence of an instance, as `starfc export` writes
it, with the truth: whether the instance has the most frequent label of its cluster.

RUN is the folder of a run with stored edges. ``--out`` adds the result to a JSON file, by name.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from harness import with_environment
from starfc.data.files import read_labels
from starfc.graph.edges import edge_confidence
from starfc.review.label_errors import LabelIssues, label_issues
from starfc.review.pairs import Pairs
from starfc.runs.folder import Run
from starfc.runtime.machine import set_threads
from starfc.storage.atomic import write_json

SHARES, SEEDS, CHANGED = (0.005, 0.02, 0.05, 0.1), 5, 20
BINS = np.linspace(0, 1, 11)


def permuted(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return labels of which a share of the rows have changed places."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[rows] = labels[rng.permutation(rows)]
    return noisy


def changed_identities(labels: np.ndarray, seed: int) -> tuple[np.ndarray, set[tuple[int, int]], set[int]]:
    """Return labels with identities divided and joined, the pairs of labels that are one, and the labels of two."""
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(labels, return_counts=True)
    large = names[sizes >= 6]
    count = min(CHANGED, len(large) // 6)
    chosen = rng.choice(large, 3 * count, replace=False).reshape(3, count)
    noisy, ones = labels.copy(), set()
    for number, label in enumerate(chosen[0].tolist(), start=int(labels.max()) + 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        noisy[rows[: len(rows) // 2]] = number
        ones.add((label, number))
    for label, other in chosen[1:].T.tolist():
        noisy[labels == label] = other
    return noisy, ones, set(chosen[2].tolist())


def scores(found: LabelIssues, rows: int) -> np.ndarray:
    at, score = found.of("label"), np.zeros(rows)
    score[found.row[at]] = found.score[at]
    return score


def measure(pairs: Pairs, labels: np.ndarray, clusters: np.ndarray) -> dict:
    linked = np.diff(pairs.indptr) > 0
    result: dict = {"as_given": None, "with_edges": float(linked.mean()), "planted": []}
    started = time.perf_counter()
    found = label_issues(pairs, labels, clusters)
    result["as_given"] = {
        "seconds": time.perf_counter() - started,
        "listed": len(found.of("label")),
        "expected": found.expected,
        "best_score": float(found.score[found.of("label")].max(initial=0)),
    }
    for share in SHARES:
        each, joined = [], []
        for seed in range(SEEDS):
            noisy = permuted(labels, share, seed)
            wrong = noisy != labels
            if not (wrong & linked).any():
                continue  # a small set, in which all rows kept their labels
            found = label_issues(pairs, noisy, clusters)
            score, at = scores(found, len(labels)), found.of("label")
            at = at[wrong[found.row[at]]]
            each.append(
                {
                    "average_precision": float(average_precision_score(wrong, score)),
                    "with_edges": float(average_precision_score(wrong[linked], score[linked])),
                    "wrong": int(wrong.sum()),
                    "expected": found.expected,
                    "listed": len(at) / int(wrong.sum()),
                    "proposed_right": int((found.other_label[at] == labels[found.row[at]]).sum()) / max(len(at), 1),
                }
            )
            joined.append((score, wrong))
        if not each:
            continue
        score, wrong = (np.concatenate(parts) for parts in zip(*joined, strict=True))
        where = np.digitize(score, BINS[1:-1])
        result["planted"].append(
            {
                "share": share,
                **{key: float(np.mean([one[key] for one in each])) for key in each[0]},
                "lowest_average_precision": min(one["average_precision"] for one in each),
                "calibration": [
                    {
                        "low": float(BINS[b]),
                        "labels": int((where == b).sum()) / len(each),
                        "score": float(score[where == b].mean()),
                        "wrong": float(wrong[where == b].mean()),
                    }
                    for b in np.unique(where[score > 0])
                ],
            }
        )
    noisy, ones, twos = changed_identities(labels, 0)
    found = label_issues(pairs, noisy, clusters)
    one, two = found.of("one identity"), found.of("two identities")
    pairs_found = list(zip(found.label[one].tolist(), found.other_label[one].tolist(), strict=True))
    result["changed"] = {
        "identities": len(ones),
        "one_listed": len(one),
        "one_found": len(ones & set(pairs_found)),
        "one_average_precision": _precision([pair in ones for pair in pairs_found], found.score[one]),
        "two_listed": len(two),
        "two_found": len(twos & set(found.label[two].tolist())),
        "two_average_precision": _precision([label in twos for label in found.label[two].tolist()], found.score[two]),
    }
    return result


def confidence_against(labels: np.ndarray, clusters: np.ndarray, confidence: np.ndarray) -> dict:
    """Return the calibration error of the confidence, its AUC, and a table of ten bins."""
    names, codes = np.unique(labels, return_inverse=True)
    cells, counts = np.unique(clusters * len(names) + codes, return_counts=True)
    order = np.lexsort((counts, cells // len(names)))  # the last one of a cluster is its most frequent label
    last = order[np.flatnonzero(np.diff(cells[order] // len(names), append=-1))]
    most = np.full(clusters.max() + 1, -1)
    most[cells[last] // len(names)] = cells[last] % len(names)
    several = np.bincount(clusters)[clusters] > 1
    right, value = (most[clusters] == codes)[several], confidence[several]
    where = np.digitize(value, BINS[1:-1])
    table = [
        {
            "low": float(BINS[b]),
            "rows": int((where == b).sum()),
            "confidence": float(value[where == b].mean()),
            "right": float(right[where == b].mean()),
        }
        for b in np.unique(where)
    ]
    error = sum(row["rows"] * abs(row["confidence"] - row["right"]) for row in table) / len(value)
    auc = float(roc_auc_score(right, value)) if 0 < right.sum() < len(right) else None
    return {"right": float(right.mean()), "error": error, "auc": auc, "table": table}


def _precision(right: list[bool], score: np.ndarray) -> float | None:
    """Return the average precision within the list; None if nothing in it is right."""
    return float(average_precision_score(right, score)) if any(right) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    run = Run.open(arguments.run)
    labels = read_labels(arguments.labels, len(run.labels))
    result = {"rows": len(labels), **measure(Pairs.of(run.parsed), labels, run.labels)}
    confidence = edge_confidence(run.parsed.edges, run.parsed.kept)
    result["confidence"] = confidence_against(labels, run.labels, confidence)
    print(json.dumps(result, indent=1))
    if arguments.out is not None:
        known = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
        write_json(arguments.out, known | {arguments.name: with_environment(result, arguments.threads)})


if __name__ == "__main__":
    main()
