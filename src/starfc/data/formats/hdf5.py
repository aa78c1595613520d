"""Features in HDF5. A contiguous dataset is memory-mapped, any other is read."""

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
_OBJECTS, _DEPTH = 10_000, 32  # maximum number of groups and datasets in the search, and maximum depth of groups


def open_features(path: Path, dim: int | None = None, key: str | None = None) -> NDArray[np.floating] | Blocks:
    """Open a dataset of (N, d) numbers.

    It is the dataset ``key``, or the only one in the file, or the first of :data:`~starfc.data.names.FEATURE_NAMES` at
    the top of the file. A contiguous dataset without filters is a part of the file and is memory-mapped. A chunked or
    compressed dataset is read in blocks.

    Raises
    ------
    InputError
        The file is not HDF5 or damaged, there is no such dataset, it does not hold features, or its data are in another
        file (external links, external storage, virtual datasets).
    """
    require("h5py", f"{path}: HDF5")
    import h5py

    with open_regular(path, _KIND) as raw, damage(path, _KIND), h5py.File(path, "r") as file:
        name = _dataset_name(path, file, key)
        dataset = file[name]
        if dataset.external is not None or dataset.is_virtual:
            raise InputError(
                f"{path}: the data of {name!r} are in other files, which are not read; copy them into this"
            )
        shape: tuple[int, ...] = dataset.shape or ()
        dtype = dataset.dtype
        require_features(path, shape, dtype)
        start, filled = dataset.id.get_offset(), dataset.id.get_storage_size() > 0
        if dataset.chunks is None and start is not None:
            return mapped(raw, path, shape, dtype, start)
        if shape[0] and not filled:
            raise InputError(f"{path}: dataset {name!r} has {shape[0]:,} rows, but no data were written to them")
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
    """Raise InputError if a chunk is outside of the file, or two chunks have one position: HDF5 does not check this."""
    size, seen = path.stat().st_size, set()

    def check(chunk: h5py.h5d.StoreInfo) -> bool | None:
        start, grid = chunk.chunk_offset, zip(chunk.chunk_offset, dataset.shape, dataset.chunks, strict=True)
        aligned = all(0 <= at < length and at % step == 0 for at, length, step in grid)
        whole = chunk.byte_offset is not None and 0 < chunk.byte_offset <= size - chunk.size and chunk.size > 0
        if start in seen or not aligned or not whole:
            return True  # ends chunk_iter, which returns this value
        seen.add(start)
        return None

    if dataset.id.chunk_iter(check):
        raise InputError(f"{path}: dataset {name!r} is damaged (the positions of its chunks are not possible)")


def _dataset_name(path: Path, file: h5py.File, key: str | None) -> str:
    """Return the name of the dataset to use. Only hard links are followed; other links may lead to other files."""
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
                raise InputError(f"{path}: has too many groups to search; put the dataset at the top of the file")
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
