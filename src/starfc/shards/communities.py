"""The stages that find communities, on shards. A task takes a pack of connected components.

======= ================================================================================================================
modules the modules of each component, at one of the τ1
joined  large components once more, thoroughly, and communities that belong to one identity joined, at the chosen τ1
======= ================================================================================================================

Components do not depend on each other, so communities are those of the whole set, whatever the packs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.joining import join_communities
from starfc.clustering.map_equation import LARGE
from starfc.clustering.partition import infomap
from starfc.graph.edges import EdgeList
from starfc.shards.edges import View
from starfc.shards.places import Some
from starfc.shards.run import ShardRun


@dataclass(frozen=True)
class Pack:
    """Some connected components.

    Attributes
    ----------
    rows : Some
        The rows of the components.
    numbers : (m,) integers
        The number of each row, component by component.
    edges : EdgeList
        The edges between these rows.
    pieces : (m,) integers
        The smallest row of each row's component.
    largest : int
        Number of rows of the largest component.
    """

    rows: Some
    numbers: NDArray[np.integer]
    edges: EdgeList
    pieces: NDArray[np.integer]
    largest: int

    @classmethod
    def of(cls, run: ShardRun, stage: str, index: int) -> Pack:
        """Return a pack that a stage was asked with: ``places``, component by component, and their ``sizes``."""
        places, sizes = (run.asked_array(stage, part, index) for part in ("places", "sizes"))
        rows, edges = View.of(run, stage).among(run, np.sort(places))
        numbers = rows.numbers(places)
        pieces = np.empty_like(numbers)
        starts = np.cumsum(sizes) - sizes
        pieces[numbers] = np.repeat(np.minimum.reduceat(numbers, starts), sizes)
        return cls(rows, numbers, edges, pieces, int(sizes.max()))

    def modules(self, tau1: float, seed: int, *, quick: bool) -> NDArray[np.integer]:
        """Return the modules (m,) of the components (:func:`starfc.clustering.partition.infomap`)."""
        kept = self.edges.scores > tau1
        return infomap(self.edges, seed, self.pieces, kept=kept, quick=quick, names=self.rows.names)

    def named(self, members: NDArray[np.integer]) -> dict[str, NDArray]:
        """Return communities (m,) to store: the name of each row's smallest member, component by component."""
        return {"members": self.rows.names[members][self.numbers]}


def modules(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the modules of a pack."""
    asked, pack = run.asked(stage), Pack.of(run, stage, index)
    return pack.named(pack.modules(asked["tau1"][index], asked["seed"], quick=asked["quick"]))


def joined(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the communities of a pack (:func:`starfc.clustering.choice.finished`)."""
    asked, pack = run.asked(stage), Pack.of(run, stage, index)
    if asked["quick"] and pack.largest > LARGE:
        members = pack.modules(asked["tau1"], asked["seed"], quick=False)
    else:
        members = np.empty_like(pack.pieces)
        found = run.asked_array(stage, "members", index)
        members[pack.numbers] = np.searchsorted(pack.rows.names, found)
    return pack.named(join_communities(pack.edges, members, asked["tau1"]))
