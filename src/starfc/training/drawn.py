"""Draw pictures: an identity is a figure of a few strokes, an instance is a distorted picture of it.

They represent data that are clustered by their pixels, or by the output of a network for pixels. They differ from
random points: two pictures are neighbours if their shapes overlap, and a small shift changes a picture much.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Rng = np.random.Generator
Rows = NDArray[np.float32]
Ids = NDArray[np.int64]

_SIDE = 32  # side of a figure in pixels; the pictures are smaller
_POINTS = 12  # points per stroke
_CHUNK = 4096  # pictures that are drawn at once


def draw_pictures(rng: Rng, ids: Ids, side: int, strength: float) -> Rows:
    """Draw one picture of figure ``ids[i]`` for every i.

    Parameters
    ----------
    rng : Generator
        Random numbers.
    ids : (n,) int64
        Numbers of the figures, from 0.
    side : int
        Width and height in pixels.
    strength : float
        How much the pictures of one figure differ; 0: not at all, 1: strongly.

    Returns
    -------
    (n, side * side) float32
        Grey values from about 0 to about 1.
    """
    figures = torch.from_numpy(_figures(rng, int(ids.max()) + 1))
    shapes, gammas = _ways_of_drawing(rng, len(ids), strength)
    occluded, noise = rng.uniform(0, 0.4) * strength, rng.uniform(0, 0.25) * strength
    dark = rng.random() < 0.5
    out = np.empty((len(ids), side * side), np.float32)
    for start in range(0, len(ids), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(ids)))
        grid = functional.affine_grid(
            torch.from_numpy(shapes[rows]), [rows.stop - start, 1, side, side], align_corners=False
        )
        drawn = functional.grid_sample(figures[torch.from_numpy(ids[rows])][:, None], grid, align_corners=False)
        some = drawn[:, 0].numpy() ** gammas[rows, None, None]
        _occlude(rng, some, occluded)
        out[rows] = some.reshape(len(some), -1)
    out *= rng.uniform(1 - 0.5 * strength, 1, (len(ids), 1)).astype(np.float32)
    out += (noise * rng.normal(size=out.shape)).astype(np.float32)
    return 1 - out if dark else out


def _figures(rng: Rng, count: int) -> Rows:
    """Draw figures of three to eight curved strokes, (count, 32, 32) float32. Look-alikes share some of the strokes."""
    strokes = int(rng.integers(3, 9))
    ends = rng.uniform(0.1, 0.9, (count, strokes, 3, 2))
    if rng.random() < 0.6:
        families = max(1, count // int(rng.integers(2, 40)))
        theirs = rng.uniform(0.1, 0.9, (families, strokes, 3, 2))[rng.integers(0, families, count)]
        shared = rng.random((count, strokes)) < rng.uniform(0.2, 0.8)
        ends[shared] = theirs[shared] + rng.normal(0, 0.03, theirs[shared].shape)
    t = np.linspace(0, 1, _POINTS)[:, None]
    weights = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)  # quadratic Bézier curves
    points = np.einsum("pe,csex->cspx", weights, ends).reshape(count, -1, 2)
    centres = (np.arange(_SIDE) + 0.5) / _SIDE
    width = rng.uniform(0.025, 0.06)
    figures = np.empty((count, _SIDE, _SIDE), np.float32)
    for start in range(0, count, 256):
        near = np.exp(-((points[start : start + 256, :, :, None] - centres) ** 2) / (2 * width**2)).astype(np.float32)
        figures[start : start + 256] = 1 - np.exp(-(near[:, :, 1].transpose(0, 2, 1) @ near[:, :, 0]))
    return figures


def _ways_of_drawing(rng: Rng, count: int, strength: float) -> tuple[Rows, Rows]:
    """Draw affine maps (count, 2, 3) and exponents of the grey values (count,), as variations of a few styles."""
    styles = int(rng.integers(1, 40))
    of_style = rng.normal(size=(styles, 7))[rng.integers(0, styles, count)]
    weight = rng.uniform(0, 0.9)
    drawn = np.sqrt(weight) * of_style + np.sqrt(1 - weight) * rng.normal(size=(count, 7))
    drawn *= strength
    angle, shear, shift = 0.25 * drawn[:, 0], 0.25 * drawn[:, 1], 0.12 * drawn[:, 2:4]
    scale = 0.9 * np.exp(0.12 * drawn[:, 4:6])
    cos, sin = np.cos(angle), np.sin(angle)
    maps = np.empty((count, 2, 3), np.float32)
    maps[:, 0] = np.stack([cos * scale[:, 0], (shear - sin) * scale[:, 1], shift[:, 0]], axis=1)
    maps[:, 1] = np.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1]], axis=1)
    return maps, np.exp(0.4 * drawn[:, 6]).astype(np.float32)


def _occlude(rng: Rng, pictures: Rows, share: float) -> None:
    """Cover a random rectangle in a share of the pictures (n, side, side), in place."""
    side = pictures.shape[1]
    for at in np.flatnonzero(rng.random(len(pictures)) < share):
        top, left = rng.integers(0, side, 2)
        high, wide = rng.integers(1, side // 2 + 1, 2)
        pictures[at, top : top + high, left : left + wide] = rng.random()
