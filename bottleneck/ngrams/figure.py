"""Figure 7: W-error of n-gram matrices against d, with their nulls and the paper's curves.

Left: W-error (lines), its bounds (bands), its null (dashed) and its estimate from split halves
(dotted). Right: the null minus W-error, within the tolerance. It shows what contexts share beyond
the frequencies of single tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from bottleneck.drawing.style import DISTINCT, GREY, SMALL, WIDTH, Style, plain, styled
from bottleneck.ngrams.spectra import NgramSpectrum

_LAST = 25_000  # the largest d of the paper's figure
_POINTS = 1500  # of a curve

Published = Mapping[tuple[str, str], Mapping[int, float]]  # (corpus, tokenizer) → d → W-error

_PAPER_LINES = {"Pythia's tokens": "-", "Llama 2's tokens": (0, (1, 1))}
_PAPER_MARKERS = {"The Pile": "o", "WikiText": "s", "IMDb": "^"}


@styled
def figure_7(spectra: Sequence[NgramSpectrum], published: Published | None = None) -> Figure:
    """Draws the curves of some spectra and, if given, published ones."""
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    last = min(_LAST, max(len(one.w_error) for one in spectra) - 1)
    if published:
        _draw_published(left, published)
        last = max(last, *(max(curve) for curve in published.values()))
    handles = []
    for i, one in enumerate(spectra):
        colour = DISTINCT[i % len(DISTINCT)]
        dash = ("-", (0, (5, 1.5)))[i // len(DISTINCT) % 2]
        d = _places(min(len(one.w_error) - 1, _LAST))
        left.fill_between(d, one.w_error_least[d], one.w_error[d], color=colour, alpha=0.2, lw=0)
        left.plot(d, one.w_error[d], color=colour, ls=dash)
        ink = Style(colour, "-", "").ink
        left.plot(d, one.null[d], color=ink, lw=1, ls=(0, (4, 2)))
        beyond = np.where(one.is_known, one.null - one.w_error, np.nan)
        right.plot(d, beyond[d], color=colour, ls=dash)
        if one.halves is not None:
            d_half = _places(min(len(one.halves.w_error) - 1, _LAST))
            left.plot(d_half, one.halves.w_error[d_half], color=colour, lw=1.2, ls=(0, (1, 1)))
        handles.append(Line2D([], [], color=colour, ls=dash, label=plain(one.label)))
    handles.append(Line2D([], [], color=GREY, lw=1, ls=(0, (4, 2)), label="null: one-hot rows"))
    if any(one.halves is not None for one in spectra):
        handles.append(
            Line2D([], [], color=GREY, lw=1.2, ls=(0, (1, 1)), label="split halves: without noise")
        )
    left.axhline(0.5, color=GREY, lw=0.8, ls=(0, (1, 2)))
    left.set(xlim=(0, last), ylim=(0, 1), xlabel="dimensions d", ylabel="W-error(d)")
    left.set_title("W-error, and the null from token frequencies")
    right.axhline(0, color=GREY, lw=0.8)
    right.set(xscale="log", xlim=(1, last), xlabel="dimensions d", ylabel="null − W-error")
    right.set_title("structure beyond token frequencies")
    for panel in (left, right):
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _places(last: int) -> np.ndarray:
    """Returns the dimensions to draw, from 0 to the last, denser at the start."""
    spread = np.concatenate([np.geomspace(1, max(last, 1), _POINTS), np.linspace(0, last, _POINTS)])
    return np.unique(np.concatenate([spread.astype(int), [0]]))


def _draw_published(axes: Axes, published: Published) -> None:
    """Draws published curves in grey, with a legend of their own."""
    handles = []
    for (corpus, tokenizer), curve in published.items():
        style = {
            "color": GREY,
            "lw": 0.8,
            "ls": _PAPER_LINES[tokenizer],
            "marker": _PAPER_MARKERS[corpus],
            "ms": 3.5,
            "mfc": GREY if tokenizer.startswith("Pythia") else "white",
        }
        axes.plot([*curve], [*curve.values()], **style)
        handles.append(Line2D([], [], label=f"{corpus}, {tokenizer}", **style))
    axes.legend(handles=handles, loc="upper right", fontsize=SMALL, title="Godey et al. 2024")
