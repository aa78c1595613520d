"""Candidate pools on a device: the best entries of each row from a stream of matrix products, in torch.

They do what :class:`starfc.graph.pools.Pools` does with compiled kernels: a product is a candidate of its row if it is
above the row's *floor*. A GPU reads a product once to find the candidates; to sort whole rows would read it many times.
The largest of every 64 entries is compared with the floor, then the entries of the few groups that pass. Candidates are
merged into the best ``keep`` of their rows, and the floor rises to the worst of these. Of entries that are equal to the
floor, any may be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.graph.neighbours import KnnGraph
from starfc.graph.pools import Pools
from starfc.graph.rerank import ROUNDING
from starfc.runtime.simd import LANES

_GROUPS = 256  # of this many entries, one group of 64 may pass; if more do, each row's best are taken from all entries
_WIDTH = 256  # candidates of a row that are merged at a time
ENTRY_BYTES = 16  # what an entry of a product takes at most, with all that is computed from it
_BELOW_ALL = -2.0  # below each similarity


@dataclass(frozen=True)
class DevicePools:
    """The candidates of n rows on a device.

    Attributes
    ----------
    values : (n, keep) float32 or bfloat16
        The best products of each row in any order; -inf where there are fewer than ``keep``.
    ids : (n, keep) integers
        Their candidates; -1 where there are fewer.
    floor : (n,) float32 or bfloat16
        Nothing above the floor was dropped: it is the value that a new candidate must exceed.
    """

    values: Tensor
    ids: Tensor
    floor: Tensor

    @classmethod
    def empty(
        cls, n: int, keep: int, dtype: torch.dtype, id_type: type[np.integer], device: str | torch.device
    ) -> DevicePools:
        """Return empty pools for products of dtype float32 or bfloat16."""
        values = torch.full((n, keep), -torch.inf, dtype=dtype, device=device)
        ids = torch.full((n, keep), -1, dtype=torch.from_numpy(np.empty(0, id_type)).dtype, device=device)
        return cls(values, ids, torch.full((n,), -torch.inf, dtype=dtype, device=device))

    @classmethod
    def of_lists(
        cls, graph: KnnGraph, wanted: int, keep: int, dtype: torch.dtype, device: str | torch.device
    ) -> DevicePools:
        """Return pools that hold the neighbours of n lists, as :meth:`starfc.graph.pools.Pools.of_lists` does.

        If a list has the ``wanted`` number of neighbours, the floor is a little below the similarity of the last one,
        so that candidates that are equal to it pass.
        """
        pools = cls.empty(graph.num_nodes, keep, dtype, graph.ids.dtype.type, device)
        ids, sims = (torch.from_numpy(np.array(x)).to(device) for x in (graph.ids, graph.sims))
        sims = torch.where(ids < 0, -torch.inf, sims).to(dtype)
        pools.ids[:, : graph.k], pools.values[:, : graph.k] = ids, sims
        last = sims[:, wanted - 1]
        pools.floor.copy_(torch.where(last > -torch.inf, last - 2 * ROUNDING * last.abs(), last))
        return pools

    @property
    def keep(self) -> int:
        """The number of best candidates that are kept."""
        return self.values.shape[1]

    def offer_rows(self, products: Tensor, first: int, width: int) -> None:
        """Offer each row r of ``products`` (n, m) the candidates ``first + c``, c < ``width``; m is a multiple of 64.

        ``products`` is overwritten from column ``width`` on.
        """
        n, m = products.shape
        products[:, width:] = -torch.inf
        groups = products.view(n, m // LANES, LANES)
        rows, at = torch.nonzero(groups.amax(dim=2) > self.floor[:, None], as_tuple=True)
        if len(rows) * _GROUPS > n * m:
            best, ids = products.topk(min(self.keep, width), sorted=False)
            self._keep_best(slice(None), best, first + ids)
            return
        entries = groups[rows, at]
        hit, lane = torch.nonzero(entries > self.floor[rows, None], as_tuple=True)
        self.offer(rows[hit], first + at[hit] * LANES + lane, entries[hit, lane])

    def offer(self, rows: Tensor, ids: Tensor, values: Tensor) -> None:
        """Offer candidates (h,) ``ids`` with ``values`` to the pools ``rows``, which are sorted."""
        mine, place, counts = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
        slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[place]
        most = int(counts.max()) if len(counts) else 0
        for start in range(0, most, _WIDTH):
            width = min(most - start, _WIDTH)
            now = torch.nonzero((slot >= start) & (slot < start + width), as_tuple=True)[0]
            new_values = torch.full((len(mine), width), -torch.inf, dtype=values.dtype, device=values.device)
            new_ids = torch.full((len(mine), width), -1, dtype=self.ids.dtype, device=values.device)
            at = place[now], slot[now] - start
            new_values[at], new_ids[at] = values[now], ids[now].to(new_ids.dtype)
            self._keep_best(mine, new_values, new_ids)

    def _keep_best(self, rows: slice | Tensor, values: Tensor, ids: Tensor) -> None:
        """Merge candidates (m, c) into the pools of some rows (m,), and raise their floors."""
        both = torch.cat([self.values[rows], values], dim=1)
        names = torch.cat([self.ids[rows], ids.to(self.ids.dtype)], dim=1)
        best, at = both.topk(self.keep, sorted=False)
        self.values[rows], self.ids[rows] = best, names.gather(1, at)
        self.floor[rows] = torch.maximum(self.floor[rows], best.amin(dim=1))

    def on_host(self) -> Pools:
        """Return the candidates in host memory, with float32 values. The floor of a row that dropped none is -2."""
        values, floor = (x.float().clamp(min=_BELOW_ALL).cpu().numpy() for x in (self.values, self.floor))
        return _packed(values, self.ids.cpu().numpy(), floor)


def _packed(values: NDArray[np.float32], ids: NDArray[np.integer], floor: NDArray[np.float32]) -> Pools:
    """Return pools whose first entries are those in use."""
    there = ids >= 0
    if not there.all():
        front = np.argsort(~there, axis=1, kind="stable")
        values, ids = np.take_along_axis(values, front, axis=1), np.take_along_axis(ids, front, axis=1)
    return Pools(values, ids, there.sum(axis=1, dtype=np.int32), floor, values.shape[1])
