"""A split: features that are checked and L2-normalised on read, with labels if there are any."""

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
from starfc.storage.scratch import scratch_array

log = logging.getLogger("starfc")

_SMALLEST, _LARGEST = 1e-30, 1e36  # of squared norms that float32 holds with all their parts
BLOCK_BYTES = 64 << 20  # features are read 64 MiB of float32 at a time


@dataclass(frozen=True)
class Check:
    """What one pass over the features found: a fingerprint of their bytes, and the rows that have no direction."""

    fingerprint: str
    non_finite: NDArray[np.int64]
    zero: NDArray[np.int64]
    off_unit: NDArray[np.int64]


def within_range(rows: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows as float32 whose squares float32 holds, and their norms: (n, d) and (n,).

    Rows too long or too short for that are brought to length by a factor, which does not change their direction; all
    others are as they were.
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
    """Squared norms (n,), and the rows where float32 does not hold them well."""
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float32)
    return squares, np.flatnonzero(~((squares > _SMALLEST) & (squares < _LARGEST)))


def lengths(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Lengths of rows: (n,), infinite or NaN exactly where a number is, and 0 exactly where all are."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        out = np.sqrt(squares)
        if rows.dtype.itemsize > 4:  # others have no squares that float64 does not hold
            odd = np.flatnonzero(~((squares > 1e-200) & (squares < np.inf)))
            most = np.abs(rows[odd]).max(axis=1, initial=0)
            scaled = rows[odd] / np.where((most > 0) & np.isfinite(most), most, 1)[:, None]
            length = most * np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
            out[odd] = np.where(np.isfinite(most), np.minimum(length, np.finfo(np.float64).max), most)
    return out


class Features:
    """(N, d) features, given as an array or memory map and handed out as L2-normalised float32.

    Parameters
    ----------
    array : (N, d) float16/32/64
    name : str
        File or parameter name for messages.
    normalise : bool
        True (``is_norm_feat`` of the published configs) divides every row by its norm. False takes rows as they are,
        and :meth:`require_valid` then demands unit length.
    scale : (m,) float32, optional
        What :attr:`scaled` found for the first m rows, where that is known from an earlier time.
    """

    def __init__(
        self,
        array: NDArray[np.floating],
        name: str = "features",
        normalise: bool = True,
        scale: NDArray[np.float32] | None = None,
    ) -> None:
        self.array, self.name, self.normalise = array, name, normalise
        self.scale = np.empty(0, np.float32) if scale is None else scale

    def __len__(self) -> int:
        return self.array.shape[0]

    @property
    def dim(self) -> int:
        return self.array.shape[1]

    def rows(self, selection: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Selected rows as a new float32 array, normalised."""
        if not self.normalise:
            return np.array(self.array[selection], np.float32)
        rows, norms = within_range(self.array[selection])
        rows /= np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
        return rows

    def all(self) -> NDArray[np.float32]:
        """Every row, normalised: one (N, d) float32 array, filled block by block (the given one where it is that)."""
        if not self.normalise and self.array.dtype == np.float32 and self.array.flags.c_contiguous:
            return np.asarray(self.array)
        out = np.empty(self.array.shape, np.float32)
        for rows in self.blocks():
            out[rows] = self.rows(rows)
        return out

    @cached_property
    def scaled(self) -> tuple[NDArray[np.float32] | NDArray[np.uint16], NDArray[np.float32]]:
        """What compiled kernels gather from, without a normalised copy: normalised row i is ``array[i] * scale[i]``.

        The array is float32, or float16 as its bits (uint16), both (N, d) and possibly memory-mapped; the scale is (N,)
        float32. float64 features are converted, and so are rows too long or too short for a factor of float32.
        """
        direct = self.array.dtype.itemsize <= 4 and self.array.flags.c_contiguous and self.array.dtype.isnative
        if not direct or not self.factors.all():
            return self.all(), np.ones(len(self), np.float32)
        return bits(np.asarray(self.array)), self.factors

    @cached_property
    def factors(self) -> NDArray[np.float32]:
        """What normalises each row, (N,); 0 for a row of such a length that float32 does not hold it well."""
        factors, known = np.ones(len(self), np.float32), len(self.scale)
        factors[:known] = self.scale
        if self.normalise:
            for rows in self.blocks(known):
                with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                    squares, odd = _squares(np.asarray(self.array[rows], np.float32))
                factors[rows] = 1 / np.maximum(np.sqrt(squares), np.finfo(np.float32).tiny)
                if odd.size:
                    length = lengths(self.array[rows][odd])
                    held = (length > 1e-37) & (length < 1e37)
                    none = (length == 0) | ~np.isfinite(length)  # no direction to keep
                    factors[rows][odd] = np.where(held, 1 / np.where(held, length, 1), none)
        return factors

    def blocks(self, first: int = 0) -> Iterator[slice]:
        """Slices of the rows from ``first`` on, of about :data:`BLOCK_BYTES` of float32 each."""
        step = max(1, BLOCK_BYTES // (4 * max(1, self.dim)))
        for start in range(first, len(self), step):
            yield slice(start, min(start + step, len(self)))

    @cached_property
    def check(self) -> Check:
        """One pass over the data: fingerprint (blake2b of dtype, shape and bytes) and invalid rows."""
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
        """Rows that are not finite or of zero norm, ascending."""
        return np.union1d(self.check.non_finite, self.check.zero)

    def require_valid(self) -> None:
        """Raise :class:`InputError` naming the first rows that are not finite, of zero norm, or not of norm 1."""
        kinds = [(self.check.non_finite, "NaN or infinite values"), (self.check.zero, "zero norm (no direction)")]
        for rows, what in kinds:
            if rows.size:
                raise InputError(
                    f"{self.name}: {rows.size:,} of {len(self):,} rows have {what}, first rows {rows[:5].tolist()}; "
                    f"repair them{advice(', or set {} to singleton, which makes each its own cluster', 'invalid_rows')}"
                )
        if not self.normalise and self.check.off_unit.size:
            rows = self.check.off_unit
            raise InputError(
                f"{self.name}: is_norm_feat is False but {rows.size:,} of {len(self):,} rows are not of unit length, "
                f"first rows {rows[:5].tolist()}; set is_norm_feat=True to normalise on read"
            )

    def valid(self, policy: str = "error") -> tuple[Features, NDArray[np.int64]]:
        """Features that all have a direction, and the rows left out.

        ``policy`` 'error' raises for a row without direction (:meth:`require_valid`) and leaves none out; 'singleton'
        leaves such rows out, for the caller to make each its own cluster.
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
        """The given rows, copied, as features of their own.

        Those of a memory-mapped file go to an unnamed file in ``folder``, where there is one, instead of memory.
        """
        if folder is None or not mapped_bytes(self.array) or not len(rows):
            return Features(np.array(self.array[rows]), self.name, self.normalise)
        array = scratch_array((len(rows), self.dim), self.array.dtype, folder)
        out = Features(array, self.name, self.normalise)
        for part in out.blocks():
            array[part] = self.array[rows[part]]
            release(self.array)
        return out


def as_features(features: Features | NDArray[np.floating]) -> Features:
    """Features as they are; an array of L2-normalised rows as features that need no normalising."""
    return features if isinstance(features, Features) else Features(features, normalise=False)


@dataclass(frozen=True)
class Split:
    """Features and, where known, the identity of every instance; ``key`` is the array of an .npz that was named."""

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
    """Open a split's files; paths without a suffix are looked for with every suffix of their kind.

    Parameters
    ----------
    feat_path, label_path : path
        No labels where the latter is None.
    feature_dim, key, room
        As for :func:`~starfc.data.formats.read_features`.
    normalise : bool
        As for :class:`Features`.
    name : str
        What the split is called; the features' file name otherwise.
    labels_needed : bool
        Whether labels that are not there are an error. Where they are not needed, ``label_path`` says where they would
        be, and is an error only where it names one file.

    Raises
    ------
    MissingFileError, InputError
        A file is missing or not what it should be, or all labels are -1.
    """
    feat_path = find_file(feat_path, FEATURE_SUFFIXES, "features")
    features = Features(read_features(feat_path, feature_dim, key, room=room), str(feat_path), normalise)
    if not len(features):
        raise InputError(f"{feat_path}: no rows (shape {features.array.shape}); at least 1 needed")
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
                raise InputError(f"{label_path}: every label is -1, which is no identity; leave the labels out")
    return Split(features, labels, name or feat_path.stem, key)


def find_file(path: str | Path, suffixes: tuple[str, ...], what: str) -> Path:
    """The file itself, or the first of ``path`` + suffix that exists.

    Of the published layout ``features/<split>`` and ``labels/<split>`` the folder may be left out: where it holds no
    such file, the one above is searched too.
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
