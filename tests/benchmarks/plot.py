"""Plots of figures against a number of something, as PNG and SVG; the only importer of matplotlib (the extra `bench`).

It knows axes. It must never know what is measured.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

# The same input gives the same SVG, and text in it stays text.
mpl.rcParams.update({"svg.hashsalt": "artifacts-agent", "svg.fonttype": "none", "font.family": "sans-serif"})


class Series(NamedTuple):
    """Values over numbers of something, `x`."""

    name: str
    x: Sequence[int]
    y: Sequence[float]


def write(series: Series, label: str, path: Path) -> None:
    """Write `path`.png and `path`.svg; the numbers' axis is logarithmic, the values' begins at 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(series.x, series.y, marker="o", color="#1f6feb")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.25 * max(series.y))
    axes.set_xlabel(series.name)
    axes.set_ylabel(label)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
