"""Compare rows with candidates on a device: the products and the selection of an approximate search, in torch.

The groups of rows and their candidates are those of the search on the processor (:class:`starfc.graph.cells.Offers`). A
group is cut into tiles of 64 rows and 128 candidates, so that thousands of them are one batched product.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features
from starfc.graph.cells import Members, Offers
from starfc.graph.device_pools import DevicePools
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.runtime.device import block_rows, retry_smaller
from starfc.runtime.products import product_dtype
from starfc.runtime.simd import LANES

_ROWS, _NAMES = 64, 128  # size of a tile
_TILES = 4096  # maximum number of tiles in a batch
_ENTRY_BYTES = 80  # what an entry of a tile takes at most, with all that is computed from it


@dataclass(frozen=True)
class DeviceMembers(Members):
    """All rows of a set as a search on a device reads them.

    Attributes
    ----------
    device : torch device
        Where products are made.
    held : bool
        Whether ``vectors`` are there. Otherwise they are on the host, and each batch gets those that it needs.
    lock : Lock
        Held by the thread that uses the device, so that the batch of one thread at a time takes memory there.
    """

    device: torch.device
    held: bool
    lock: Lock
    blocks: ClassVar[int] = 32

    @classmethod
    def on(cls, device: torch.device, features: Features, names: NDArray[np.integer]) -> DeviceMembers:
        """Return the rows in the order ``names``, on the device if they take at most half of the room there."""
        vectors = cls.rounded(features, names, product_dtype(device))

        def moved(allowed: int) -> tuple[Tensor, bool]:
            held = vectors.nbytes <= allowed // 2
            return (vectors.to(device) if held else vectors), held

        there, held = retry_smaller(moved, device)
        return cls(there, names, device, held, Lock())

    def at(self, places: slice | NDArray[np.integer]) -> Tensor:
        return super().at(places) if self.held else super().at(places).to(self.device)

    def pools(self, count: int, lists: KnnGraph | None, wanted: int, keep: int) -> DevicePools:
        dtype, id_type = self.vectors.dtype, id_dtype(len(self))
        keep += LANES  # pools of the processor also hold up to 64 more, until they are cut
        if lists is None:
            return DevicePools.empty(count, keep, dtype, id_type, self.device)
        return DevicePools.of_lists(lists, wanted, keep, dtype, self.device)

    def offer(self, pools: DevicePools, offers: Offers, start: int, known: NDArray[np.integer] | None) -> None:
        """Do the same as :meth:`starfc.graph.cells.Members.offer`, tile by tile."""
        tiles, done = _tiles(offers), 0
        tile_bytes = (_ROWS + _NAMES) * self.vectors.shape[1] * self.vectors.itemsize + _ROWS * _NAMES * _ENTRY_BYTES
        with self.lock:
            batches = _Batches(self, pools, offers, start, known)
            while done < len(tiles):

                def reached(allowed: int, done: int = done) -> tuple[int, tuple[Tensor, Tensor, Tensor]]:
                    count = block_rows(allowed // 2, tile_bytes, _TILES)
                    return count, batches.reached(tiles[done : done + count])

                count, found = retry_smaller(reached, self.device)
                pools.offer(*found)
                done += count

    def gather(self, places: Tensor) -> Tensor:
        """Return the vectors at places (...) that are on the device, (..., d)."""
        if self.held:
            return self.vectors[places]
        every, at = torch.unique(places, return_inverse=True)
        return self.vectors[every.cpu()].to(self.device)[at]


class _Batches:
    """The products of batches of tiles, and the candidates among them."""

    def __init__(
        self,
        members: DeviceMembers,
        pools: DevicePools,
        offers: Offers,
        start: int,
        known: NDArray[np.integer] | None,
    ) -> None:
        self.members, self.pools, self.start = members, pools, start
        self.rows, self.row_ends, self.names, self.name_ends = (
            torch.from_numpy(np.ascontiguousarray(x)).to(members.device)
            for x in (offers.rows, offers.row_starts[1:], offers.names, offers.name_starts[1:])
        )
        mine = np.unique(offers.rows)
        self.mine = torch.from_numpy(mine).to(members.device)
        self.known: tuple[Tensor, ...] = ()
        if known is not None:
            self.known = torch.from_numpy(np.ascontiguousarray(known[mine].T)).to(members.device).unbind()

    def reached(self, tiles: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates above the floors of their rows: pools (h,), sorted, ids (h,) and products (h,)."""
        group, first_row, first_name = torch.from_numpy(tiles).to(self.members.device).T
        rows, of_rows = _spread(self.rows, first_row, self.row_ends[group], _ROWS)
        names, of_names = _spread(self.names, first_name, self.name_ends[group], _NAMES)
        left, right = (self.members.gather(places) for places in (self.start + rows, names))
        products = torch.bmm(left, right.mT)
        hit = products > self.pools.floor[rows][:, :, None]
        hit &= of_rows[:, :, None] & of_names[:, None, :]
        tile, r, c = torch.nonzero(hit, as_tuple=True)
        row, name, value = rows[tile, r], names[tile, c], products[tile, r, c]
        new = torch.ones(len(row), dtype=torch.bool, device=row.device)
        place = torch.searchsorted(self.mine, row)
        for column in self.known:  # one at a time, so that no array has the size candidates x k
            new &= column[place] != name
        row, name, value = row[new], name[new], value[new]
        order = row.argsort(stable=True)
        return row[order], name[order], value[order]


def _spread(values: Tensor, first: Tensor, ends: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return ``values[first : first + width]`` of each tile, (t, width), and which of them are before its end.

    The others are the tile's first value.
    """
    at = first[:, None] + torch.arange(width, device=first.device)
    inside = at < ends[:, None]
    return values[torch.where(inside, at, first[:, None])], inside


def _tiles(offers: Offers) -> NDArray[np.int64]:
    """Return the tiles (t, 3) of all groups: the group, and the positions of its first row and candidate."""
    down, across = (-(-np.diff(s) // size) for s, size in ((offers.row_starts, _ROWS), (offers.name_starts, _NAMES)))
    counts = down * across
    group = np.repeat(np.arange(len(counts)), counts)
    at = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, name = at // across[group], at % across[group]
    firsts = offers.row_starts[group] + _ROWS * row, offers.name_starts[group] + _NAMES * name
    return np.stack([group, *firsts], axis=1).astype(np.int64)
