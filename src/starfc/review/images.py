"""Pictures of the instances, and sprite sheets of their thumbnails.

Pictures come as an array, as a list of files, or as a folder of files:

=========  ======================================================================================
array      ``.npy`` (memory-mapped) or ``.npz`` with one array: uint8 (N, H, W) or (N, H, W, 3)
list       any other file: text, one path a line, relative to the list's folder; an empty line is no picture
folder     files named after rows (``00017.jpg``; some may be missing), or N files in the order of their names
=========  ======================================================================================
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError, MissingFileError
from starfc.runtime import threads
from starfc.runtime.atomic import replacing
from starfc.runtime.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("starfc")

TILE = 64  # pixels of a thumbnail's longer side, at most
COLUMNS = 16  # thumbnails a line and a column: a sheet of 1024 x 1024 pixels is 4 MiB where it is shown
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Pictures:
    """``open(row)`` gives a picture, or None where there is none; ``names`` are file names, None for an array.

    ``size`` is the longer side in pixels, None where it differs.
    """

    open: Callable[[int], Image | None]
    names: Sequence[str] | None
    size: int | None


def open_pictures(source: str | Path | NDArray, num_instances: int) -> Pictures:
    """Pictures of N instances, from an array, a list of files or a folder.

    Raises
    ------
    MissingFileError, InputError
        Nothing there, an array of another kind, or not one picture for each instance.
    """
    if isinstance(source, np.ndarray):
        return _of_array(source, "images", num_instances)
    path = Path(source)
    if path.is_dir():
        return _of_files(_in_folder(path, num_instances))
    if not path.is_file():
        raise MissingFileError(f"{path}: no such images; an array, a list of files or a folder is needed")
    if path.suffix in (".npy", ".npz"):
        return _of_array(_load(path), str(path), num_instances)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: neither .npy nor .npz nor text; name a list of files, one a line") from None
    if len(lines) != num_instances:
        raise InputError(f"{path}: {len(lines):,} lines; one path is needed for each of {num_instances:,} instances")
    return _of_files([path.parent / line.strip() if line.strip() else None for line in lines])


def _load(path: Path) -> NDArray:
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                raise InputError(f"{path}: an .npz with one array needed; found {loaded.files}")
            return loaded[loaded.files[0]]
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable NumPy file ({error})") from None


def _of_array(array: NDArray, name: str, num_instances: int) -> Pictures:
    colour = array.ndim == 4 and array.shape[3] == 3
    if not (array.ndim == 3 or colour) or array.dtype != np.uint8 or len(array) != num_instances:
        raise InputError(
            f"{name}: uint8 ({num_instances}, H, W) or ({num_instances}, H, W, 3) needed, a picture for each instance; "
            f"found {array.dtype} {array.shape}"
        )
    from PIL import Image

    return Pictures(lambda row: Image.fromarray(np.ascontiguousarray(array[row])), None, max(array.shape[1:3]))


def _in_folder(folder: Path, num_instances: int) -> list[Path | None]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if found and all(path.stem.isdecimal() for path in found):
        files: list[Path | None] = [None] * num_instances
        for path in found:
            if int(path.stem) >= num_instances:
                raise InputError(f"{path}: named after a row, of which there are {num_instances:,}, counted from 0")
            files[int(path.stem)] = path
        return files
    if len(found) != num_instances:
        raise InputError(
            f"{folder}: {len(found):,} images; one is needed for each of {num_instances:,} instances, or files named "
            "after their rows (00017.jpg), or a list of files"
        )
    return list(found)


def _of_files(files: list[Path | None]) -> Pictures:
    if not any(path is not None and path.is_file() for path in files[:1000]):
        raise MissingFileError(
            f"{files[0] if files else 'images'}: no such image, nor the next ones; paths of a list are relative to it"
        )

    def picture(row: int) -> Image | None:
        from PIL import Image, UnidentifiedImageError

        if files[row] is None:
            return None
        try:
            with Image.open(files[row]) as image:
                image.draft("RGB", (TILE, TILE))  # a JPEG is decoded at the size that is needed
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError):
            return None

    return Pictures(picture, ["" if path is None else path.name for path in files], None)


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
        sheet = Image.new("RGB", (tile * COLUMNS, tile * lines), (128, 128, 128))
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

    threads.each(write, sheets)
    bar.close()
    if missing.any():
        log.warning("images: %d of %d are missing or unreadable; they are left grey", missing.sum(), len(order))
    return {"tile": tile, "columns": COLUMNS, "sheets": len(sheets)}
