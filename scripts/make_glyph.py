"""Make a set of real embeddings with identities, up to a million and a half: scripts/make_glyph.py --out FOLDER

An identity is a CJK ideograph, and a photo of it is its glyph in one of some 200 typefaces, warped, blurred, noised and
sometimes covered. A network that was trained on other ideographs embeds the photos. docs/glyph.md describes the set.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glyph.fonts import DEBIAN, NPM, fetch_npm, find_typefaces, read_typefaces
from starfc.errors import InputError
from starfc.runtime.entry import run_command
from starfc.runtime.stages import Stages
from starfc.storage.atomic import prepare_folder, replacing, save_array, save_arrays, write_json

if TYPE_CHECKING:
    from glyph.identities import Split

log = logging.getLogger("starfc")

BATCH = 500  # photos that are made and embedded together; another number makes other photos
TRAIN, TEST = "part0_train", "part{}_test"
ABOUT = f"""Make a set of embeddings with identities in FOLDER: part0_train to choose parameters on, and the test sets
part1_test within part3_test within ... part9_test.

Stages: fonts (npm packages are fetched, typefaces found), render, train, embed. A stage whose output is in FOLDER is
not run again, and an interrupted one goes on where it was. The same options, fonts and kind of processor give the same
data. FOLDER needs about 4 GB per million instances.

Fonts: those Debian packages below that are installed, {len(NPM)} npm packages, and the folders of --fonts.

apt-get install {" ".join(DEBIAN)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders with more fonts")
    parser.add_argument("--no-npm", action="store_true", help="without the fonts of npm packages")
    parser.add_argument("--identities", type=int, default=16_000, help="of part9_test (default: %(default)s)")
    parser.add_argument(
        "--instances", type=int, default=1_500_000, help="of part9_test, as far as the typefaces allow (%(default)s)"
    )
    parser.add_argument(
        "--network-identities", type=int, default=2000, help="ideographs that train the network (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2000, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.getLogger("starfc").setLevel(logging.INFO)
    for option, least in {"identities": 9, "instances": 18, "network_identities": 2, "steps": 1, "threads": 1}.items():
        if getattr(arguments, option) < least:
            name = option.replace("_", "-")
            raise InputError(f"--{name}: must be at least {least}; found {getattr(arguments, option)}")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed: must be from 0 to 4294967295; found {arguments.seed}")
    make(arguments)


def make(arguments: argparse.Namespace) -> None:
    """Run the stages whose output is not there yet."""
    from starfc.runtime.extras import require
    from starfc.runtime.machine import choose_device, environment, set_threads

    for module in ("PIL", "fontTools", "brotli"):
        require(module, "scripts/make_glyph.py")
    out = prepare_folder(arguments.out)
    keep_options(arguments, out / "options.json")
    set_threads(arguments.threads)
    work: dict[str, tuple[Path, Callable[[argparse.Namespace, Path], None]]] = {
        "fonts": (out / "fonts" / "typefaces.json", make_fonts),
        "render": (out / "render" / "splits.npz", make_pictures),
        "train": (out / "network.pt", make_network),
        "embed": (out / "embedded.json", make_embeddings),
    }
    for name, (output, run) in work.items():
        if output.is_file():
            log.info("%s: %s is there already", name, output)
            continue
        stages = Stages()
        with stages.stage(name):
            run(arguments, out)
        stage = stages.finished[0]
        took = {"stage": name, "seconds": round(stage.seconds, 1), "peak_rss_mb": round(stage.peak_rss_mb)}
        write_json(out / "stages.json", [*read(out / "stages.json", []), took])
    record = {**describe(out), **environment(arguments.threads, choose_device("cpu"))}
    record["command"] = [Path(word).name for word in record["command"]]
    write_json(out / "manifest.json", record)
    print(table(record))


def keep_options(arguments: argparse.Namespace, path: Path) -> None:
    """Write the options that decide what is made. Raise InputError if the folder holds a set made with others."""
    options = {name: value for name, value in vars(arguments).items() if name not in ("out", "threads")}
    options["fonts"] = [str(folder) for folder in arguments.fonts]
    earlier = read(path, options)
    differ = [name for name in options if options[name] != earlier.get(name)]
    if differ:
        said = ", ".join(f"--{name.replace('_', '-')} {earlier.get(name)}" for name in differ)
        raise InputError(f"--out: {path.parent} holds a set made with {said}; give the same, or name another folder")
    write_json(path, options)


def make_fonts(arguments: argparse.Namespace, out: Path) -> None:
    folder = prepare_folder(out / "fonts")
    if not arguments.no_npm:
        fetch_npm(folder)
    find_typefaces(folder, arguments.fonts)


def make_pictures(arguments: argparse.Namespace, out: Path) -> None:
    """Choose ideographs, draw them in all typefaces, and choose the instances of each split."""
    from glyph.identities import PART0, choose_ideographs, cumulative, make_split, pictures_of
    from glyph.render import distinct_looks, render

    folder, seed = prepare_folder(out / "render"), arguments.seed
    typefaces, covered = read_typefaces(out / "fonts")
    instances = min(PART0, arguments.instances)
    part0 = max(2, round(instances * arguments.identities / arguments.instances))
    looks = distinct_looks(typefaces, covered)
    chosen = choose_ideographs(looks, arguments.network_identities, part0, arguments.identities, seed)
    wanted = np.concatenate(chosen)
    render(folder, typefaces, [codes[np.isin(codes, wanted)] for codes in looks], arguments.threads)
    glyphs = np.load(folder / "glyphs.npz")
    drawn = glyphs["code"], glyphs["kept"]
    train = make_split(chosen[1], *drawn, instances, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    test, parts = cumulative(make_split(chosen[2], *drawn, arguments.instances, rng), arguments.identities, rng)
    order = np.random.default_rng([seed, 7]).permutation(len(train.glyph))
    arrays = {f"train_{name}": array[order] for name, array in vars(train).items()}
    arrays |= {f"test_{name}": array for name, array in vars(test).items()}
    of_network = pictures_of(chosen[0], *drawn)
    arrays["network_glyph"] = np.concatenate(of_network)
    arrays["network_identity"] = np.repeat(np.arange(len(of_network)), [len(pictures) for pictures in of_network])
    arrays["parts"] = np.array(list(parts.items()))
    save_arrays(folder / "splits.npz", arrays)


def make_network(arguments: argparse.Namespace, out: Path) -> None:
    from glyph.network import train

    splits = np.load(out / "render" / "splits.npz")
    images = np.load(out / "render" / "images.npy", "r")
    labels = splits["network_identity"].astype(np.int64)
    train(images, splits["network_glyph"], labels, out / "network.pt", arguments.steps, arguments.seed)


def make_embeddings(arguments: argparse.Namespace, out: Path) -> None:
    """Make and embed the photos of part0 and part9, and write the parts with their labels and lists."""
    from starfc.data.files import write_labels

    features, labels = prepare_folder(out / "features"), prepare_folder(out / "labels")
    train, test, parts = read_splits(out)
    embed_split(arguments, out, train, features / f"{TRAIN}.npy", 5)
    write_labels(labels / f"{TRAIN}.meta", train.identity)
    write_list(out, train, out / "list" / f"{TRAIN}.tsv.gz")
    largest = max(parts)
    embed_split(arguments, out, test, features / f"{TEST.format(largest)}.npy", 6)
    write_list(out, test, out / "list" / f"{TEST.format(largest)}.tsv.gz")
    rows = np.load(features / f"{TEST.format(largest)}.npy", "r")
    for part, length in parts.items():
        write_labels(labels / f"{TEST.format(part)}.meta", test.identity[:length])
        if part != largest:
            save_array(features / f"{TEST.format(part)}.npy", rows[:length])
    write_json(out / "embedded.json", {TEST.format(part): length for part, length in parts.items()})


def embed_split(arguments: argparse.Namespace, out: Path, split: Split, path: Path, stream: int) -> None:
    """Write the features of a split, (N, 256) float16. An interrupted run goes on after its last whole block."""
    import torch

    from glyph.network import DIM, embed, load_network
    from glyph.photos import degrade, seeded
    from starfc.runtime.progress import progress

    if path.is_file():
        return
    count, unfinished, mark = len(split.glyph), path.with_suffix(".part"), path.with_suffix(".done")
    images, network = np.load(out / "render" / "images.npy", "r"), load_network(out / "network.pt")
    done = read(mark, 0) if unfinished.is_file() else 0
    mode = "r+" if done else "w+"
    features = np.lib.format.open_memmap(unfinished, mode, np.float16, None if done else (count, DIM))
    with progress(f"embedding {path.stem}", total=count, unit="photo", done=done) as bar, torch.inference_mode():
        for start in range(done, count, BATCH):
            rows = slice(start, min(start + BATCH, count))
            drawn, levels = torch.from_numpy(images[split.glyph[rows]]), torch.from_numpy(split.level[rows])
            photos = degrade(drawn, levels, seeded(arguments.seed, stream, start // BATCH))
            features[rows] = embed(network, photos).numpy()
            bar.update(len(photos))
            if (start // BATCH + 1) % 100 == 0:
                features.flush()
                write_json(mark, start + BATCH)
    features.flush()
    unfinished.replace(path)
    mark.unlink(missing_ok=True)


def read_splits(out: Path) -> tuple[Split, Split, dict[int, int]]:
    """Return part0, part9 and the number of instances of each cumulative part."""
    from glyph.identities import Split

    arrays = np.load(out / "render" / "splits.npz")
    train, test = (Split(*(arrays[f"{n}_{a}"] for a in ("glyph", "identity", "level"))) for n in ("train", "test"))
    return train, test, {int(part): int(length) for part, length in arrays["parts"]}


def write_list(out: Path, split: Split, path: Path) -> None:
    """Write code point, character, typeface and level of degradation of each instance."""
    glyphs, (typefaces, _) = np.load(out / "render" / "glyphs.npz"), read_typefaces(out / "fonts")
    codes, faces = glyphs["code"][split.glyph].tolist(), glyphs["typeface"][split.glyph].tolist()
    prepare_folder(path.parent)
    with replacing(path) as temporary, gzip.GzipFile(temporary, "wb", mtime=0) as file:
        for code, face, level in zip(codes, faces, split.level.tolist(), strict=True):
            file.write(f"U+{code:04X}\t{chr(code)}\t{typefaces[face].name}\t{level}\n".encode())


def describe(out: Path) -> dict[str, Any]:
    """Return what the set is: options, sizes, similarities, packages with licences, and what each stage took."""
    from glyph.measure import similarities

    train, test, parts = read_splits(out)
    glyphs, (typefaces, _) = np.load(out / "render" / "glyphs.npz"), read_typefaces(out / "fonts")
    first = parts[min(parts)]
    rows = np.load(out / "features" / f"{TEST.format(min(parts))}.npy")
    used = np.unique(np.concatenate([train.glyph, test.glyph]))
    drawn = Counter(glyphs["typeface"][used].tolist())
    packages: dict[str, dict[str, Any]] = {}
    for number, typeface in enumerate(typefaces):
        if drawn[number]:
            row = packages.setdefault(typeface.package, {"version": typeface.version, "licence": typeface.licence})
            row["typefaces"] = row.get("typefaces", 0) + 1
            row["pictures"] = row.get("pictures", 0) + drawn[number]
    splits = {TRAIN: sizes(train.identity)}
    splits |= {TEST.format(part): sizes(test.identity[:length]) for part, length in parts.items()}
    options = read(out / "options.json", {})
    options["fonts"] = [Path(folder).name for folder in options["fonts"]]
    return {
        "options": options,
        "splits": splits,
        "typefaces": len(drawn),
        "pictures": len(used),
        "similarities": {TEST.format(min(parts)): similarities(rows, test.identity[:first])},
        "levels": np.bincount(test.level, minlength=4).tolist(),
        "stages": read(out / "stages.json", []),
        "packages": packages,
    }


def sizes(identity: NDArray[np.int64]) -> dict[str, int]:
    """Return the numbers of instances and identities, and the least, median and largest size of an identity."""
    counts = np.unique(identity, return_counts=True)[1]
    return {
        "instances": len(identity),
        "identities": len(counts),
        "least": int(counts.min()),
        "median": int(np.median(counts)),
        "largest": int(counts.max()),
    }


def table(record: dict[str, Any]) -> str:
    """Return the splits and stages as text."""
    lines = [f"{'split':<14}{'instances':>12}{'identities':>12}{'sizes':>16}"]
    for name, row in record["splits"].items():
        spread = f"{row['least']}/{row['median']}/{row['largest']}"
        lines.append(f"{name:<14}{row['instances']:>12,}{row['identities']:>12,}{spread:>16}")
    lines += [f"{row['stage']}: {row['seconds']} s, peak {row['peak_rss_mb']} MB" for row in record["stages"]]
    return "\n".join(lines)


def read(path: Path, otherwise: Any) -> Any:
    """Return the content of a JSON file, or ``otherwise`` if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise


if __name__ == "__main__":
    sys.exit(run_command(main))
