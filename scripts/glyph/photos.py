"""Degrade pictures of glyphs, as cameras, distance and obstacles degrade photos of faces. Batched, and from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

LEVELS = (0.44, 0.34, 0.19, 0.03)  # share of photos at each level, 0 clean ... 3 bad
_BLUR = 4  # pixels that the blur reaches


@dataclass(frozen=True)
class Level:
    """Strength of each degradation: standard deviations of what is normal, ends of ranges of what is uniform."""

    angle: float  # degrees
    shear: float
    scale: float
    shift: float  # pixels
    bend: float  # pixels of a smooth displacement
    blur: float  # largest standard deviation in pixels
    noise: float  # largest standard deviation; grey values are from 0 to 1
    background: float  # largest
    contrast: float  # smallest
    covered: float  # probability of a bar


DEGRADATIONS = (
    Level(2.0, 0.05, 0.04, 0.7, 0.35, 0.55, 0.06, 0.12, 0.75, 0.05),
    Level(4.0, 0.10, 0.07, 1.2, 0.6, 1.1, 0.09, 0.20, 0.60, 0.10),
    Level(6.0, 0.14, 0.10, 1.7, 0.85, 1.5, 0.12, 0.28, 0.45, 0.17),
    Level(8.0, 0.18, 0.12, 2.2, 1.1, 2.0, 0.17, 0.38, 0.30, 0.35),
)


def draw_levels(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a level for each of ``count`` photos, (count,) uint8, with the shares :data:`LEVELS`."""
    return rng.choice(len(LEVELS), count, p=LEVELS).astype(np.uint8)


def seeded(*numbers: int) -> torch.Generator:
    """Return a generator of random numbers that depends on these numbers, at least 0."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def degrade(images: torch.Tensor, levels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a photo of each picture: warped, blurred, with background, noise and sometimes a bar.

    Parameters
    ----------
    images : (B, S, S) uint8
        Pictures, white ink on black.
    levels : (B,) integers
        Level of degradation of each, 0 to 3.
    generator : torch.Generator
        Where the random numbers come from. The same state gives the same photos.

    Returns
    -------
    (B, S, S) uint8
        The photos.
    """
    count, side = images.shape[:2]
    strength = torch.tensor([list(vars(level).values()) for level in DEGRADATIONS])[levels.long()].T
    angle, shear, scale, shift, bend, blur, noise, background, contrast, covered = strength

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    def uniform() -> torch.Tensor:
        return torch.rand(count, generator=generator)

    photo = images.float().div(255)[:, None]
    turn, slant, across, down = normal() * angle * (math.pi / 180), normal() * shear, normal() * scale, normal() * scale
    cos, sin = turn.cos(), turn.sin()
    move = 2 / side * shift
    rows = (cos * across.exp(), (slant - sin) * across.exp(), move * normal()), (
        sin * down.exp(), cos * down.exp(), move * normal()
    )  # fmt: skip
    grid = functional.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), list(photo.shape), False)
    bent = functional.interpolate(normal(2, 4, 4), (side, side), mode="bicubic", align_corners=True)
    grid = grid + (2 / side * bend)[:, None, None, None] * bent.permute(0, 2, 3, 1)
    photo = functional.grid_sample(photo, grid, align_corners=False)
    photo = _blurred(photo, 0.1 + blur * uniform())[:, 0]
    low = background * uniform()
    high = low + (contrast + (1 - contrast) * uniform()) * (1 - low)
    photo = low[:, None, None] + (high - low)[:, None, None] * photo
    photo = _with_bars(photo, uniform() < covered, uniform(), uniform(), uniform(), uniform() < 0.5)
    spread = noise * (0.3 + 0.7 * uniform())
    photo = photo + spread[:, None, None] * normal(side, side)
    return photo.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _blurred(photo: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Return (B, 1, S, S) blurred by a Gaussian, each with its own standard deviation (B,) in pixels."""
    side = photo.shape[-1]
    at = torch.arange(-_BLUR, _BLUR + 1)
    kernel = torch.exp(-0.5 * (at / deviation[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    padded = functional.pad(photo[:, 0], (_BLUR, _BLUR, _BLUR, _BLUR))
    wide = sum(kernel[:, n, None, None] * padded[:, n : n + side] for n in range(2 * _BLUR + 1))
    return sum(kernel[:, n, None, None] * wide[:, :, n : n + side] for n in range(2 * _BLUR + 1))[:, None]


def _with_bars(
    photo: torch.Tensor,
    covered: torch.Tensor,
    place: torch.Tensor,
    width: torch.Tensor,
    grey: torch.Tensor,
    upright: torch.Tensor,
) -> torch.Tensor:
    """Return (B, S, S) with a bar of one grey value over the covered ones: a tenth to a fifth of the side wide."""
    side = photo.shape[-1]
    at, width = torch.arange(side), side * (0.1 + 0.1 * width)
    start = place * (side - width)
    bar = (at >= start[:, None]) & (at < (start + width)[:, None]) & covered[:, None]
    bar = torch.where(upright[:, None, None], bar[:, None, :], bar[:, :, None])
    return torch.where(bar, 0.25 + 0.75 * grey[:, None, None], photo)
