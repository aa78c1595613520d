"""Files of features and labels, in the layouts that the community has (docs/file-formats.md).

=========  ====================================================================================
features   ``.bin`` raw little-endian float32, row-major, no header (needs ``feature_dim``);
           ``.npy``, ``.npz`` (one array, or the key ``features`` or ``data``) of float16/32/64;
           ``.parquet`` a column of lists; ``.h5``, ``.hdf5`` a dataset; ``.fvecs``
labels     ``.meta`` / ``.txt`` text, one integer identity per line; ``.npy`` integers;
           ``.csv``, ``.parquet`` a column of integers or text
=========  ====================================================================================

``.bin``, ``.npy``, ``.fvecs`` and a contiguous dataset of HDF5 are memory-mapped; the others are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, blocks_of, npz_blocks, require_features
from starfc.data.columns import csv_labels, parquet_features, parquet_labels, write_label_column, write_label_lines
from starfc.data.hdf import HDF5_SUFFIXES, hdf5_features
from starfc.errors import InputError, MissingFileError
from starfc.runtime.atomic import replacing
from starfc.words import advice, word

FEATURE_SUFFIXES = (".bin", ".npy", ".npz", ".parquet", *HDF5_SUFFIXES, ".fvecs")
LABEL_SUFFIXES = (".meta", ".txt", ".npy", ".csv", ".parquet")
NPZ_KEYS = ("features", "data")
FEATURE_DIM = "model.kwargs.feature_dim"
_CHECKED_ROWS = 1024


def read_features(path: str | Path, feature_dim: int | None = None) -> NDArray[np.floating]:
    """Open features as an (N, d) array of float16/32/64, memory-mapped where the format allows.

    Parameters
    ----------
    path : path
        A file of one of :data:`FEATURE_SUFFIXES`.
    feature_dim : int, optional
        d. Needed for ``.bin``; a different d in another format is an error.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, of another format, cut short, not whole rows, of another dimension, or not floating point.
    """
    opened = _open_features(_existing(path, "features"), feature_dim)
    return opened.array() if isinstance(opened, Blocks) else opened


def feature_blocks(path: str | Path, feature_dim: int | None = None) -> Blocks:
    """Features to be read once from front to back, without holding them; as :func:`read_features` otherwise."""
    opened = _open_features(_existing(path, "features"), feature_dim)
    return opened if isinstance(opened, Blocks) else blocks_of(opened)


def _open_features(path: Path, feature_dim: int | None) -> NDArray[np.floating] | Blocks:
    if path.suffix == ".bin":
        return _read_bin(path, feature_dim)
    if path.suffix not in FEATURE_SUFFIXES:
        raise InputError(
            f"{path}: features are read from {', '.join(FEATURE_SUFFIXES)}; found {path.suffix or 'no suffix'!r}"
        )
    if path.suffix == ".npy":
        opened = _load_npy(path)
        require_features(path, opened.shape, opened.dtype)
    elif path.suffix == ".npz":
        opened = npz_blocks(path, NPZ_KEYS)
    elif path.suffix == ".parquet":
        opened = parquet_features(path)
    elif path.suffix == ".fvecs":
        opened = _read_fvecs(path)
    else:
        opened = hdf5_features(path)
    dim = opened.dim if isinstance(opened, Blocks) else opened.shape[1]
    if feature_dim is not None and dim != feature_dim:
        raise InputError(
            f"{path}: {dim}-d features where {feature_dim}-d ones are needed"
            f"{advice('; set {} to ' + str(dim), FEATURE_DIM)}, or use a model trained on such features"
        )
    return opened


def _read_bin(path: Path, feature_dim: int | None) -> NDArray[np.float32]:
    if feature_dim is None:
        raise InputError(f"{path}: a raw .bin file does not say its dimension{advice('; give {}', FEATURE_DIM)}")
    size, row = path.stat().st_size, 4 * feature_dim
    if size % row:
        raise InputError(
            f"{path}: {size:,} bytes is not a whole number of {feature_dim}-d float32 rows ({row:,} bytes each); "
            f"check {word(FEATURE_DIM)}, or whether the file was cut short"
        )
    if size == 0:
        return np.empty((0, feature_dim), "<f4")
    return np.memmap(path, "<f4", mode="r", shape=(size // row, feature_dim))


def _read_fvecs(path: Path) -> NDArray[np.float32]:
    """Rows of d (int32) and d float32: a view that leaves out the first column."""
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: an empty .fvecs does not say its dimension")
    dim = int(np.fromfile(path, "<i4", 1)[0]) if size >= 4 else 0
    if dim < 1 or size % (4 + 4 * dim):
        raise InputError(
            f"{path}: {size:,} bytes is not a whole number of .fvecs rows of d = {dim} (4 + 4 d bytes each); is it of "
            "that format, or was it cut short?"
        )
    count = size // (4 + 4 * dim)
    with path.open("rb", buffering=0) as file:  # a mapping would read whole pages around each
        for row in np.unique(np.linspace(0, count - 1, _CHECKED_ROWS).astype(np.int64)):
            file.seek(int(row) * (4 + 4 * dim))
            found = int.from_bytes(file.read(4), "little", signed=True)
            if found != dim:
                raise InputError(
                    f"{path}: row {row} (from 0) is of d = {found}, the first of d = {dim}; all must agree"
                )
    return np.memmap(path, "<f4", mode="r", shape=(count, dim + 1))[:, 1:]


def read_labels(path: str | Path, num_instances: int | None = None) -> NDArray[np.int64]:
    """Identities, one per instance: (N,) int64. Text in a ``.csv`` or ``.parquet`` is numbered by first appearance.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, holds something else than identities, or not ``num_instances`` of them.
    """
    path = _existing(path, "labels")
    if path.suffix == ".npy":
        labels = _load_npy(path)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(
                f"{path}: labels are a one-dimensional integer array; found {labels.shape}, {labels.dtype}"
            )
        labels = labels.astype(np.int64)
    elif path.suffix == ".csv":
        labels = csv_labels(path)
    elif path.suffix == ".parquet":
        labels = parquet_labels(path)
    elif path.suffix in LABEL_SUFFIXES:
        try:
            labels = np.array(path.read_text(encoding="utf-8").split(), np.int64)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}: labels are text with one integer identity per line; {error}") from None
    else:
        raise InputError(
            f"{path}: labels are read from {', '.join(LABEL_SUFFIXES)}; found {path.suffix or 'no suffix'!r}"
        )
    if num_instances is not None and len(labels) != num_instances:
        raise InputError(
            f"{path}: {len(labels):,} labels for {num_instances:,} features; one is needed for each row of the "
            "features, check that both files belong to the same split"
        )
    return labels


def write_labels(path: str | Path, labels: NDArray[np.integer]) -> None:
    """Write labels as ``.npy`` (int64), ``.csv``, ``.parquet``, or as ``.meta`` text, by suffix, atomically."""
    path = Path(path)
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, labels.astype(np.int64))
        elif path.suffix in (".csv", ".parquet"):
            write_label_column(temporary, labels)
        else:
            write_label_lines(temporary, labels)


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such {what} file")
    return path


def _load_npy(path: Path) -> NDArray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path}: not a readable NumPy file ({error}); was it cut short, or does it hold objects?"
        ) from None
