"""Choose the scorers and the length of the neighbour lists of a set of few rows.

In a set of few rows, lists of 79 neighbours hold most of the rows. Then nearly all pairs of rows have many neighbours
in common, and p can be too high: strangers become one cluster. There are two remedies, and neither is the better one
for all sets:

* Shorter lists. But lists that are shorter than the identities split them.
* Other weights, trained on sets of 40 to 240 rows (``pretrained/few``). They are the best ones for identities of few
  rows, but they see less in a set than the others, and lose large identities of a weak embedding. They belong to the
  packaged model, and are tried on sets of fewer than 480 rows.

Therefore the set is clustered in each of these ways, and the one with the highest expected F stays
(:mod:`starfc.clustering.choice`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from starfc.clustering.pipeline import Clustering
from starfc.data.dataset import Features
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import FEW_ROWS, PRETRAINED, Model, load_model
from starfc.models.contextual import ContextualModel

log = logging.getLogger("starfc")

_LONG, _FEW = 3, 6  # with lists of k entries, shorter ones are tried below 3 k rows, and other weights below 6 k
_SHARES = (1, 2, 3, 4, 6)  # lists of all rows, of a half, a third, a fourth and a sixth of them are tried
_SHORTEST = 4  # entries

#: A model, and the number of entries of each neighbour list, the row itself included.
Way = tuple[Model, int]


def whole_from(k: int, model: ContextualModel) -> int:
    """Return the number of rows from which a set is clustered in one way, with lists of at most k entries."""
    return (_FEW if _is_from(PRETRAINED, model) else _LONG) * min(k, model.columns + 1)


def lengths(n: int, k: int, used: int) -> list[int]:
    """Return the lengths that are tried for n rows, the longest first.

    Lists have at most k entries, of which the model uses ``used``. So no length between the two is tried.
    """
    longest = min(k, used)
    shorter = {max(_SHORTEST, n // share) for share in _SHARES} if n < _LONG * longest else set()
    return [min(k, n), *sorted((length for length in shorter if length < min(longest, n)), reverse=True)]


def ways(n: int, k: int, model: ContextualModel) -> list[Way]:
    """Return the ways that are tried for few rows, n: ``model`` with several lengths, and the weights for few rows."""
    found: list[Way] = [(model, length) for length in lengths(n, k, model.columns + 1)]
    return [*found, (load_model(FEW_ROWS), min(k, n))] if _is_from(PRETRAINED, model) else found


def lists_in_training(n: int, model: ContextualModel) -> int:
    """Return the number of neighbours in the lists of n rows in the training of a model.

    The kinds of the training have from 40 rows on, and their lists were as long as the kinds allow.
    """
    return min(model.columns, n - 1)


def _is_from(folder: Path, model: Model) -> bool:
    return model.folder is not None and model.folder.resolve() == folder.resolve()


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
        log.debug("weights %r, lists of %d neighbours: expected F %.2f", name, length - 1, 100 * expected[-1])
    return tried[expected.index(max(expected))]
