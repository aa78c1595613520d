"""Read and write files of features and labels, in common formats (docs/file-formats.md).

=========  ====================================================================================
features   ``.bin`` raw little-endian float32, row-major, no header (needs ``feature_dim``);
           ``.npy``, ``.npz`` (one array, or one called ``features``, ``embeddings``, ``X`` or ``data``, or
           the one that ``key`` names) of float16/32/64 or of integers;
           ``.parquet`` a column of lists; ``.h5``, ``.hdf5`` a dataset, with the names of ``.npz``; ``.fvecs``
labels     ``.meta`` / ``.txt`` text, one integer identity per line, or a table with a column of them;
           ``.csv``, ``.parquet`` a column of integers or text; ``.npy`` integers; ``.npz``, if the user names it,
           the array called ``labels``, ``label``, ``identity`` or ``y``
=========  ====================================================================================

``.bin``, ``.npy``, ``.fvecs`` and a contiguous dataset of HDF5 are memory-mapped. Other formats, and integers, are read
into memory. All files are opened with :mod:`starfc.storage.safe`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, Write, blocks_of, converted, floats
from starfc.data.formats import hdf5, npy, npz, parquet, raw, text
from starfc.data.formats.raw import FEATURE_DIM
from starfc.errors import InputError, MissingFileError
from starfc.runtime.words import advice, word
from starfc.storage.atomic import replacing


@dataclass(frozen=True)
class Format:
    """A file format, with its functions for reading and writing. None: the format does not support this.

    Parameters
    ----------
    open_features : function of a path, the dimension and a key
        Returns features (N, d), memory-mapped, or blocks of them.
    write_features : context manager of a path, rows, dimension and dtype
        Yields a function that writes blocks of rows, one after the other.
    read_labels : function of a path and a key
        Returns labels (N,) int64.
    write_labels : function of a path and labels
        Writes labels.
    keyed : bool
        Whether a file can hold several arrays, so that a key can name one.
    float32 : bool
        Whether the format can hold only float32.
    """

    open_features: Callable[[Path, int | None, str | None], NDArray[Any] | Blocks] | None = None
    write_features: Callable[[Path, int, int, np.dtype], AbstractContextManager[Write]] | None = None
    read_labels: Callable[[Path, str | None], NDArray[np.int64]] | None = None
    write_labels: Callable[[Path, NDArray[np.integer]], None] | None = None
    keyed: bool = False
    float32: bool = False


_HDF5 = Format(hdf5.open_features, hdf5.write_features, keyed=True)
_LINES = Format(read_labels=text.read_labels, write_labels=text.write_lines)
FORMATS = {
    ".bin": Format(raw.open_bin, raw.write_bin, float32=True),
    ".npy": Format(npy.open_features, npy.write_features, npy.read_labels, npy.write_labels),
    ".npz": Format(npz.open_features, npz.write_features, npz.read_labels, keyed=True),
    ".parquet": Format(parquet.open_features, parquet.write_features, parquet.read_labels, parquet.write_labels),
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".fvecs": Format(raw.open_fvecs, raw.write_fvecs, float32=True),
    ".meta": _LINES,
    ".txt": _LINES,
    ".csv": Format(read_labels=text.read_named_labels, write_labels=text.write_table),
}
FEATURE_SUFFIXES = tuple(suffix for suffix, known in FORMATS.items() if known.open_features)
LABEL_SUFFIXES = (".meta", ".txt", ".npy", ".csv", ".parquet")  # also .npz, but only if the user names the file
UNLABELLED = -1  # the label of an instance whose identity is not known
_PICKLED = "is a pickle, which can run code when it is opened, so it is not read; if you trust it, convert it: "
_TEXT = "is text, which is slow to read and rarely exact, so it is not read; convert it: "
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
    """Open features as an (N, d) array of float16/32/64, memory-mapped if the format allows it.

    Parameters
    ----------
    path : path
        A file with one of :data:`FEATURE_SUFFIXES`.
    feature_dim : int, optional
        Dimension d. It is needed for ``.bin``; in other formats a different d is an error.
    key : str, optional
        Name of the array in an ``.npz``, or of the dataset in an ``.h5`` or ``.hdf5``.
    room : int, optional
        Bytes of memory that the features may take. Memory-mapped features need none.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, has another format, is damaged, has incomplete rows or another dimension, does not hold
        numbers, or needs more memory than ``room``.
    """
    opened = _open_features(_existing(path, "features"), feature_dim, key)
    return opened.array(room) if isinstance(opened, Blocks) else opened


def feature_blocks(path: str | Path, feature_dim: int | None = None, key: str | None = None) -> Blocks:
    """Open features as blocks, which are read once from front to back. The rest is as in :func:`read_features`."""
    opened = _open_features(_existing(path, "features"), feature_dim, key)
    return opened if isinstance(opened, Blocks) else blocks_of(opened, str(path))


def _open_features(path: Path, feature_dim: int | None, key: str | None) -> NDArray[np.floating] | Blocks:
    known = FORMATS.get(path.suffix, Format())
    if key is not None and not known.keyed:
        raise InputError(
            f"{path}: {word('key')} is only for an .npz, .h5 or .hdf5 (it names the array or dataset); leave it out"
        )
    if (foreign := foreign_features(path)) is not None:
        raise InputError(f"{path}: {foreign}")
    if known.open_features is None:
        raise InputError(
            f"{path}: the suffix of features must be one of {', '.join(FEATURE_SUFFIXES)}; found "
            f"{path.suffix or 'no suffix'!r}"
        )
    opened = known.open_features(path, feature_dim, key)
    if opened.dtype.kind != "f":
        opened = floats(opened if isinstance(opened, Blocks) else blocks_of(opened, str(path)))
    dim = opened.dim if isinstance(opened, Blocks) else opened.shape[1]
    if feature_dim is not None and dim != feature_dim:
        raise InputError(
            f"{path}: has {dim}-d features, but {feature_dim}-d features are needed"
            f"{advice('; set {} to ' + str(dim), FEATURE_DIM)}, or use a model trained on such features"
        )
    return opened


def foreign_features(path: Path) -> str | None:
    """Return why a file that may hold features is not read, and how to convert it. None for other suffixes."""
    known = _FOREIGN.get(path.suffix.lower())
    return None if known is None else f"{path.suffix} {known.format(path)}"


def read_labels(path: str | Path, num_instances: int | None = None, key: str | None = None) -> NDArray[np.int64]:
    """Read one identity per instance, (N,) int64. Text in a ``.csv`` or ``.parquet`` is numbered by first appearance.

    ``key`` is the name of the array in an ``.npz``.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, does not hold identities, or does not hold ``num_instances`` of them.
    """
    path = _existing(path, "labels")
    if key is not None and path.suffix != ".npz":
        raise InputError(
            f"{path}: for labels, {word('key')} is only for an .npz, where it names the array; leave it out"
        )
    read = FORMATS[path.suffix].read_labels if path.suffix in FORMATS else None
    if read is None:
        raise InputError(
            f"{path}: the suffix of labels must be one of {', '.join(LABEL_SUFFIXES)}, .npz; found "
            f"{path.suffix or 'no suffix'!r}"
        )
    labels = read(path, key)
    if num_instances is not None and len(labels) != num_instances:
        raise InputError(
            f"{path}: has {len(labels):,} labels for {num_instances:,} features; needs one label for each row of the "
            "features; check that both files belong to the same split"
        )
    return labels


def write_labels(path: str | Path, labels: NDArray[np.integer]) -> None:
    """Write labels atomically as ``.npy`` (int64), ``.csv``, ``.parquet`` or ``.meta`` text. The suffix decides."""
    path = Path(path)
    written = FORMATS.get(path.suffix, FORMATS[".meta"]).write_labels or text.write_lines
    with replacing(path) as temporary:
        written(temporary, labels)


def write_blocks(path: Path, blocks: Blocks, dtype: np.dtype, name: str) -> None:
    """Write blocks as float16 or float32 to a features file, in the format of its suffix.

    ``name`` is the source of the blocks, for messages.
    """
    writer = FORMATS[path.suffix].write_features
    assert writer is not None  # callers choose among the suffixes of features
    with writer(path, blocks.rows, blocks.dim, dtype) as write:
        for part in converted(blocks, dtype, name):
            write(part)


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path)
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: no such {what} file")
    return path
