"""Propagation ÂF in torch, on any device, for blocks of many nodes.

Which entries the affinity graphs have is found by the compiled kernels (:class:`starfc.graph.affinity.Affinity`); the
sums over neighbours, which cost d times as much, are computed on the device. They are sums of the same float32 terms
as the kernels', in another order. The order is fixed, without atomics, so a result repeats bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features
from starfc.graph.affinity import Affinity
from starfc.graph.affinity_kernels import EQUAL, MISSING, MUTUAL
from starfc.runtime.device_rows import Holder


class DeviceAffinity:
    """The affinity graphs of a kNN graph with the features of its nodes, for a device.

    Parameters
    ----------
    affinity : Affinity
        The graphs, in main memory.
    features : Features
        F (N, d), normalised on read.
    holder : Holder
        Says which arrays are copied to the device.
    """

    def __init__(self, affinity: Affinity, features: Features, holder: Holder) -> None:
        values, scale = features.scaled
        width = int(affinity.widths[-1])
        self._holder, self._widths, self._dim = holder, affinity.widths.tolist(), features.dim
        self._indptr = affinity.indptr
        self._values = holder.rows(values.view(np.float16) if values.dtype == np.uint16 else values)
        self._scale = holder.vector(scale)
        self._ids, self._sims = holder.rows(affinity.graph.ids[:, :width]), holder.rows(affinity.graph.sims[:, :width])
        self._kinds = holder.rows(affinity.kinds)
        self._sources, self._weights = holder.rows(affinity.sources), holder.rows(affinity.weights)

    @property
    def device(self) -> torch.device:
        """The device."""
        return self._holder.device

    @property
    def node_bytes(self) -> int:
        """The memory that each node of a block takes.

        A node gathers the features of about 1.5 w neighbours, as they are stored and as float32.
        """
        width = self._widths[-1]
        return width * (15 * self._dim + 64 + 8 * len(self._widths))

    def rows(self, rows: NDArray[np.integer]) -> Tensor:
        """Return F of some nodes, (m, d) float32."""
        return self._features(self._holder.index(rows))

    def aggregate(self, rows: NDArray[np.integer]) -> Tensor:
        """Return some rows (m,) of ÂF = D^-1 A F of all scales, (S, m, d) float32."""
        nodes = self._holder.index(rows)
        own, into = self._own(nodes), self._incoming(rows)
        total = own[0] + into[0] + self._features(nodes)
        return total / (1 + own[1] + into[1])[:, :, None]

    def _features(self, nodes: Tensor) -> Tensor:
        return self._values.of(nodes).float() * self._scale[nodes, None]

    def _own(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the nodes' own lists: Σ a_ij f_j (S, m, d), and Σ a_ij (S, m)."""
        ids, sims, kinds = self._ids.of(nodes).long(), self._sims.of(nodes), self._kinds.of(nodes).int()
        mutual = kinds >= MUTUAL
        reverse = torch.where(mutual, torch.div(kinds - MUTUAL, 3, rounding_mode="floor"), len(self._widths))
        back = sims.clone()  # s_ji of mutual entries
        at = (mutual & ((kinds - MUTUAL) % 3 != EQUAL)).nonzero(as_tuple=True)
        found = self._ids.of(ids[at]) == nodes[at[0], None]
        back[at] = self._sims.of(ids[at]).gather(1, found.byte().argmax(dim=1, keepdim=True))[:, 0]
        column = torch.arange(ids.shape[1], device=ids.device)
        weights = []
        for scale, width in enumerate(self._widths):
            forth = torch.where((kinds != MISSING) & (column < width), sims, 0)
            weights.append(torch.maximum(forth, torch.where(reverse <= scale, back, 0)))
        by_scale = torch.stack(weights, dim=1)  # (m, S, w)
        near = self._features(ids.clamp_min(0).flatten()).view(*ids.shape, -1)
        return (by_scale @ near).transpose(0, 1), by_scale.sum(dim=2).T

    def _incoming(self, rows: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Return the sums over the one-sided entries of other lists: Σ a_ij f_j (S, m, d), and Σ a_ij (S, m)."""
        scales, m = len(self._widths), len(rows)
        slots = rows.astype(np.int64)[:, None] * scales + np.arange(scales)
        starts, counts = self._indptr[slots].ravel(), (self._indptr[slots + 1] - self._indptr[slots]).ravel()
        lengths = self._holder.index(counts)
        before = self._holder.index(starts - np.cumsum(counts) + counts)
        entries = torch.repeat_interleave(before, lengths) + torch.arange(int(counts.sum()), device=self.device)
        weights = self._weights.of(entries)
        near = self._features(self._sources.of(entries).long()) * weights[:, None]
        # an entry of a scale is in all larger ones too
        sums = torch.segment_reduce(near, "sum", lengths=lengths, unsafe=True).view(m, scales, -1).cumsum(dim=1)
        degrees = torch.segment_reduce(weights, "sum", lengths=lengths, unsafe=True).view(m, scales).cumsum(dim=1)
        return sums.transpose(0, 1), degrees.T
