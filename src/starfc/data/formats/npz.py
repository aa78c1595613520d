"""NumPy's .npz, a zip archive of arrays. One of the arrays is used."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, Write, chosen_name, require_features
from starfc.data.formats.npy import DTYPES, npy_blocks, npy_writer
from starfc.data.identities import whole_numbers
from starfc.data.names import FEATURE_NAMES, LABEL_NAMES
from starfc.storage.safe import Npz


def open_features(path: Path, dim: int | None = None, key: str | None = None) -> Blocks:
    """Open the features of an .npz as blocks.

    They are the array ``key``, or the only array, or the first of :data:`~starfc.data.names.FEATURE_NAMES` in the file.
    """
    with Npz(path) as archive:
        chosen = npz_key(archive, FEATURE_NAMES, key, keyed=True)
        with archive.open(chosen) as (_, (shape, _, dtype)):
            require_features(f"{path}, array {chosen!r}", shape, dtype)

    def parts() -> Iterator[NDArray[np.floating]]:
        with Npz(path) as archive, archive.open(chosen) as (file, header):
            yield from npy_blocks(file, str(path), header).parts
            file.read(1)  # makes zipfile compare the checksum, which it does at the end of the member

    rows, width = shape
    return Blocks(rows, width, dtype, parts(), str(path))


def npz_key(archive: Npz, obvious: tuple[str, ...], key: str | None = None, keyed: bool = False) -> str:
    """Return the name of the array of an .npz to use (:func:`chosen_name`)."""
    return chosen_name(archive.path, "array", archive.names, obvious, key, keyed)


@contextmanager
def write_features(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("features.npy", "w", force_zip64=True) as file,
        npy_writer(file, rows, dim, dtype) as write,
    ):
        yield write


def read_labels(path: Path, key: str | None = None) -> NDArray[np.int64]:
    """Read the labels: the array ``key``, or the only one, or the first of :data:`~starfc.data.names.LABEL_NAMES`."""
    with Npz(path) as archive:
        return whole_numbers(path, archive.array(npz_key(archive, LABEL_NAMES, key), DTYPES))
