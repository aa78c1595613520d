"""The labels that the graph contradicts, as a table for files and as text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from starfc.data.instance_files import Files, file_column
from starfc.review.label_errors import KINDS, LabelIssues
from starfc.runtime.words import counted

TOP = 20  # issues in the text
_TITLES = {  # in the singular and in the plural
    "label": ("doubtful label", "doubtful labels"),
    "outlier": ("outlier", "outliers"),
    "one identity": ("identity that may be one with another", "identities that may be one"),
    "two identities": ("identity that may be two", "identities that may be two"),
    "near-duplicate": ("near-duplicate", "near-duplicates"),
}


def issues_table(issues: LabelIssues, files: Files | None = None) -> pa.Table:
    """Return the table of all issues: kind, score, row, other_row, label, other_label, count, and files if known.

    ``other_row`` and ``other_label`` are null for an outlier without edges. ``proposed`` of a wrong label is
    ``other_label``.
    """
    none = issues.other < 0
    columns = {
        name: pa.array(array, mask=none if name.startswith("other") else None)
        for name, array in issues.columns().items()
    }
    if files is not None:
        columns["file"] = file_column([files[row] for row in issues.row.tolist()])
        columns["other_file"] = file_column([files[row] if row >= 0 else None for row in issues.other.tolist()])
    return pa.table(columns)


def issue_counts(issues: LabelIssues) -> dict[str, int]:
    """Return the number of issues of every kind."""
    return dict(zip(KINDS, np.bincount(issues.kind, minlength=len(KINDS)).tolist(), strict=True))


def top_issues(issues: LabelIssues, count: int = TOP) -> NDArray[np.int64]:
    """Return the positions of the first issues of each kind in turn, at most ``count`` in all, sorted."""
    turn = np.concatenate([np.arange(size) for size in issue_counts(issues).values()])
    return np.sort(np.lexsort((issues.kind, turn))[:count])


def issues_text(issues: LabelIssues, num_labels: int) -> str:
    """Return the number of issues of every kind, and the first ones, as text."""
    counts = issue_counts(issues)
    lines = [
        f"about {issues.expected:,.0f} of {counted(num_labels, 'label')} are expected to be wrong",
        "; ".join(f"{counted(counts[kind], *titles)}" for kind, titles in _TITLES.items()),
    ]
    if len(issues):
        lines += ["", f"{'kind':<15}{'score':>6}{'row':>10}{'other row':>11}{'label':>10}  what the graph says"]
    return "\n".join([*lines, *_lines(issues)])


def _lines(issues: LabelIssues) -> Iterator[str]:
    for at in top_issues(issues).tolist():
        other = "" if issues.other[at] < 0 else str(issues.other[at])
        kind = KINDS[issues.kind[at]]
        yield (
            f"{kind:<15}{issues.score[at]:>6.2f}{issues.row[at]:>10}{other:>11}{issues.label[at]:>10}  "
            f"{said_of(kind, int(issues.label[at]), int(issues.other_label[at]), int(issues.count[at]))}"
        )


def said_of(kind: str, label: int, other_label: int, count: int) -> str:
    """Return what the graph says about an issue, in a few words."""
    if kind == "label":
        return f"its neighbours have label {other_label}"
    if kind == "outlier":
        return "few edges to any instance"
    if kind == "one identity":
        return f"{label} and {other_label} are one identity; the smaller has {counted(count, 'row')}"
    if kind == "two identities":
        return f"{counted(count, 'row')} of label {label} are another identity"
    return f"almost equal, but the other has label {other_label}" if label != other_label else "almost equal"
