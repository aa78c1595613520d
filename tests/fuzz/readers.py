"""The readers to fuzz, and small valid files as their seeds."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starfc.data.blocks import Blocks
from starfc.data.convert import open_either
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels

ROWS, DIM, K = 24, 8, 5
TEXT = tuple(
    b"0 1 -1 2147483648 9223372036854775808 1e308 nan inf , ; \t \r \n \r\n \" ' \xef\xbb\xbf \xff\xfe \0 label".split(
        b" "
    )
)


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Parameters
    ----------
    suffix : str
        Of the file that is read.
    seeds : function without parameters
        Valid files.
    read : function of a path
        Reads the file; anything that it raises but InputError is a fault.
    tokens : bytes
        Words of the format.
    """

    suffix: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]
    tokens: Sequence[bytes]


READERS: dict[str, Reader] = {}


def register(
    name: str, suffix: str, seeds: Callable[[], Sequence[bytes]], read: Callable[[Path], object], *tokens: bytes
) -> None:
    """Add a reader. One of a folder makes a folder around the file in ``read``."""
    READERS[name] = Reader(suffix, seeds, read, (*tokens, *TEXT))


def rows(dtype: str = "<f4") -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(dtype)


def saved(save: Callable[..., object], *arrays: object, **named: object) -> bytes:
    """What a function such as ``numpy.save`` writes."""
    out = io.BytesIO()
    save(out, *arrays, **named)
    return out.getvalue()


def features_of(path: Path, dim: int | None = None) -> None:
    """Features as every command reads them: as a whole, with what is said of them, and block by block."""
    array = read_features(path, dim)
    Features(array, str(path)).check  # noqa: B018 a pass over all
    opened = open_either(str(path), dim)
    for _ in opened.parts if isinstance(opened, Blocks) else ():
        pass


def _npy() -> list[bytes]:
    arrays = [rows(), rows(">f8"), rows("<f2"), np.asfortranarray(rows()), np.arange(12).reshape(4, 3)]
    return [saved(np.save, array) for array in arrays]


def _npz() -> list[bytes]:
    names = {"labels": np.arange(ROWS), "paths": np.array(["a.png"] * ROWS)}
    return [
        saved(np.savez, rows()),
        saved(np.savez_compressed, embeddings=rows(">f4"), **names),
        saved(np.savez_compressed, X=np.asfortranarray(rows("<f8"))),
        _zipped(zipfile.ZIP_BZIP2),
    ]


def _zipped(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("features.npy"), saved(np.save, rows()), method)
    return out.getvalue()


def _parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.array(rows().tolist(), pa.list_(pa.float32()))
    fixed = pa.array(rows().tolist(), pa.list_(pa.float32(), DIM))
    tables = [pa.table({"features": lists, "label": list(range(ROWS))}), pa.table({"x": fixed})]
    ways = ("snappy", "zstd", "gzip", "none")
    return [saved(lambda out, t, way=way: pq.write_table(t, out, compression=way), t) for t in tables for way in ways]


def _hdf5() -> list[bytes]:
    import h5py

    def one(**how: object) -> bytes:
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            file.create_dataset("group/features" if how else "features", data=rows(), **how)
            file["label"] = np.arange(ROWS) if not how else 3
            del file["label"]
        return out.getvalue()

    return [one(), one(chunks=(8, DIM)), one(chunks=(8, 4), compression="gzip", shuffle=True, fletcher32=True)]


def _fvecs() -> list[bytes]:
    content = np.empty((ROWS, DIM + 1), "<f4")
    content.view("<i4")[:, 0], content[:, 1:] = DIM, rows()
    return [content.tobytes()]


def _lines() -> list[bytes]:
    return ["".join(f"{row // 3}{end}" for row in range(ROWS)).encode() for end in ("\n", "\r\n", ".0\n", " \n")] + [
        b"\xef\xbb\xbf0\n-1\n7\n"
    ]


def _tables() -> list[bytes]:
    made = ["".join(f"img{row}.jpg{sep}{row // 3}\n" for row in range(ROWS)).encode() for sep in (",", ";", "\t")]
    headed = [b"file%slabel\n" % sep + table for sep, table in zip((b",", b";", b"\t"), made, strict=True)]
    return [*made, *headed, b'label\n"Ann, B"\n"Cy ""D"""\n', "name\nRené\nAnn\n".encode(), b"label\n1\n-1.0\n3\n"]


def _label_tables() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [list(range(ROWS)), [f"n{row // 2}" for row in range(ROWS)], [float(row) for row in range(ROWS)]]
    tables = [pa.table({"label": column}) for column in columns]
    tables.append(pa.table({"identity": pa.array(columns[1]).dictionary_encode(), "x": columns[0]}))
    return [saved(lambda out, t: pq.write_table(t, out), t) for t in tables]


def _lists() -> tuple[np.ndarray, np.ndarray]:
    unit = rows("<f8") / np.linalg.norm(rows("<f8"), axis=1, keepdims=True)
    sims = unit @ unit.T
    ids = np.argsort(-sims, axis=1, kind="stable")[:, :K]
    return ids, 1 - np.take_along_axis(sims, ids, 1)


def _knn() -> list[bytes]:
    data = np.stack(_lists(), axis=1)
    return [saved(np.savez_compressed, data=data), saved(np.savez, data=data.astype(np.float32))]


def _read_knn(path: Path) -> None:
    from starfc.graph.store import read_graph

    graph = read_graph(path, Features(rows(), "features"), K)
    assert graph.ids.shape == (ROWS, K)
    assert -1 <= graph.ids.min() <= graph.ids.max() < ROWS
    assert np.isfinite(graph.sims).all()


def _images() -> list[bytes]:
    from PIL import Image

    colours = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)
    image = Image.fromarray(colours)
    upright = Image.Exif()
    upright[0x112] = 6
    ways: dict[str, dict] = {form: {} for form in ("PNG", "BMP", "GIF", "PPM", "WEBP")}
    ways |= {"JPEG": {"exif": upright}, "TIFF": {"compression": "tiff_lzw"}}
    made = [saved(lambda out, form=form, how=how: image.save(out, form, **how)) for form, how in ways.items()]
    made.append(saved(lambda out: Image.fromarray(colours[..., 0].astype(np.uint16) * 256).save(out, "PNG")))
    made.append(saved(lambda out: image.convert("CMYK").save(out, "TIFF")))
    made.append(saved(lambda out: Image.fromarray(colours[..., 0].astype(np.float32)).save(out, "TIFF")))
    return made


def _read_image(path: Path) -> None:
    from starfc.review.images import read_picture

    found = read_picture(path)
    assert found is None or found.mode == "RGB"


def _read_list(path: Path) -> None:
    from starfc.review.images import open_pictures

    open_pictures(path, 3).open(1)


_NPY = (
    b"\x93NUMPY",
    b"descr",
    b"shape",
    b"fortran_order",
    b"'<f4'",
    b"'|O'",
    b"'<U9'",
    b"(24, 8)",
    b"(-1, 8)",
    b"True",
)
_ZIP = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"features.npy", b"../x.npy", *_NPY)
_PARQUET = (b"PAR1", b"features", b"label", b"element", b"list", b"ARROW:schema", b"\x15\x02\x19")
_HDF5 = (b"\x89HDF\r\n\x1a\n", b"HEAP", b"TREE", b"SNOD", b"FADB", b"features", b"OHDR")
_IMAGES = (
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"JFIF",
    b"Exif",
    b"\xff\xd8",
    b"\xff\xc4",
    b"GIF89a",
    b"P6",
    b"RIFF",
    b"II*\0",
    b"BM",
)

register("npy", ".npy", _npy, features_of, *_NPY)
register("npz", ".npz", _npz, features_of, *_ZIP)
register("bin", ".bin", lambda: [rows().tobytes()], lambda path: features_of(path, DIM))
register("parquet", ".parquet", _parquet, features_of, *_PARQUET)
register("hdf5", ".h5", _hdf5, features_of, *_HDF5)
register("fvecs", ".fvecs", _fvecs, features_of)
register("meta", ".meta", _lines, read_labels)
register("txt", ".txt", lambda: [*_lines(), *_tables()], read_labels)
register("csv", ".csv", lambda: [*_lines(), *_tables()], read_labels)
register(
    "labels-npy", ".npy", lambda: [saved(np.save, np.arange(ROWS)), saved(np.save, rows()[0] // 1)], read_labels, *_NPY
)
register("labels-parquet", ".parquet", _label_tables, read_labels, *_PARQUET)
register("knn-npz", ".npz", _knn, _read_knn, *_ZIP)
register("images", ".png", _images, _read_image, *_IMAGES)
register("image-list", ".txt", lambda: [b"a.png\n\nb/c.jpg\n"], _read_list)
