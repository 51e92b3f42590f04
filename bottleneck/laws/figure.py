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


@styled
def law_figure(result: LawStudy) -> Figure:
    """Draws loss against compute with the law's frontier, gaps to the law, and N against C."""
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    of_loss, of_gap, of_size = figure.subplots(1, 3)
    points, flops, per_token = result.points, result.points.flops, result.optimum.per_token
    budgets = np.geomspace(flops.min(), result.optimum.flops[-1], 60)
    sizes, tokens = compute_optimal(result.law.constants, budgets, per_token)

    colours = {"c": points.n_params, "cmap": "plasma", "s": 16, "zorder": 3}
    colours |= {"norm": LogNorm(points.n_params.min(), 1.3 * points.n_params.max())}
    dots = of_loss.scatter(flops, points.loss, **colours)
    if "R" not in result.law.form.quantities:
        full = np.ones_like(sizes) if "ρ" in result.law.form.quantities else None
        frontier = result.law.predict(sizes, tokens, full, full)
        of_loss.plot(budgets, frontier, color=_LINE, label="least by the law")
        of_loss.legend()
    of_loss.axhline(result.law.E, color=GREY, lw=1, ls=(0, (4, 3)))
    beside = {"transform": of_loss.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    of_loss.text(0.99, result.law.E, "E", color=GREY, size=SMALL, **beside)
    of_loss.set(xscale="log", title="loss", xlabel="training FLOPs, C", ylabel="loss (nats/token)")

    of_gap.axhline(0, color=GREY, lw=1)
    of_gap.scatter(points.n_params, result.gaps, **colours)
    of_gap.set(xscale="log", title="measured loss over the law's, less 1", xlabel="N")
    of_gap.xaxis.set_major_formatter(EngFormatter(sep=" "))
    of_gap.yaxis.set_major_formatter(PercentFormatter(1.0))

    of_size.scatter(flops, points.n_params, color="#b8b8b8", s=8, label="points")
    of_size.plot(budgets, sizes, color=_LINE, label="best N by the law")
    if result.bootstrap is not None:
        resampled, _ = compute_optimal(result.bootstrap.constants, budgets, per_token)
        low, high = middle(resampled)
        of_size.fill_between(budgets, low, high, color=_LINE, alpha=0.2, lw=0)
    if result.isoflop is not None:
        crosses = {"ls": "", "marker": "x", "color": "#d55e00", "label": "IsoFLOP minima"}
        of_size.plot(result.isoflop.flops, result.isoflop.n_params, **crosses)
    of_size.set(xscale="log", yscale="log", xlabel="training FLOPs, C", ylabel="N")
    of_size.set_title("best size")
    of_size.yaxis.set_major_formatter(EngFormatter(sep=" "))
    of_size.legend()
    bar = figure.colorbar(dots, ax=[of_loss, of_gap, of_size], label="N", pad=0.01, aspect=30)
    bar.ax.yaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure
