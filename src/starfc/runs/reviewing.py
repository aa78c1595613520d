"""A review of a run that applies answers as they come: the run that is held open, and the page that shows it.

:mod:`starfc.runs.server` lets a browser reach it.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np

from starfc.answers.marks_file import MarksRecord, marks_of
from starfc.data.instance_files import text_of
from starfc.errors import InputError, MissingFileError
from starfc.review.images import TILE, open_pictures, write_sheets
from starfc.review.report import SURFACE, write_report
from starfc.review.shown import Served, Shown
from starfc.runs.apply import Applied, Marked, pairs_changed
from starfc.storage.opened import opened

FIRST = 50  # questions in the page
KEPT = 3  # versions of the page that stay on the disk, for tabs that show an older one


class Reviewing:
    """A run under review. Its methods may be called from several threads; one runs at a time.

    Parameters
    ----------
    marked : Marked
        The run.
    place : path
        Empty folder for the page: a folder ``1``, ``2``, … for each version, and ``thumbs``.
    images : path, optional
        Pictures (:mod:`starfc.review.images`).
    thumbnails : int
        Maximum pixels of a thumbnail's longer side.

    Raises
    ------
    InputError
        The pictures do not belong to the run, or its features are missing or changed.
    """

    def __init__(self, marked: Marked, place: Path, images: Path | None = None, thumbnails: int = TILE) -> None:
        self.marked, self.place, self.lock = marked, place, threading.Lock()
        self.features = marked.run.features()
        self.first_labels = marked.labels
        self.version, self.stale = 0, True
        run, n = marked.run, len(marked.labels)
        places, with_file = np.zeros(n, np.int64), np.zeros(n, np.bool_)
        thumbs, self.files, self.names = None, None, None
        if images is not None:
            pictures = open_pictures(images, n, run.folder, marked.files)
            order = np.argsort(marked.labels, kind="stable")
            places[order] = np.arange(n)
            thumbs = write_sheets(pictures, order, place / "thumbs", thumbnails)
            self.files, self.names = pictures.files, pictures.names
            if pictures.files is not None:
                with_file[:] = [file is not None for file in pictures.files]
        elif (known := marked.files) is not None:
            self.names = [text_of(file and Path(file.name)) for file in known]
        self._shown = thumbs, places, with_file
        surfaces = [opened(at).verified(SURFACE) for at in (run.folder, run.record["model"])]
        self._surface = next((path for path in surfaces if path.is_file()), None)

    def page(self) -> int:
        """Write the page again if the run changed since, and return the number of its version."""
        with self.lock:
            if not self.stale:
                return self.version
            marked, (thumbs, places, with_file) = self.marked, self._shown
            write_report(
                self.place / str(self.version + 1),
                marked.labels,
                marked.run.parsed,
                marked.run.rule,
                removed=marked.run.removed,
                features=self.features,
                names=self.names,
                record=marked.run.record,
                surface=self._surface,
                questions=[question.record() for question in marked.questions(FIRST)],
                expected=vars(marked.expected()),
                doubts=marked.doubts(),
                cluster_names=marked.names,
                served=Served(thumbs, places, with_file, self._state()),
                title=Path(marked.run.record["features"]).stem,
            )
            self.version, self.stale = self.version + 1, False
            shutil.rmtree(self.place / str(self.version - KEPT), ignore_errors=True)
            return self.version

    def current(self, version: int) -> bool:
        """Return whether a version of the page shows the run as it is."""
        with self.lock:
            return version == self.version and not self.stale

    def state(self) -> dict[str, Any]:
        """Return what :meth:`apply` returns of the run, and the expected scores of its clusters."""
        with self.lock:
            return {**self._state(), "expected": vars(self.marked.expected())}

    def questions(self, count: int) -> list[dict[str, Any]]:
        """Return the questions that are expected to change the most now, as the page shows them."""
        with self.lock:
            marked = self.marked
            shown = Shown(marked.labels, self._shown[1], self.names, self.features)
            return [shown.question(question.record()) for question in marked.questions(count)]

    def apply(self, record: MarksRecord) -> dict[str, Any]:
        """Apply marks. Return ``Applied.record()`` and the state of the run.

        Raises
        ------
        InputError
            As :meth:`starfc.runs.apply.Marked.apply`. The run is unchanged.
        """
        with self.lock:
            n = len(self.marked.labels)
            if record.num_instances != n:
                raise InputError(f"marks of {record.num_instances:,} rows, but this run has {n:,}; load the page again")
            return self._changed(self.marked.apply(marks_of(record, n)))

    def undo(self) -> dict[str, Any]:
        """Take the last step back. Return what :meth:`apply` returns."""
        with self.lock:
            return self._changed(self.marked.undo())

    def name(self, label: int, name: str | None) -> dict[str, Any]:
        """Name a cluster, or take its name away (None). Return the names of all clusters."""
        with self.lock:
            self.marked.name({label: name})
            self.stale = True
            return {"names": {str(label): name for label, name in self.marked.names.items()}}

    def picture(self, row: int) -> Path:
        """Return the file of the picture of a row.

        Raises
        ------
        MissingFileError
            There is none.
        """
        path = self.files[row] if self.files is not None and row < len(self.files) else None
        if path is None:
            raise MissingFileError(f"row {row}: no picture")
        return path

    def _changed(self, applied: Applied) -> dict[str, Any]:
        self.stale = True
        return {**applied.record(), "changed": self._state()}

    def _state(self) -> dict[str, Any]:
        """Return the number of steps and answers, and of pairs that changed since the review began."""
        labels = self.marked.labels
        rows = np.flatnonzero(labels != self.first_labels)
        return {
            "steps": self.marked.num_steps,
            "answers": len(self.marked.marks),
            "pairs": pairs_changed(self.first_labels, labels, rows),
        }
