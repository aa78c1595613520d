"""Files of features or labels, read as what they are and written as another format."""

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
    """Features, to be read once from front to back, or labels: what a file, or stdin, holds.

    Parameters
    ----------
    path : str
        A file; '-' is a .npy on stdin.
    feature_dim : int, optional
        d, for a raw .bin.
    kind : {'features', 'labels'}, optional
        Which of both, where a file has both; features otherwise.
    key : str, optional
        Which array of an .npz, or dataset of an .h5 or .hdf5.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, unreadable, or holds neither or not what is asked for.
    """
    if path == STREAM:
        return _of_stdin(kind)
    kinds = kinds_of(Path(path), key)
    if kind is not None and kind not in kinds:
        raise InputError(f"{path}: holds {' and '.join(kinds)}; {kind} are needed")
    if (kind or kinds[0]) == FEATURES:
        return feature_blocks(path, feature_dim, key)
    try:
        return read_labels(path, key=key)
    except InputError as error:
        foreign = foreign_features(Path(path))
        raise InputError(f"{error}; where these are features: {foreign}") if foreign is not None else error from None


def kinds_of(path: Path, key: str | None = None) -> list[str]:
    """What a file can be read as, by its suffix, and by its content where the suffix says both; features first."""
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
    """What the array of an .npz is that is taken, or what its arrays are by their names."""
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
            f"{path}: features are {', '.join(FEATURE_SUFFIXES)} and labels {', '.join(LABEL_SUFFIXES)}; "
            f"found {suffix or 'no suffix'!r}"
        )
    return kinds


def _of_stdin(kind: str | None) -> Blocks | NDArray[np.int64]:
    file, name = sys.stdin.buffer, "stdin"
    shape, fortran, dtype = npy_header(file, name)
    if len(shape) != 1:
        if kind == LABELS:
            raise InputError(f"{name}: labels are a one-dimensional integer array; found {shape}, {dtype}")
        return floats(npy_blocks(file, name, (shape, fortran, dtype)))
    if kind == FEATURES or dtype.kind not in "iu":
        raise InputError(f"{name}: features have two dimensions, labels are integers of one; found {shape}, {dtype}")
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
    """Write the features or labels of one file as another, by its suffix, atomically and without holding features.

    Parameters
    ----------
    source, target : str
        Files; '-' is a .npy on stdin or stdout.
    feature_dim : int, optional
        d, for a raw .bin.
    dtype : {'float16', 'float32'}, optional
        Of the features that are written. By default float16 where they are read as that and the format can hold it,
        otherwise float32.
    kind : {'features', 'labels'}, optional
        Which of both, where a file has both; features otherwise.
    key : str, optional
        Which array of an .npz, or dataset of an .h5 or .hdf5.

    Returns
    -------
    dict
        What was written: kind, rows, and of features d and dtype, of labels the number of identities.

    Raises
    ------
    MissingFileError, InputError
        The source cannot be read as what the target's format holds; nothing is written then.
    """
    found = [FEATURES, LABELS] if source == STREAM else kinds_of(Path(source), key)
    fits = [FEATURES, LABELS] if target == STREAM else _kinds_of_suffix(target, Path(target).suffix)
    possible = [one for one in found if one in fits and kind in (None, one)]
    if not possible:
        asked = (
            f"{kind} are asked for" if kind is not None and kind not in found else f"{target} takes {' or '.join(fits)}"
        )
        raise InputError(f"{source}: holds {' and '.join(found)}; {asked}")
    if source != STREAM and target != STREAM and Path(target).exists() and Path(source).samefile(target):
        raise InputError(f"{target}: the file that is read; name another to write")
    if target != STREAM and (by := is_ours(Path(target))) is not None:
        raise InputError(f"{target}: a file of the results of {maker(by)}; name another to write")
    chosen = kind or (possible[0] if len(possible) == 1 or source != STREAM else None)
    opened = open_either(source, feature_dim, chosen, key)
    if isinstance(opened, Blocks):
        return _write_features(opened, source, target, dtype)
    if dtype is not None:
        raise InputError(f"--dtype: of features; {source} holds labels, which are integers")
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
        raise InputError(f"--dtype: {suffix} holds float32; found {dtype}; write .npy, .npz, .h5 or .parquet")
    name = "stdin" if source == STREAM else source
    if target == STREAM:
        with npy_writer(sys.stdout.buffer, blocks.rows, blocks.dim, np.dtype(dtype)) as write:
            for part in converted(blocks, np.dtype(dtype), name):
                write(part)
    else:
        with replacing(target) as temporary:
            write_blocks(temporary, blocks, np.dtype(dtype), name)
    return {"kind": FEATURES, "rows": blocks.rows, "dim": blocks.dim, "dtype": dtype}
