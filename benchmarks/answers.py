"""Measure how far answers lift a clustering, with a simulated person who knows the truth.

    python benchmarks/answers.py --run DIR --labels FILE [--answers 0 50 200 500 2000] [--json FILE]
    python benchmarks/answers.py --fit DIR FILE DIR FILE ...

The person sees the most telling rows of both sides of a question, and answers yes if the most frequent identity of
these rows is the same on both sides. A second person gives the opposite answer to 5 % of the questions. Each answer
counts, also if a question is asked again. Answers are applied in rounds of ``--round`` questions.

Orders that are measured:

* ``ask``: the order of `starfc ask`;
* ``suspicion``: the order of the review page before there were questions: by turns a cluster, the most suspicious
  first, at its weakest bridge, and a merge candidate, the highest margin first;
* ``random``: the candidates of `starfc ask` in a random order;
* ``oracle``: an upper bound that no person reaches. At each step it joins two clusters of one identity, or splits the
  rows of one identity off a cluster, whichever sets most pairs right. One such step counts as one answer.

``--fit`` prints the first weights of the judges, fitted on labelled runs (src/starfc/answers/weights.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from harness import report
from starfc.answers.candidates import join_candidates, split_candidates
from starfc.answers.constraints import Clusters, enforce
from starfc.answers.covariances import Covariances
from starfc.answers.divide import LEAST
from starfc.answers.evidence import Evidence, evidence_of
from starfc.answers.judge import relative, scale
from starfc.answers.marks import Marks
from starfc.answers.measures import LIKENESS, MEASURES
from starfc.answers.questions import Asker, Question
from starfc.data.files import read_labels
from starfc.evaluation.metrics import contingency, pairwise
from starfc.review.measures import merge_candidates, review
from starfc.review.pairs import Pairs
from starfc.runs.folder import Run
from starfc.runs.state import first_state, read_state
from starfc.runtime.machine import set_threads

ANSWERS = (0, 50, 200, 500, 2000)
ERRORS = (0.0, 0.05)
PENALTY = 10.0  # of the squared weights of a judge; the examples of a set weigh 1,000
IMPURE = 0.1  # share of strangers above which a cluster is wrong

Ask = Callable[[NDArray[np.int64], Marks, int], Sequence[Question]]


def person(truth: NDArray[np.int64], error: float, seed: int = 0) -> Callable[[Question], bool]:
    """Return a function that answers questions. ``truth`` (N,) are the identities."""
    rng = np.random.default_rng(seed)

    def same(question: Question) -> bool:
        seen = [np.bincount(truth[list(rows)]).argmax() for rows in question.shown]
        return bool((seen[0] == seen[1]) != (rng.random() < error))

    return same


def curve(
    run: Run, truth: NDArray[np.int64], ask: Ask, answer: Callable[[Question], bool], at: Sequence[int], each: int
) -> dict[str, Any]:
    """Ask, answer and apply until the most answers of ``at`` are given; return the scores after each number of them."""
    clusters = Clusters(run.labels.copy(), int(run.labels.max()) + 1, run.parsed.edges)
    marks, found, seconds = Marks(), {}, []
    kinds = {"join": [0, 0], "split": [0, 0]}
    for goal in at:
        while len(marks.answers) < goal:
            questions = ask(clusters.labels, marks, min(each, goal - len(marks.answers)))
            if not questions:
                break
            given = []
            for question in questions:
                same = answer(question)
                kinds[question.kind][same] += 1
                given.append(question.answer(same))
            marks = marks.added(Marks(answers=tuple(given)))
            started = time.perf_counter()
            enforce(clusters, marks)
            seconds.append((time.perf_counter() - started) / len(given))
        score = pairwise(contingency(truth, clusters.labels))
        found[goal] = {"precision": score.precision, "recall": score.recall, "fscore": score.fscore}
        print(f"    {goal:>6} answers: F {100 * score.fscore:.2f}, {kinds}", flush=True)
    return {"scores": found, "answers": len(marks.answers), "kinds": kinds}


def by_suspicion(run: Run) -> Ask:
    """Return the order of the review page: questions about weakest bridges and merge candidates by turns."""
    pairs = Pairs.of(run.parsed)
    found, merges = review(pairs, run.labels), merge_candidates(pairs, run.labels, run.rule)
    doubtful = [int(c) for c in found.order if found.cuts.suspicion[c] > 0]
    waiting: list[Question] = []
    for turn in range(max(len(doubtful), len(merges.first))):
        if turn < len(doubtful):
            rows, piece = np.flatnonzero(run.labels == doubtful[turn]), found.cuts.piece(doubtful[turn])
            rest = np.setdiff1d(rows, piece)
            ends = (doubtful[turn], doubtful[turn])
            waiting.append(Question("split", _list(piece), _list(rest), ends, (len(piece), len(rest)), 0.5, 0.0))
        if turn < len(merges.first):
            ends = (int(merges.first[turn]), int(merges.second[turn]))
            a, b = (_list(np.flatnonzero(run.labels == c)) for c in ends)
            waiting.append(Question("join", a, b, ends, (len(a), len(b)), 0.5, 0.0))

    def ask(labels: NDArray[np.int64], marks: Marks, count: int) -> list[Question]:
        return [waiting.pop(0) for _ in range(min(count, len(waiting)))]

    return ask


def _list(rows: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(rows.tolist())


def at_random(asker: Asker, run: Run, seed: int = 0) -> Ask:
    """Return all candidates of the first call of `starfc ask`, in a random order."""
    waiting = asker.questions(run.labels, Marks(), 10**9, spread=False)
    np.random.default_rng(seed).shuffle(waiting)  # type: ignore[arg-type]  # a list of any objects

    def ask(labels: NDArray[np.int64], marks: Marks, count: int) -> list[Question]:
        return [waiting.pop() for _ in range(min(count, len(waiting)))]

    return ask


def oracle(labels: NDArray[np.int64], truth: NDArray[np.int64], at: Sequence[int]) -> dict[int, float]:
    """Return F after the best steps, chosen one by one with the truth known."""
    cells, count = np.unique(np.stack([labels, truth]), axis=1, return_counts=True)
    pieces: dict[int, dict[int, int]] = {}
    for (cluster, identity), number in zip(cells.T.tolist(), count.tolist(), strict=True):
        pieces.setdefault(cluster, {})[identity] = number
    # state: clusters as {identity: rows}. A split takes one identity out, a join unites two clusters by their largest
    import heapq

    heap: list[tuple[int, str, int, int]] = []
    groups: dict[int, dict[int, int]] = dict(pieces)
    heads: dict[int, list[int]] = {}
    fresh = max(groups) + 1

    def main_of(cluster: int) -> int:
        return max(groups[cluster], key=lambda identity: (groups[cluster][identity], -identity))

    def offer(cluster: int) -> None:
        size = sum(groups[cluster].values())
        main = main_of(cluster)
        for identity, rows in groups[cluster].items():
            if identity != main:
                heapq.heappush(heap, (-rows * (size - rows), "split", cluster, identity))
        for other in heads.setdefault(main, []):
            if other in groups and other != cluster:
                gain = 0
                for identity, rows in groups[cluster].items():
                    for second, number in groups[other].items():
                        gain += rows * number if identity == second else -rows * number
                if gain > 0:
                    heapq.heappush(heap, (-gain, "join", min(cluster, other), max(cluster, other)))
        heads[main].append(cluster)

    for cluster in sorted(groups, key=lambda one: -sum(groups[one].values())):
        if sum(groups[cluster].values()) > 0:
            offer(cluster)
    right = float((count * (count - 1.0)).sum())
    true = float((np.bincount(truth) * (np.bincount(truth) - 1.0)).sum())
    sizes = np.bincount(labels)
    said = float((sizes * (sizes - 1.0)).sum())
    found, done = {}, 0
    for goal in at:
        while done < goal and heap:
            _, kind, a, b = heapq.heappop(heap)
            if kind == "split":
                if a not in groups or b not in groups[a] or b == main_of(a):
                    continue
                rows, size = groups[a][b], sum(groups[a].values())
                said -= 2 * rows * (size - rows)
                left = {key: value for key, value in groups.pop(a).items() if key != b}
                groups[fresh], groups[fresh + 1] = left, {b: rows}
                fresh += 2
                offer(fresh - 2)
                offer(fresh - 1)
            else:
                if a not in groups or b not in groups:
                    continue
                one, other = groups.pop(a), groups.pop(b)
                said += 2 * sum(one.values()) * sum(other.values())
                right += 2 * sum(rows * other.get(identity, 0) for identity, rows in one.items())
                groups[fresh] = {k: one.get(k, 0) + other.get(k, 0) for k in {*one, *other}}
                fresh += 1
                offer(fresh - 1)
            done += 1
        found[goal] = 2 * right / (said + true)
    return found


def impure_order(asker: Asker, labels: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, Any]:
    """Return how many wrong clusters are among the first 100 that questions about splits show, and the AUC."""
    sizes = np.bincount(labels)
    doubt = np.zeros(len(sizes))
    doubt[labels] = asker.doubts(labels, Marks())
    largest = np.zeros(len(sizes), np.int64)
    cells, count = np.unique(np.stack([labels, truth]), axis=1, return_counts=True)
    np.maximum.at(largest, cells[0], count)
    shown = np.flatnonzero(sizes >= 4)
    impure = largest[shown] < (1 - IMPURE) * sizes[shown]
    order = np.argsort(-doubt[shown], kind="stable")
    return {
        "clusters": len(shown),
        "impure": int(impure.sum()),
        "among_first_100": int(impure[order[:100]].sum()),
        "auc": float(roc_auc_score(impure, doubt[shown])) if impure.any() else None,
    }


def collected(evidence: Evidence, labels: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, Any]:
    """Return measures of all candidates of a labelled set, the right answers, and weights with the sum 1,000.

    The right answer is whether both sides have the same most frequent identity. A pair of sides counts as much as the
    root of its pairs of rows; the divisions of one cluster share this weight.
    """
    number = int(labels.max()) + 1
    sums = evidence.clusters(labels, number)
    model = Covariances.of(evidence, sums)
    cells, count = np.unique(np.stack([labels, truth]), axis=1, return_counts=True)
    main = np.zeros(number, np.int64)
    order = np.argsort(count, kind="stable")
    main[cells[0][order]] = cells[1][order]
    joins = join_candidates(evidence, labels, sums, model)
    measures, same, weight = [np.empty((0, MEASURES))], [np.empty(0, np.bool_)], [np.empty(0)]
    for label in np.flatnonzero(sums.sizes >= LEAST):
        rows = np.flatnonzero(labels == label)
        found = split_candidates(evidence, rows, labels, model)
        identities = np.eye(len(rows))[np.unique(truth[rows], return_inverse=True)[1]]
        sides = found.masks @ identities, ~found.masks @ identities
        pairs = np.prod([side.sum(axis=1) for side in sides], axis=0)
        measures.append(found.measures)
        same.append(sides[0].argmax(axis=1) == sides[1].argmax(axis=1))
        weight.append(np.sqrt(pairs) / max(len(pairs), 1))
    both = {
        "join": (joins.measures, main[joins.a] == main[joins.b], np.sqrt(sums.sizes[joins.a] * sums.sizes[joins.b])),
        "split": (np.concatenate(measures), np.concatenate(same), np.concatenate(weight)),
    }
    return {kind: (x, y, 1000 * w / max(w.sum(), 1e-9)) for kind, (x, y, w) in both.items()}


def fit(places: Sequence[str]) -> None:
    """Print the weights that fit some labelled runs, each with the same total weight."""
    sets = []
    for folder, labels in zip(places[::2], places[1::2], strict=True):
        _, state, truth = opened(Path(folder), Path(labels))
        sets.append(collected(evidence_of(state), state.labels, truth))
    for kind in ("join", "split"):
        each = [relative(one[kind][0], *scale(one[kind][0])) for one in sets]
        answers, weight = (np.concatenate([one[kind][at] for one in sets]) for at in (1, 2))
        weights = rising_logistic(np.concatenate(each), answers, weight)
        print(f"{kind.upper()} = np.array([{', '.join(f'{value:.3f}' for value in weights)}])")
        for place, one, x in zip(places[::2], sets, each, strict=True):
            odds, same = x @ weights[:-1], one[kind][1]
            auc = roc_auc_score(same, odds) if 0 < same.sum() < len(same) else float("nan")
            print(f"# {Path(place).name}: AUC {auc:.3f} of {len(odds):,}, {same.mean():.3f} the same")


def rising_logistic(x: NDArray[np.float64], y: NDArray[np.bool_], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of a logistic regression, the constant last, that rises with each measure of likeness."""
    columns, sign = np.column_stack([x, np.ones(len(x))]), np.where(y, -1.0, 1.0)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        against = sign * (columns @ weights)
        gradient = columns.T @ (w * sign * expit(against)) + PENALTY * weights
        return float(w @ np.logaddexp(0, against) + PENALTY * weights @ weights / 2), gradient

    bounds = [(0, None)] * LIKENESS + [(None, None)] * (MEASURES - LIKENESS + 1)
    return minimize(loss, np.zeros(MEASURES + 1), jac=True, bounds=bounds, method="L-BFGS-B").x


def opened(folder: Path, labels: Path) -> tuple[Run, Any, NDArray[np.int64]]:
    """Open a run, its state and the identities, numbered from 0."""
    run = Run.open(folder)
    found = read_state(run)
    state = first_state(run) if found is None else found[0]
    return run, state, np.unique(read_labels(labels), return_inverse=True)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--fit", nargs="+")
    parser.add_argument("--answers", nargs="+", type=int, default=list(ANSWERS))
    parser.add_argument("--orders", nargs="+", default=["ask", "suspicion", "random"])
    parser.add_argument("--errors", nargs="+", type=float, default=list(ERRORS))
    parser.add_argument("--round", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.fit:
        fit(arguments.fit)
        return
    run, state, truth = opened(arguments.run, arguments.labels)
    started = time.perf_counter()
    evidence = evidence_of(state)
    asker = Asker(evidence)
    result: dict[str, Any] = {"set": arguments.labels.stem, "evidence_seconds": time.perf_counter() - started}
    result["oracle"] = oracle(run.labels, truth, arguments.answers)
    print("oracle", {goal: round(100 * value, 2) for goal, value in result["oracle"].items()})
    result["impure"] = impure_order(asker, run.labels, truth)
    print("impure", result["impure"])
    for order in arguments.orders:
        for error in arguments.errors:
            make = {"ask": lambda: asker.questions, "suspicion": lambda: by_suspicion(run)}
            ask = make.get(order, lambda: at_random(asker, run))()
            print(f"{order}, {error:.0%} wrong")
            answer = person(truth, error)
            result[f"{order}, {error:g} wrong"] = curve(run, truth, ask, answer, arguments.answers, arguments.round)
    report(result, arguments.threads, arguments.json)


if __name__ == "__main__":
    main()
