"""A split: features that are checked and L2-normalised on read, with labels if there are any."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.formats import FEATURE_SUFFIXES, LABEL_SUFFIXES, read_features, read_labels
from starfc.errors import InputError, MissingFileError
from starfc.runtime.half import bits
from starfc.runtime.memory import mapped_bytes, release
from starfc.runtime.scratch import scratch_array

log = logging.getLogger("starfc")

BLOCK_BYTES = 64 << 20  # features are read 64 MiB of float32 at a time


@dataclass(frozen=True)
class Check:
    """What one pass over the features found: a fingerprint of their bytes, and the rows that have no direction."""

    fingerprint: str
    non_finite: NDArray[np.int64]
    zero: NDArray[np.int64]
    off_unit: NDArray[np.int64]


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
        rows = np.array(self.array[selection], np.float32)
        if self.normalise:
            norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float32))[:, None]
            rows /= np.maximum(norms, np.finfo(np.float32).tiny)
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
        float32. float64 features are converted.
        """
        if self.array.dtype.itemsize > 4 or not self.array.flags.c_contiguous or not self.array.dtype.isnative:
            return self.all(), np.ones(len(self), np.float32)
        scale, known = np.ones(len(self), np.float32), len(self.scale)
        scale[:known] = self.scale
        if self.normalise:
            for rows in self.blocks(known):
                block = np.asarray(self.array[rows], np.float32)
                norms = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float32))
                scale[rows] = 1 / np.maximum(norms, np.finfo(np.float32).tiny)
        return bits(np.asarray(self.array)), scale

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
            with np.errstate(over="ignore", invalid="ignore"):
                squares = np.einsum("ij,ij->i", raw, raw, dtype=np.float64)
            masks = (~np.isfinite(squares), squares < 1e-30, np.abs(squares - 1) > 1e-2)
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
                    "repair them, or set invalid_rows='singleton' to make each its own cluster"
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
    """Features and, where known, the identity of every instance."""

    features: Features
    labels: NDArray[np.int64] | None
    name: str

    def __len__(self) -> int:
        return len(self.features)


def open_split(
    feat_path: str | Path,
    label_path: str | Path | None,
    *,
    feature_dim: int | None,
    normalise: bool = True,
    name: str = "",
) -> Split:
    """Open a split's files; paths without a suffix are looked for with every suffix of their kind.

    A label file that is not there means unlabelled data where ``label_path`` has no suffix, and is an error where the
    path names one file.
    """
    feat_path = find_file(feat_path, FEATURE_SUFFIXES, "features")
    features = Features(read_features(feat_path, feature_dim), str(feat_path), normalise)
    labels = None
    if label_path is not None:
        try:
            label_path = find_file(label_path, LABEL_SUFFIXES, "labels")
        except MissingFileError:
            if Path(label_path).suffix in LABEL_SUFFIXES:
                raise
        else:
            labels = read_labels(label_path, len(features))
    return Split(features, labels, name or feat_path.stem)


def find_file(path: str | Path, suffixes: tuple[str, ...], what: str) -> Path:
    """The file itself, or the first of ``path`` + suffix that exists.

    Of the published layout ``features/<split>`` and ``labels/<split>`` the folder may be left out: where it holds no
    such file, the one above is searched too.
    """
    path = Path(path)
    folders = [path.parent, path.parent.parent] if path.parent.name in ("features", "labels") else [path.parent]
    names = [path.name] if path.suffix in suffixes else [path.name + suffix for suffix in suffixes]
    for candidate in (folder / name for folder in folders for name in names):
        if candidate.is_file():
            return candidate
    looked = (
        f"; looked for {', '.join(names)} in {' and '.join(map(str, folders))}" if path.suffix not in suffixes else ""
    )
    raise MissingFileError(f"{path}: no such {what} file{looked}")
