"""Read pictures of the instances, and write sprite sheets of their thumbnails.

Pictures may be given as files (:mod:`starfc.data.instance_files`) or as an array: ``.npy`` (memory-mapped), or ``.npz``
with one array or one called ``images``; uint8 (N, H, W) or (N, H, W, 3).

A picture that is missing, damaged, too large or not a regular file is left out; :func:`write_sheets` counts them.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.data.formats.npz import npz_key
from starfc.data.instance_files import HEIF_SUFFIXES, Files, read_files, text_of
from starfc.errors import InputError, MissingFileError
from starfc.runtime import threads
from starfc.runtime.extras import installed, require
from starfc.runtime.progress import progress
from starfc.runtime.words import word
from starfc.storage.atomic import replacing
from starfc.storage.safe import Npz, open_regular, read_npy

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("starfc")

TILE, LARGEST = 64, 256  # pixels of a thumbnail's longer side: the default and the most
_SHEET = 1024  # most pixels of a sheet's side; the browser needs 4 MiB to show it
_COLUMNS = 16  # most thumbnails per line and per column
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY = 128
_MOST_PIXELS = 90_000_000  # larger pictures are not decoded


@dataclass(frozen=True)
class Pictures:
    """Pictures of the instances.

    Attributes
    ----------
    read : callable
        Function from a row and a size in pixels to the picture of the row, or to None if there is none. The picture may
        be smaller than its file, but not smaller than the size.
    files : list of path or None
        The file of each row. None for an array.
    size : int or None
        Longer side in pixels. None if the pictures may differ in size.
    """

    read: Callable[[int, int], Image | None]
    files: Files | None
    size: int | None

    @property
    def names(self) -> list[str] | None:
        """Return the names of the files, without their folders. None for an array."""
        return None if self.files is None else [text_of(file and Path(file.name)) for file in self.files]


def open_pictures(
    source: str | Path | NDArray, num_instances: int, run: Path | None = None, known: Files | None = None
) -> Pictures:
    """Open the pictures of N instances: an array, a list of files or a folder.

    Parameters
    ----------
    source : path or (N, H, W) or (N, H, W, 3) uint8
        Path of the pictures, or an array.
    num_instances : int
        Number of instances N.
    run : path, optional
        Folder of a run. The run may be from another person, so a list in this folder may name only files in it.
    known : list of path or None, optional
        The file that a run names for each instance. A folder is then searched for these, by path or by name.

    Raises
    ------
    MissingFileError, InputError
        There is nothing at the path, the array is of another kind, or there is not one picture for each instance.
    """
    require("PIL", word("images"))
    if isinstance(source, np.ndarray):
        return _of_array(source, "images", num_instances)
    path = Path(source)
    if os.path.isdir(path):
        return _of_files(read_files(path, num_instances, known=known))
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
    return _of_files(read_files(path, num_instances, run))


def _require_pictures(name: str, shape: tuple[int, ...], dtype: np.dtype, num_instances: int) -> None:
    colour = len(shape) == 4 and shape[3] == 3
    if not (len(shape) == 3 or colour) or dtype != np.uint8 or shape[0] != num_instances or 0 in shape[1:]:
        raise InputError(
            f"{name}: must be uint8 ({num_instances}, H, W) or ({num_instances}, H, W, 3), one picture per instance; "
            f"found {dtype} {shape}"
        )


def _of_array(array: NDArray, name: str, num_instances: int) -> Pictures:
    _require_pictures(name, array.shape, array.dtype, num_instances)
    from PIL import Image

    return Pictures(lambda row, _: Image.fromarray(np.ascontiguousarray(array[row])), None, max(array.shape[1:3]))


def _of_files(files: Files) -> Pictures:
    if not any(path is not None and os.path.lexists(path) for path in files[:1000]):
        raise MissingFileError(
            f"{files[0] if files else 'images'}: no such image, nor the following ones; paths in a list are relative "
            "to its folder"
        )
    heif = next((path for path in files if path is not None and path.suffix.lower() in HEIF_SUFFIXES), None)
    if heif is not None:
        require("pillow_heif", f"{heif}: HEIC")

    def read(row: int, side: int) -> Image | None:
        path = files[row]
        return None if path is None else read_picture(path, side)

    return Pictures(read, files, None)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are accepted whatever the suffix of the file. HEIC needs pillow-heif."""
    if not installed("pillow_heif"):
        return _FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*_FORMATS, "HEIF")


def read_picture(path: Path, side: int = TILE) -> Image | None:
    """Read a picture as upright RGB. Return None if the file is no complete picture, or if it is too large.

    A JPEG may be decoded at a reduced size, of at least ``side`` pixels. Values of more than 8 bits are scaled to
    0..255. For 16-bit pictures the scale is the range of the type, for others the minimum and maximum of the picture.
    Transparent areas become grey.
    """
    from PIL import Image, ImageOps

    try:
        with open_regular(path, "picture") as file, Image.open(file, formats=_formats()) as image:
            image.draft("RGB", (side, side))  # decodes a JPEG at a reduced size
            if image.width * image.height > _MOST_PIXELS:
                return None
            image.load()
            return _colours(ImageOps.exif_transpose(image))
    except Exception:  # decoders may raise any error for a damaged file: OSError, SyntaxError, struct.error, ...
        return None


def _colours(image: Image) -> Image:
    """Convert a picture of any mode to 8-bit RGB."""
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


def write_sheets(pictures: Pictures, order: NDArray[np.integer], folder: Path, largest: int = TILE) -> dict[str, int]:
    """Write thumbnails of the instances, in the given order, as WebP sheets ``folder/0.webp``, ``folder/1.webp``, ….

    The longer side of a thumbnail has at most ``largest`` pixels.

    Returns
    -------
    dict
        ``tile``: pixels of a thumbnail's side. ``columns``: thumbnails per line, and lines per sheet. ``sheets``:
        number of sheets.
    """
    from PIL import Image

    tile = largest if pictures.size is None else min(largest, pictures.size)
    columns = min(_SHEET // tile, _COLUMNS)
    each = columns * columns
    sheets = range(-(-len(order) // each))
    missing = np.zeros(len(sheets), np.int64)
    bar = progress("thumbnails", total=len(order), unit="image")

    def write(number: int) -> None:
        rows = order[number * each : (number + 1) * each]
        lines = -(-len(rows) // columns)
        sheet = Image.new("RGB", (tile * columns, tile * lines), (_GREY, _GREY, _GREY))
        for at, row in enumerate(rows.tolist()):
            image = pictures.read(row, tile)
            if image is None:
                missing[number] += 1
                continue
            image.thumbnail((tile, tile))
            x, y = (tile - image.width) // 2, (tile - image.height) // 2
            sheet.paste(image, (at % columns * tile + x, at // columns * tile + y))
        with replacing(folder / f"{number}.webp") as temporary:
            sheet.save(temporary, "WEBP", quality=80, method=1)
        bar.update(len(rows))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # PIL warns of large and of slightly damaged pictures
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        threads.each(write, sheets)
    bar.close()
    if missing.any():
        log.warning("images: %d of %d are missing or cannot be read; they appear grey", missing.sum(), len(order))
    return {"tile": tile, "columns": columns, "sheets": len(sheets)}
