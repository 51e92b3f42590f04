"""The look of all figures: a run has the same colour, line and name in every figure of a report.

Figures use only matplotlib's object interface, so drawing one leaves no state behind.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from bottleneck.errors import spelled_out
from bottleneck.runs.reading import Run
from bottleneck.storage.folders import write_whole

WIDTH = 9.6  # inches; about 960 pixels in a report
SMALL = 8.5  # points; text inside the axes and beside lines
GREY = "#767676"  # axes, and lines that belong to no run
_LOOK = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.0,
    "svg.hashsalt": "bottleneck",  # the same figure gives the same bytes
}
# Okabe and Ito's colours, distinct for any colour vision; their yellow is too pale on white.
DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)))  # dotted lines mark bounds
_MARKERS = "osD^v"
_PLAIN = "{x:g}"  # 0.05, not 5·10⁻²

Drawn = ParamSpec("Drawn")  # arguments of a function that draws


class NothingToShow(Exception):
    """The runs lack the data of a figure; the message names it, and completes "left out: …"."""


class Style(NamedTuple):
    """The look of one run in every figure."""

    colour: str
    dash: Any  # matplotlib's line style
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """The style as matplotlib's keywords for a line."""
        return {"color": self.colour, "linestyle": self.dash, "marker": self.marker}

    @property
    def bars(self) -> dict[str, Any]:
        """The style as matplotlib's keywords for points with error bars."""
        return self.line | {"ms": 3.5, "elinewidth": 0.9}

    @property
    def ink(self) -> tuple[float, ...]:
        """The colour, dark enough for small text on white."""
        return tuple(0.65 * channel for channel in to_rgb(self.colour))


def styles(runs: Sequence[Run]) -> dict[str, Style]:
    """Run name → its style.

    If rank and width tell the runs apart, colour shows the rank, from orange (low) to dark blue
    (high); line and marker show the width. Otherwise each run gets its own colour.
    """
    shapes = [(run.head_rank, run.config.model.d_model) for run in runs]
    ranks, widths = (sorted(set(column)) for column in zip(*shapes, strict=True))
    if len(runs) > 1 and len(set(shapes)) == len(runs):
        by_rank = dict(zip(ranks, _ramp(len(ranks)), strict=True))
        looks = zip(itertools.cycle(_DASHES), itertools.cycle(_MARKERS), strict=False)
        by_width = dict(zip(widths, looks, strict=False))
        return {
            run.name: Style(by_rank[rank], *by_width[width])
            for run, (rank, width) in zip(runs, shapes, strict=True)
        }
    colours = DISTINCT if len(runs) <= len(DISTINCT) else _ramp(len(runs))
    return {run.name: Style(c, "-", "o") for run, c in zip(runs, colours, strict=False)}


def styled(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Makes a function draw with this module's look; matplotlib's settings do not change."""

    @functools.wraps(draw)
    def wrapped(*what: Drawn.args, **how: Drawn.kwargs) -> Figure:
        with matplotlib.rc_context(_LOOK):
            return draw(*what, **how)

    return wrapped


def panel_row(height: float, n: int = 1, **how: Any) -> tuple[Figure, Sequence[Axes]]:
    """Returns an empty figure of a height in inches, and its n panels from left to right."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, n, squeeze=False, **how)[0]


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG or SVG, by the path's suffix; returns the path."""
    with matplotlib.rc_context(_LOOK):
        undated = {"Date": None} if path.suffix == ".svg" else {}
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], dpi=160, metadata=undated)
    write_whole(path, content.getvalue())
    return path


def plain(name: str) -> str:
    """Returns a name as text of a figure, never as one of matplotlib's formulas."""
    return spelled_out(name).replace("$", r"\$")


def label_line_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Style]]) -> None:
    """Writes each name beside the axes, level with the end (x, y) of its line, without overlap.

    Call it when limits and scales are final. An end that is not finite gets no name.
    """
    low, high = axes.get_ylim()
    clipped = sorted(
        ((x, min(max(y, low), high), name, style) for x, y, name, style in ends if np.isfinite(y)),
        key=lambda end: end[1],
    )
    if not clipped:
        return
    to_fraction = axes.transScale + axes.transLimits
    wanted = to_fraction.transform([(x, y) for x, y, *_ in clipped])[:, 1]
    height = 0.8 * 72 * axes.figure.get_figheight()  # of the axes, in points, roughly
    gap = min(1.35 * SMALL / height, 1 / len(clipped))
    # Isotonic regression finds the nearest positions that are at least `gap` apart.
    gaps = gap * np.arange(len(clipped))
    positions = np.clip(isotonic_regression(wanted - gaps).x, 0, 1 - gaps[-1]) + gaps
    beside = {"textcoords": "axes fraction", "va": "center", "annotation_clip": False}
    for (x, y, name, style), position in zip(clipped, positions, strict=True):
        arrow = {"arrowstyle": "-", "color": style.colour, "linewidth": 0.6}
        arrow |= {"relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3}
        text = {"color": style.ink, "size": SMALL, "arrowprops": arrow} | beside
        axes.annotate(plain(name), (x, y), (1.06, position), **text)


def legend(figure: Figure, shown: dict[str, Style]) -> None:
    """Names the runs at the right of the figure, if there are several."""
    if len(shown) > 1:
        handles = [Line2D([], [], label=plain(name), **style.line) for name, style in shown.items()]
        figure.legend(handles=handles, loc="outside right center")


def log10_ticks(axis: Axis) -> None:
    """Puts plain numbers at the ticks of a logarithmic axis; call it when limits are final."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_formatter(NullFormatter())


def log2_ticks(axis: Axis, low: int, high: int) -> None:
    """Puts the ticks of a logarithmic axis at the powers of two from low to high."""
    powers = [2**n for n in range(high.bit_length()) if 2**n >= low] or [low]
    axis.set_major_locator(FixedLocator(powers[:: 1 + len(powers) // 12]))
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_locator(NullLocator())


def _ramp(n: int) -> list[str]:
    """Returns n colours from orange to dark blue."""
    return [to_hex(shade) for shade in matplotlib.colormaps["plasma"](np.linspace(0.76, 0.0, n))]
