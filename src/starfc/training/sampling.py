"""Sample subgraphs that preserve the structure of the graph (SPSS), STAR-FC (CVPR 2021) section 3.3.

A training subgraph is not a part cut out of the large graph. It has the identities around a seed identity:

1. Take the `nearest` identities whose centres are most similar to that of the seed (the hard negatives).
2. Cluster randomness: draw `identities` of them without replacement.
3. Node randomness: of each, draw a share `instance_share` of its instances, at least one.
4. Build a new kNN graph of these instances, so that the subgraph has the same structure as a whole graph.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.graph.affinity import propagate, propagation_matrix
from starfc.graph.knn import exact_knn


def identity_centres(features: NDArray[np.float32], labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the normalised mean (C, d) of every identity's normalised features (N, d), for labels (N,) in 0..C-1."""
    centres = np.zeros((int(labels.max()) + 1, features.shape[1]), np.float32)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    centres[labels[order[starts]]] = np.add.reduceat(features[order], starts, axis=0)
    return centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)


class SubgraphSampler:
    """A sampler that draws the instances of structure-preserved subgraphs.

    Parameters
    ----------
    features : (N, d) float32
        L2-normalised features.
    labels : (N,) integers
        Identities, 0..C-1.
    nearest, identities : int
        Number of nearest identities, and number of identities drawn from them. Both are at most C.
    instance_share : float in (0, 1]
        Share of an identity's instances that is drawn.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.integer],
        *,
        nearest: int,
        identities: int,
        instance_share: float,
    ) -> None:
        self.centres = identity_centres(features, labels)
        self.nearest = min(nearest, len(self.centres))
        self.identities = min(identities, self.nearest)
        self.instance_share = instance_share
        self._members = np.argsort(labels, kind="stable")
        self._starts = np.searchsorted(labels[self._members], np.arange(len(self.centres) + 1))

    @property
    def num_identities(self) -> int:
        return len(self.centres)

    def sample(self, seed_identity: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw the instances of one subgraph. Those of an identity are consecutive and sorted.

        Neighbours mostly have the same identity. In consecutive rows they are in the cache together, which speeds up
        kernels that go from neighbour to neighbour.
        """
        similarity = self.centres @ self.centres[seed_identity]
        near = np.argsort(-similarity, kind="stable")[: self.nearest]
        chosen = rng.choice(near, self.identities, replace=False)
        kept = []
        for identity in chosen:
            members = self._members[self._starts[identity] : self._starts[identity + 1]]
            count = max(1, int(self.instance_share * len(members)))
            kept.append(np.sort(rng.choice(members, count, replace=False)))
        return np.concatenate(kept)


@dataclass(frozen=True)
class Subgraph:
    """A training graph of n nodes.

    Attributes
    ----------
    features, aggregated : (n, d)
        F and ÂF.
    rows, cols : (E,)
        Ends of the edges: every stored entry of Â.
    targets : (E,)
        1 if both ends have the same label, else 0.
    """

    features: Tensor
    aggregated: Tensor
    rows: Tensor
    cols: Tensor
    targets: Tensor

    @property
    def num_nodes(self) -> int:
        return self.features.shape[0]

    @property
    def num_edges(self) -> int:
        return self.rows.numel()

    def to(self, device: torch.device) -> Subgraph:
        """Return the same graph on another device. From pinned memory it is copied while the CPU goes on."""
        return Subgraph(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pinned(self) -> Subgraph:
        """Return the same graph in memory from which a GPU copies by itself."""
        return Subgraph(*(getattr(self, field.name).pin_memory() for field in fields(self)))


def build_subgraph(features: NDArray[np.float32], labels: NDArray[np.integer], k: int, th_sim: float) -> Subgraph:
    """Build the kNN graph, Â and training edges of some instances, in memory.

    Edges are all stored entries of Â, self loops and symmetrised edges included. The target of an edge is 1 if both
    ends have the same label. Rows are sorted. `k` is at most the number of nodes.
    """
    adjacency = propagation_matrix(exact_knn(features, min(k, len(features))), th_sim)
    rows = np.repeat(np.arange(len(features), dtype=np.int32), np.diff(adjacency.indptr))
    cols = adjacency.indices
    return Subgraph(
        features=torch.from_numpy(features),
        aggregated=torch.from_numpy(propagate(adjacency, features)),
        rows=torch.from_numpy(rows),
        cols=torch.from_numpy(cols),
        targets=torch.from_numpy((labels[rows] == labels[cols]).astype(np.float32)),
    )


def random_rotation(dim: int, strength: float, generator: torch.Generator) -> Tensor:
    """Draw a random rotation R = exp(A - Aᵀ), (d, d), with A_ij normal of standard deviation strength / sqrt(d).

    Multiplying F and ÂF with the same R keeps every similarity and changes every direction. This is a regulariser: the
    head cannot learn the directions of the training identities.
    """
    noise = torch.randn(dim, dim, generator=generator) * (strength / dim**0.5)
    return torch.linalg.matrix_exp(noise - noise.T)


def patches(num_edges: int, count: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Shuffle the edges and cut them into `count` patches. Each patch is sorted, for cache locality in the kernels."""
    return [np.sort(part) for part in np.array_split(rng.permutation(num_edges), min(count, num_edges))]
