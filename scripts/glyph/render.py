"""Draw glyphs: one picture of 40 x 40 grey values for each ideograph and typeface, each look only once."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from glyph.fonts import Typeface
from starfc.runtime.progress import progress
from starfc.storage.atomic import save_arrays, write_json

log = logging.getLogger("starfc")

SIDE = 40  # pixels
EM = 34  # pixels of the em square
PROBES = 96  # ideographs on which typefaces are compared
SHARED = 12  # of them that two typefaces must have in common
SAME = 0.12  # mean difference of two typefaces, as a share of their ink, below which they count as one
PLACEHOLDER = 3  # ideographs that look the same in one typeface, which then draws a placeholder


class Drawer:
    """One typeface, ready to draw."""

    def __init__(self, typeface: Typeface) -> None:
        from PIL import Image, ImageDraw, ImageFont

        basic = ImageFont.Layout.BASIC
        self.font = ImageFont.truetype(typeface.path, EM, index=typeface.face, layout_engine=basic)
        self.new, self.pen, self.filter = Image.new, ImageDraw.Draw, Image.Resampling.BOX

    def __call__(self, code: int) -> NDArray[np.uint8]:
        """Return the picture of an ideograph, (40, 40) uint8: white ink on black, in the middle.

        Without ink, and if the font's instructions for this glyph are damaged, all values are 0.
        """
        wide, found = 3 * EM, self.new("L", (SIDE, SIDE))
        canvas = self.new("L", (wide, wide))
        with contextlib.suppress(OSError):
            self.pen(canvas).text((EM, EM // 2), chr(code), fill=255, font=self.font)
        if (box := canvas.getbbox()) is not None:
            ink = canvas.crop(box)
            most = max(ink.size)
            if most > SIDE:
                ink = ink.resize([max(1, SIDE * length // most) for length in ink.size], self.filter)
            found.paste(ink, ((SIDE - ink.width) // 2, (SIDE - ink.height) // 2))
        return np.asarray(found)


def distinct_looks(typefaces: Sequence[Typeface], covered: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """Return what is left to draw of each typeface if typefaces that look the same are drawn once.

    Typefaces are compared on pictures of a few common ideographs. A typeface looks like an earlier one, in the order of
    their numbers of ideographs, if the median over shared ideographs of sum |a - b| / (sum (a + b) / 2), on pictures
    averaged over 2 x 2 pixels, is below :data:`SAME`. It then draws only the ideographs that the earlier ones lack.

    Parameters
    ----------
    typefaces : sequence of Typeface
        The typefaces.
    covered : sequence of (n,) int32
        Sorted code points of each.

    Returns
    -------
    list of (n,) int32
        Sorted code points of each that are to be drawn.
    """
    codes, counts = np.unique(np.concatenate(covered), return_counts=True)
    order = np.lexsort((codes, -counts))[: 2 * PROBES]
    probes = np.sort(codes[np.random.default_rng(0).permutation(order)[:PROBES]])
    looks = np.zeros((len(typefaces), len(probes), (SIDE // 2) ** 2), np.float32)
    for at, typeface in enumerate(progress("comparing typefaces", typefaces, unit="typeface")):
        draw = Drawer(typeface)
        for column in np.flatnonzero(np.isin(probes, covered[at])):
            looks[at, column] = draw(probes[column]).reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)).ravel()
    ink = looks.sum(axis=2)
    left = list(covered)
    firsts: list[tuple[int, list[int]]] = []
    for at in sorted(range(len(typefaces)), key=lambda one: (-len(covered[one]), one)):
        for first, members in firsts:
            both = (ink[at] > 0) & (ink[first] > 0)
            if both.sum() >= min(SHARED, len(probes)):
                apart = np.abs(looks[at, both] - looks[first, both]).sum(1) / (ink[at, both] + ink[first, both]) * 2
                if np.median(apart) < SAME:
                    left[at] = covered[at][~np.isin(covered[at], np.concatenate([covered[m] for m in members]))]
                    members.append(at)
                    break
        else:
            firsts.append((at, [at]))
    log.info("%d typefaces that look different", len(firsts))
    return left


def render(
    folder: Path, typefaces: Sequence[Typeface], wanted: Sequence[NDArray[np.int32]], processes: int = 1
) -> None:
    """Draw the wanted ideographs of each typeface, and write them to ``folder``.

    Files: images.npy, (G, 40, 40) uint8; glyphs.npz with ``code`` (G,) int32, ``typeface`` (G,) int32 and ``kept`` (G,)
    bool, which is False for an empty picture, a placeholder, or a look that the ideograph has already in an earlier
    typeface. Typefaces that an interrupted run has drawn are not drawn again.

    Parameters
    ----------
    folder : Path
        The folder of the result.
    typefaces : sequence of Typeface
        The typefaces.
    wanted : sequence of (n,) int32
        Code points to draw of each.
    processes : int
        Number of processes that draw.
    """
    code = np.concatenate(wanted)
    sizes = [len(codes) for codes in wanted]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    images, drawn = folder / "images.npy", folder / "drawn.json"
    done = set(json.loads(drawn.read_text(encoding="utf-8"))) if drawn.is_file() and images.is_file() else set()
    if not done:
        np.lib.format.open_memmap(images, "w+", np.uint8, (len(code), SIDE, SIDE)).flush()
    jobs = [at for at in range(len(typefaces)) if at not in done and sizes[at]]
    arguments = (
        [images] * len(jobs),
        [typefaces[at] for at in jobs],
        [wanted[at] for at in jobs],
        [int(starts[at]) for at in jobs],
    )
    bar = progress("drawing", total=len(code), unit="glyph", done=sum(sizes[at] for at in done))
    with bar, contextlib.ExitStack() as stack:
        if processes == 1:
            results = map(_draw, *arguments)
        else:
            fresh = multiprocessing.get_context("spawn")  # a copy of this process would have its locks, not its threads
            results = stack.enter_context(ProcessPoolExecutor(processes, fresh)).map(_draw, *arguments)
        for at, _ in zip(jobs, results, strict=True):
            done.add(at)
            bar.update(sizes[at])
            write_json(drawn, sorted(done))
    typeface = np.repeat(np.arange(len(typefaces), dtype=np.int32), sizes)
    save_arrays(
        folder / "glyphs.npz",
        {"code": code, "typeface": typeface, "kept": kept_looks(np.load(images, "r"), code, typeface)},
    )


def _draw(images: Path, typeface: Typeface, codes: NDArray[np.int32], start: int) -> None:
    target = np.load(images, "r+")
    draw = Drawer(typeface)
    for at, one in enumerate(codes.tolist()):
        target[start + at] = draw(one)
    target.flush()


def kept_looks(images: NDArray[np.uint8], code: NDArray[np.int32], typeface: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which pictures to use, (G,) bool: not empty, no placeholder, and no look of the same ideograph twice.

    Parameters
    ----------
    images : (G, 40, 40) uint8
        The pictures.
    code, typeface : (G,) int32
        Ideograph and typeface of each.
    """
    look = np.array([xxhash.xxh64_intdigest(image.tobytes()) for image in images], np.uint64)
    empty = look == xxhash.xxh64_intdigest(bytes(SIDE * SIDE))
    _, which, times = np.unique(
        np.stack([typeface.astype(np.uint64), look]), axis=1, return_inverse=True, return_counts=True
    )
    placeholder = times[which.ravel()] >= PLACEHOLDER
    first = np.zeros(len(code), bool)
    first[np.unique(np.stack([code.astype(np.uint64), look]), axis=1, return_index=True)[1]] = True
    return first & ~empty & ~placeholder
