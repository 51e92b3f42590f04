"""Figures that explain the gap: its parts, its bounds, W-error, and gradient survival.

A gap is the loss of a trained head truncated to rank r, minus that of the whole head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from bottleneck.drawing.style import (
    GREY,
    WIDTH,
    NothingToShow,
    label_line_ends,
    legend,
    log2_ticks,
    log10_ticks,
    styled,
    styles,
)
from bottleneck.probes.bounds import plain_bound, whitened_bound
from bottleneck.runs.probe import Probe
from bottleneck.runs.reading import Run

# Smaller gaps are not drawn: losses are float32 means, whose last digits are rounding errors.
SMALLEST_GAP = 1e-5  # nats per token


def probed(runs: Sequence[Run], least_rank: int = 1) -> list[tuple[Run, Probe]]:
    """Returns the runs with their last probes; raises `NothingToShow` if no run has one."""
    shown = [(run, run.probe()) for run in runs if run.probe_steps and run.head_rank >= least_rank]
    if not shown:
        raise NothingToShow("no run has been probed yet")
    return shown


def label_gap_panel(panel: Axes, title: str, highest_rank: int) -> None:
    """Gives a panel of gaps against rank its axes and title."""
    panel.set(xscale="log", yscale="log", xlabel="rank r kept", title=title)
    panel.set_ylabel("gap to the untruncated head (nats/token)")
    log2_ticks(panel.xaxis, 1, highest_rank - 1)
    log10_ticks(panel.yaxis)
    panel.label_outer()


@styled
def anatomy(runs: Sequence[Run]) -> Figure:
    """Returns the figure of the gap's parts by token frequency, and of unchanged predictions."""
    look, shown = styles(runs), probed(runs, least_rank=2)
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for run, probe in shown:
        style = look[run.name]
        cut = probe.ranks < run.head_rank  # greater ranks remove nothing
        ranks, gap, error = probe.ranks[cut], probe.plain.gap[cut], probe.plain.gap_se[cut]
        clear = gap > 2 * error
        for kind, dashes in (("rare", "-"), ("frequent", (0, (1.5, 1.5)))):
            share = getattr(probe.plain, kind)[cut][clear] / gap[clear]
            panels[0].plot(ranks[clear], share, ms=3.5, **style.line | {"linestyle": dashes})
        panels[1].plot(ranks, probe.plain.agreement[cut], ms=3.5, **style.line)
    panels[0].axhline(1 / 3, color=GREY, lw=0.8, ls=":")
    panels[0].set(ylabel="fraction of the gap", title="parts of the gap")
    panels[0].legend(
        handles=[
            Line2D([], [], color=GREY, label="rarest third of the text"),
            Line2D([], [], color=GREY, ls=(0, (1.5, 1.5)), label="most frequent third"),
        ]
    )
    panels[1].set(ylabel="tokens", title="most likely next token unchanged", ylim=(0, 1.02))
    for panel in panels:
        panel.set(xscale="log", xlabel="rank r kept")
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        log2_ticks(panel.xaxis, 1, max(run.head_rank for run, _ in shown) - 1)
    legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure


@styled
def gradient_survival(runs: Sequence[Run]) -> Figure:
    """Returns the figure of the fraction of ‖∂loss/∂logits‖ that the head passes back."""
    look = styles(runs)
    series = [(run, run.series("probe", "step", "gradient_survival")) for run in runs]
    shown = [(run, columns) for run, columns in series if len(columns[0])]
    if not shown:
        raise NothingToShow("no probe measured the gradient")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panel = figure.subplots()
    ends = []
    for run, (steps, survival) in shown:
        style = look[run.name]
        panel.plot(steps, survival, ms=3, **style.line)
        ends.append((steps[-1], survival[-1], run.name, style))
        # A random subspace of dimension R keeps R/V of a squared norm on average.
        random = math.sqrt(run.head_rank / run.config.model.vocab_size)
        panel.axhline(random, color=style.colour, lw=0.8, ls=":")
    highest = max(float(survival.max()) for _, (_, survival) in shown)
    panel.set(xlabel="step", ylabel="fraction of the gradient's norm", ylim=(0, 1.1 * highest))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    label_line_ends(panel, ends)
    return figure


@styled
def gap_by_w_error(runs: Sequence[Run]) -> Figure:
    """Returns the figure of the gap (nats/token) against W-error, at each run's last probe."""
    look, shown = styles(runs), probed(runs)
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panel = figure.subplots()
    for run, probe in shown:
        cut = probe.ranks < run.head_rank  # greater ranks remove nothing
        error, gap = probe.w_error[cut], probe.plain.gap[cut]
        is_measured = gap > 2 * probe.plain.gap_se[cut]
        panel.plot(error[is_measured], gap[is_measured], lw=0.8, ms=4, **look[run.name].line)
    if not any(len(line.get_xdata()) for line in panel.lines):
        raise NothingToShow("no gap is more than two standard errors from zero")
    panel.set(xscale="log", yscale="log", xlabel="W-error: fraction of the head's norm removed")
    panel.set_ylabel("gap to the untruncated head (nats/token)")
    log10_ticks(panel.xaxis)
    log10_ticks(panel.yaxis)
    legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure


@styled
def against_bounds(runs: Sequence[Run]) -> Figure:
    """Returns the figure of gaps (nats/token) and their bounds against rank, plain and whitened."""
    look, shown = styles(runs), probed(runs, least_rank=2)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = {
        "plain": ("truncated SVD of W", r"bound √2·E‖h‖·√Σ$_{i>r}$ σᵢ²(W)"),
        "whitened": (r"truncated SVD of W C$^{1/2}$", r"bound ¼·Σ$_{i>r}$ σᵢ²(W C$^{1/2}$)"),
    }
    for panel, (kind, (title, bound_name)) in zip(panels, kinds.items(), strict=True):
        for run, probe in shown:
            if kind == "plain":
                bound = plain_bound(probe.singular_values, probe.mean_hidden_norm)
            else:
                bound = whitened_bound(probe.whitened_singular_values)
            cut = np.arange(1, run.head_rank)  # greater ranks remove nothing
            cut = cut[bound[cut - 1] > SMALLEST_GAP]
            style = look[run.name]
            panel.plot(cut, bound[cut - 1], color=style.colour, lw=1, ls=(0, (4, 2)))
            ranks, gaps = probe.ranks, getattr(probe, kind)
            gap, error, predicted = gaps.gap, gaps.gap_se, gaps.predicted
            drawn = (ranks < run.head_rank) & (predicted > SMALLEST_GAP)
            panel.plot(
                *(ranks[drawn], predicted[drawn]),
                **{"ls": "", "marker": "x", "ms": 6, "mec": style.colour},
            )
            clear = (ranks < run.head_rank) & (gap > np.maximum(2 * error, SMALLEST_GAP))
            panel.errorbar(
                ranks[clear], gap[clear], error[clear], ms=3.5, elinewidth=0.9, **style.line
            )
        label_gap_panel(panel, title, max(run.head_rank for run, _ in shown))
        panel.legend(
            handles=[
                Line2D([], [], color=GREY, marker="o", ms=3.5, label="measured ± SE"),
                Line2D([], [], color=GREY, ls="", marker="x", label="predicted, second order"),
                Line2D([], [], color=GREY, lw=1, ls=(0, (4, 2)), label=bound_name),
            ]
        )
    legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure
