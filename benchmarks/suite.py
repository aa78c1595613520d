"""Compare the whole method, without labels, with all baselines, tuned on the labels, on many kinds of data.

    python benchmarks/suite.py [--manifest FILE.json] [--out DIR] [--sets NAME ...] [--methods METHOD ...] [--quick]
        [--no-tuned] [--no-ours] [--keep-ours] [--fit JSON --name NAME] [--threads 2] [--json]

``--manifest`` lists the sets (format: suite_sets.py). Without it, the sets are those of ../shared/datasets and others
that are made from seeds. The following runs on each set, in separate processes:

- ``StarFC().fit(X)``, without labels. ``--fit`` passes keyword parameters to it, and ``--name`` names the results of
  such a run. Seconds are those of the whole fit, including the kNN graph, after compiled code is loaded. Memory is the
  peak of the process.
- every baseline with the parameters that are best on part0_train of glyph (part0_parameters.json), on the exact 80-NN
  graph with cosine similarity.
- every baseline tuned on the labels of the set: the best pairwise F among grids that fit any embedding
  (suite_grids.py). k-means is given the true number of clusters. Infomap and FC-ES run the package infomap in a
  separate process: the seconds include its start, but the memory does not include this process.

**Regret** is the score of the best tuned baseline minus ours, in points. For F it is the baseline with the highest F,
for BCubed F the one with the highest BCubed F; each baseline is scored at its point of the best F (``highest_bcubed``
is the highest of all its points). All scores are in per cent. If no two instances share an identity, there are no true
pairs: F is then 100 if no pair is predicted, and 0 otherwise. If ``fit`` refuses a set, F is 0, and the row has the
message. ``estimated_fscore`` is the estimator's own estimate without labels (``estimate_``), or null without one. The
error of the estimate is the mean distance from the true F.

Writes suite.json and suite.md to DIR (suite-NAME with ``--name``), and, if there are estimates, suite.png with
estimated against true F. Results of baselines are kept in DIR by a fingerprint of features and labels and not computed
again. Our results are computed again unless ``--keep-ours`` is given. ``--json`` prints suite.json on stdout instead of
the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from baselines import BASELINES
from harness import cluster, finish_side, finished, run_side, small_features, small_graph, with_environment
from starfc.data.dataset import Split
from starfc.errors import InputError
from starfc.evaluation.metrics import bcubed, contingency, nmi, pairwise
from starfc.graph.knn import build_knn
from starfc.graph.store import find_graph, read_graph, write_graph
from starfc.runtime.entry import run_command
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.storage.atomic import prepare_folder, replacing, save_array, write_json
from suite_grids import GRIDS, ROUNDS, fitted, search
from suite_sets import DEFAULT, Entry, default_sets, read_manifest
from suite_tables import per_set, plot, summarise, summary_lines

K = 80  # neighbours per node of the baselines' kNN graph, the node itself included; N - 1 if there are fewer instances
QUICK = 50_000  # --quick skips sets with more instances
OURS = "StarFC"
PART0 = Path(__file__).with_name("part0_parameters.json")
ESTIMATES = ("precision", "recall", "fscore", "bcubed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, metavar="FILE.json", help="the sets, instead of the default ones")
    parser.add_argument("--out", type=Path, default=Path("outputs/suite"), metavar="DIR")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="only these sets")
    parser.add_argument("--methods", nargs="*", choices=BASELINES, default=list(BASELINES), metavar="METHOD")
    parser.add_argument("--quick", action="store_true", help=f"without the sets above {QUICK:,} instances")
    parser.add_argument("--no-tuned", action="store_true", help="run baselines only with their part0_train parameters")
    parser.add_argument("--no-ours", action="store_true", help="run only the baselines; a later run reuses the results")
    parser.add_argument("--keep-ours", action="store_true", help="reuse our earlier results too")
    parser.add_argument("--fit", default="{}", metavar="JSON", help="keyword parameters of StarFC, as a JSON object")
    parser.add_argument("--name", default=OURS, help="name of the results with --fit (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print suite.json on stdout")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side is None:
        suite(arguments)
    elif arguments.side == "ours":
        run_ours(arguments)
    else:
        run_baseline(arguments, arguments.side.removeprefix("baseline_"))


def suite(arguments: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for scikit-learn in the processes started here
    if Path(arguments.name).name != arguments.name:
        raise InputError(f"--name: must be a file name without '/'; found {arguments.name!r}")
    parameters_of(arguments.fit)
    out = prepare_folder(arguments.out)
    rows = [row for entry in entries_of(arguments, out) if (row := row_of(arguments, entry, out)) is not None]
    result = {"unit": "per cent", "name": arguments.name, "fit": parameters_of(arguments.fit), "sets": rows}
    result |= summarise(rows)
    stem = "suite" if arguments.name == OURS else f"suite-{arguments.name}"
    record = with_environment(result, arguments.threads)
    write_json(out / f"{stem}.json", record)
    text = "\n".join([*per_set(rows), "", *summary_lines(result)]) + "\n"
    with replacing(out / f"{stem}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    if any(row.get("estimated_fscore") is not None for row in rows):
        plot(rows, out / f"{stem}.png")
    print(json.dumps(record, indent=1) if arguments.json else text, end="\n" if arguments.json else "")


def entries_of(arguments: argparse.Namespace, out: Path) -> list[Entry]:
    """Return the sets to run. An unknown name is an error; a default set that is not available is a message."""
    known = DEFAULT if arguments.manifest is None else [entry.name for entry in read_manifest(arguments.manifest)]
    unknown = [name for name in arguments.sets or [] if name not in known]
    if unknown:
        raise InputError(f"--sets: must be among {', '.join(known)}; found {', '.join(unknown)}")
    wanted = arguments.sets or known
    if arguments.manifest is not None:
        return [entry for entry in read_manifest(arguments.manifest) if entry.name in wanted]
    entries, missing = default_sets(prepare_folder(out / "sets"), wanted)
    for message in missing:
        say(message)
    return entries


def row_of(arguments: argparse.Namespace, entry: Entry, out: Path) -> dict[str, Any] | None:
    """Return the results of one set: ours, every baseline, and the regret. None for a set that --quick skips."""
    split = entry.open()
    if arguments.quick and len(split) > QUICK:
        say(f"{entry.name} is skipped: --quick allows {QUICK:,} instances, and it has {len(split):,}")
        return None
    digest = hashlib.blake2b(split.labels.tobytes(), digest_size=4).hexdigest()
    kept = prepare_folder(out / "kept" / f"{split.features.check.fingerprint}-{digest}")
    row = {
        "name": entry.name,
        "kind": entry.kind,
        "trained": entry.trained,
        "instances": len(split),
        "identities": len(np.unique(split.labels)),
        "feature_dim": split.features.dim,
    }
    if not arguments.no_ours:
        row |= ours_of(arguments, entry, out / "ours" / arguments.name / entry.name, kept.name)
    row["baselines"] = {method: baseline_of(arguments, method, entry, split, kept) for method in arguments.methods}
    return row | regret_of(row)


def ours_of(arguments: argparse.Namespace, entry: Entry, folder: Path, fingerprint: str) -> dict[str, Any]:
    """Return our results of a set. With --keep-ours an earlier run with the same parameters and data is reused."""
    key = {"fit": parameters_of(arguments.fit), "data": fingerprint}
    found = finished(folder / "ours.json") if arguments.keep_ours else None
    if found is None or found["key"] != key:
        say(f"{entry.name}: {arguments.name}")
        try:
            more = ["--entry", written(entry), "--fit", arguments.fit, "--threads", arguments.threads]
            found = run_side(__file__, "ours", prepare_folder(folder), *more)
            write_json(folder / "ours.json", found | {"key": key})
        except subprocess.CalledProcessError as error:
            found = {"refused": f"failed with exit status {error.returncode}", **nothing()}
    return {key: value for key, value in found.items() if key not in ("key", "stages", "peak_rss_mb")}


def baseline_of(arguments: argparse.Namespace, method: str, entry: Entry, split: Split, kept: Path) -> dict[str, Any]:
    """Return a baseline's scores with its parameters from part0_train ('part0') and with the best ones ('tuned')."""
    baseline = BASELINES[method]
    row = {"name": baseline.name, "told_clusters": baseline.told_clusters}
    if not baseline.available:
        return row | {"not_run": f"package {baseline.package} (pip install 'starfc[baselines]')"}
    found = finished(kept / f"baseline_{method}.json")
    if not usable(found, method, arguments.no_tuned):
        say(f"{entry.name}: {baseline.name}")
        try:
            make_graph(split, kept)
        except InputError as error:
            return row | {"not_run": str(error)}
        more = ["--entry", written(entry), "--threads", arguments.threads, *["--no-tuned"] * arguments.no_tuned]
        try:
            found = run_side(__file__, f"baseline_{method}", kept, *more)
        except subprocess.CalledProcessError as error:
            return row | {"not_run": f"failed with exit status {error.returncode}"}
    row |= {"part0": found["part0"], "peak_mb": found["peak_rss_mb"]}
    if not arguments.no_tuned:
        row |= {"tuned": found["best"], "highest_bcubed": max(point["bcubed"] for point in found["points"])}
        row |= {"tried": len(found["points"]), "tuning_seconds": found["stages"]["tuned"]}
    return row


def make_graph(split: Split, kept: Path) -> None:
    """Build the exact kNN graph of the baselines, if it is not stored yet."""
    if find_graph(kept / "graph") is None:
        split.features.require_valid()
        write_graph(kept / "graph", build_knn(split.features, min(K, len(split) - 1)), split.features)


def regret_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the best tuned baseline by F and by BCubed F, and the difference to our score, in points."""
    found: dict[str, Any] = {}
    for metric, suffix in (("fscore", ""), ("bcubed", "_bcubed")):
        tuned = {name: b["tuned"][metric] for name, b in row["baselines"].items() if "tuned" in b}
        best = max(tuned, key=tuned.__getitem__, default=None)
        found[f"best{suffix}"] = None if best is None else {"method": best, metric: tuned[best]}
        known = best is not None and metric in row
        found[f"regret{suffix}"] = round(tuned[best] - row[metric], 4) if known else None
    return found


def run_ours(arguments: argparse.Namespace) -> None:
    """Run ``StarFC().fit(X)`` on the rows of the file, unchanged."""
    from starfc.estimator import StarFC  # imports scikit-learn, which the sides of baselines do not need

    entry = read_entry(arguments.entry)
    split, stages = entry.open(), Stages()
    X, parameters = np.array(split.features.array), parameters_of(arguments.fit)
    with contextlib.suppress(ValueError), hushed():  # imports, and loads compiled code
        StarFC(**parameters).fit(small_features(X.shape[1], K))
    model, refused = StarFC(**parameters), None
    with stages.stage("fit"), heard() as said, timed_search() as searches:
        try:
            model.fit(X)
        except ValueError as error:  # InputError, or scikit-learn's of values that are not finite
            refused = str(error)
    seconds = stages.finished[0].seconds
    found = {"peak_mb": stages.finished[0].peak_rss_mb, "warnings": said, "refused": refused, "estimate": None}
    found |= {"seconds_after_knn": seconds - sum(searches) if searches else None}
    if refused is None:
        found |= scores(split.labels, model.labels_) | {"estimate": estimate_of(model)}
        save_array(arguments.folder / "labels.npy", model.labels_)
    else:
        found |= nothing()
    estimated = None if found["estimate"] is None else found["estimate"].get("fscore")
    finish_side("ours", arguments.folder, stages, **found, estimated_fscore=estimated)


def run_baseline(arguments: argparse.Namespace, method: str) -> None:
    """A baseline with its parameters from part0_train; then its grid."""
    entry, baseline, stages = read_entry(arguments.entry), BASELINES[method], Stages()
    split = entry.open()
    graph = read_graph(arguments.folder / "graph", split.features, min(K, len(split) - 1))
    key = key_of(method) | ({"grid": None} if arguments.no_tuned else {})
    cluster(baseline, *small_graph(K), key["part0"])  # imports, and loads compiled code

    def run(parameters: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        labels = cluster(baseline, graph, split, parameters)
        seconds = time.perf_counter() - started
        return scores(split.labels, labels) | {"seconds": seconds}

    parameters = fitted(key["part0"], graph)
    with stages.stage("part0"):
        part0 = {"parameters": parameters, **run(parameters)}
    found = {"points": [], "best": None}
    if not arguments.no_tuned:
        with stages.stage("tuned"):
            found["points"], found["best"] = search(GRIDS[method], graph, run)
    finish_side(f"baseline_{method}", arguments.folder, stages, key=key, part0=part0, **found)


def key_of(method: str) -> dict[str, Any]:
    """What a baseline's kept result hangs on, beside the data."""
    part0 = json.loads(PART0.read_text(encoding="utf-8"))["methods"][method]["parameters"]
    digest = hashlib.blake2b(f"{GRIDS[method]} {ROUNDS}".encode(), digest_size=8).hexdigest()
    return {"part0": part0, "grid": digest}


def usable(found: dict[str, Any] | None, method: str, no_tuned: bool) -> bool:
    """Return whether there is a stored result with the present part0 parameters and, if needed, the present grid."""
    asked = ["part0"] if no_tuned else ["part0", "grid"]
    return found is not None and all(found["key"][part] == key_of(method)[part] for part in asked)


def scores(truth: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return every metric in per cent. Without true pairs, F is 100 if no pair is predicted, and 0 otherwise."""
    table = contingency(truth, labels)
    pairs = asdict(pairwise(table))
    if len(table.row_sums) == table.total:
        pairs = dict.fromkeys(pairs, float(len(table.col_sums) == table.total))
    fractions = pairs | {"bcubed": bcubed(table).fscore, "nmi": nmi(table)}
    return {name: round(100 * value, 4) for name, value in fractions.items()} | {"clusters": len(table.col_sums)}


def nothing() -> dict[str, Any]:
    """Return the scores of a set that ``fit`` refused."""
    return dict.fromkeys(("precision", "recall", "fscore", "bcubed", "nmi"), 0.0) | {"clusters": None}


def estimate_of(model: object) -> dict[str, float] | None:
    """Return the model's estimate of its scores without labels, in per cent. None without an estimate."""
    found = getattr(model, "estimate_", None)
    if found is None:
        return None
    values = {key: found.get(key) if isinstance(found, Mapping) else getattr(found, key, None) for key in ESTIMATES}
    return {key: round(100 * float(value), 4) for key, value in values.items() if value is not None}


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Yield a list that collects the warnings of the log and of Python in the block, except DeprecationWarning."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, log = Listener(logging.WARNING), logging.getLogger("starfc")
    log.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            yield said
    finally:
        log.removeHandler(listener)
    said += [str(one.message) for one in given if not issubclass(one.category, DeprecationWarning)]


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Suppress stderr in the block."""
    log = logging.getLogger("starfc")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def timed_search() -> Iterator[list[float]]:
    """Yield a list that collects the seconds of all kNN searches in the block, also those in samples of the rows."""
    from starfc.graph import opening

    seconds: list[float] = []
    search_of = opening.build_knn

    def timed(*arguments: Any, **more: Any) -> Any:
        started = time.perf_counter()
        try:
            return search_of(*arguments, **more)
        finally:
            seconds.append(time.perf_counter() - started)

    opening.build_knn = timed
    try:
        yield seconds
    finally:
        opening.build_knn = search_of


def parameters_of(text: str) -> dict[str, Any]:
    """Return the keyword parameters that --fit passes."""
    from starfc.estimator import StarFC

    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--fit: must be a JSON object, such as '{{\"k\": 40}}'; found {text!r} ({error})") from None
    known = StarFC().get_params()
    if not isinstance(found, dict) or not set(found) <= set(known):
        raise InputError(f"--fit: must be a JSON object with parameters of StarFC: {', '.join(known)}; found {text}")
    return found


def written(entry: Entry) -> str:
    """Return an entry as the text of a side's argument."""
    return json.dumps(asdict(entry), default=str)


def read_entry(text: str) -> Entry:
    found = json.loads(text)
    return Entry(**found | {key: Path(found[key]) for key in ("features", "labels")})


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
