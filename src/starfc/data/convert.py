"""Find out whether a file holds features or labels, read it, and write it in another format."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, converted, floats
from starfc.data.files import (
    FEATURE_SUFFIXES,
    FORMATS,
    LABEL_SUFFIXES,
    feature_blocks,
    foreign_features,
    read_labels,
    write_blocks,
    write_labels,
)
from starfc.data.formats.npy import npy_blocks, npy_numbers, npy_writer
from starfc.data.formats.parquet import features_column, opened_parquet
from starfc.data.identities import whole_numbers
from starfc.data.names import LABEL_COLUMNS, LABEL_NAMES
from starfc.errors import InputError, MissingFileError
from starfc.runtime.words import maker
from starfc.storage.atomic import replacing
from starfc.storage.commit import is_ours
from starfc.storage.safe import Npz, npy_header, open_regular

STREAM = "-"
FEATURES, LABELS = "features", "labels"


def open_either(
    path: str, feature_dim: int | None = None, kind: str | None = None, key: str | None = None
) -> Blocks | NDArray[np.int64]:
    """Open a file, or stdin, as blocks of features or as labels, whichever it holds.

    Parameters
    ----------
    path : str
        A file; '-' is a .npy on stdin.
    feature_dim : int, optional
        Dimension d of a raw .bin.
    kind : {'features', 'labels'}, optional
        What to read from a file that holds both. Default: features.
    key : str, optional
        Name of the array in an .npz, or of the dataset in an .h5 or .hdf5.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, cannot be read, or does not hold features or labels as requested.
    """
    if path == STREAM:
        return _of_stdin(kind)
    kinds = kinds_of(Path(path), key)
    if kind is not None and kind not in kinds:
        raise InputError(f"{path}: holds {' and '.join(kinds)}, but {kind} are needed")
    if (kind or kinds[0]) == FEATURES:
        return feature_blocks(path, feature_dim, key)
    try:
        return read_labels(path, key=key)
    except InputError as error:
        foreign = foreign_features(Path(path))
        raise InputError(f"{error}; if these are features: {foreign}") if foreign is not None else error from None


def kinds_of(path: Path, key: str | None = None) -> list[str]:
    """Return whether a file can be read as features, as labels or as both, features first.

    The suffix decides. If it can mean both, the content decides.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: no such file")
    foreign = foreign_features(path)
    if foreign is not None and path.suffix not in LABEL_SUFFIXES:
        raise InputError(f"{path}: {foreign}")
    kinds = _kinds_of_suffix(path, path.suffix)
    if path.suffix == ".npz":
        return _kinds_of_archive(path, key)
    if len(kinds) == 2 and path.suffix == ".npy":
        with open_regular(path) as file:
            shape, _, _ = npy_header(file, str(path))
        return [LABELS] if len(shape) == 1 else [FEATURES]
    if len(kinds) == 2:
        with opened_parquet(path) as file:
            names = [name.lower() for name in file.schema_arrow.names]
            with_features = features_column(file) is not None
        if not with_features:
            return [LABELS]
        return kinds if set(LABEL_COLUMNS) & set(names) else [FEATURES]
    return kinds


def _kinds_of_archive(path: Path, key: str | None) -> list[str]:
    """Return what an .npz holds: by the shape of the array that is used, or else by the names of its arrays."""
    with Npz(path) as archive:
        taken = key if key is not None else archive.names[0] if len(archive.names) == 1 else None
        if taken in archive.names:
            with archive.open(taken) as (_, (shape, _, _)):
                return [LABELS] if len(shape) == 1 else [FEATURES]
        of_labels = {name for name in archive.names if name.lower() in LABEL_NAMES}
        return [FEATURES] * (len(of_labels) < len(archive.names) or not of_labels) + [LABELS] * bool(of_labels)


def _kinds_of_suffix(path: str | Path, suffix: str) -> list[str]:
    kinds = [kind for kind, known in ((FEATURES, FEATURE_SUFFIXES), (LABELS, LABEL_SUFFIXES)) if suffix in known]
    if not kinds:
        raise InputError(
            f"{path}: the suffix must be one of {', '.join(FEATURE_SUFFIXES)} for features or "
            f"{', '.join(LABEL_SUFFIXES)} for labels; found {suffix or 'no suffix'!r}"
        )
    return kinds


def _of_stdin(kind: str | None) -> Blocks | NDArray[np.int64]:
    file, name = sys.stdin.buffer, "stdin"
    shape, fortran, dtype = npy_header(file, name)
    if len(shape) != 1:
        if kind == LABELS:
            raise InputError(f"{name}: labels must be a one-dimensional integer array; found {shape}, {dtype}")
        return floats(npy_blocks(file, name, (shape, fortran, dtype)))
    if kind == FEATURES or dtype.kind not in "iu":
        raise InputError(f"{name}: needs features (N, d) or integer labels (N,); found shape {shape}, {dtype}")
    parts = [part[:, 0] for part in npy_numbers(file, name, (*shape, 1), False, dtype).parts]
    return whole_numbers(name, np.concatenate([np.empty(0, dtype), *parts]))


def convert(
    source: str,
    target: str,
    feature_dim: int | None = None,
    dtype: str | None = None,
    kind: str | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """Write the features or labels of one file to another file, atomically. Features are converted in blocks.

    Parameters
    ----------
    source, target : str
        Files; '-' is a .npy on stdin or stdout. The suffix of the target sets its format.
    feature_dim : int, optional
        Dimension d of a raw .bin.
    dtype : {'float16', 'float32'}, optional
        Number type of the features that are written. Default: float16 if the source has float16 and the format can
        store it, otherwise float32.
    kind : {'features', 'labels'}, optional
        What to convert from a file that holds both. Default: features.
    key : str, optional
        Name of the array in an .npz, or of the dataset in an .h5 or .hdf5.

    Returns
    -------
    dict
        ``kind`` and ``rows``. For features also ``dim`` and ``dtype``, for labels the number of ``identities``.

    Raises
    ------
    MissingFileError, InputError
        The source does not hold data that the format of the target can store. Nothing has been written.
    """
    found = [FEATURES, LABELS] if source == STREAM else kinds_of(Path(source), key)
    fits = [FEATURES, LABELS] if target == STREAM else _kinds_of_suffix(target, Path(target).suffix)
    possible = [one for one in found if one in fits and kind in (None, one)]
    if not possible:
        asked = (
            f"{kind} are requested"
            if kind is not None and kind not in found
            else f"{target} can hold {' or '.join(fits)}"
        )
        raise InputError(f"{source}: holds {' and '.join(found)}, but {asked}")
    if source != STREAM and target != STREAM and Path(target).exists() and Path(source).samefile(target):
        raise InputError(f"{target}: is the file to read; name another file to write")
    if target != STREAM and (by := is_ours(Path(target))) is not None:
        raise InputError(f"{target}: belongs to the results of {maker(by)}; name another file to write")
    chosen = kind or (possible[0] if len(possible) == 1 or source != STREAM else None)
    opened = open_either(source, feature_dim, chosen, key)
    if isinstance(opened, Blocks):
        return _write_features(opened, source, target, dtype)
    if dtype is not None:
        raise InputError(f"--dtype: only for features; {source} holds labels, which are integers; leave it out")
    if target == STREAM:
        np.lib.format.write_array(sys.stdout.buffer, opened)
    else:
        write_labels(target, opened)
    return {"kind": LABELS, "rows": len(opened), "identities": len(np.unique(opened))}


def _write_features(blocks: Blocks, source: str, target: str, dtype: str | None) -> dict[str, Any]:
    suffix = Path(target).suffix if target != STREAM else ".npy"
    if dtype is None:
        dtype = "float16" if blocks.dtype == np.float16 and not FORMATS[suffix].float32 else "float32"
    if dtype != "float32" and FORMATS[suffix].float32:
        raise InputError(f"--dtype: {suffix} can hold only float32; found {dtype}; write .npy, .npz, .h5 or .parquet")
    name = "stdin" if source == STREAM else source
    if target == STREAM:
        with npy_writer(sys.stdout.buffer, blocks.rows, blocks.dim, np.dtype(dtype)) as write:
            for part in converted(blocks, np.dtype(dtype), name):
                write(part)
    else:
        with replacing(target) as temporary:
            write_blocks(temporary, blocks, np.dtype(dtype), name)
    return {"kind": FEATURES, "rows": blocks.rows, "dim": blocks.dim, "dtype": dtype}
