"""What a gap is made of: which tokens pay it, whose predictions change, what gradient survives.

A gap is the loss of a trained head cut to rank r, less that of the whole head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
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
from bottleneck.runs.reading import Run

# A gap below this is drawn as no gap: losses are float32 means, whose last digits are rounding.
SMALLEST_GAP = 1e-5  # nats per token


@styled
def anatomy(runs: Sequence[Run]) -> Figure:
    """At the last probe, against the rank kept: who pays the gap, and how many predictions stay."""
    look = styles(runs)
    shown = [(run, run.probe()) for run in runs if run.probe_steps and run.head_rank > 1]
    if not shown:
        raise NothingToShow("no run has been probed yet")
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for run, probe in shown:
        style = look[run.name]
        cut = probe.ranks < run.head_rank  # the others take nothing away
        ranks, gap, error = probe.ranks[cut], probe.plain.gap[cut], probe.plain.gap_se[cut]
        clear = gap > 2 * error
        for kind, dashes in (("rare", "-"), ("frequent", (0, (1.5, 1.5)))):
            share = getattr(probe.plain, kind)[cut][clear] / gap[clear]
            panels[0].plot(ranks[clear], share, ms=3.5, **style.line | {"linestyle": dashes})
        panels[1].plot(ranks, probe.plain.agreement[cut], ms=3.5, **style.line)
    panels[0].axhline(1 / 3, color=GREY, lw=0.8, ls=":")
    panels[0].set(ylabel="share of the gap", title="who pays")
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
    """The share of the logit gradient's norm that passes the head, over training."""
    look = styles(runs)
    series = [(run, run.series("probe", "step", "gradient_survival")) for run in runs]
    shown = [(run, columns) for run, columns in series if len(columns[0])]
    if not shown:
        raise NothingToShow("no probe has measured the gradient")
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
    panel.set(xlabel="step", ylabel="share of the gradient's norm", ylim=(0, 1.1 * highest))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    label_line_ends(panel, ends)
    return figure


@styled
def gap_by_w_error(runs: Sequence[Run]) -> Figure:
    """The gap of every truncation of every run, at its last probe, against its W-error."""
    look = styles(runs)
    shown = [run for run in runs if run.probe_steps]
    if not shown:
        raise NothingToShow("no run has been probed yet")
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panel = figure.subplots()
    for run in shown:
        probe = run.probe()
        cut = probe.ranks < run.head_rank  # the others take nothing away
        error, gap = probe.w_error[cut], probe.plain.gap[cut]
        is_measured = gap > 2 * probe.plain.gap_se[cut]
        panel.plot(error[is_measured], gap[is_measured], lw=0.8, ms=4, **look[run.name].line)
    if not any(len(line.get_xdata()) for line in panel.lines):
        raise NothingToShow("no gap is more than two standard errors from zero")
    panel.set(xscale="log", yscale="log", xlabel="W-error: share of the head's norm cut off")
    panel.set_ylabel("gap to the untruncated head (nats/token)")
    log10_ticks(panel.xaxis)
    log10_ticks(panel.yaxis)
    legend(figure, {run.name: look[run.name] for run in shown})
    return figure


@styled
def against_bounds(runs: Sequence[Run]) -> Figure:
    """Gap against the rank that the head is cut to, plain and whitened, with the bound on each."""
    look = styles(runs)
    shown = [(run, run.probe()) for run in runs if run.probe_steps and run.head_rank > 1]
    if not shown:
        raise NothingToShow("no run has been probed yet")
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
            cut = np.arange(1, run.head_rank)  # greater ranks take nothing away
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
        panel.set(xscale="log", yscale="log", xlabel="rank r kept", title=title)
        panel.set_ylabel("gap to the untruncated head (nats/token)")
        log2_ticks(panel.xaxis, 1, max(run.head_rank for run, _ in shown) - 1)
        log10_ticks(panel.yaxis)
        panel.label_outer()
        panel.legend(
            handles=[
                Line2D([], [], color=GREY, marker="o", ms=3.5, label="measured ± SE"),
                Line2D([], [], color=GREY, ls="", marker="x", label="predicted, second order"),
                Line2D([], [], color=GREY, lw=1, ls=(0, (4, 2)), label=bound_name),
            ]
        )
    legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure
