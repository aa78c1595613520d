"""Features in HDF5: memory-mapped where they lie in one piece, otherwise read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, Write, chosen_name, require_features, rows_of_block
from starfc.data.names import FEATURE_NAMES
from starfc.errors import InputError
from starfc.runtime.extras import require
from starfc.storage.safe import damage, mapped, open_regular, require_plausible

if TYPE_CHECKING:
    import h5py

_KIND = "HDF5 file"
_OBJECTS, _DEPTH = 10_000, 32  # groups and datasets that are looked at, and groups within groups


def open_features(path: Path, dim: int | None = None, key: str | None = None) -> NDArray[np.floating] | Blocks:
    """The dataset ``key``, or the only one in the file, or the first of
    :data:`~starfc.data.names.FEATURE_NAMES` at its top: (N, d) numbers.

    A contiguous dataset without filters is a part of the file, and is memory-mapped; a chunked or compressed one has to
    be read.

    Raises
    ------
    InputError
        Not HDF5, cut short, no such dataset, not features, or data that lie in another file (external links, external
        storage, virtual datasets).
    """
    require("h5py", f"{path}: HDF5")
    import h5py

    with open_regular(path, _KIND) as raw, damage(path, _KIND), h5py.File(path, "r") as file:
        name = _dataset_name(path, file, key)
        dataset = file[name]
        if dataset.external is not None or dataset.is_virtual:
            raise InputError(f"{path}: dataset {name!r} lies in other files, which are not read; copy it into this one")
        shape: tuple[int, ...] = dataset.shape or ()
        dtype = dataset.dtype
        require_features(path, shape, dtype)
        start, filled = dataset.id.get_offset(), dataset.id.get_storage_size() > 0
        if dataset.chunks is None and start is not None:
            return mapped(raw, path, shape, dtype, start)
        if shape[0] and not filled:
            raise InputError(f"{path}: dataset {name!r}: nothing was ever written to its {shape[0]:,} rows")
        require_plausible(path, shape[0] * shape[1] * dtype.itemsize, path.stat().st_size)
        if dataset.chunks:
            _require_chunks(path, name, dataset)
        rows, width = shape
        step = rows_of_block(width, dtype.itemsize)
        step = max(step // dataset.chunks[0], 1) * dataset.chunks[0] if dataset.chunks else step

    def parts() -> Iterator[NDArray[np.floating]]:
        with damage(path, _KIND), h5py.File(path, "r") as file:
            dataset = file[name]
            for start in range(0, rows, step):
                yield dataset[start : start + step]

    return Blocks(rows, width, dtype, parts(), str(path))


def _require_chunks(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Refuse an index of chunks that leads out of the file or names a place twice: the HDF5 library follows it."""
    size, seen = path.stat().st_size, set()

    def check(chunk: h5py.h5d.StoreInfo) -> bool | None:
        start, grid = chunk.chunk_offset, zip(chunk.chunk_offset, dataset.shape, dataset.chunks, strict=True)
        aligned = all(0 <= at < length and at % step == 0 for at, length, step in grid)
        whole = chunk.byte_offset is not None and 0 < chunk.byte_offset <= size - chunk.size and chunk.size > 0
        if start in seen or not aligned or not whole:
            return True  # chunk_iter ends, and returns it
        seen.add(start)
        return None

    if dataset.id.chunk_iter(check):
        raise InputError(f"{path}: dataset {name!r}: damaged (its chunks do not lie where a file can hold them)")


def _dataset_name(path: Path, file: h5py.File, key: str | None) -> str:
    """The dataset to take, of those that hard links lead to; others lead elsewhere, and are not followed."""
    import h5py

    wanted = "features" if key is None else key.strip("/")

    found: list[str] = []
    groups, seen, looked = [("/", 0)], set(), 0
    while groups:
        place, depth = groups.pop(0)
        group = file[place]
        number = h5py.h5o.get_info(group.id).addr
        if number in seen:
            continue
        seen.add(number)
        for name in group:
            looked += 1
            if looked > _OBJECTS or depth > _DEPTH:
                raise InputError(f"{path}: more groups than are looked at; put the dataset at the top")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            kind = group.get(name, getclass=True)
            if kind is h5py.Group:
                groups.append((f"{place}{name}/", depth + 1))
            elif kind is h5py.Dataset:
                found.append(f"{place}{name}"[1:])
        if wanted in found:
            return wanted
    return chosen_name(path, "dataset", found, FEATURE_NAMES, key and wanted, keyed=True)


@contextmanager
def write_features(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    require("h5py", "writing HDF5")
    import h5py

    with h5py.File(path, "w") as file:
        dataset, at = file.create_dataset("features", (rows, dim), dtype), 0

        def write(part: NDArray[np.floating]) -> None:
            nonlocal at
            dataset[at : at + len(part)] = part
            at += len(part)

        yield write
