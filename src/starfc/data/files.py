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
    """A format of files: what it reads and writes, None where it does not.

    Parameters
    ----------
    open_features : function of a path, the dimension and a key
        Gives features (N, d), memory-mapped, or blocks of them.
    write_features : context manager of a path, rows, dimension and dtype
        Gives a function that writes blocks of rows, one after the other.
    read_labels : function of a path and a key
    write_labels : function of a path and labels
    keyed : bool
        A file can hold several arrays, of which a key names one.
    float32 : bool
        It holds float32 and nothing else.
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
LABEL_SUFFIXES = (".meta", ".txt", ".npy", ".csv", ".parquet")  # and .npz, where it is named
UNLABELLED = -1  # the label of an instance whose identity is not known
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
    known = FORMATS.get(path.suffix, Format())
    if key is not None and not known.keyed:
        raise InputError(
            f"{path}: {word('key')} names an array of an .npz, or a dataset of an .h5 or .hdf5; leave it out"
        )
    if (foreign := foreign_features(path)) is not None:
        raise InputError(f"{path}: {foreign}")
    if known.open_features is None:
        raise InputError(
            f"{path}: features are read from {', '.join(FEATURE_SUFFIXES)}; found {path.suffix or 'no suffix'!r}"
        )
    opened = known.open_features(path, feature_dim, key)
    if opened.dtype.kind != "f":
        opened = floats(opened if isinstance(opened, Blocks) else blocks_of(opened, str(path)))
    dim = opened.dim if isinstance(opened, Blocks) else opened.shape[1]
    if feature_dim is not None and dim != feature_dim:
        raise InputError(
            f"{path}: {dim}-d features where {feature_dim}-d ones are needed"
            f"{advice('; set {} to ' + str(dim), FEATURE_DIM)}, or use a model trained on such features"
        )
    return opened


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
    read = FORMATS[path.suffix].read_labels if path.suffix in FORMATS else None
    if read is None:
        raise InputError(
            f"{path}: labels are read from {', '.join(LABEL_SUFFIXES)}, .npz; found {path.suffix or 'no suffix'!r}"
        )
    labels = read(path, key)
    if num_instances is not None and len(labels) != num_instances:
        raise InputError(
            f"{path}: {len(labels):,} labels for {num_instances:,} features; one is needed for each row of the "
            "features, check that both files belong to the same split"
        )
    return labels


def write_labels(path: str | Path, labels: NDArray[np.integer]) -> None:
    """Write labels as ``.npy`` (int64), ``.csv``, ``.parquet``, or as ``.meta`` text, by suffix, atomically."""
    path = Path(path)
    written = FORMATS.get(path.suffix, FORMATS[".meta"]).write_labels or text.write_lines
    with replacing(path) as temporary:
        written(temporary, labels)


def write_blocks(path: Path, blocks: Blocks, dtype: np.dtype, name: str) -> None:
    """Write blocks as the features file that the suffix of ``path`` names, as float16 or float32.

    ``name`` is what they are read from, for messages.
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
