"""Pictures of the instances, and sprite sheets of their thumbnails.

Pictures come as an array, as a list of files, or as a folder of files:

=========  ======================================================================================
array      ``.npy`` (memory-mapped) or ``.npz`` with one array or one called ``images``:
           uint8 (N, H, W) or (N, H, W, 3)
list       any other file: text, one path a line, relative to the list's folder; an empty line is no picture
folder     files named after rows (``00017.jpg``; some may be missing), or N files in the order of their
           paths; folders in it are searched too
=========  ======================================================================================

A picture that is missing, broken, too large or no regular file is none; :func:`write_sheets` counts them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.data.formats.npz import npz_key
from starfc.errors import InputError, MissingFileError
from starfc.runtime import threads
from starfc.runtime.extras import require
from starfc.runtime.progress import progress
from starfc.runtime.words import word
from starfc.storage.atomic import replacing
from starfc.storage.safe import Npz, open_regular, read_lines, read_npy

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("starfc")

TILE = 64  # pixels of a thumbnail's longer side, at most
COLUMNS = 16  # thumbnails a line and a column: a sheet of 1024 x 1024 pixels is 4 MiB where it is shown
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # whatever a file's name says
_GREY = 128
_MOST_PIXELS = 90_000_000  # of a picture that is decoded


@dataclass(frozen=True)
class Pictures:
    """``open(row)`` gives a picture, or None where there is none; ``names`` are file names, None for an array.

    ``size`` is the longer side in pixels, None where it differs.
    """

    open: Callable[[int], Image | None]
    names: Sequence[str] | None
    size: int | None


def open_pictures(source: str | Path | NDArray, num_instances: int, run: Path | None = None) -> Pictures:
    """Pictures of N instances, from an array, a list of files or a folder.

    Parameters
    ----------
    source : path or (N, H, W) or (N, H, W, 3) uint8
    num_instances : int
    run : path, optional
        A run's folder, which somebody else may have made: a list that lies in it names files in it only.

    Raises
    ------
    MissingFileError, InputError
        Nothing there, an array of another kind, or not one picture for each instance.
    """
    require("PIL", word("images"))
    if isinstance(source, np.ndarray):
        return _of_array(source, "images", num_instances)
    path = Path(source)
    if os.path.isdir(path):
        return _of_files(_in_folder(path, num_instances))
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: no such images; an array, a list of files or a folder is needed")
    if path.suffix == ".npy":
        return _of_array(read_npy(path, "fiubcSUVmM"), str(path), num_instances)
    if path.suffix == ".npz":
        with Npz(path) as archive:
            name = npz_key(archive, ("images", "thumbs"))
            with archive.open(name) as (_, (shape, _, dtype)):
                _require_pictures(str(path), shape, dtype, num_instances)
            return _of_array(archive.array(name), str(path), num_instances)
    lines = read_lines(path, "list of images")
    if len(lines) != num_instances:
        raise InputError(f"{path}: {len(lines):,} lines; one path is needed for each of {num_instances:,} instances")
    files = [path.parent / line.strip() if line.strip() else None for line in lines]
    if run is not None and _lies_in(path, run):
        for file in files:
            if file is not None and not _lies_in(file, run):
                raise InputError(f"{path}: lies in {run} and names {file}, which does not; copy the list elsewhere")
    return _of_files(files)


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path leads to a place in a folder, by way of no link."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _require_pictures(name: str, shape: tuple[int, ...], dtype: np.dtype, num_instances: int) -> None:
    colour = len(shape) == 4 and shape[3] == 3
    if not (len(shape) == 3 or colour) or dtype != np.uint8 or shape[0] != num_instances or 0 in shape[1:]:
        raise InputError(
            f"{name}: uint8 ({num_instances}, H, W) or ({num_instances}, H, W, 3) needed, a picture for each instance; "
            f"found {dtype} {shape}"
        )


def _of_array(array: NDArray, name: str, num_instances: int) -> Pictures:
    _require_pictures(name, array.shape, array.dtype, num_instances)
    from PIL import Image

    return Pictures(lambda row: Image.fromarray(np.ascontiguousarray(array[row])), None, max(array.shape[1:3]))


def _in_folder(folder: Path, num_instances: int) -> list[Path | None]:
    found = sorted(
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    )
    if found and all(path.stem.isdecimal() for path in found):
        files: list[Path | None] = [None] * num_instances
        for path in found:
            row = int(path.stem)
            if row >= num_instances:
                raise InputError(f"{path}: named after a row, of which there are {num_instances:,}, counted from 0")
            if files[row] is not None:
                raise InputError(f"{path}: named after the same row as {files[row]}; leave one of them")
            files[row] = path
        return files
    if len(found) != num_instances:
        raise InputError(
            f"{folder}: {len(found):,} images; one is needed for each of {num_instances:,} instances, or files named "
            "after their rows (00017.jpg), or a list of files"
        )
    return list(found)


def _of_files(files: list[Path | None]) -> Pictures:
    if not any(path is not None and os.path.lexists(path) for path in files[:1000]):
        raise MissingFileError(
            f"{files[0] if files else 'images'}: no such image, nor the next ones; paths of a list are relative to it"
        )
    names = ["" if path is None else os.fsencode(path.name).decode("utf-8", "replace") for path in files]

    def read(row: int) -> Image | None:
        path = files[row]
        return None if path is None else read_picture(path)

    return Pictures(read, names, None)


def read_picture(path: Path) -> Image | None:
    """A picture as it is meant to be seen, upright, RGB; None where the file is no whole picture of sensible size.

    Numbers of more than 8 bits are brought to 0..255: 16-bit ones by their range, other ones by the least and the
    greatest of the picture. What is transparent is grey.
    """
    from PIL import Image, ImageOps

    try:
        with open_regular(path, "picture") as file, Image.open(file, formats=_FORMATS) as image:
            image.draft("RGB", (TILE, TILE))  # a JPEG is decoded at the size that is needed
            if image.width * image.height > _MOST_PIXELS:
                return None
            image.load()
            return _colours(ImageOps.exif_transpose(image))
    except Exception:  # decoders raise what they happen to meet: OSError, SyntaxError, struct.error, ...
        return None


def _colours(image: Image) -> Image:
    """A picture of any mode in 8-bit colours."""
    from PIL import Image

    if image.mode[0] in "IF":
        values = np.asarray(image).astype(np.float32)
        values[~np.isfinite(values)] = 0
        low, high = float(values.min()), float(values.max())
        if image.mode[0] == "I" and low >= 0 and high < 1 << 16:
            low, high = 0, (1 << 16) - 1
        scaled = (values - low) * (255 / (high - low) if high > low else 0)
        return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, (_GREY, _GREY, _GREY, 255)), shown).convert("RGB")
    return image.convert("RGB")


def write_sheets(pictures: Pictures, order: NDArray[np.integer], folder: Path) -> dict[str, int]:
    """Write thumbnails of the instances, in the given order, as WebP sheets ``folder/0.webp`` and on.

    Returns
    -------
    dict
        ``tile``: pixels of a thumbnail's side; ``columns``: thumbnails a line, and lines, of a sheet; ``sheets``.
    """
    from PIL import Image

    tile = TILE if pictures.size is None else min(TILE, pictures.size)
    each = COLUMNS * COLUMNS
    sheets = range(-(-len(order) // each))
    missing = np.zeros(len(sheets), np.int64)
    bar = progress("thumbnails", total=len(order), unit="image")

    def write(number: int) -> None:
        rows = order[number * each : (number + 1) * each]
        lines = -(-len(rows) // COLUMNS)
        sheet = Image.new("RGB", (tile * COLUMNS, tile * lines), (_GREY, _GREY, _GREY))
        for at, row in enumerate(rows.tolist()):
            image = pictures.open(row)
            if image is None:
                missing[number] += 1
                continue
            image.thumbnail((tile, tile))
            x, y = (tile - image.width) // 2, (tile - image.height) // 2
            sheet.paste(image, (at % COLUMNS * tile + x, at // COLUMNS * tile + y))
        with replacing(folder / f"{number}.webp") as temporary:
            sheet.save(temporary, "WEBP", quality=80, method=1)
        bar.update(len(rows))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of pictures that are large or a little broken
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        threads.each(write, sheets)
    bar.close()
    if missing.any():
        log.warning("images: %d of %d are missing or unreadable; they are left grey", missing.sum(), len(order))
    return {"tile": tile, "columns": COLUMNS, "sheets": len(sheets)}
