"""The figure of a fitted scaling law: its points, their gaps to it, and the best size by budget."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from bottleneck.drawing.style import GREY, SMALL, WIDTH, styled
from bottleneck.laws.budgets import compute_optimal
from bottleneck.laws.comparison import middle
from bottleneck.laws.study import LawStudy

_LINE = "#0072b2"
_COLOURS = "plasma"


@styled
def law_figure(result: LawStudy) -> Figure:
    """Draws loss against compute with the law's frontier, gaps to the law, and N against C."""
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    of_loss, of_gap, of_size = figure.subplots(1, 3)
    points, flops = result.points, result.points.flops
    budgets = np.geomspace(flops.min(), result.optimum.flops[-1], 60)
    sizes, tokens = compute_optimal(result.law.constants, budgets, result.optimum.per_token)

    colours = {"c": points.n_params, "cmap": _COLOURS, "s": 16, "zorder": 3}
    colours |= {"norm": LogNorm(points.n_params.min(), 1.3 * points.n_params.max())}
    dots = of_loss.scatter(flops, points.loss, **colours)
    if "R" not in result.law.form.quantities:
        frontier = result.law.predict(sizes, tokens, *_full_heads(result, sizes))
        of_loss.plot(budgets, frontier, color=_LINE, label="least by the law")
        of_loss.legend()
    of_loss.axhline(result.law.E, color=GREY, lw=1, ls=(0, (4, 3)))
    of_loss.text(
        *(0.99, result.law.E, "E"),
        transform=of_loss.get_yaxis_transform(),
        **{"ha": "right", "va": "bottom", "color": GREY, "size": SMALL},
    )
    of_loss.set(xscale="log", title="loss")
    of_loss.set(xlabel="training FLOPs, C", ylabel="loss (nats/token)")

    of_gap.axhline(0, color=GREY, lw=1)
    of_gap.scatter(points.n_params, result.gaps, **colours)
    of_gap.set(xscale="log", title="measured loss over the law's, less 1", xlabel="N")
    of_gap.xaxis.set_major_formatter(EngFormatter(sep=" "))
    of_gap.yaxis.set_major_formatter(PercentFormatter(1.0))

    of_size.scatter(flops, points.n_params, color="#b8b8b8", s=8, label="points")
    of_size.plot(budgets, sizes, color=_LINE, label="best N by the law")
    if result.bootstrap is not None:
        per_token = result.optimum.per_token
        resampled = result.bootstrap.constants
        low, high = middle(compute_optimal(resampled, budgets, per_token)[0])
        of_size.fill_between(budgets, low, high, color=_LINE, alpha=0.2, lw=0)
    if result.isoflop is not None:
        of_size.plot(
            *(result.isoflop.flops, result.isoflop.n_params),
            **{"ls": "", "marker": "x", "color": "#d55e00", "label": "IsoFLOP minima"},
        )
    of_size.set(xscale="log", yscale="log", title="best size", ylabel="N")
    of_size.set(xlabel="training FLOPs, C")
    of_size.yaxis.set_major_formatter(EngFormatter(sep=" "))
    of_size.legend()
    bar = figure.colorbar(dots, ax=[of_loss, of_gap, of_size], label="N", pad=0.01, aspect=30)
    bar.ax.yaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure


def _full_heads(result: LawStudy, sizes: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns rank and width of full heads if the law asks for them."""
    if "ρ" not in result.law.form.quantities:
        return None, None
    return np.ones_like(sizes), np.ones_like(sizes)
