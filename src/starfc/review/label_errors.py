"""Find labels that the graph contradicts: wrong labels, outliers, near-duplicates, identities to join or to divide.

Every parsed edge says with probability p that its two ends are one identity. For an instance i with the label y, let

    v_i(c) = Σ p over the edges from i to instances with label c        (the votes for c)

and let c be the label other than y with the most votes. The kinds of issues are:

label
    The neighbours have another label. An instance is contradicted if

        s_i = (v_i(c) + 1) / (v_i(y) + v_i(c) + 2) · (1 - q_i) > 1/2

    where q_i is the share of the other instances of y that are contradicted in favour of the same c: if most of y looks
    like c, the identities are in doubt, and not the label of one instance. The labels may be right and the edges wrong,
    and p says how often: let X be the sum over all instances of the share of their edges that lead to other labels, and
    E the sum of their mean 1 - p. A wrong label adds 1 to X by its own edges and about 1 by those of its neighbours,
    and so does an instance that lies among another identity. So R = (X - E) / 2 labels are expected to be wrong, and
    H = E / 2 instances to be misplaced. Let f = v_i(y) / (v_i(y) + v_i(c)). A wrong label has f near 0, with the
    density b(f) of the Beta distribution (1, 30); a misplaced instance has, as often as not, any f. The score is

        s_i · R b(f) / (R b(f) + H (b(f) / 2 + 1))

outlier
    The instance has fewer edges than its label leads to expect: 1 - v_i / median of v in label y, where v_i is the sum
    of all votes. Contradicted instances are not listed again.
one identity
    Two labels a and b may be one identity. With D_ab the sum of p between their instances, divided by the number of
    such pairs: min(1, 2 D_ab / (D_aa + D_bb)), times the mean p of these edges. A label without edges inside it is left
    out of the sum; if both are, D_ab takes its place.
two identities
    A label may be two identities: it is the most frequent label of several clusters. For its two largest pieces A and
    B, the second of m instances: (1 - min(1, 2 D_AB / (D_AA + D_BB))) (1 - 1 / m).
near-duplicate
    Two instances with an edge, whose distance d = 1 - cosine is below an eighth of the median m of the distances
    between an instance and its nearest one: 1 - 8 d / m. Pairs with different labels come first.

Scores lie in [0, 1]. The score of a label is the probability that it is wrong. Issues are listed if the score is above
1/2; labels, if s_i is; near-duplicates, if it is above 0. Instances whose label is not known (-1) neither vote nor are
judged, except as near-duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from starfc.data.dataset import Features
from starfc.data.files import UNLABELLED
from starfc.review.pairs import Pairs

KINDS = ("label", "outlier", "one identity", "two identities", "near-duplicate")
LEAST = 0.5  # lowest score of an issue
DOUBTFUL = 0.05  # lowest probability of a wrong label that is worth a look: one of twenty such labels is wrong
_FEW = 30  # of a wrong label, about one edge in so many leads to an instance with the same label
NEAR = 1 / 8  # near-duplicates are nearer than this share of the median distance to the nearest instance
_ROUNDING = 1e-5  # distances below this are 0 but for the rounding of features
_BLOCK = 1 << 16


@dataclass(frozen=True)
class LabelIssues:
    """K issues, sorted by kind in the order of :data:`KINDS`, then by falling score.

    Attributes
    ----------
    kind : (K,) int8
        Index in :data:`KINDS`.
    score : (K,) float32
        See the docstring of the module.
    row, other : (K,) int64
        The instance in question and the one that contradicts it most, or a pair; ``other`` is -1 for an outlier
        without edges.
    label, other_label : (K,) int64
        Their labels. For 'label', ``other_label`` is the label that the graph proposes.
    count : (K,) int64
        Number of instances that a correction would change.
    expected : float
        Number R of labels that are expected to be wrong.
    """

    kind: NDArray[np.int8]
    score: NDArray[np.float32]
    row: NDArray[np.int64]
    other: NDArray[np.int64]
    label: NDArray[np.int64]
    other_label: NDArray[np.int64]
    count: NDArray[np.int64]
    expected: float

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, kind: str) -> NDArray[np.int64]:
        """Return the positions of the issues of a kind."""
        return np.flatnonzero(self.kind == KINDS.index(kind))

    def columns(self) -> dict[str, NDArray]:
        """Return the issues as arrays (K,) of one length, by name; ``pandas.DataFrame`` takes them as they are.

        ``kind`` is a text of :data:`KINDS`; the others are ``score``, ``row``, ``other_row``, ``label``,
        ``other_label`` and ``count``. An outlier without edges has ``other_row`` and ``other_label`` -1.
        """
        return {
            "kind": np.array(KINDS)[self.kind],
            "score": self.score,
            "row": self.row,
            "other_row": self.other,
            "label": self.label,
            "other_label": np.where(self.other < 0, -1, self.other_label),
            "count": self.count,
        }

    def doubtful(self) -> LabelIssues:
        """Return the issues without labels whose score is below :data:`DOUBTFUL`."""
        there = (self.kind != KINDS.index("label")) | (self.score >= DOUBTFUL)
        arrays = [field.name for field in fields(self) if field.name != "expected"]
        return replace(self, **{name: getattr(self, name)[there] for name in arrays})


@dataclass(frozen=True)
class _Votes:
    """The votes of each instance: for its own label, for the best other one, for all labels, and their best edges."""

    own: NDArray[np.float64]
    best: NDArray[np.float64]
    label: NDArray[np.int64]  # the best other label; -1 without one
    total: NDArray[np.float64]
    witness: NDArray[np.int64]  # the neighbour with the best other label and the highest p; -1 without one


def label_issues(
    pairs: Pairs,
    labels: NDArray[np.int64],
    clusters: NDArray[np.int64],
    features: Features | None = None,
) -> LabelIssues:
    """Find the labels that the graph contradicts.

    Parameters
    ----------
    pairs : Pairs
        The parsed edges.
    labels : (N,) int64
        The given identity of every row; -1: not known.
    clusters : (N,) int64
        Cluster of every row; -1: none.
    features : Features, optional
        Features of all rows. Without them, near-duplicates are not searched.
    """
    known = labels != UNLABELLED
    names, codes = np.unique(labels[known], return_inverse=True)
    label = np.full(len(labels), -1, np.int64)
    label[known] = codes
    judged = (label[pairs.rows] >= 0) & (label[pairs.cols] >= 0)
    rows, cols = pairs.rows[judged].astype(np.int64), pairs.cols[judged].astype(np.int64)
    p = pairs.scores[judged].astype(np.float64)
    sizes = np.bincount(codes, minlength=len(names))
    votes = _votes(rows, cols, p, label, len(names))
    against = _contradiction(votes, label, sizes)
    expected = _expected_wrong(rows, cols, p, label)
    score = against * _probability(votes, *expected)
    wrong = against > LEAST
    outlying = np.where(wrong, 0.0, _outlier_scores(votes.total, label))
    found = [
        _of_rows("label", np.flatnonzero(wrong), score, votes.witness, label, votes.label),
        _of_rows("outlier", np.flatnonzero(outlying > LEAST), outlying, _strongest(rows, cols, p, len(label)), label),
        _same_identities(rows, cols, p, label, sizes),
        _divided_identities(rows, cols, p, label, clusters),
    ]
    if features is not None:
        found.append(_near_duplicates(pairs, label, features))
    kind, score, row, other, one, two, count = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((row, -score, (kind == KINDS.index("near-duplicate")) & (one == two), kind))
    known_names = np.append(names, UNLABELLED)  # code -1 is the last one
    return LabelIssues(
        kind[order].astype(np.int8),
        score[order].astype(np.float32),
        row[order],
        other[order],
        known_names[one[order]],
        known_names[two[order]],
        count[order],
        expected[0],
    )


_Found = tuple[NDArray, ...]  # kind, score, row, other, code of the label, code of the other label, count


def _of_rows(kind, rows, score, other, label, other_label=None) -> _Found:
    """Return issues of single instances. Default of the other label: that of the other instance."""
    others = np.where(other[rows] >= 0, label[other[rows]], -1) if other_label is None else other_label[rows]
    return (
        np.full(len(rows), KINDS.index(kind)),
        score[rows],
        rows,
        other[rows],
        label[rows],
        others,
        np.ones_like(rows),
    )


def _votes(rows, cols, p, label, num_labels) -> _Votes:
    n = len(label)
    table: Any = csr_matrix((p, (rows, label[cols])), shape=(n, max(num_labels, 1)))
    table.sum_duplicates()
    at = np.repeat(np.arange(n), np.diff(table.indptr))
    mine = table.indices == label[at]
    own = np.bincount(at[mine], table.data[mine], n).astype(np.float64)
    at, of_label, value = at[~mine], table.indices[~mine].astype(np.int64), table.data[~mine]
    order = np.lexsort((of_label, -value, at))
    first = order[np.flatnonzero(np.diff(at[order], prepend=-1))]
    best, other = np.zeros(n), np.full(n, -1, np.int64)
    best[at[first]], other[at[first]] = value[first], of_label[first]
    for_other = label[cols] == other[rows]
    witness = _strongest(rows[for_other], cols[for_other], p[for_other], n)
    return _Votes(own, best, other, np.asarray(table.sum(axis=1)).ravel(), witness)


def _strongest(rows, cols, p, n):
    """Return the neighbour with the highest p of each instance, (n,) int64; -1 without an edge."""
    order = np.lexsort((cols, -p, rows))
    first = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
    out = np.full(n, -1, np.int64)
    out[rows[first]] = cols[first]
    return out


def _contradiction(votes: _Votes, label, sizes):
    """Return s (n,) float64; 0 for instances without votes for another label."""
    share = np.where((votes.label >= 0) & (label >= 0), (votes.best + 1) / (votes.own + votes.best + 2), 0.0)
    against = np.flatnonzero(share > LEAST)
    keys = label[against] * len(sizes) + votes.label[against]
    _, which, together = np.unique(keys, return_inverse=True, return_counts=True)
    share[against] *= 1 - (together[which] - 1) / np.maximum(sizes[label[against]] - 1, 1)
    return share


def _expected_wrong(rows, cols, p, label) -> tuple[float, float]:
    """Return R and H. R is at least 1/2, so that the order of the labels stays if the edges explain everything."""
    n = len(label)
    count = np.maximum(np.bincount(rows, minlength=n), 1)
    apart = (np.bincount(rows, label[rows] != label[cols], n) / count).sum()
    doubt = (np.bincount(rows, 1 - p, n) / count).sum()
    return max(float(apart - doubt) / 2, 0.5), float(doubt) / 2


def _probability(votes: _Votes, wrong, misplaced):
    density = _FEW * (1 - votes.own / np.maximum(votes.own + votes.best, 1e-12)) ** (_FEW - 1)
    return wrong * density / np.maximum(wrong * density + misplaced * (density / 2 + 1), 1e-12)


def _outlier_scores(total, label):
    """Return 1 - v_i / median (n,); 0 in labels of fewer than three instances or whose median is 0."""
    known = np.flatnonzero(label >= 0)
    order = known[np.lexsort((total[known], label[known]))]
    sizes = np.bincount(label[known])
    starts = np.cumsum(sizes) - sizes
    there = sizes > 2
    median = np.zeros(len(sizes))
    low, high = starts[there] + (sizes[there] - 1) // 2, starts[there] + sizes[there] // 2
    median[there] = (total[order[low]] + total[order[high]]) / 2
    expected = np.append(median, 0)[label]
    return np.where(expected > 0, 1 - total / np.where(expected > 0, expected, 1), 0.0)


def _same_identities(rows, cols, p, label, sizes) -> _Found:
    one, two = label[rows], label[cols]
    inside = np.bincount(one[one == two], p[one == two], len(sizes)) / np.maximum(sizes * (sizes - 1.0), 1)
    between = np.flatnonzero(one < two)  # each edge has two entries; one of them
    between = between[np.lexsort((cols[between], rows[between], -p[between], two[between], one[between]))]
    keys = one[between] * len(sizes) + two[between]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    best = between[starts]  # the strongest edge of each pair of labels
    a, b = one[best], two[best]
    mass = np.add.reduceat(p[between], starts) if len(starts) else np.empty(0)
    share = _density_ratio(mass / (sizes[a] * sizes[b]), inside[a], inside[b])
    score = share * mass / np.maximum(np.diff(starts, append=len(between)), 1)
    keep = score > LEAST
    best, a, b = best[keep], a[keep], b[keep]
    kind = np.full(len(best), KINDS.index("one identity"))
    return kind, score[keep], rows[best], cols[best], a, b, np.minimum(sizes[a], sizes[b])


def _density_ratio(between, a, b):
    """Return min(1, between / mean of a and b); a density of 0 inside is left out of the mean."""
    mean = (a + b) / np.maximum((a > 0) + 1.0 * (b > 0), 1)
    return np.minimum(between / np.where(mean > 0, mean, 1), 1)


def _divided_identities(rows, cols, p, label, clusters) -> _Found:
    there = np.flatnonzero((label >= 0) & (clusters >= 0))
    keys, piece_of, sizes = np.unique(
        clusters[there] * (label.max(initial=0) + 1) + label[there], return_inverse=True, return_counts=True
    )
    cluster, name = np.divmod(keys, label.max(initial=0) + 1)
    order = np.lexsort((name, -sizes, cluster))
    first = order[np.flatnonzero(np.diff(cluster[order], prepend=-1))]  # the most frequent label of each cluster
    ranked = first[np.lexsort((cluster[first], -sizes[first], name[first]))]
    starts = np.flatnonzero(np.diff(name[ranked], prepend=-1))
    starts = starts[np.diff(starts, append=len(ranked)) > 1]
    large, small = ranked[starts], ranked[starts + 1]
    piece = np.full(len(label), -1, np.int64)
    piece[there] = piece_of
    x, y = piece[rows], piece[cols]
    same = (x == y) & (x >= 0)
    pairs = np.maximum(sizes * (sizes - 1.0), 1)
    inside = np.bincount(x[same], p[same], len(sizes)) / pairs
    partner = np.full(len(sizes) + 1, -2, np.int64)
    partner[large] = small
    across = partner[x] == y
    between = np.bincount(x[across], p[across], len(sizes))[large] / (sizes[large] * sizes[small])
    score = (1 - _density_ratio(between, inside[large], inside[small])) * (1 - 1 / sizes[small])
    keep = score > LEAST
    large, small = large[keep], small[keep]
    typical = np.bincount(rows[same], p[same], len(label))
    best = there[np.lexsort((there, -typical[there], piece_of))]  # most typical first, piece by piece
    begin = np.cumsum(sizes) - sizes
    kind = np.full(len(large), KINDS.index("two identities"))
    return kind, score[keep], best[begin[large]], best[begin[small]], name[large], name[small], sizes[small]


def _near_duplicates(pairs: Pairs, label, features: Features) -> _Found:
    entries = np.flatnonzero(pairs.rows < pairs.cols)
    a, b = pairs.rows[entries].astype(np.int64), pairs.cols[entries].astype(np.int64)
    distance = np.empty(len(a))
    for at in range(0, len(a), _BLOCK):
        part = slice(at, at + _BLOCK)
        distance[part] = 1 - np.einsum("ij,ij->i", features.rows(a[part]), features.rows(b[part]))
    distance = np.maximum(np.nan_to_num(distance, nan=2), 0)
    nearest = np.full(pairs.num_nodes, np.inf)
    np.minimum.at(nearest, a, distance)
    np.minimum.at(nearest, b, distance)
    nearest = nearest[np.isfinite(nearest)]
    limit = max(NEAR * float(np.median(nearest)), _ROUNDING) if len(nearest) else 0
    near = np.flatnonzero(distance < limit)
    kind = np.full(len(near), KINDS.index("near-duplicate"))
    a, b = a[near], b[near]
    return kind, 1 - distance[near] / limit, a, b, label[a], label[b], np.ones_like(a)
