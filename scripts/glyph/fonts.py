"""Find typefaces with CJK ideographs: open-licence fonts of Debian and npm packages, and of the user's folders."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError
from starfc.storage.atomic import prepare_folder, save_array, write_json

log = logging.getLogger("starfc")

IDEOGRAPHS = (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000))  # CJK Extension A, CJK Unified Ideographs
LEAST = 300  # ideographs of a typeface that is used
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc", ".woff2")

# package of Debian main, whose content is free by its guidelines: licence of the fonts, as in the file copyright
DEBIAN = {
    "fonts-noto-cjk": "OFL-1.1",
    "fonts-noto-cjk-extra": "OFL-1.1",
    "fonts-babelstone-han": "Arphic Public License",
    "fonts-hanazono": "OFL-1.1",
    "fonts-cns11643-kai": "OGDL-Taiwan-1.0",
    "fonts-cns11643-sung": "OGDL-Taiwan-1.0",
    "fonts-lxgw-wenkai": "OFL-1.1",
    "fonts-wqy-zenhei": "GPL-2 with font exception",
    "fonts-wqy-microhei": "Apache-2.0 or GPL-3+ with font exception",
    "fonts-arphic-uming": "Arphic Public License",
    "fonts-arphic-ukai": "Arphic Public License",
    "fonts-arphic-bsmi00lp": "Arphic Public License",
    "fonts-arphic-bkai00mp": "Arphic Public License",
    "fonts-arphic-gbsn00lp": "Arphic Public License",
    "fonts-arphic-gkai00mp": "Arphic Public License",
    "fonts-ipamj-mincho": "IPA-1.0",
    "fonts-ipaexfont-gothic": "IPA-1.0",
    "fonts-ipaexfont-mincho": "IPA-1.0",
    "fonts-seto": "OFL-1.1",
    "fonts-cwtex-fs": "GPL-2+",
    "fonts-cwtex-heib": "GPL-2+",
    "fonts-cwtex-kai": "GPL-2+",
    "fonts-cwtex-ming": "GPL-2+",
    "fonts-cwtex-yen": "GPL-2+",
    "fonts-vlgothic": "M+ FONTS, Sazanami and BSD-3-Clause",
    "fonts-horai-umefont": "Ume-font (free of conditions)",
    "fonts-umeplus": "M+ FONTS and BSD-3-Clause",
    "fonts-konatu": "MIT",
    "fonts-kouzan-mouhitsu": "public domain",
    "fonts-aoyagi-soseki": "public domain",
    "fonts-aoyagi-kouzan-t": "public domain",
    "fonts-migmix": "IPA-1.0 and M+ FONTS",
    "fonts-morisawa-bizud-gothic": "OFL-1.1",
    "fonts-morisawa-bizud-mincho": "OFL-1.1",
    "fonts-yozvox-yozfont": "OFL-1.1",
    "fonts-yozvox-yozfont-edu": "OFL-1.1",
    "fonts-klee": "OFL-1.1",
    "fonts-dotgothic16": "OFL-1.1",
    "fonts-reggae": "OFL-1.1",
    "fonts-rampart": "OFL-1.1",
    "fonts-train": "OFL-1.1",
    "fonts-smiley-sans": "OFL-1.1",
    "fonts-kiloji": "BSD-3-Clause",
    "fonts-dejima-mincho": "MIT",
    "fonts-misaki": "Misaki (free of conditions)",
    "fonts-motoya-l-cedar": "Apache-2.0",
    "fonts-motoya-l-maruberi": "Apache-2.0",
    "fonts-kanjistrokeorders": "BSD-3-Clause",
    "fonts-mona": "public domain",
    "fonts-mplus": "OFL-1.1",
    "fonts-ricty-diminished": "OFL-1.1",
    "fonts-nanum": "OFL-1.1",
    "fonts-nanum-extra": "OFL-1.1",
    "fonts-unfonts-core": "GPL-2",
    "fonts-unfonts-extra": "GPL-2",
    "fonts-baekmuk": "Baekmuk (MIT-like)",
    "fonts-oradano-mincho-gsrr": "Oradano (free use and change)",
    "fonts-sawarabi-gothic": "CC-BY-3.0",
    "fonts-sawarabi-mincho": "OFL-1.1",
}
NPM = {  # packages @fontsource/NAME: version; the licence is in the package's metadata.json
    "biz-udpgothic": "5.3.0",
    "cactus-classical-serif": "5.3.0",
    "chocolate-classical-sans": "5.3.0",
    "dela-gothic-one": "5.3.0",
    "hachi-maru-pop": "5.3.0",
    "hina-mincho": "5.2.8",
    "ibm-plex-sans-jp": "5.3.0",
    "kaisei-decol": "5.3.0",
    "kaisei-opti": "5.2.8",
    "kaisei-tokumin": "5.3.0",
    "kiwi-maru": "5.3.0",
    "kosugi": "5.3.0",
    "kosugi-maru": "5.3.0",
    "liu-jian-mao-cao": "5.3.0",
    "long-cang": "5.3.0",
    "m-plus-1": "5.2.8",
    "m-plus-rounded-1c": "5.3.0",
    "ma-shan-zheng": "5.3.1",
    "mochiy-pop-one": "5.3.0",
    "murecho": "5.3.1",
    "new-tegomin": "4.5.9",
    "potta-one": "5.3.0",
    "rocknroll-one": "5.3.0",
    "shippori-mincho-b1": "5.3.0",
    "stick": "5.3.0",
    "yomogi": "5.3.0",
    "yuji-boku": "5.3.0",
    "yuji-mai": "5.3.0",
    "yuji-syuku": "5.3.0",
    "yusei-magic": "5.3.0",
    "zcool-kuaile": "5.3.0",
    "zcool-qingke-huangyou": "5.3.0",
    "zcool-xiaowei": "5.3.0",
    "zen-antique": "5.3.0",
    "zen-antique-soft": "5.2.8",
    "zen-kaku-gothic-antique": "5.3.0",
    "zen-kaku-gothic-new": "5.3.0",
    "zen-kurenaido": "5.3.0",
    "zen-maru-gothic": "5.3.0",
    "zen-old-mincho": "5.3.0",
    "zhi-mang-xing": "5.3.0",
}


@dataclass(frozen=True)
class Typeface:
    """A typeface: full name, file, number of the face in the file, and the package with its version and licence."""

    name: str
    path: str
    face: int
    package: str
    version: str
    licence: str


def fetch_npm(folder: Path) -> None:
    """Install the packages :data:`NPM` into ``folder`` with the npm client, without running their scripts.

    Raises
    ------
    InputError
        There is no npm, or it failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm: not installed, and the fonts of npm packages need it; install it, or give --no-npm")
    (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    names = [f"@fontsource/{name}@{version}" for name, version in NPM.items()]
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    done = subprocess.run([npm, "install", "--prefix", str(folder), *options, *names], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"npm: failed ({done.stderr.strip()[-300:]}); try again, or give --no-npm")
    for path in folder.glob("node_modules/@fontsource/*/files/*.woff"):
        path.unlink()  # the same fonts once more; only .woff2 is read


def find_typefaces(folder: Path, own: Iterable[Path] = ()) -> None:
    """Write typefaces.json and covered.npz of all typefaces with at least :data:`LEAST` ideographs to ``folder``.

    Faces of one file often share glyphs, as the languages of Noto CJK do. A glyph counts for the first face only.

    Parameters
    ----------
    folder : Path
        Folder of the npm packages (:func:`fetch_npm`) and of the result.
    own : iterable of Path
        Folders of the user's own fonts.

    Raises
    ------
    InputError
        No typeface is found, or one of the folders does not exist.
    """
    prepare_folder(folder)
    typefaces, covered = [], []
    for path, package, version, licence in _files(folder, own):
        seen: set[tuple[int, int]] = set()
        for face, (name, cmap) in enumerate(_faces(path)):
            fresh = {(code, glyph) for code, glyph in cmap.items()} - seen
            seen |= fresh
            if len(fresh) >= LEAST:
                typefaces.append(Typeface(name, str(path), face, package, version, licence))
                covered.append(np.sort(np.array([code for code, _ in fresh], np.int32)))
    if not typefaces:
        raise InputError(
            f"--fonts: no typeface with at least {LEAST} CJK ideographs was found; install some of the Debian packages "
            f"that --help lists, or name a folder with .ttf, .otf, .ttc or .woff2 files"
        )
    save_array(folder / "covered.npy", np.concatenate(covered))
    found = [asdict(typeface) | {"ideographs": len(codes)} for typeface, codes in zip(typefaces, covered, strict=True)]
    write_json(folder / "typefaces.json", found)
    log.info("%d typefaces of %d packages", len(typefaces), len({t.package for t in typefaces}))


def read_typefaces(folder: Path) -> tuple[list[Typeface], list[NDArray[np.int32]]]:
    """Return the typefaces that :func:`find_typefaces` found, and the sorted code points (n,) int32 that each has."""
    found = json.loads((folder / "typefaces.json").read_text(encoding="utf-8"))
    ends = np.cumsum([one.pop("ideographs") for one in found])
    return [Typeface(**one) for one in found], np.split(np.load(folder / "covered.npy"), ends[:-1])


def _files(folder: Path, own: Iterable[Path]) -> Iterator[tuple[Path, str, str, str]]:
    """Yield font files in a fixed order, each with package, version and licence."""
    for package, licence in DEBIAN.items():
        if found := _dpkg("-W", "-f=${db:Status-Status} ${Version}", package):
            status, version = found.split(" ", 1)
            if status == "installed":
                for line in sorted(_dpkg("-L", package).splitlines()):
                    if line.lower().endswith(SUFFIXES) and not Path(line).is_symlink():
                        yield Path(line), package, version, licence
    for metadata in sorted(folder.glob("node_modules/@fontsource/*/metadata.json")):
        package = metadata.parent
        licence = json.loads(metadata.read_text(encoding="utf-8"))["license"]
        licence = licence["type"] if isinstance(licence, dict) else licence
        version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
        for path in sorted(package.glob("files/*-normal.woff2")):
            if "-japanese-" in path.name or "-chinese-" in path.name:
                yield path, f"@fontsource/{package.name}", version, licence
    for place in own:
        if not place.is_dir():
            raise InputError(f"--fonts: {place}: no such folder; name a folder with fonts")
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield path, place.name, "", "chosen by the user"


def _dpkg(*arguments: str) -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    return subprocess.run(["dpkg-query", *arguments], capture_output=True, text=True).stdout


def _faces(path: Path) -> Iterator[tuple[str, dict[int, int]]]:
    """Yield each face of a font file: its full name, and glyph numbers of the ideographs that it has."""
    from fontTools.ttLib import TTFont, TTLibError
    from fontTools.ttLib.sfnt import readTTCHeader

    wanted = frozenset(IDEOGRAPHS)
    try:
        with path.open("rb") as file:
            faces = readTTCHeader(file).numFonts if file.read(4) == b"ttcf" and not file.seek(0) else 1
        for face in range(faces):
            with TTFont(path, lazy=True, fontNumber=face) as font:
                cmap = font.getBestCmap() or {}
                name = font["name"].getDebugName(4) or path.stem
                yield name, {code: font.getGlyphID(glyph) for code, glyph in cmap.items() if code in wanted}
    except (TTLibError, OSError) as error:
        log.warning("%s is left out: it cannot be read (%s)", path, error)
