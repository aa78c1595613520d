"""Files of features and labels, in the layouts that the community has (docs/file-formats.md).

=========  ====================================================================================
features   ``.bin`` raw little-endian float32, row-major, no header (needs ``feature_dim``);
           ``.npy``, ``.npz`` (one array, or one called ``features``, ``embeddings``, ``X`` or ``data``, or
           the one that ``key`` names) of float16/32/64 or of integers;
           ``.parquet`` a column of lists; ``.h5``, ``.hdf5`` a dataset, named as an array of an .npz is; ``.fvecs``
labels     ``.meta`` / ``.txt`` text, one integer identity per line, or a table with a column of them;
           ``.csv``, ``.parquet`` a column of integers or text; ``.npy`` integers; ``.npz``, where it is named,
           the array called ``labels``, ``label``, ``identity`` or ``y``
=========  ====================================================================================

``.bin``, ``.npy``, ``.fvecs`` and a contiguous dataset of HDF5 are memory-mapped; the others, and integers, are read.
Everything enters by :mod:`starfc.storage.safe`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, blocks_of, floats, npz_blocks, npz_key, require_features
from starfc.data.columns import parquet_features, parquet_labels, text_labels, write_label_column, write_label_lines
from starfc.data.hdf import HDF5_SUFFIXES, hdf5_features
from starfc.data.names import LABEL_NAMES
from starfc.errors import InputError, MissingFileError
from starfc.runtime.words import advice, word
from starfc.storage.atomic import replacing
from starfc.storage.safe import Npz, mapped, open_regular, read_npy

FEATURE_SUFFIXES = (".bin", ".npy", ".npz", ".parquet", *HDF5_SUFFIXES, ".fvecs")
LABEL_SUFFIXES = (".meta", ".txt", ".npy", ".csv", ".parquet")
UNLABELLED = -1  # the label of an instance whose identity is not known
FEATURE_DIM = "model.kwargs.feature_dim"
_CHECKED_ROWS = 1024
_PICKLED = "is a pickle, which may run code when it is opened, and is not read; where you trust it, convert it: "
_TEXT = "is text, which is slow to read and seldom exact; convert it: "
_FOREIGN = {
    ".pkl": _PICKLED + "numpy.save('features.npy', pickle.load(open('{0}', 'rb')))",
    ".pt": _PICKLED + "numpy.save('features.npy', torch.load('{0}'))",
    ".csv": _TEXT + "numpy.save('features.npy', numpy.loadtxt('{0}', 'float32', delimiter=','))",
    ".txt": _TEXT + "numpy.save('features.npy', numpy.loadtxt('{0}', 'float32'))",
}
_FOREIGN |= {".pickle": _FOREIGN[".pkl"], ".pth": _FOREIGN[".pt"]}


def read_features(
    path: str | Path, feature_dim: int | None = None, key: str | None = None, *, room: int | None = None
) -> NDArray[np.floating]:
    """Open features as an (N, d) array of float16/32/64, memory-mapped where the format allows.

    Parameters
    ----------
    path : path
        A file of one of :data:`FEATURE_SUFFIXES`.
    feature_dim : int, optional
        d. Needed for ``.bin``; a different d in another format is an error.
    key : str, optional
        Which array of an ``.npz``, or dataset of an ``.h5`` or ``.hdf5``.
    room : int, optional
        Bytes that may be held; memory-mapped features need none.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, of another format, cut short or damaged, not whole rows, of another dimension, not numbers,
        or would have to be held and needs more than ``room``.
    """
    opened = _open_features(_existing(path, "features"), feature_dim, key)
    return opened.array(room) if isinstance(opened, Blocks) else opened


def feature_blocks(path: str | Path, feature_dim: int | None = None, key: str | None = None) -> Blocks:
    """Features to be read once from front to back, without holding them; as :func:`read_features` otherwise."""
    opened = _open_features(_existing(path, "features"), feature_dim, key)
    return opened if isinstance(opened, Blocks) else blocks_of(opened, str(path))


def _open_features(path: Path, feature_dim: int | None, key: str | None) -> NDArray[np.floating] | Blocks:
    if key is not None and path.suffix not in (".npz", *HDF5_SUFFIXES):
        raise InputError(
            f"{path}: {word('key')} names an array of an .npz, or a dataset of an .h5 or .hdf5; leave it out"
        )
    if path.suffix == ".bin":
        return _read_bin(path, feature_dim)
    if (foreign := foreign_features(path)) is not None:
        raise InputError(f"{path}: {foreign}")
    if path.suffix not in FEATURE_SUFFIXES:
        raise InputError(
            f"{path}: features are read from {', '.join(FEATURE_SUFFIXES)}; found {path.suffix or 'no suffix'!r}"
        )
    opened: NDArray[np.floating] | Blocks
    if path.suffix == ".npy":
        opened = read_npy(path, "fiubcSUVmM")
        require_features(path, opened.shape, opened.dtype)
    elif path.suffix == ".npz":
        opened = npz_blocks(path, key)
    elif path.suffix == ".parquet":
        opened = parquet_features(path)
    elif path.suffix == ".fvecs":
        opened = _read_fvecs(path)
    else:
        opened = hdf5_features(path, key)
    if opened.dtype.kind != "f":
        opened = floats(opened if isinstance(opened, Blocks) else blocks_of(opened, str(path)))
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
    with open_regular(path, "features file") as file:
        size, row = os.fstat(file.fileno()).st_size, 4 * feature_dim
        if size % row:
            raise InputError(
                f"{path}: {size:,} bytes is not a whole number of {feature_dim}-d float32 rows ({row:,} bytes each); "
                f"check {word(FEATURE_DIM)}, or whether the file was cut short"
            )
        return mapped(file, path, (size // row, feature_dim), np.dtype("<f4"), 0)


def _read_fvecs(path: Path) -> NDArray[np.float32]:
    """Rows of d (int32) and d float32: a view that leaves out the first column."""
    with open_regular(path, "features file") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise InputError(f"{path}: an empty .fvecs does not say its dimension")
        dim = int.from_bytes(os.pread(file.fileno(), 4, 0), "little", signed=True)
        if dim < 1 or size % (4 + 4 * dim):
            raise InputError(
                f"{path}: {size:,} bytes is not a whole number of .fvecs rows of d = {dim} (4 + 4 d bytes each); is it "
                "of that format, or was it cut short?"
            )
        count = size // (4 + 4 * dim)
        # a mapping would read whole pages around each
        for row in np.unique(np.linspace(0, count - 1, _CHECKED_ROWS).astype(np.int64)).tolist():
            found = int.from_bytes(os.pread(file.fileno(), 4, row * (4 + 4 * dim)), "little", signed=True)
            if found != dim:
                raise InputError(
                    f"{path}: row {row} (from 0) is of d = {found}, the first of d = {dim}; all must agree"
                )
        return mapped(file, path, (count, dim + 1), np.dtype("<f4"), 0)[:, 1:]


def foreign_features(path: Path) -> str | None:
    """What a file is that may hold features and is not read, and how to convert it; None for any other."""
    known = _FOREIGN.get(path.suffix.lower())
    return None if known is None else f"{path.suffix} {known.format(path)}"


def read_labels(path: str | Path, num_instances: int | None = None, key: str | None = None) -> NDArray[np.int64]:
    """Identities, one per instance: (N,) int64. Text in a ``.csv`` or ``.parquet`` is numbered by first appearance.

    ``key`` says which array of an ``.npz``.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, holds something else than identities, or not ``num_instances`` of them.
    """
    path = _existing(path, "labels")
    if key is not None and path.suffix != ".npz":
        raise InputError(f"{path}: {word('key')} names an array of an .npz, where labels are read; leave it out")
    if path.suffix == ".npy":
        labels = whole_numbers(path, read_npy(path, "fiubcSUVmM"))
    elif path.suffix == ".npz":
        with Npz(path) as archive:
            labels = whole_numbers(path, archive.array(npz_key(archive, LABEL_NAMES, key), "fiubcSUVmM"))
    elif path.suffix == ".parquet":
        labels = parquet_labels(path)
    elif path.suffix in LABEL_SUFFIXES:
        labels = text_labels(path, names=path.suffix == ".csv")
    else:
        raise InputError(
            f"{path}: labels are read from {', '.join(LABEL_SUFFIXES)}, .npz; found {path.suffix or 'no suffix'!r}"
        )
    if num_instances is not None and len(labels) != num_instances:
        raise InputError(
            f"{path}: {len(labels):,} labels for {num_instances:,} features; one is needed for each row of the "
            "features, check that both files belong to the same split"
        )
    return labels


def whole_numbers(path: str | Path, labels: NDArray) -> NDArray[np.int64]:
    """Labels of an array as int64; floats that are whole are integers."""
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        raise InputError(f"{path}: labels are a one-dimensional integer array; found {labels.shape}, {labels.dtype}")
    if labels.dtype.kind == "f":
        labels = np.asarray(labels, np.float64)
        with np.errstate(invalid="ignore"):
            wrong = ~((np.abs(labels) < 2.0**53) & (labels == np.floor(labels)))
    else:
        wrong = labels > np.iinfo(np.int64).max if labels.dtype == np.uint64 else np.zeros(0, np.bool_)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}: row {row} (from 0) has label {labels[row]}, which is no integer of 64 bits; number the identities"
        )
    return labels.astype(np.int64)


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
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: no such {what} file")
    return path
