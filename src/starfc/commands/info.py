"""``starfc info``: describe a file or folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starfc.commands import options
from starfc.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from starfc.storage.opened import OpenedFolder


def info(
    path: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="File of features or labels, folder of a run, model or graph, or folder of parts or URL of features.",
        ),
    ],
    labels: options.LabelsOption = None,
    feature_dim: options.FeatureDim = None,
    key: options.KeyOfTable = None,
    as_json: options.Json = False,
) -> None:
    """Describe the content of a file or folder.

    For features: rows, dimension, norms, invalid rows and exact duplicates. For labels: identities and their sizes.
    With --labels also whether there is one label for each row. The file is read once, in blocks.
    """
    options.set_messages()
    from starfc.storage.remote import is_url

    place = Path(path)
    if path != options.STREAM and not is_url(path) and not place.exists():
        raise MissingFileError(f"{path}: no such file or folder")
    if path == options.STREAM or place.is_file():
        record, lines = _file(path, labels, feature_dim, key)
    elif is_url(path) or _holds_parts(place):
        record, lines = _gathered(path, labels)
    elif labels is not None:
        raise InputError(f"--labels: only for features; {path} is a folder without parts of features; leave it out")
    else:
        record, lines = _folder(place)
    text = "\n".join([f"{path}: {record['kind']}", *lines])
    options.show({"path": path, **record}, text, as_json=as_json)


def _holds_parts(folder: Path) -> bool:
    """Return whether a folder holds parts of features, and is not the folder of a run, model or graph."""
    from starfc.data.parts import PARTS

    names = [path.name for path in folder.iterdir()]
    known = any(name in ("run.json", "manifest.json") or name.endswith(".pth") for name in names)
    return not known and any(name.endswith(PARTS) and not name.startswith((".", "_")) for name in names)


def _gathered(source: str, labels: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Describe the features of a folder of parts or of a URL. They are copied to a temporary file."""
    from starfc.storage.atomic import temporary_folder

    with temporary_folder() as folder, options.stored_features(source, folder) as (place, name):
        try:
            return _file(str(place), labels, None, None)
        except InputError as error:
            raise InputError(str(error).replace(str(place), str(name))) from None


def _file(path: str, labels: Path | None, feature_dim: int | None, key: str | None) -> tuple[dict[str, Any], list[str]]:
    from starfc.data.blocks import Blocks
    from starfc.data.convert import FEATURES, LABELS, STREAM, open_either
    from starfc.data.files import read_labels
    from starfc.data.profile import feature_lines, label_lines, profile_features, profile_labels

    opened = open_either(path, feature_dim, FEATURES if labels is not None else None, key)
    size = None if path == STREAM else Path(path).stat().st_size
    lines = [] if size is None else [f"{'bytes':<20}{size:,}"]
    if not isinstance(opened, Blocks):
        found = profile_labels(opened)
        return {"kind": LABELS, "bytes": size, **found}, [*lines, *label_lines(found)]
    found = profile_features(opened)
    record, lines = {"kind": FEATURES, "bytes": size, **found}, [*lines, *feature_lines(found)]
    if labels is not None:
        of_labels = profile_labels(read_labels(labels))
        fit = of_labels["rows"] == found["rows"]
        record |= {"labels": of_labels, "labels_fit": fit}
        verdict = "one for each row" if fit else f"NOT one for each of the {found['rows']:,} rows"
        lines += ["", f"{labels}: {LABELS}, {verdict}", *label_lines(of_labels)]
    return record, lines


def _folder(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Describe a folder: the record of a run, the manifest of a kNN graph, or the sizes and thresholds of a model.

    Returns
    -------
    dict
        The description, for ``--json``.
    list of str
        The same as lines of text.
    """
    from starfc.storage.opened import opened
    from starfc.storage.records import Anything, GraphManifest, RunRecord

    at = opened(folder)
    if at.has("manifest.json"):
        manifest = at.json("manifest.json", GraphManifest).as_dict()
        return {"kind": "kNN graph", **manifest}, _lines(manifest)
    run = at.json("run.json", Anything).root if at.has("run.json") else {}
    if "num_clusters" in run:
        at.json("run.json", RunRecord)  # raises if the record is damaged
        return _results(at, run)
    return _model(at, run)


HELD = {  # files of a run's folder, and what each holds
    "labels.npy": "cluster labels, one integer per row",
    "labels.meta": "the same labels as text",
    "clusters.parquet": "row, label, confidence and diagnostics",
    "run.json": "the record of the run",
    "features.npy": "features that were read from stdin, a URL or a folder of parts",
    "edges": "scored edges, for assign, explain and report",
    "knn": "the kNN graph",
    "asked": "candidate edges and divisions, for the next ask; can be deleted",
    "assign.json": "added and removed rows, proposed merges and splits",
    "state": "features and neighbour lists of all rows, for the next assign",
}


def _results(at: OpenedFolder, run: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Describe a run in its present state, with the instances added or removed since it was clustered."""
    from starfc.runs.cluster import cluster_text

    holds = [name for name in HELD if at.has(name) or (at.folder / name).is_dir()]
    lines = _lines({name: run[name] for name in ("features", "model", "started")})
    lines += [f"{'holds' * (not at):<20}{name}: {HELD[name]}" for at, name in enumerate(holds)]
    if "steps" not in run:
        return {"kind": "results", "holds": holds, **run}, [*lines, "", cluster_text(run, at.folder)]
    today, text = _today(at, run)
    return {"kind": "results", "holds": holds, "today": today, **run}, [*lines, *text]


def _today(at: OpenedFolder, run: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    import numpy as np

    from starfc.clustering.diagnostics import size_histogram, sizes_table
    from starfc.data.files import read_labels
    from starfc.evaluation.metrics import metrics_table
    from starfc.storage.records import changed_since

    labels = read_labels(at.verified("labels.npy"))
    sizes = np.bincount(labels[labels >= 0])
    sizes = sizes[sizes > 0]
    removed, left_out = run["num_removed"], run["num_left_out"]
    today = {
        "num_rows": len(labels),
        "num_removed": removed,
        "num_instances": len(labels) - removed,
        "num_clusters": run["num_clusters"],
        "num_singletons": run["num_singletons"],
        "sizes": size_histogram(sizes),
        "metrics": run["metrics"],
    }
    lines = [f"{'changed since':<20}{changed_since(run)}"]
    for step in run["steps"]:
        source = "" if step["features"] is None else f" of {step['features']}"
        done = "done" if step["applied"] else "proposed, not done"
        lines.append(
            f"  {step['time']}  {step['added']:,} added{source}, {len(step['removed']):,} removed; "
            f"{step['joined']:,} joined clusters, {step['created']:,} new clusters; "
            f"{step['merges']:,} merges and {step['splits']:,} splits {done}"
        )
    lines += ["", metrics_table(run["metrics"]) if run["metrics"] else "no labels of the present rows: no metrics"]
    tau1, tau2 = run["thresholds"]["tau1"], run["thresholds"]["tau2"]
    lines += [
        "",
        sizes_table(today["sizes"]),
        "",
        f"{today['num_instances']:,} instances ({len(labels):,} rows, {removed:,} removed), {run['num_clusters']:,} "
        f"clusters ({run['num_singletons']:,} of one instance), first clustered with tau1 {tau1:g}, tau2 {tau2:g}",
    ]
    if left_out:
        size = run["min_cluster_size"]
        lines.append(f"{left_out:,} instances in clusters of fewer than {size:,} instances have label -1")
    return today, lines


def _model(at: OpenedFolder, run: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    from starfc.data.parts import PARTS, about_pictures
    from starfc.models.checkpoint import THRESHOLDS, describe, load_model
    from starfc.storage.records import StoredThresholds, TrainingRecord

    try:
        model = load_model(at.folder)
    except MissingFileError:
        names = sorted(path.name for path in at.folder.iterdir())
        raise InputError(
            f"{at.folder}: not the folder of a run (run.json), a kNN graph (manifest.json), a model (weights) or parts "
            f"of features ({', '.join(PARTS)}){about_pictures(names)}"
        ) from None
    content = {"type": type(model).__name__, **describe(model)}
    content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if at.has(THRESHOLDS):
        content["thresholds"] = at.json(THRESHOLDS, StoredThresholds).as_dict()
    if run:
        at.json("run.json", TrainingRecord)  # raises if the record is damaged
        content |= {"started": run.get("started"), "stages": run.get("stages")}
    return {"kind": "training run" if run else "model", **content}, _lines(content)


def _lines(content: dict[str, Any]) -> list[str]:
    return [f"{_shown(name):<20}{_shown(value)}" for name, value in content.items()]


def _shown(value: object) -> str:
    """Return printable text unchanged, and anything else as JSON: control characters never reach the terminal."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
