"""The columns of clusters.parquet, kept while marks change clusters: only changed clusters are measured again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from starfc.clustering.parsing import ParsedEdges
from starfc.data.formats.parquet import opened_parquet
from starfc.graph.edges import EdgeList, edge_confidence
from starfc.incremental.edges import entries_of
from starfc.review.measures import COLUMNS, instance_columns
from starfc.storage.opened import OpenedFolder
from starfc.storage.safe import first_line

log = logging.getLogger("starfc")

_OWN = ("row", "label", "confidence", "name")


@dataclass(frozen=True)
class Columns:
    """Columns of clusters.parquet.

    Attributes
    ----------
    confidence : (N,) float32
        Mean p of the kept edges of each row.
    measures : dict
        The measures of each row's cluster, (N,) each (:func:`starfc.review.measures.instance_columns`).
    others : dict
        Further columns of the file, (N,) each, which do not depend on the clusters.
    """

    confidence: NDArray[np.float32]
    measures: dict[str, pa.Array]
    others: dict[str, pa.Array]

    @classmethod
    def read(cls, at: OpenedFolder, parsed: ParsedEdges, labels: NDArray[np.int64]) -> Columns:
        """Read the columns of a run with N rows; measure all clusters if the file cannot be used."""
        path = at.folder / "clusters.parquet"
        try:
            with opened_parquet(at.verified(path.name)) as file:
                found = [file.schema_arrow.field(name).type for name in COLUMNS]
                if file.metadata.num_rows == len(labels) and found == list(COLUMNS.values()):
                    table = file.read()
                    columns = {name: table[name].combine_chunks() for name in table.column_names}
                    measures = {name: columns[name] for name in COLUMNS}
                    others = {name: columns[name] for name in columns if name not in (*COLUMNS, *_OWN)}
                    return cls(columns["confidence"].to_numpy(), measures, others)
            log.info("%s: does not have the columns of this run; all clusters are measured again", path)
        except Exception as error:  # the parser may raise any error for a damaged table
            log.info("%s: cannot be read (%s); all clusters are measured again", path, first_line(error))
        return cls(edge_confidence(parsed.edges, parsed.kept), instance_columns(parsed, labels), {})

    def with_names(self, labels: NDArray[np.int64], names: Mapping[int, str]) -> dict[str, pa.Array]:
        """Return the columns beside row, label and confidence; ``name`` is among them if a cluster has a name."""
        found = self.measures | self.others
        if names:
            known, text = np.array(sorted(names)), [names[label] for label in sorted(names)]
            at = np.minimum(np.searchsorted(known, labels), len(known) - 1)
            indices = pa.array(at, mask=known[at] != labels, type=pa.int32())
            found = {"name": pa.DictionaryArray.from_arrays(indices, pa.array(text)).cast(pa.string()), **found}
        return found


def changed_columns(
    columns: Columns, parsed: ParsedEdges, before: NDArray[np.int64], labels: NDArray[np.int64]
) -> Columns:
    """Return the columns after clusters changed.

    Parameters
    ----------
    columns : Columns
        The columns before.
    parsed : ParsedEdges
        The edges now.
    before, labels : (N,) int64
        Clusters before and now.
    """
    moved = np.flatnonzero(before != labels)
    if not moved.size:
        return columns
    touched = np.union1d(before[moved], labels[moved])
    rows = np.flatnonzero(np.isin(labels, touched[touched >= 0]))
    inside = _among(parsed, rows)
    _, local = np.unique(labels[rows], return_inverse=True)
    measured = instance_columns(inside, local.astype(np.int64))
    confidence = columns.confidence.copy()
    confidence[rows] = edge_confidence(inside.edges, inside.kept)
    measures = {}
    for name, column in columns.measures.items():
        missing = np.nan if name.endswith("score") else -1
        values = column.fill_null(pa.scalar(missing, column.type)).to_numpy(zero_copy_only=False).copy()
        new = measured[name].fill_null(pa.scalar(missing, column.type)).to_numpy(zero_copy_only=False)
        if name.endswith(("_a", "_b")):
            new = np.where(new < 0, -1, rows[new])
        values[rows] = new
        none = np.isnan(values) if name.endswith("score") else values < 0
        measures[name] = pa.array(values, type=column.type, mask=none if "bridge" in name else None)
    return replace(columns, confidence=confidence, measures=measures)


def _among(parsed: ParsedEdges, rows: NDArray[np.int64]) -> ParsedEdges:
    """Return the edges among some rows, numbered from 0 in the order of the rows."""
    edges = parsed.edges
    entries = entries_of(edges, rows)
    ours = np.repeat(np.arange(len(rows)), np.diff(edges.indptr)[rows])
    theirs = np.minimum(np.searchsorted(rows, edges.cols[entries]), len(rows) - 1)
    here = rows[theirs] == edges.cols[entries]
    entries, ours, theirs = entries[here], ours[here], theirs[here]
    local = EdgeList.from_rows(ours, theirs.astype(np.int32), np.asarray(edges.scores[entries]), len(rows))
    local = replace(local, symmetric=edges.symmetric)
    return ParsedEdges(local, np.asarray(parsed.intimacy[entries]), np.asarray(parsed.kept[entries]))
