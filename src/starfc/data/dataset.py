"""Open a data split: features that are checked and L2-normalised when they are read, and labels if there are any."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.files import FEATURE_SUFFIXES, LABEL_SUFFIXES, UNLABELLED, read_features, read_labels
from starfc.errors import InputError, MissingFileError
from starfc.runtime.half import bits
from starfc.runtime.memory import mapped_bytes, release
from starfc.runtime.words import advice
from starfc.storage.scratch import large_array, scratch_array

log = logging.getLogger("starfc")

_SMALLEST, _LARGEST = 1e-30, 1e36  # between these, a squared norm in float32 loses none of its terms
BLOCK_BYTES = 64 << 20  # features are read 64 MiB of float32 at a time


@dataclass(frozen=True)
class Check:
    """The result of one pass over the features.

    Attributes
    ----------
    fingerprint : str
        Digest of their dtype, shape and bytes.
    non_finite, zero, off_unit : (n,) int64
        Rows with NaN or infinity, rows with only zeros, and rows whose norm is not 1.
    """

    fingerprint: str
    non_finite: NDArray[np.int64]
    zero: NDArray[np.int64]
    off_unit: NDArray[np.int64]


def within_range(rows: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return rows (n, d) as float32 and their norms (n,), such that float32 can hold the squares.

    Rows that are too long or too short for that are scaled, which does not change their direction. All others are
    unchanged.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out = np.array(rows, np.float32)
        squares, odd = _squares(out)
        if odd.size:
            exact = np.asarray(rows[odd], np.float64)
            most = np.abs(exact).max(axis=1, keepdims=True, initial=0)
            out[odd] = exact / np.where((most > 0) & np.isfinite(most), most, 1)
            squares[odd] = _squares(out[odd])[0]
    return out, np.sqrt(squares)


def _squares(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the squared norms (n,), and the rows whose squared norm is too large or too small for float32."""
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float32)
    return squares, np.flatnonzero(~((squares > _SMALLEST) & (squares < _LARGEST)))


def lengths(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the lengths (n,) of rows. They are infinite or NaN only if a number is, and 0 only if all numbers are."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        out = np.sqrt(squares)
        if rows.dtype.itemsize > 4:  # float64 holds the squares of all narrower types
            odd = np.flatnonzero(~((squares > 1e-200) & (squares < np.inf)))
            most = np.abs(rows[odd]).max(axis=1, initial=0)
            scaled = rows[odd] / np.where((most > 0) & np.isfinite(most), most, 1)[:, None]
            length = most * np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
            out[odd] = np.where(np.isfinite(most), np.minimum(length, np.finfo(np.float64).max), most)
    return out


class Features:
    """Features (N, d) in an array or memory map, which are read as L2-normalised float32.

    Parameters
    ----------
    array : (N, d) float16/32/64
        The features. An array whose rows are not contiguous (Fortran order) is copied once, so that results do not
        depend on the order in memory.
    name : str
        File or parameter name for messages.
    normalise : bool
        True (``is_norm_feat`` of the published configs) divides every row by its norm. False uses rows unchanged;
        :meth:`require_valid` then requires unit length.
    scale : (m,) float32, optional
        :attr:`factors` of the first m rows, if they are known from an earlier run.
    """

    def __init__(
        self,
        array: NDArray[np.floating],
        name: str = "features",
        normalise: bool = True,
        scale: NDArray[np.float32] | None = None,
    ) -> None:
        self.array, self.name, self.normalise = _row_by_row(array), name, normalise
        self.scale = np.empty(0, np.float32) if scale is None else scale

    def __len__(self) -> int:
        return self.array.shape[0]

    @property
    def dim(self) -> int:
        return self.array.shape[1]

    def rows(self, selection: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Return selected rows as a new float32 array, normalised."""
        if not self.normalise:
            return np.array(self.array[selection], np.float32)
        rows, norms = within_range(self.array[selection])
        rows /= np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
        return rows

    def all(self) -> NDArray[np.float32]:
        """Return all rows as one normalised (N, d) float32 array. It is the given array if that needs no change."""
        if not self.normalise and self.array.dtype == np.float32:
            return np.asarray(self.array)
        out = np.empty(self.array.shape, np.float32)
        for rows in self.blocks():
            out[rows] = self.rows(rows)
        return out

    @cached_property
    def scaled(self) -> tuple[NDArray[np.float32] | NDArray[np.uint16], NDArray[np.float32]]:
        """Return an array and a scale for compiled kernels: normalised row i is ``array[i] * scale[i]``.

        Kernels thus need no normalised copy. The array (N, d) is float32, or the bits (uint16) of float16, and may be
        memory-mapped. The scale is (N,) float32. float64 features are copied as normalised float32, as are features
        with rows so long or so short that the product of two leaves the range of float32.
        """
        if not self.direct:
            return self.all(), np.ones(len(self), np.float32)
        return bits(np.asarray(self.array)), self.factors

    @property
    def direct(self) -> bool:
        """Whether kernels read the array itself (:attr:`scaled`)."""
        return self.array.dtype.itemsize <= 4 and self.array.dtype.isnative and bool(self.factors.all())

    @cached_property
    def factors(self) -> NDArray[np.float32]:
        """Return the factor that normalises each row, (N,) float32; 0 if products of the row may leave its range."""
        factors, known = np.ones(len(self), np.float32), len(self.scale)
        factors[:known] = self.scale
        if self.normalise:
            for rows in self.blocks(known):
                with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                    squares, odd = _squares(np.asarray(self.array[rows], np.float32))
                factors[rows] = 1 / np.maximum(np.sqrt(squares), np.finfo(np.float32).tiny)
                if odd.size:
                    length = lengths(self.array[rows][odd])
                    held = (length > 1e-18) & (length < 1e18)  # so that the product of two rows is in range
                    none = (length == 0) | ~np.isfinite(length)  # the row has no direction
                    factors[rows][odd] = np.where(held, 1 / np.where(held, length, 1), none)
        return factors

    def blocks(self, first: int = 0) -> Iterator[slice]:
        """Yield slices of the rows from ``first``, of about :data:`BLOCK_BYTES` bytes of float32 each."""
        step = max(1, BLOCK_BYTES // (4 * max(1, self.dim)))
        for start in range(first, len(self), step):
            yield slice(start, min(start + step, len(self)))

    @cached_property
    def check(self) -> Check:
        """Read the data once, and return their fingerprint (blake2b of dtype, shape and bytes) and invalid rows."""
        digest = hashlib.blake2b(f"{self.array.dtype.str}{self.array.shape}".encode(), digest_size=16)
        found: list[list[NDArray[np.int64]]] = [[], [], []]
        for rows in self.blocks():
            raw = np.ascontiguousarray(self.array[rows])
            digest.update(raw.view(np.uint8).data)
            length = lengths(raw)
            masks = (~np.isfinite(length), length == 0, np.abs(np.minimum(length, 2) ** 2 - 1) > 1e-2)
            for rows_found, mask in zip(found, masks, strict=True):
                rows_found.append(np.flatnonzero(mask) + rows.start)
        release(self.array)
        non_finite, zero, off_unit = (np.concatenate(f) if f else np.empty(0, np.int64) for f in found)
        return Check(digest.hexdigest(), non_finite, zero, off_unit)

    @property
    def invalid_rows(self) -> NDArray[np.int64]:
        """Return the rows that are not finite or have zero norm, sorted."""
        return np.union1d(self.check.non_finite, self.check.zero)

    def require_valid(self) -> None:
        """Raise :class:`InputError` if rows are not finite, have zero norm, or must have norm 1 but do not."""
        kinds = [(self.check.non_finite, "NaN or infinite values"), (self.check.zero, "zero norm (no direction)")]
        for rows, what in kinds:
            if rows.size:
                raise InputError(
                    f"{self.name}: {rows.size:,} of {len(self):,} rows have {what}, first rows {rows[:5].tolist()}; "
                    f"correct them{advice(', or set {} to singleton to give each its own cluster', 'invalid_rows')}"
                )
        if not self.normalise and self.check.off_unit.size:
            rows = self.check.off_unit
            raise InputError(
                f"{self.name}: is_norm_feat is False but {rows.size:,} of {len(self):,} rows do not have length 1, "
                f"first rows {rows[:5].tolist()}; set is_norm_feat=True to normalise them"
            )

    def valid(self, policy: str = "error") -> tuple[Features, NDArray[np.int64]]:
        """Return features that all have a direction, and the rows that were left out.

        With ``policy`` 'error' a row without direction raises an error (:meth:`require_valid`). With 'singleton' such
        rows are left out, and the caller gives each its own cluster.
        """
        invalid = self.invalid_rows
        if policy != "singleton" or not invalid.size:
            self.require_valid()
            return self, np.empty(0, np.int64)
        log.warning(
            "%s: %d rows without direction become singletons, first rows %s",
            self.name,
            len(invalid),
            invalid[:5].tolist(),
        )
        return self.subset(np.setdiff1d(np.arange(len(self)), invalid)), invalid

    def subset(self, rows: NDArray[np.integer], folder: Path | None = None) -> Features:
        """Copy the given rows to new features.

        Rows of a memory-mapped file are copied to an unnamed file in ``folder``, if one is given, instead of memory.
        """
        if folder is None or not mapped_bytes(self.array) or not len(rows):
            return Features(np.array(self.array[rows]), self.name, self.normalise)
        array = scratch_array((len(rows), self.dim), self.array.dtype, folder)
        out = Features(array, self.name, self.normalise)
        for part in out.blocks():
            array[part] = self.array[rows[part]]
            release(self.array)
        return out


def _row_by_row(array: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return an array in C order: itself if it is, otherwise a copy, in a file if it is large."""
    if array.flags.c_contiguous:
        return array
    out = large_array(array.shape, array.dtype, None)
    step = max(1, BLOCK_BYTES // (4 * max(1, array.shape[1])))
    for start in range(0, len(array), step):
        out[start : start + step] = array[start : start + step]
        release(array)
    return out


def as_features(features: Features | NDArray[np.floating]) -> Features:
    """Return features unchanged, and an array of L2-normalised rows as features that are not normalised again."""
    return features if isinstance(features, Features) else Features(features, normalise=False)


@dataclass(frozen=True)
class Split:
    """Features, and the identity of every instance if known. ``key`` is the array of an .npz that the user named."""

    features: Features
    labels: NDArray[np.int64] | None
    name: str
    key: str | None = None

    def __len__(self) -> int:
        return len(self.features)


def open_split(
    feat_path: str | Path,
    label_path: str | Path | None,
    *,
    feature_dim: int | None,
    normalise: bool = True,
    name: str = "",
    key: str | None = None,
    room: int | None = None,
    labels_needed: bool = True,
) -> Split:
    """Open the files of a split. For a path without a suffix, all suffixes of features or labels are tried.

    Parameters
    ----------
    feat_path, label_path : path
        Features and labels. ``label_path`` None: there are no labels.
    feature_dim, key, room
        As for :func:`~starfc.data.files.read_features`.
    normalise : bool
        As for :class:`Features`.
    name : str
        Name of the split. Default: the file name of the features.
    labels_needed : bool
        Whether missing labels are an error. If False, they are an error only if ``label_path`` has a suffix.

    Raises
    ------
    MissingFileError, InputError
        A file does not exist or is damaged, or all labels are -1.
    """
    feat_path = find_file(feat_path, FEATURE_SUFFIXES, "features")
    features = Features(read_features(feat_path, feature_dim, key, room=room), str(feat_path), normalise)
    if not len(features):
        raise InputError(f"{feat_path}: needs at least one row; found shape {features.array.shape}")
    labels = None
    if label_path is not None:
        try:
            label_path = find_file(label_path, LABEL_SUFFIXES, "labels")
        except MissingFileError as error:
            if labels_needed or Path(label_path).suffix in LABEL_SUFFIXES:
                raise
            log.info("%s", error)
        else:
            labels = read_labels(label_path, len(features))
            if len(labels) and (labels == UNLABELLED).all():
                raise InputError(f"{label_path}: every label is -1 (unknown identity); leave the labels out")
    return Split(features, labels, name or feat_path.stem, key)


def find_file(path: str | Path, suffixes: tuple[str, ...], what: str) -> Path:
    """Return the file itself, or the first file ``path`` + suffix that exists.

    The published layout is ``features/<split>`` and ``labels/<split>``. If that folder has no such file, the parent
    folder is searched too.
    """
    path = Path(path)
    folders = [path.parent, path.parent.parent] if path.parent.name in ("features", "labels") else [path.parent]
    known = path.suffix in suffixes or os.path.isfile(path)
    names = [path.name] if known else [path.name + suffix for suffix in suffixes]
    for candidate in (folder / name for folder in folders for name in names):
        if os.path.isfile(candidate):
            return candidate
    looked = "" if path.suffix in suffixes else f"; looked for {', '.join(names)} in {' and '.join(map(str, folders))}"
    raise MissingFileError(f"{path}: no such {what} file{looked}")
