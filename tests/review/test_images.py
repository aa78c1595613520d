"""Test reading of pictures: rotated, deep or of any kind, and files that are no pictures."""

from __future__ import annotations

import logging
import os
import struct

import numpy as np
import pytest
from PIL import Image

from starfc.errors import InputError
from starfc.review.images import open_pictures, read_picture, write_sheets


def flag(width: int = 60, height: int = 100) -> Image.Image:
    """Blue, the upper fifth red."""
    image = Image.new("RGB", (width, height), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, width, height // 5))
    return image


def test_orientation_is_that_of_every_viewer(tmp_path):
    turns = {1: None, 6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        (flag() if turn is None else flag().transpose(turn)).save(tmp_path / "p.jpg", exif=exif)
        found = read_picture(tmp_path / "p.jpg")
        assert found.size == (60, 100)
        assert np.asarray(found)[5, 30, 0] > 200
        assert np.asarray(found)[90, 30, 2] > 200


def test_numbers_of_any_width(tmp_path):
    ramp = np.linspace(0, 65535, 6000).reshape(60, 100)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "wide.png")
    Image.fromarray(ramp.astype(np.float32) / 65535).save(tmp_path / "real.tif")
    Image.fromarray((ramp.astype(np.int32) - 30000) * 7).save(tmp_path / "long.tif")
    holes = ramp.astype(np.float32)
    holes[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(holes).save(tmp_path / "holes.tif")
    for name in ("wide.png", "real.tif", "long.tif", "holes.tif"):
        found = np.asarray(read_picture(tmp_path / name)).astype(int)
        assert found.shape == (60, 100, 3)
        np.testing.assert_allclose(found[1:, :, 0], np.rint(ramp * 255 / 65535)[1:], atol=1)


def test_other_modes(tmp_path):
    flag().convert("CMYK").save(tmp_path / "cmyk.jpg")
    flag().convert("P").save(tmp_path / "p.gif")
    clear = flag().convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    flag().quantize(8).save(tmp_path / "palette.png", transparency=0)
    flag().convert("1").save(tmp_path / "bits.png")
    assert np.asarray(read_picture(tmp_path / "cmyk.jpg"))[90, 30, 2] > 150
    assert (np.asarray(read_picture(tmp_path / "p.gif"))[5, 30] == [255, 0, 0]).all()
    assert (np.asarray(read_picture(tmp_path / "clear.png")) == 128).all()
    assert (np.asarray(read_picture(tmp_path / "palette.png")).reshape(-1, 3) == 128).all(axis=1).any()
    assert read_picture(tmp_path / "bits.png").mode == "RGB"


def test_heic_pictures(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (extra heic)")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x112] = 6
    turned = flag().transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "00001.heic", exif=exif.tobytes())  # writes the rotation as phones do
    (tmp_path / "00000.jpg").write_bytes((tmp_path / "00001.heic").read_bytes())  # phones name them like this too
    pictures = open_pictures(tmp_path, 2)
    for row in range(2):
        found = np.asarray(pictures.read(row, 64))
        assert found.shape == (100, 60, 3)
        assert found[5, 30, 0] > 200
        assert found[90, 30, 2] > 200


def test_thumbnails_of_any_size_fill_the_sheets(tmp_path):
    for row in range(20):
        flag(600, 1000).save(tmp_path / f"{row}.jpg", quality=95)
    pictures = open_pictures(tmp_path, 20)
    for tile, columns, sheets in ((64, 16, 1), (100, 10, 1), (256, 4, 2)):
        out = tmp_path / f"out-{tile}"
        assert write_sheets(pictures, np.arange(20), out, tile) == {"tile": tile, "columns": columns, "sheets": sheets}
        with Image.open(out / "0.webp") as sheet:
            shown = np.asarray(sheet)[:tile, :tile].astype(int)
        left = (tile - round(0.6 * tile)) // 2
        assert (shown[:, left + 2 : tile - left - 2].max(axis=2) > 90).all()  # of the full height, 60 percent wide
        assert abs(shown[:, : max(left - 2, 1)] - 128).max() < 30


def test_what_is_no_picture_is_grey_and_counted(tmp_path, caplog):
    flag().save(tmp_path / "00000.png")
    (tmp_path / "00001.ppm").write_bytes(b"P6 3z 32 255 ")
    size = (60000).to_bytes(4, "little")
    bomb = b"BM" + struct.pack("<IIII", 54, 0, 54, 40) + size + size + b"\1\0\30\0" + bytes(24)
    (tmp_path / "00002.bmp").write_bytes(bomb)
    os.mkfifo(tmp_path / "00003.png")
    (tmp_path / "00004.png").write_bytes((tmp_path / "00000.png").read_bytes()[:60])
    (tmp_path / "00005.jpg").mkdir()
    pictures = open_pictures(tmp_path, 7)
    assert [pictures.read(row, 64) is None for row in range(7)] == [False, *[True] * 6]
    with caplog.at_level(logging.WARNING, logger="starfc"):
        write_sheets(pictures, np.arange(7), tmp_path / "out")
    assert "6 of 7 are missing or cannot be read" in caplog.text


def test_lists_and_folders(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    latin = os.fsdecode(b"\xe4.png")
    for name in ("a/2.png", "a/b/1.png", "0.png"):
        flag().save(tmp_path / name)
    (tmp_path / "a" / latin).write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf0.png\r\n\r\na/\xe4.png\r\n")
    pictures = open_pictures(tmp_path / "list.txt", 3)
    assert [pictures.read(row, 64) is None for row in range(3)] == [False, True, False]
    assert pictures.names == ["0.png", "", "\ufffd.png"]
    (tmp_path / "a" / latin).unlink()
    assert list(open_pictures(tmp_path, 3).names) == ["0.png", "1.png", "2.png"]  # by row, of all folders
    flag().save(tmp_path / "a" / "b" / "2.png")
    with pytest.raises(InputError, match="named after the same row"):
        open_pictures(tmp_path, 3)


def test_a_list_in_a_runs_folder_stays_there(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    flag().save(tmp_path / "mine.png")
    flag().save(run / "own.png")
    (run / "link.png").symlink_to(tmp_path / "mine.png")
    for name in ("../mine.png", str(tmp_path / "mine.png"), "link.png"):
        (run / "list.txt").write_text(f"{name}\n")
        with pytest.raises(InputError, match="copy the list to another folder"):
            open_pictures(run / "list.txt", 1, run)
        assert open_pictures(run / "list.txt", 1).read(0, 64) is not None  # a user's own list may name any file
    (run / "list.txt").write_text("own.png\n")
    assert open_pictures(run / "list.txt", 1, run).read(0, 64) is not None
