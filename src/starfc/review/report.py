"""Write a static page for the review of a clustering: the page, its data in files, and sprite sheets of thumbnails.

The page opens from the disk in any browser. Browsers do not let such a page read files, so the data are scripts as
well. Each script passes one value to the page: ``starfc.put("clusters", ...)``. ``docs/reviewing.md`` describes the
page.

======================  =============================================================================================
``index.html, page/``  the page
``data/index.js``      the content of the overview, and general information
``data/clusters.js``   measures of every cluster, by columns
``data/merges.js``     merge candidates, highest margin first
``data/members-M.js``  members of consecutive clusters, a few thousand per file; loaded when a cluster is opened
``data/questions.js``  questions to ask first
``data/rows.js``       cluster of every row; ``data/names.js`` holds the names; both are loaded by the first search
``data/issues.js``     labels that the graph contradicts, with the labels of the data; loaded by its view
``thumbs/M.webp``      thumbnails, cluster by cluster in the order of the members
======================  =============================================================================================
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.diagnostics import size_histogram
from starfc.clustering.parsing import Decision, ParsedEdges
from starfc.data.dataset import Features
from starfc.data.formats.npz import npz_key
from starfc.data.instance_files import Files
from starfc.errors import InputError
from starfc.graph.edges import edge_confidence
from starfc.review.images import LARGEST, TILE, open_pictures, write_sheets
from starfc.review.label_errors import KINDS, LabelIssues, label_issues
from starfc.review.label_tables import issue_counts
from starfc.review.measures import Merges, Review, merge_candidates, numbered, review
from starfc.review.members import Members, each_cluster
from starfc.review.overview import of_record, surface_of, warnings_of
from starfc.review.pairs import Pairs
from starfc.review.shown import Served, Shown, Writer, originals, short, thousandths
from starfc.runtime.progress import progress
from starfc.runtime.words import word
from starfc.storage.commit import LOCK, NEXT, changing
from starfc.storage.owners import REPORT
from starfc.storage.safe import Npz, read_lines

CHUNK = 4096  # minimum number of members per file, except in the last one
MERGES = 5000  # maximum number of merge candidates in the list
ISSUES_EACH = 1000  # maximum number of issues of each kind
MERGES_EACH = 8  # maximum number of merge candidates per cluster
SURFACE = "threshold_surface.csv"


def write_report(
    folder: str | Path,
    labels: NDArray[np.int64],
    parsed: ParsedEdges,
    rule: Decision,
    *,
    removed: NDArray[np.integer] | Sequence[int] = (),
    features: Features | None = None,
    images: str | Path | NDArray | None = None,
    names: str | Path | Sequence[str] | None = None,
    thumbnails: int = TILE,
    identities: NDArray[np.int64] | None = None,
    record: dict[str, Any] | None = None,
    run: Path | None = None,
    files: Files | None = None,
    surface: Path | None = None,
    questions: Sequence[Mapping[str, Any]] = (),
    expected: Mapping[str, float] | None = None,
    doubts: NDArray[np.floating] | None = None,
    cluster_names: Mapping[int, str] | None = None,
    served: Served | None = None,
    title: str = "Clusters",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the review page of a clustering.

    Parameters
    ----------
    folder : path
        Output folder. An earlier report in it is replaced.
    labels : (N,) int64
        Cluster of every row. -1: the cluster was left out as too small; the page shows it nevertheless.
    parsed : ParsedEdges
        The edges of the clustering.
    rule : Decision
        The rule that decided which edges were kept.
    removed : (r,) integers
        Rows that were removed from the run. The page does not show them.
    features : Features, optional
        Features of all rows, for the order of members, for projections and similarities.
    images : path or array, optional
        Pictures (:mod:`starfc.review.images`).
    names : path or sequence of N str, optional
        Names of the instances, or a text file with one name per line. Default: the names of the image files.
    thumbnails : int
        Maximum pixels of a thumbnail's longer side.
    identities : (N,) int64, optional
        Labels of the data, -1 where not known. The page then lists those that the graph contradicts
        (:mod:`starfc.review.label_errors`).
    record : dict, optional
        The record of the run, for the overview.
    run : path, optional
        Folder of the run. A list of images in it may name only files in it.
    files : list of path or None, optional
        The file that the run names for each instance. A folder of images is searched for these.
    surface : path, optional
        Threshold surface (CSV) to show.
    questions : sequence of dict
        Questions to ask first, as ``Question.record()`` returns them.
    expected : dict, optional
        Expected ``precision`` and ``recall`` of the clusters.
    doubts : (N,) floating, optional
        Expected share of strangers in the cluster of every row (:meth:`starfc.runs.apply.Marked.doubts`). The page then
        shows the clusters with most of them first.
    cluster_names : mapping, optional
        Name by cluster id.
    served : Served, optional
        What a server has. Then ``images`` are not given.
    title : str
        Title of the page.
    overwrite : bool
        Whether to write into a folder that holds other files, and to replace them.

    Returns
    -------
    dict
        ``instances``, ``clusters``, ``doubtful`` (clusters with a suspicion above 0), ``merges``, ``files``, ``bytes``.

    Raises
    ------
    InputError
        There is not one image or name for each instance, thumbnails are not between 64 and 256 pixels, or the folder
        holds other files. An earlier report is unchanged.
    """
    if not TILE <= thumbnails <= LARGEST:
        raise InputError(f"{word('thumbnails')}: between {TILE} and {LARGEST} pixels needed; found {thumbnails}")
    inputs = [path for path in (images, names, surface) if isinstance(path, str | Path)]
    folder = Path(folder)
    with changing(folder, REPORT, inputs=inputs, overwrite=overwrite) as change:
        others = {path.name for path in folder.iterdir()} - {LOCK, NEXT}
        if others and not overwrite and all(file.by != "report" for file in change.owned.values()):
            raise InputError(f"{folder}: is not empty and holds no report; name a new folder")
        found = _write(
            change.place, labels, parsed, rule, removed, features, images, names, thumbnails, identities, record, run,
            files, surface, questions, expected, doubts, cluster_names, served, title,
        )  # fmt: skip
    written = [path for path in folder.rglob("*") if path.is_file()]
    return {**found, "files": len(written), "bytes": sum(path.stat().st_size for path in written)}


def _write(
    folder: Path,
    labels: NDArray[np.int64],
    parsed: ParsedEdges,
    rule: Decision,
    removed: NDArray[np.integer] | Sequence[int],
    features: Features | None,
    images: str | Path | NDArray | None,
    names: str | Path | Sequence[str] | None,
    thumbnails: int,
    identities: NDArray[np.int64] | None,
    record: dict[str, Any] | None,
    run: Path | None,
    files: Files | None,
    surface: Path | None,
    questions: Sequence[Mapping[str, Any]],
    expected: Mapping[str, float] | None,
    doubts: NDArray[np.floating] | None,
    cluster_names: Mapping[int, str] | None,
    served: Served | None,
    title: str,
) -> dict[str, Any]:
    n = len(labels)
    pictures = None if images is None else open_pictures(images, n, run, files)
    names = _names(names, n) if names is not None or pictures is None else pictures.names
    pairs = Pairs.of(parsed)
    run_labels, labels = labels, numbered(pairs, labels, removed)
    found, merges = review(pairs, labels), merge_candidates(pairs, labels, rule)
    confidence = edge_confidence(parsed.edges, parsed.kept)

    writer = Writer(folder)
    clusters = each_cluster(labels, confidence, found, features)
    shown = Shown(labels, np.zeros(n, np.int64) if served is None else served.places, names, features)
    base: str | None = None
    if pictures is not None:
        base, shown.files = originals(pictures.files, folder.parent)
    elif served is not None and served.files.any():
        base, shown.files = "../picture", [str(row) if there else "" for row, there in enumerate(served.files.tolist())]
    order, starts = _write_members(writer, clusters, found, merges, confidence, shown, served is not None)
    thumbs = None if served is None else served.thumbs
    if pictures is not None:
        thumbs = write_sheets(pictures, order, folder / "thumbs", thumbnails)
    each = _clusters(found, pairs, order, starts, shown)
    each["called"] = {str(label): name for label, name in (cluster_names or {}).items()}
    if doubts is not None:
        each["strangers"] = thousandths(doubts[each["medoid"]])
    if served is not None:
        each["place"] = served.places[each["medoid"]].tolist()
    writer.put("clusters", each)
    writer.put("questions", [shown.question(question) for question in questions])
    writer.put("merges", [_merge(merges, m, shown) for m in range(min(MERGES, len(merges.first)))])
    writer.put("rows", labels.tolist())
    if names is not None:
        writer.put("names", list(names))
    issues = None
    if identities is not None:
        issues = label_issues(pairs, np.where(labels < 0, -1, identities), labels, features).doubtful()
        writer.put("issues", _issues(issues, shown))
    content = {
        "title": title,
        "id": hashlib.blake2b(labels.tobytes(), digest_size=8).hexdigest(),
        "instances": int(found.sizes.sum()),
        "rows": n,
        "clusters": int((found.sizes > 0).sum()),
        "numbered": int(run_labels.max(initial=-1)) + 1,
        "singletons": int((found.sizes == 1).sum()),
        "sizes": size_histogram(found.sizes[found.sizes > 0]),
        "doubtful": int((found.cuts.suspicion > 0).sum()),
        "merges": len(merges.first),
        "rule": {**vars(rule), "communities": rule.communities},
        "edges": {"parsed": len(pairs.cols) // 2, "kept": int(pairs.kept.sum()) // 2},
        "questions": len(questions),
        "expected": expected,
        "served": None if served is None else served.state,
        "named": names is not None,
        "projected": features is not None,
        "thumbs": thumbs,
        "originals": base,
        "issues": None if issues is None else {"expected": round(issues.expected), "found": issue_counts(issues)},
        "warnings": warnings_of(found, int(found.sizes.sum()), record),
        **of_record(record),
        "surface": None if surface is None else surface_of(surface, rule.refinement),
    }
    writer.put("index", content)
    writer.page(served is not None)
    return {key: content[key] for key in ("instances", "clusters", "doubtful", "merges")}


def _write_members(
    writer: Writer,
    clusters: Any,
    found: Review,
    merges: Merges,
    confidence: NDArray[np.float32],
    shown: Shown,
    served: bool,
) -> tuple[NDArray[np.int64], list[int]]:
    """Write the files of the members. Return all rows in the order of display, and the first label of each file."""
    offsets = np.cumsum(found.sizes) - found.sizes
    order = np.empty(found.sizes.sum(), np.int64)
    kept: list[Members] = []
    starts, waiting, pending = [0], 0, []
    beside = _merges_by_cluster(merges, len(found.sizes))
    for label, members in enumerate(progress("members", clusters, total=len(found.sizes), unit="cluster")):
        size = len(members.rows)
        order[offsets[label] : offsets[label] + size] = members.rows
        if not served:
            shown.places[members.rows] = offsets[label] + np.arange(size)
        kept.append(members)
    for label, members in enumerate(kept):
        pending.append(_cluster(label, members, found, confidence, shown, merges, beside[label], served))
        waiting += len(members.rows)
        if waiting >= CHUNK or label == len(kept) - 1:
            writer.put(f"members-{len(starts) - 1}", pending)
            starts, waiting, pending = [*starts, label + 1], 0, []
    return order, starts[:-1]


def _cluster(
    label: int,
    members: Members,
    found: Review,
    confidence: NDArray[np.float32],
    shown: Shown,
    merges: Merges,
    beside: list[int],
    served: bool,
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "rows": members.rows.tolist(),
        "confidence": thousandths(confidence[members.rows]),
        "typical": None if members.typical is None else thousandths(members.typical),
        "merges": [_merge(merges, m, shown) for m in beside],
    }
    if shown.names is not None:
        content["names"] = [shown.names[row] for row in members.rows.tolist()]
    if served:
        content["places"] = shown.places[members.rows].tolist()
    if shown.files is not None:
        content["files"] = [shown.files[row] for row in members.rows.tolist()]
    if members.xy is not None:
        low, span = members.xy.min(axis=0), np.ptp(members.xy, axis=0).max()
        content["xy"] = np.rint(999 * (members.xy - low) / max(span, 1e-12)).astype(int).ravel().tolist()
        content["drawn"] = None if len(members.drawn) == len(members.rows) else members.drawn.tolist()
    piece = found.cuts.piece(label)
    if piece.size:
        content["piece"] = np.flatnonzero(np.isin(members.rows, piece)).tolist()
    return content


def _clusters(found: Review, pairs: Pairs, order: NDArray[np.int64], starts: list[int], shown: Shown) -> dict[str, Any]:
    first = np.cumsum(found.sizes) - found.sizes
    medoids = order[
        np.minimum(first, len(order) - 1)
    ]  # for a cluster without members any row will do, since it is not shown
    cuts = {}
    for c in np.flatnonzero(found.cuts.pieces > 0).tolist():
        edges = [ends for ends in (found.cuts.first[c], found.cuts.second[c]) if ends[0] >= 0]
        cuts[c] = {"piece": int(found.cuts.pieces[c]), "edges": [_edge(pairs, a, b, shown) for a, b in edges]}
    content = {
        "size": found.sizes.tolist(),
        "edges": found.edges.tolist(),
        "suspicion": thousandths(found.cuts.suspicion),
        "cohesion": thousandths(found.cohesion),
        "density": thousandths(found.density),
        "medoid": medoids.tolist(),
        "cuts": cuts,
        "starts": starts,
    }
    if shown.names is not None:
        content["name"] = [shown.names[row] for row in medoids.tolist()]
    return content


def _edge(pairs: Pairs, a: int, b: int, shown: Shown) -> dict[str, Any]:
    e = pairs.find(a, b)
    return {
        "a": shown.instance(a),
        "b": shown.instance(b),
        "p": short(pairs.scores[e]),
        "intimacy": short(pairs.intimacy[e]),
        "similarity": shown.similarity(a, b),
    }


def _merge(merges: Merges, m: int, shown: Shown) -> dict[str, Any]:
    return {
        "a": shown.instance(merges.a[m]),
        "b": shown.instance(merges.b[m]),
        "count": int(merges.count[m]),
        "p": short(merges.scores[m]),
        "intimacy": short(merges.intimacy[m]),
        "margin": short(merges.margins[m]),
        "similarity": shown.similarity(merges.a[m], merges.b[m]),
    }


def _issues(issues: LabelIssues, shown: Shown) -> list[dict[str, Any]]:
    """Return the first issues of every kind."""
    chosen = np.concatenate([issues.of(kind)[:ISSUES_EACH] for kind in KINDS])
    return [
        {
            "kind": KINDS[issues.kind[at]],
            "score": short(issues.score[at]),
            "a": shown.instance(issues.row[at]),
            "b": None if issues.other[at] < 0 else shown.instance(issues.other[at]),
            "label": int(issues.label[at]),
            "other": int(issues.other_label[at]),
            "count": int(issues.count[at]),
        }
        for at in chosen.tolist()
    ]


def _merges_by_cluster(merges: Merges, clusters: int) -> list[list[int]]:
    """Return the first merge candidates of every cluster."""
    found: list[list[int]] = [[] for _ in range(clusters)]
    for m, ends in enumerate(zip(merges.first.tolist(), merges.second.tolist(), strict=True)):
        for c in ends:
            if len(found[c]) < MERGES_EACH:
                found[c].append(m)
    return found


def _names(names: str | Path | Sequence[str] | None, n: int) -> list[str] | None:
    if names is None:
        return None
    where, found = "names", [] if isinstance(names, (str, Path)) else list(names)
    if isinstance(names, (str, Path)):
        where = str(names)
        if Path(names).suffix == ".npz":
            with Npz(names) as archive:
                found = archive.array(npz_key(archive, ("names", "paths")), "US", 1).astype(str).tolist()
        else:
            found = [os.fsencode(line).decode("utf-8", "replace") for line in read_lines(names, "file of names")]
    if len(found) != n:
        raise InputError(f"{where}: has {len(found):,} names; needs one for each of {n:,} instances")
    return [str(name) for name in found]
