"""Features in HDF5: memory-mapped where they lie in one piece, otherwise read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, require_features, rows_of_block
from starfc.errors import InputError

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5")


def hdf5_features(path: Path) -> NDArray[np.floating] | Blocks:
    """The dataset ``features``, or the only one in the file: (N, d) floats.

    A contiguous dataset without filters is a part of the file, and is memory-mapped; a chunked or compressed one has to
    be read.

    Raises
    ------
    InputError
        Not HDF5, cut short, no such dataset, or not features.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error}); was it cut short?") from None
    try:
        dataset = _dataset(path, file)
        require_features(path, dataset.shape, dataset.dtype)
        offset = dataset.id.get_offset()
        if dataset.chunks is None and dataset.external is None and not dataset.is_virtual and offset is not None:
            place = {"dtype": dataset.dtype, "shape": dataset.shape, "offset": offset}
            file.close()
            return np.memmap(path, mode="r", **place)
    except BaseException:
        file.close()
        raise
    rows, dim = dataset.shape

    def parts() -> Iterator[NDArray[np.floating]]:
        step = rows_of_block(dim, dataset.dtype.itemsize)
        step = max(step // dataset.chunks[0], 1) * dataset.chunks[0] if dataset.chunks else step
        with file:
            try:
                for start in range(0, rows, step):
                    yield dataset[start : start + step]
            except OSError as error:
                raise InputError(f"{path}: not a readable HDF5 file ({error}); was it damaged?") from None

    return Blocks(rows, dim, dataset.dtype, parts())


def _dataset(path: Path, file: h5py.File) -> h5py.Dataset:
    import h5py

    if isinstance(file.get("features"), h5py.Dataset):
        return file["features"]
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    if len(found) != 1:
        names = [item.name for item in found[:8]]
        raise InputError(f"{path}: a dataset 'features', or one dataset in all, is needed; found {names}")
    return found[0]
