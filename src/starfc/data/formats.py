"""Files of features and labels, in the layouts that the community has.

=========  ====================================================================================
features   ``.bin`` raw little-endian float32, row-major, no header (needs ``feature_dim``);
           ``.npy``, ``.npz`` (one array, or the key ``features`` or ``data``) of float16/32/64
labels     ``.meta`` / ``.txt`` text, one integer identity per line; ``.npy`` integers
=========  ====================================================================================

``.bin`` and ``.npy`` are memory-mapped.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError, MissingFileError
from starfc.runtime.atomic import replacing

FEATURE_SUFFIXES = (".bin", ".npy", ".npz")
LABEL_SUFFIXES = (".meta", ".txt", ".npy")


def read_features(path: str | Path, feature_dim: int | None = None) -> NDArray[np.floating]:
    """Open features as an (N, d) array of float16/32/64, memory-mapped where the format allows.

    Parameters
    ----------
    path : path
        A ``.bin``, ``.npy`` or ``.npz`` file.
    feature_dim : int, optional
        d. Needed for ``.bin``; a different d in another format is an error.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, of another format, not whole rows, of another dimension, or not floating point.
    """
    path = _existing(path, "features")
    if path.suffix == ".bin":
        return _read_bin(path, feature_dim)
    if path.suffix not in FEATURE_SUFFIXES:
        raise InputError(
            f"{path}: features are read from {', '.join(FEATURE_SUFFIXES)}; found {path.suffix or 'no suffix'!r}"
        )
    array = _load_numpy(path, ("features", "data"))
    if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(
            f"{path}: features are a two-dimensional array (N, d) of float16, float32 or float64; "
            f"found shape {array.shape}, {array.dtype}"
        )
    if feature_dim is not None and array.shape[1] != feature_dim:
        raise InputError(
            f"{path}: {array.shape[1]}-d features where feature_dim is {feature_dim}; set model.kwargs.feature_dim "
            "to the data's, or use a model trained on such features"
        )
    return array


def _read_bin(path: Path, feature_dim: int | None) -> NDArray[np.float32]:
    if feature_dim is None:
        raise InputError(f"{path}: a raw .bin file does not say its dimension; give feature_dim")
    size, row = path.stat().st_size, 4 * feature_dim
    if size % row:
        raise InputError(
            f"{path}: {size:,} bytes is not a whole number of {feature_dim}-d float32 rows ({row:,} bytes each); "
            "check feature_dim in the config (model.kwargs.feature_dim), or whether the file was cut short"
        )
    if size == 0:
        return np.empty((0, feature_dim), "<f4")
    return np.memmap(path, "<f4", mode="r", shape=(size // row, feature_dim))


def read_labels(path: str | Path, num_instances: int | None = None) -> NDArray[np.int64]:
    """Identities, one per instance: (N,) int64.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, holds something else than integers, or not ``num_instances`` of them.
    """
    path = _existing(path, "labels")
    if path.suffix == ".npy":
        labels = _load_numpy(path, ())
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(
                f"{path}: labels are a one-dimensional integer array; found {labels.shape}, {labels.dtype}"
            )
        labels = labels.astype(np.int64)
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
    """Write labels as ``.npy`` (int64) or as ``.meta`` text, by suffix, atomically."""
    path = Path(path)
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, labels.astype(np.int64))
        else:
            temporary.write_text("\n".join(map(str, labels.tolist())) + "\n", encoding="utf-8")


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such {what} file")
    return path


def _load_numpy(path: Path, keys: tuple[str, ...]) -> NDArray:
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        with loaded:
            named = [key for key in keys if key in loaded.files] or (loaded.files if len(loaded.files) == 1 else [])
            if not named:
                raise InputError(
                    f"{path}: an .npz with one array, or with the key {' or '.join(keys)}; found {loaded.files}"
                )
            return loaded[named[0]]
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable NumPy file ({error}); was it cut short, or does it hold objects?"
        ) from None
