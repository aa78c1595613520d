"""Arrays of main memory that computations on a device read by row.

The rule, in one place: an array is held on the device if it fits into half of the device's room
(:func:`starfc.runtime.device.room`), together with those that are held already; otherwise the rows of each block are
gathered in main memory and brought there. Blocks (:func:`in_blocks`) take at most half of the room that is then left.
Vectors of N numbers are always held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.runtime import device as devices
from starfc.runtime.products import slices

R = TypeVar("R")

MOST_ROWS = 1 << 13  # rows per block; more do not make a GPU faster
_COPIED = 64 << 20  # bytes that are copied to a device at a time


class Holder:
    """Holds arrays on a device, while they fit.

    Parameters
    ----------
    device
        The device.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._left = devices.room(self.device) // 2

    def rows(self, array: NDArray, written: bool = False) -> DeviceRows:
        """Return an array (N, ...) for reading by row. Rows that are ``written`` go to a copy of it."""
        held = array.nbytes <= self._left
        if held:
            self._left -= array.nbytes
            return DeviceRows(array, self.device, on_device(array, self.device))
        return DeviceRows(array.copy() if written else array, self.device, None)

    def vector(self, array: NDArray) -> Tensor:
        """Return an array of about N numbers as a tensor on the device."""
        return on_device(array, self.device)

    def index(self, rows: NDArray[np.integer]) -> Tensor:
        """Return row numbers (n,) as an int64 tensor on the device."""
        return torch.from_numpy(np.array(rows, np.int64)).to(self.device)


class DeviceRows:
    """An array (N, ...) whose rows are read on a device. ``tensor`` is the array there; None if it is not held."""

    def __init__(self, array: NDArray, device: torch.device, tensor: Tensor | None) -> None:
        self._array, self._device, self._tensor = array, device, tensor

    def of(self, index: Tensor) -> Tensor:
        """Return some rows (m, ...) as a new tensor; ``index`` (m,) int64 is on the device."""
        if self._tensor is not None:
            return self._tensor[index]
        rows, place = torch.unique(index, return_inverse=True)  # neighbours share most of their neighbours
        return torch.from_numpy(self._array[rows.cpu().numpy()]).to(self._device)[place]

    def put(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Write values (m,) at some rows and columns (m,), all of them tensors on the device."""
        if self._tensor is not None:
            self._tensor[rows, columns] = values
        else:
            self._array[rows.cpu().numpy(), columns.cpu().numpy()] = values.cpu().numpy()

    def on_host(self) -> NDArray:
        """Return the array in main memory, with what was written."""
        return self._array if self._tensor is None else self._tensor.cpu().numpy()


def on_device(array: NDArray, device: str | torch.device) -> Tensor:
    """Copy an array, which may be memory-mapped, to a device part by part."""
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=kind, device=device)
    for part in slices(len(array), max(1, _COPIED * len(array) // max(1, array.nbytes))):
        tensor[part] = torch.from_numpy(np.array(array[part]))  # a copy, because torch wants to be able to write
    return tensor


def in_blocks(work: Callable[[slice], R], n: int, per_row: int, device: str | torch.device) -> list[R]:
    """Return the results of ``work`` on the slices of [0, n), in their order, computed on a device one after the other.

    A slice has as many rows as half of the device's room allows, if each row takes ``per_row`` bytes, and at most
    :data:`MOST_ROWS`. If memory runs out, all slices are computed again with half as many rows, once.
    """

    def all_of(allowed: int) -> list[R]:
        return [work(part) for part in slices(n, devices.block_rows(allowed // 2, per_row, MOST_ROWS))]

    return devices.retry_smaller(all_of, device)
