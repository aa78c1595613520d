"""Write surfaces over the grid of τ1 and τ2 as CSV, heat maps and text.

A surface is a list of dataclass objects with ``tau1``, ``tau2`` and values, one object per pair of a full grid.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.runtime.extras import installed, needs
from starfc.storage.atomic import replacing

log = logging.getLogger("starfc")


@dataclass(frozen=True)
class Panel:
    """A heat map: a field of a surface, and optionally a pair (τ1, τ2) to mark.

    With a mark, the lowest tenth of the values all have the same colour, so that the other values differ more clearly.
    """

    title: str
    surface: Sequence[Any]
    field: str
    mark: tuple[float, float] | None = None


def write_csv(path: Path, surfaces: Mapping[str, Sequence[Any]]) -> None:
    """Write the surfaces of all refinements to one CSV, one line per pair of thresholds."""
    lines = [{"refinement": name, **vars(point)} for name, points in surfaces.items() for point in points]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()} for line in lines)


def matrix(surface: Sequence[Any], field: str) -> tuple[list[float], list[float], NDArray[np.float64]]:
    """Return a field as a matrix: the sorted values of τ1 (rows) and τ2 (columns), and (rows, columns) float64."""
    tau1s, tau2s = sorted({p.tau1 for p in surface}), sorted({p.tau2 for p in surface})
    values = np.empty((len(tau1s), len(tau2s)))
    for point in surface:
        values[tau1s.index(point.tau1), tau2s.index(point.tau2)] = getattr(point, field)
    return tau1s, tau2s, values


def drawable(path: Path) -> bool:
    """Return whether a picture can be drawn. Log a warning if the package for it is not installed."""
    if not installed("matplotlib"):
        log.warning("picture not drawn: %s", needs("matplotlib", path.name))
    return installed("matplotlib")


def draw(path: Path, rows: Sequence[Sequence[Panel]], title: str) -> None:
    """Draw heat maps to a PNG, τ2 on the x axis and τ1 on the y axis; a star is the marked pair."""
    if not drawable(path):
        return
    # The object-oriented interface has no global state and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * max(map(len, rows)), 3.8 * len(rows)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for axes, panels in zip(grid, rows, strict=True):
        for axis, panel in zip(axes, panels, strict=True):
            tau1s, tau2s, values = matrix(panel.surface, panel.field)
            marked = panel.mark is not None
            lowest = np.quantile(values, 0.1) if marked else values.min()
            image = axis.pcolormesh(tau2s, tau1s, values, shading="nearest", vmin=lowest)
            figure.colorbar(image, ax=axis, extend="min" if marked else "neither")
            if panel.mark is not None:
                axis.plot(panel.mark[1], panel.mark[0], "*", color="red", markersize=12, markeredgecolor="white")
            axis.set(title=panel.title, xlabel="tau2", ylabel="tau1")
            axis.title.set_fontsize(10)
    with replacing(path) as temporary:
        canvas.print_png(temporary)


def text(surface: Sequence[Any], field: str) -> str:
    """Format a field as a text table, one line per τ1 and one column per τ2; fractions are in percent."""
    tau1s, tau2s, values = matrix(surface, field)
    fractions = any(isinstance(getattr(p, field), float) for p in surface)
    cells = [[f"{100 * v:.1f}%" if fractions else f"{v:,.0f}" for v in row] for row in values]
    width = max(6, *(len(cell) + 1 for row in cells for cell in row))
    lines = ["tau1\\tau2" + "".join(f"{tau2:>{width}g}" for tau2 in tau2s)]
    lines += [f"{tau1:<9g}" + "".join(f"{c:>{width}}" for c in row) for tau1, row in zip(tau1s, cells, strict=True)]
    return "\n".join(lines)
