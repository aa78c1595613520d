"""Compute the structural features of :mod:`starfc.graph.structure` in torch, on any device, for blocks of many nodes.

The compiled kernels process one pair at a time, in the caches of a core. Here each step is one operation on all m pairs
of a block, and each pair is a row of k entries, one for each neighbour b of j. The common neighbours of i and j are
found by binary search of j's neighbours in i's list, sorted by id once per node.

Agreement with the kernels: counts, ranks, table look-ups and comparisons are the same numbers. Sums of k float32 are in
another order. So a feature differs by at most about 1e-5 (relative to max(1, |feature|)). A logit at the edge of two
codes (multiples of 1/16) can get the other code in the first round; the second round then sees a p that differs by at
most 1/64 there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.graph.structure import NEP_TABLE, PREFIXES, PROBABILITY, CandidateEdges, Structure
from starfc.graph.structure_kernels import LOGIT_STEP, NO_LOGIT, SIM_STEPS
from starfc.runtime.device_rows import DeviceRows, Holder
from starfc.runtime.products import slices

_DEGREE_BLOCK = 1 << 16


@dataclass(frozen=True)
class DeviceEdges:
    """The m candidate edges of n nodes, as tensors on a device (:class:`starfc.graph.structure.CandidateEdges`).

    Attributes
    ----------
    nodes : (n,) int64
        The nodes.
    local, slots : (m,) int64
        Position of each edge's first end in ``nodes``, and of the second end in the first end's list.
    back : (m,) int64
        Position of the first end in the second end's list; -1 if it is not in the list.
    ends : (m,) int64
        The second end of each edge.
    features : (m, f) float32
        The structural features.
    """

    nodes: Tensor
    local: Tensor
    slots: Tensor
    back: Tensor
    ends: Tensor
    features: Tensor

    @property
    def rows(self) -> Tensor:
        """The first end of each edge, (m,)."""
        return self.nodes[self.local]

    def on_host(self) -> CandidateEdges:
        """Return the same edges as arrays in main memory."""
        nodes, local, features = (x.cpu().numpy() for x in (self.nodes, self.local.int(), self.features))
        slots, back = (x.cpu().numpy() for x in (self.slots.short(), self.back.short()))
        return CandidateEdges(nodes, local, slots, back, features)


@dataclass(frozen=True)
class DeviceStructure:
    """A :class:`~starfc.graph.structure.Structure` of a whole graph, which computes on a device.

    Parameters
    ----------
    structure : Structure
        The lists, in main memory. All nodes can be ends (no ``within``).
    holder : Holder
        Says which arrays are copied to the device.
    """

    structure: Structure
    holder: Holder
    ids: DeviceRows = field(init=False, repr=False)
    sims: DeviceRows = field(init=False, repr=False)
    smoothed: DeviceRows | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known, hold = self.structure, self.holder.rows
        assert known.within is None  # the nodes of the smoothed features are those of the graph
        object.__setattr__(self, "ids", hold(known.ids))
        object.__setattr__(self, "sims", hold(known.sims))
        smoothed = None if known.nodes is None or not known.nodes.shape[1] else hold(known.nodes)
        object.__setattr__(self, "smoothed", smoothed)

    @property
    def node_bytes(self) -> int:
        """The memory that each node of a block takes.

        Each of up to c candidates of a node needs the list of its other end (8 bytes per entry with its comparison).
        Those that the node owns also need about 15 arrays of k float32, and smoothed features of d.
        """
        k, width = self.structure.ids.shape[1], 0 if self.structure.nodes is None else self.structure.nodes.shape[1]
        candidates = min(self.structure.candidates, k)
        return candidates * (8 * k + 60 * k + 9 * width)

    def first_round(self, rows: NDArray[np.integer], every: bool = False, since: int = 0) -> DeviceEdges:
        """Return what :meth:`starfc.graph.structure.Structure.first_round` returns, on the device."""
        return self._pairs(rows, every, since, None)

    def second_round(self, rows: NDArray[np.integer], logits: DeviceLogits, since: int = 0) -> DeviceEdges:
        """Return what :meth:`starfc.graph.structure.Structure.second_round` returns, on the device."""
        return self._pairs(rows, False, since, logits)

    @cached_property
    def _norms(self) -> Tensor:
        return self.holder.vector(self.structure.norms)

    @cached_property
    def _weights(self) -> Tensor:
        return self.holder.vector(NEP_TABLE)

    @cached_property
    def _strangers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Median and spread of each node's strangers, (N,) each, and the logarithms of the in-degrees, (2, N)."""
        known, degrees = self.structure.strangers, self.structure.in_degree_logs
        assert known is not None
        assert degrees is not None
        median, spread, logs = (self.holder.vector(x) for x in (known.node_median, known.node_spread, degrees))
        return median, spread, logs

    def _scaled(self, sims: Tensor) -> Tensor:
        """Return similarities on the common scale (:mod:`starfc.graph.strangers`), in place."""
        centre = float(self.structure.centre)
        return sims.sub_(centre).div_(float(np.float32(1) - np.float32(centre))).clamp_(0, 1)

    def _pairs(self, rows: NDArray[np.integer], every: bool, since: int, before: DeviceLogits | None) -> DeviceEdges:
        nodes = self.holder.index(rows)
        own = self.ids.of(nodes)
        found = self._candidates(nodes, own, every, since)
        first, sims, shared = self._lists_compared(found, own)
        columns = [first]
        if self.structure.strangers is not None:
            columns.append(self._absolute(found, sims))
        if before is not None:
            columns.append(before.columns(found, shared))
        return DeviceEdges(nodes, found.local, found.slots, found.back, found.ends, torch.cat(columns, dim=1))

    def _candidates(self, nodes: Tensor, own: Tensor, every: bool, since: int) -> _Found:
        """Return the candidate edges that the nodes own, or all of them, in the order of nodes and slots."""
        most = self.structure.candidates
        ends = own[:, :most].long()
        lists = self.ids.of(ends.clamp_min(0).flatten()).view(*ends.shape, -1)  # (n, c, k)
        same = lists == nodes.to(lists.dtype)[:, None, None]
        back = torch.where(same.any(dim=2), same.byte().argmax(dim=2), -1)
        chosen = ends >= 0
        if not every:
            chosen &= (ends > nodes[:, None]) | (back < 0) | (back >= most)
        if since:
            chosen &= torch.maximum(ends, nodes[:, None]) >= since
        local, slots = chosen.nonzero(as_tuple=True)
        at = local, slots
        return _Found(nodes, local, slots, back[at], ends[at], lists[at])

    def _lists_compared(self, found: _Found, own: Tensor) -> tuple[Tensor, Tensor, _Shared]:
        """Return columns 0 to 19 (m, 20), the similarities s_ij (m,) as given, and the common neighbours."""
        local, slots, ends, lists = found.local, found.slots, found.ends, found.lists
        k = own.shape[1]
        given = self.sims.of(found.nodes)
        s_given = given[local, slots]
        own_sims, their_sims = self._scaled(given.clone()), self._scaled(self.sims.of(ends))
        s = own_sims[local, slots]

        ordered, places = own.sort(dim=1)
        ordered = ordered[local]
        at = torch.searchsorted(ordered, lists).clamp_max_(k - 1)
        listed = (ordered.gather(1, at) == lists) & (lists >= 0)
        slot = places[local].gather(1, at)  # where ``listed``: the position of j's neighbour in i's list
        depth = torch.where(listed, slot + 1, k + 1)
        depth[lists == found.rows.to(lists.dtype)[:, None]] = 0  # i itself
        reach = torch.maximum(depth, torch.arange(1, k + 1, device=depth.device))
        prefixes = [min(prefix, k) for prefix in PREFIXES]
        columns = [((reach <= t).sum(dim=1) + (slots < t)) / t for t in prefixes]
        common = (reach <= k).sum(dim=1)
        columns.append((common + 1) / k)
        shared = (common - (found.back >= 0).long()).float()  # i itself is not a common neighbour

        zero = own_sims.new_zeros(())
        mine = torch.where(listed, own_sims[local].gather(1, slot), zero)
        edge_i = torch.where(listed, self._weight(mine), zero).sum(dim=1) * self._norms[found.rows]
        edge_j = torch.where(listed, self._weight(their_sims), zero).sum(dim=1) * self._norms[ends]
        columns.append(torch.log(0.5 * (edge_i + edge_j) + 1e-4))
        least = torch.where(listed, torch.minimum(mine, their_sims), zero).sum(dim=1)
        columns.append(least / shared.clamp_min(1) - s)

        marks = [0, *(prefix - 1 for prefix in prefixes), k - 1]
        here, there = own_sims[:, marks][local], their_sims[:, marks]
        # the denser node is that with the higher similarity to its 20th neighbour, then to the first that differs
        differences = (here - there)[:, [3, 0, 1, 2, 3, 4, 5]]
        decides = (differences != 0).byte().argmax(dim=1, keepdim=True)
        denser = differences.gather(1, decides) >= 0
        profile = torch.stack([torch.where(denser, here, there), torch.where(denser, there, here)], dim=2)
        smoothed = s.new_zeros(len(s)) if self.smoothed is None else self._smoothed(found) - s
        first = torch.cat([torch.stack(columns, dim=1), profile.flatten(1) - s[:, None], smoothed[:, None]], dim=1)
        return first, s_given, _Shared(listed, slot, shared)

    def _weight(self, sims: Tensor) -> Tensor:
        """Return exp(-d^2 / σ) of similarities, from the table of the kernels."""
        return self._weights[(sims * SIM_STEPS).int()]

    def _smoothed(self, found: _Found) -> Tensor:
        """Return <X_i, X_j> of edges on the common scale, (m,)."""
        assert self.smoothed is not None
        own = self.smoothed.of(found.nodes)[found.local].float()
        centre = float(self.structure.centre)
        unit = float(np.float32(1) / (np.float32(1) - np.float32(centre)))
        return (own.mul_(self.smoothed.of(found.ends)).sum(dim=1) - centre) * unit

    def _absolute(self, found: _Found, s: Tensor) -> Tensor:
        """Return columns 20 to 30 (m, 11): similarity relative to strangers, ranks, in-degrees."""
        known, i, j = self.structure.strangers, found.rows, found.ends
        assert known is not None
        k = found.lists.shape[1]
        median, spread, degrees = self._strangers
        here, there = (s - median[i]) / spread[i], (s - median[j]) / spread[j]
        low, high = torch.minimum(here, there), torch.maximum(here, there)
        whole, most = float(np.float32(known.median)), float(np.float32(known.spread))
        base = max(whole, 0.0)
        one, other = (found.slots + 1).float(), torch.where(found.back >= 0, found.back + 1, k + 1).float()
        columns = [_quarter((s - whole) / most), _quarter(low), _quarter(high), (s - base) / (1 - base)]
        columns += [torch.minimum(one, other).log(), torch.maximum(one, other).log()]
        for of in degrees:
            columns += [torch.minimum(of[i], of[j]), torch.maximum(of[i], of[j])]
        log_nodes = self.structure.log_num_nodes
        columns.append(((log_nodes + _log_tail(low.double())).clamp(-40, 10) / 5).float())
        return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class _Found:
    """Candidate edges, with the lists (m, k) of their second ends."""

    nodes: Tensor
    local: Tensor
    slots: Tensor
    back: Tensor
    ends: Tensor
    lists: Tensor

    @property
    def rows(self) -> Tensor:
        return self.nodes[self.local]


@dataclass(frozen=True)
class _Shared:
    """The common neighbours of edges.

    ``listed`` (m, k) says which neighbours of j are in i's list, ``slot`` (m, k) at which position, and ``number`` (m,)
    how many there are without i.
    """

    listed: Tensor
    slot: Tensor
    number: Tensor


class DeviceLogits:
    """The logits of all candidate edges (:class:`starfc.graph.structure.EdgeLogits`), for a device.

    ``degrees`` (N,) float32 are Σ_m p_im, once :meth:`sum_degrees` has computed them.
    """

    def __init__(self, structure: DeviceStructure) -> None:
        self._holder, self._candidates = structure.holder, structure.structure.candidates
        shape = structure.structure.ids.shape
        self._codes = self._holder.rows(np.broadcast_to(np.int8(NO_LOGIT), shape), written=True)
        self._probability = self._holder.vector(PROBABILITY)
        self.degrees = self._holder.vector(np.zeros(shape[0], np.float32))

    @property
    def codes(self) -> NDArray[np.int8]:
        """The codes, (N, k) int8, in main memory."""
        return self._codes.on_host()

    def put(self, pairs: DeviceEdges, codes: Tensor) -> None:
        """Store the codes of edges; at both ends if each end has the other among its candidates."""
        self._codes.put(pairs.rows, pairs.slots, codes)
        mutual = (pairs.back >= 0) & (pairs.back < self._candidates)
        self._codes.put(pairs.ends[mutual], pairs.back[mutual], codes[mutual])

    def sum_degrees(self, rows: NDArray[np.integer]) -> None:
        """Compute the degrees n_i = Σ_m p_im of some nodes."""
        for part in slices(len(rows), _DEGREE_BLOCK):
            some = self._holder.index(rows[part])
            self.degrees[some] = self._probabilities(self._codes.of(some)).sum(dim=1)

    def _probabilities(self, codes: Tensor) -> Tensor:
        return self._probability[codes.int() - NO_LOGIT]

    def columns(self, found: _Found, shared: _Shared) -> Tensor:
        """Return columns 20 to 29 of the second round, (m, 10)."""
        own_codes = self._codes.of(found.nodes)
        code = own_codes[found.local, found.slots]
        own = self._probabilities(own_codes)[found.local].gather(1, shared.slot)
        p, r = torch.where(shared.listed, own, own.new_zeros(())), self._probabilities(self._codes.of(found.ends))
        lower, product = torch.minimum(p, r), (p * r).sum(dim=1)
        apart = torch.where(shared.listed, (p - r).abs(), p.new_zeros(())).sum(dim=1)
        edge = self._probabilities(code)
        mutual = (found.back >= 0) & (found.back < self._candidates)
        one = self.degrees[found.rows] - edge + 0.5
        other = self.degrees[found.ends] - edge * mutual + 0.5
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        columns = [
            code.float() / LOGIT_STEP, product / low, product / high, product / (low * high).sqrt(),
            (product + 0.1).log(), low.log(), high.log(), lower.amax(dim=1), lower.sum(dim=1) / high,
            apart / (shared.number + 1),
        ]  # fmt: skip
        return torch.stack(columns, dim=1)


def _quarter(z: Tensor) -> Tensor:
    """Return z / 4, clipped to [-2, 8]."""
    return (z / 4).clamp_(-2, 8)


def _log_tail(z: Tensor) -> Tensor:
    """Return log P(Z > z) for a standard normal Z, float64; for z >= 8 by the asymptotic series, as the kernels do."""
    far = z.clamp_min(8)
    series = -0.5 * far * far - torch.log(far * (2 * np.pi) ** 0.5) - 1 / (far * far)
    return torch.where(z < 8, torch.log(0.5 * torch.erfc(z.clamp_max(8) / 2**0.5)), series)
