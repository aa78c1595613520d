"""Choose identities, their photos, and the splits: part0 to choose parameters on, part1 in part3 ... in part9."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glyph.photos import draw_levels
from starfc.errors import InputError

PARTS = (1, 3, 5, 7, 9)  # ninths of the test identities in each cumulative part
LEAST_LOOKS = 16  # typefaces of an ideograph that can be an identity
MOST_PHOTOS = 4  # of one ideograph in one typeface
SPREAD = 0.6  # standard deviation of the logarithm of identities' sizes
REPEATED = 1.35  # photos for each typeface that an identity appears in, if it has enough typefaces
PART0 = 100_000  # instances of part0, or a tenth of the test's if that is less


@dataclass(frozen=True)
class Split:
    """Instances of a split: number of the picture, identity and level of degradation of each, (N,)."""

    glyph: NDArray[np.int64]
    identity: NDArray[np.int64]
    level: NDArray[np.uint8]


def choose_ideographs(
    covered: list[NDArray[np.int32]], network: int, part0: int, test: int, seed: int
) -> list[NDArray[np.int32]]:
    """Return the code points of the identities that train the network, of part0, and of the test parts: disjoint.

    Parameters
    ----------
    covered : list of (n,) int32
        Code points of each typeface, each look once.
    network, part0, test : int
        Numbers of identities.
    seed : int
        Seed of the choice.

    Raises
    ------
    InputError
        Too few ideographs have :data:`LEAST_LOOKS` typefaces.
    """
    codes, counts = np.unique(np.concatenate(covered), return_counts=True)
    codes = codes[counts >= LEAST_LOOKS]
    needed = network + part0 + test
    if len(codes) < needed:
        raise InputError(
            f"--identities: {test:,}, with {network + part0:,} to train the network and for part0, need {needed:,} "
            f"ideographs that at least {LEAST_LOOKS} different typefaces have; found {len(codes):,}; install more of "
            f"the fonts that --help lists, or lower --identities or --network-identities"
        )
    chosen = np.random.default_rng([seed, 0]).permutation(codes)[:needed]
    return np.split(chosen, [network, network + part0])


def sizes_of(looks: NDArray[np.int64], instances: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the number of photos of each identity, (C,), from a log-normal distribution, at least 2.

    Their sum is about ``instances``, or what the typefaces allow if this is less.

    Parameters
    ----------
    looks : (C,) int64
        Typefaces that each identity has; :data:`MOST_PHOTOS` photos of each are possible.
    instances : int
        The sum to reach.
    rng : numpy.random.Generator
        Where the random numbers come from.
    """
    weights = np.exp(SPREAD * rng.standard_normal(len(looks)))
    low, high = 0.0, float(MOST_PHOTOS * looks.max() / weights.min())
    for _ in range(60):
        middle = (low + high) / 2
        total = np.clip(np.round(middle * weights), 2, MOST_PHOTOS * looks).sum()
        low, high = (middle, high) if total < instances else (low, middle)
    return np.clip(np.round(high * weights), 2, MOST_PHOTOS * looks).astype(np.int64)


def make_split(
    identities: NDArray[np.int32],
    code: NDArray[np.int32],
    kept: NDArray[np.bool_],
    sizes: int,
    rng: np.random.Generator,
) -> Split:
    """Return the instances of some identities, identity after identity; about ``sizes`` in all.

    Parameters
    ----------
    identities : (C,) int32
        Code points. The number of an identity in the split is its place here.
    code : (G,) int32
        Code point of each picture.
    kept : (G,) bool
        Pictures that may be used.
    sizes : int
        Instances.
    rng : numpy.random.Generator
        Where the random numbers come from.
    """
    of_code = pictures_of(identities, code, kept)
    counts = sizes_of(np.array([len(pictures) for pictures in of_code]), sizes, rng)
    glyphs = []
    for pictures, size in zip(of_code, counts, strict=True):
        used = min(len(pictures), int(np.ceil(size / REPEATED)))
        glyphs.append(np.resize(rng.permutation(pictures)[:used], size))
    identity = np.repeat(np.arange(len(identities)), counts)
    return Split(np.concatenate(glyphs), identity, draw_levels(len(identity), rng))


def pictures_of(
    identities: NDArray[np.int32], code: NDArray[np.int32], kept: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """Return the numbers of the kept pictures of each identity."""
    usable = np.flatnonzero(kept)
    usable = usable[np.argsort(code[usable], kind="stable")]
    starts = np.searchsorted(code[usable], identities)
    ends = np.searchsorted(code[usable], identities, "right")
    return [usable[start:end] for start, end in zip(starts, ends, strict=True)]


def cumulative(split: Split, identities: int, rng: np.random.Generator) -> tuple[Split, dict[int, int]]:
    """Put a split's instances in an order in which every part is a prefix.

    Part k of :data:`PARTS` has the first k/9 of the identities. Instances that a part adds are in random order.

    Returns
    -------
    Split
        The instances of part9, in the new order.
    dict
        Part: its number of instances.
    """
    ends = [round(identities * part / PARTS[-1]) for part in PARTS]
    added_by = np.searchsorted(ends, split.identity, "right")
    order = np.lexsort((rng.random(len(split.identity)), added_by))
    lengths = np.searchsorted(added_by[order], np.arange(len(PARTS)), "right").tolist()
    return Split(split.glyph[order], split.identity[order], split.level[order]), dict(zip(PARTS, lengths, strict=True))
