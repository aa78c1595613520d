"""What is in a file of features or labels, found in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks
from starfc.data.dataset import lengths

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def profile_features(blocks: Blocks) -> dict[str, Any]:
    """Rows, norms, invalid rows and exact duplicates; memory is 24 bytes a row and one block.

    Returns
    -------
    dict
        ``rows``, ``dim``, ``dtype``; ``norm``: min, median and max of the rows that are finite (None without any);
        ``non_finite_rows``, ``zero_rows``; ``duplicates``: ``rows`` that equal an earlier row, ``groups`` of equal rows
        and the size of the ``largest`` (1 where all differ). Equal rows are those with two equal 64-bit hashes.
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
    """Σ key · word mod 2^64 over the 32-bit words of a row (16-bit ones of float16); 0.0 and -0.0 are equal."""
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
    """Instances, identities, their sizes at :data:`QUANTILES`, those of one instance, and instances of label -1.

    -1 is no identity: it stands for instances that are in none.
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
    """:func:`profile_features` as text."""
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
    """:func:`profile_labels` as text."""
    yield f"{'labels':<20}{found['rows']:,}"
    yield f"{'identities':<20}{found['identities']:,}, {found['singletons']:,} of one instance"
    if found["without_label"]:
        yield f"{'label -1':<20}{found['without_label']:,} instances"
    if found["sizes"]:
        cells = ", ".join(f"{100 * float(q):g} %: {size:g}" for q, size in found["sizes"].items())
        yield f"{'sizes at quantiles':<20}{cells}"
