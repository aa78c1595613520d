"""The expected scores of clusters, given answers.

:func:`starfc.clustering.choice.estimate` needs p of the candidate edges only. An answer about two sides replaces p of
the edges between them by the probability that the sides are one identity, which all answers about them give; a certain
pair replaces p of its own edge by 1 or 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from starfc.answers.constraints import verdicts
from starfc.answers.evidence import Evidence
from starfc.answers.marks import Marks
from starfc.clustering.choice import LOWEST, Estimate, estimate
from starfc.graph.edges import EdgeList


def expected(evidence: Evidence, labels: NDArray[np.int64], marks: Marks) -> Estimate:
    """Return the expected scores of clusters, given what is known.

    Parameters
    ----------
    evidence : Evidence
        The evidence of the set.
    labels : (N,) int64
        Cluster of every row; -1 for removed rows.
    marks : Marks
        Pairs and answers.
    """
    edges = evidence.edges
    p = edges.scores.copy()
    for verdict in verdicts(marks.answers):
        p[_between(edges, verdict.a, verdict.b)] = expit(verdict.odds)
    for pairs, value in ((marks.must, 1), (marks.cannot, 0)):
        for a, b in pairs.tolist():
            p[_between(edges, (a,), (b,))] = value
    members = np.unique(labels, return_inverse=True)[1]
    removed = np.flatnonzero(labels < 0)
    if len(removed):  # each is alone
        members = members - 1
        members[removed] = members.max(initial=-1) + 1 + np.arange(len(removed))
    return estimate(replace(edges, scores=p).select(p > LOWEST), members)


def _between(edges: EdgeList, a: tuple[int, ...], b: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the entries of a symmetric list that lead from one side to the other, in both directions."""
    found = []
    for ours, theirs in ((a, b), (b, a)):
        rows = np.asarray(ours)
        first = edges.indptr[rows]
        count = edges.indptr[rows + 1] - first
        at = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
        found.append(at[np.isin(edges.cols[at], np.asarray(theirs))])
    return np.concatenate(found)
