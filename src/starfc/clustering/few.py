"""Choose the scorers and the length of the neighbour lists of a set of few rows.

The packaged model was trained on sets of at least 200 rows, with lists of 79 neighbours. In smaller sets such lists
hold most of the rows. Then nearly all pairs of rows have many neighbours in common, and p is often too high: strangers
become one cluster. There are two remedies, and none is the better one for all sets:

* Shorter lists. But lists that are shorter than the identities split them.
* Other weights, trained on sets of 40 to 240 rows (``pretrained/few``). They are the best ones for identities of few
  rows, but they see less in a set than the others, and lose large identities of a weak embedding. They are tried on
  sets of up to 480 rows.

Therefore the set is clustered in each of these ways, and the one with the highest expected F stays
(:mod:`starfc.clustering.choice`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from starfc.clustering.pipeline import Clustering
from starfc.data.dataset import Features
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import FEW_ROWS, PRETRAINED, Model, load_model

log = logging.getLogger("starfc")

_LONG, _FEW = 3, 6  # shorter lists are tried below 3 k rows, and the weights for few rows below 6 k
_SHARES = (1, 2, 3, 4, 6)  # lists of all rows, of a half, a third, a fourth and a sixth of them are tried
_SHORTEST = 4  # entries

#: A model, and the number of entries of each neighbour list, the row itself included.
Way = tuple[Model, int]


def whole_from(k: int) -> int:
    """Return the number of rows below which a set has few rows, for lists of k entries."""
    return _FEW * k


def lengths(n: int, k: int) -> list[int]:
    """Return the lengths that are tried for n rows if at most k entries are allowed, the longest first."""
    if n >= _LONG * k:
        return [k]
    return sorted({min(k, n, max(_SHORTEST, n // share)) for share in _SHARES}, reverse=True)


def ways(n: int, k: int, model: Model) -> list[Way]:
    """Return the ways that are tried for few rows, n: ``model`` with several lengths, and the weights for few rows.

    These weights belong to the packaged model. With other models, only the length is chosen.
    """
    found: list[Way] = [(model, length) for length in lengths(n, k)]
    if model.folder is not None and model.folder.resolve() == PRETRAINED.resolve():
        found.append((load_model(FEW_ROWS), min(k, n)))
    return found


def best_way(
    features: Features,
    tried: Sequence[Way],
    search: Callable[[Features, int], KnnGraph],
    steps: Callable[[Model, KnnGraph], Clustering],
) -> Way:
    """Return the way in which the clusters of a set have the highest expected F; of equally good ones, the first.

    Parameters
    ----------
    features : Features
        The rows.
    tried : sequence of (Model, int)
        The result of :func:`ways`.
    search : function (features, k) -> KnnGraph
    steps : function (Model, KnnGraph) -> Clustering
        Clusters the rows. The expected F of a result without an estimate counts as 0.
    """
    expected = []
    for model, length in tried:
        found = steps(model, search(features, length)).estimate
        expected.append(0.0 if found is None else found.fscore)
        name = "" if model.folder is None else model.folder.name
        log.info("weights %r, lists of %d neighbours: expected F %.2f", name, length - 1, 100 * expected[-1])
    return tried[expected.index(max(expected))]
