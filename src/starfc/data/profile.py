"""Describe the content of a file of features or labels, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks
from starfc.data.dataset import lengths

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def profile_features(blocks: Blocks) -> dict[str, Any]:
    """Count rows, invalid rows and exact duplicates, and compute norms. This takes 24 bytes per row and one block.

    Returns
    -------
    dict
        ``rows``, ``dim``, ``dtype``. ``norm``: min, median and max of the finite rows (None without any).
        ``non_finite_rows``, ``zero_rows``. ``duplicates``: number of ``rows`` that equal an earlier row, number of
        ``groups`` of equal rows, and size of the ``largest`` group (1 if all rows differ). Two rows are equal if two
        64-bit hashes of them are equal.
    """
    norms, hashes = np.empty(blocks.rows), np.empty((2, blocks.rows), np.uint64)
    at = 0
    keys = np.random.default_rng(0).integers(0, 2**63, (2, 2 * blocks.dim), np.uint64) * np.uint64(2) + np.uint64(1)
    for part in blocks.parts:
        rows = slice(at, at + len(part))
        with np.errstate(over="ignore", invalid="ignore"):
            norms[rows] = lengths(part)
            for key, out in zip(keys, hashes, strict=True):
                out[rows] = _hash(part, key)
        at += len(part)
    finite = norms[np.isfinite(norms)]
    spread = {"min": finite.min(), "median": np.median(finite), "max": finite.max()} if finite.size else {}
    return {
        "rows": blocks.rows,
        "dim": blocks.dim,
        "dtype": blocks.dtype.name,
        "norm": {name: float(value) for name, value in spread.items()} or None,
        "non_finite_rows": int(blocks.rows - finite.size),
        "zero_rows": int((finite == 0).sum()),
        "duplicates": _duplicates(hashes),
    }


def _hash(rows: NDArray[np.floating], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return Σ key · word mod 2^64 over the 32-bit words of each row (16-bit words for float16). -0.0 equals 0.0."""
    words = (rows + rows.dtype.type(0)).view(np.uint16 if rows.dtype.itemsize == 2 else np.uint32)
    return (words * key[: words.shape[1]]).sum(axis=1, dtype=np.uint64)


def _duplicates(hashes: NDArray[np.uint64]) -> dict[str, int]:
    first, second = hashes
    if not first.size:
        return {"rows": 0, "groups": 0, "largest": 0}
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    starts = np.flatnonzero(np.concatenate([[True], (first[1:] != first[:-1]) | (second[1:] != second[:-1])]))
    sizes = np.diff(np.append(starts, len(first)))
    return {"rows": int((sizes - 1).sum()), "groups": int((sizes > 1).sum()), "largest": int(sizes.max())}


def profile_labels(labels: NDArray[np.int64]) -> dict[str, Any]:
    """Count instances, identities, identities with one instance, and instances with label -1 (unknown identity).

    The result also has the sizes of the identities at :data:`QUANTILES`.
    """
    sizes = np.unique(labels[labels != -1], return_counts=True)[1]
    return {
        "rows": len(labels),
        "identities": len(sizes),
        "sizes": {f"{q:g}": float(np.quantile(sizes, q)) for q in QUANTILES} if sizes.size else None,
        "singletons": int((sizes == 1).sum()),
        "without_label": int((labels == -1).sum()),
    }


def feature_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield the result of :func:`profile_features` as lines of text."""
    yield f"{'rows':<20}{found['rows']:,}"
    yield f"{'dimension':<20}{found['dim']:,}"
    yield f"{'dtype':<20}{found['dtype']}"
    if found["norm"]:
        norm = found["norm"]
        yield f"{'norm':<20}{norm['min']:.4g} to {norm['max']:.4g}, median {norm['median']:.4g}"
    yield f"{'NaN or infinite':<20}{found['non_finite_rows']:,} rows"
    yield f"{'zero':<20}{found['zero_rows']:,} rows"
    d = found["duplicates"]
    yield f"{'duplicates':<20}{d['rows']:,} rows equal an earlier one, {d['groups']:,} groups, largest {d['largest']:,}"


def label_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield the result of :func:`profile_labels` as lines of text."""
    yield f"{'labels':<20}{found['rows']:,}"
    yield f"{'identities':<20}{found['identities']:,}, {found['singletons']:,} of one instance"
    if found["without_label"]:
        yield f"{'label -1':<20}{found['without_label']:,} instances"
    if found["sizes"]:
        cells = ", ".join(f"{100 * float(q):g} %: {size:g}" for q, size in found["sizes"].items())
        yield f"{'sizes at quantiles':<20}{cells}"
