"""Figures that explain the gap: its parts, its bounds, W-error, and gradient survival.

A gap is the loss of a trained head truncated to rank r, minus that of the whole head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from bottleneck.drawing import style as drawing
from bottleneck.probes.bounds import plain_bound, whitened_bound
from bottleneck.runs.probe import Probe, RankGaps
from bottleneck.runs.reading import Run

# Smaller gaps are not drawn: losses are float32 means, whose last digits are rounding errors.
SMALLEST_GAP = 1e-5  # nats per token

KINDS = {"plain": "truncated SVD of W", "whitened": r"truncated SVD of W C$^{1/2}$"}


def probed(runs: Sequence[Run], least_rank: int = 1) -> list[tuple[Run, Probe]]:
    """Returns the runs with their last probes; raises `NothingToShow` if no run has one."""
    shown = [(run, run.probe()) for run in runs if run.probe_steps and run.head_rank >= least_rank]
    if not shown:
        raise drawing.NothingToShow("no run has been probed yet")
    return shown


def label_gap_panel(panel: Axes, kind: str, highest_rank: int) -> None:
    """Gives a panel of gaps against rank its axes and title."""
    panel.set(xscale="log", yscale="log", xlabel="rank r kept", title=KINDS[kind])
    panel.set_ylabel("gap to the untruncated head (nats/token)")
    drawing.log2_ticks(panel.xaxis, 1, highest_rank - 1)
    drawing.log10_ticks(panel.yaxis)
    panel.label_outer()


def is_clear(gaps: RankGaps) -> np.ndarray:
    """Returns a mask, bool [n]: gaps above two standard errors, and not too small to draw."""
    return gaps.gap > np.maximum(2 * gaps.gap_se, SMALLEST_GAP)


def draw_clear(panel: Axes, run: Run, probe: Probe, kind: str, style: drawing.Style) -> None:
    """Draws the clear gaps of a truncation, "plain" or "whitened", with one standard error."""
    gaps = getattr(probe, kind)
    drawn = (probe.ranks < run.head_rank) & is_clear(gaps)  # greater ranks remove nothing
    panel.errorbar(probe.ranks[drawn], gaps.gap[drawn], gaps.gap_se[drawn], **style.bars)


@drawing.styled
def anatomy(runs: Sequence[Run]) -> Figure:
    """Returns the figure of the gap's parts by token frequency, and of unchanged predictions."""
    look, shown = drawing.styles(runs), probed(runs, least_rank=2)
    figure, panels = drawing.panel_row(4.0, 2)
    dotted = (0, (1.5, 1.5))
    for run, probe in shown:
        style = look[run.name]
        cut = probe.ranks < run.head_rank  # greater ranks remove nothing
        ranks, gap, error = probe.ranks[cut], probe.plain.gap[cut], probe.plain.gap_se[cut]
        clear = gap > 2 * error
        for kind, dashes in (("rare", "-"), ("frequent", dotted)):
            share = getattr(probe.plain, kind)[cut][clear] / gap[clear]
            panels[0].plot(ranks[clear], share, ms=3.5, **style.line | {"linestyle": dashes})
        panels[1].plot(ranks, probe.plain.agreement[cut], ms=3.5, **style.line)
    panels[0].axhline(1 / 3, color=drawing.GREY, lw=0.8, ls=":")
    panels[0].set(ylabel="fraction of the gap", title="parts of the gap")
    looks = ({"label": "rarest third of the text"}, {"label": "most frequent third", "ls": dotted})
    panels[0].legend(handles=[Line2D([], [], color=drawing.GREY, **how) for how in looks])
    panels[1].set(ylabel="tokens", title="most likely next token unchanged", ylim=(0, 1.02))
    for panel in panels:
        panel.set(xscale="log", xlabel="rank r kept")
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        drawing.log2_ticks(panel.xaxis, 1, max(run.head_rank for run, _ in shown) - 1)
    drawing.legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure


@drawing.styled
def over_training(
    runs: Sequence[Run], column: str, label: str, expected: Callable[[Run], float] | None = None
) -> Figure:
    """Returns the figure of one number of each probe over training, from 0.

    Args:
        column: the number's field of `runs.Probe`.
        label: of its axis, with the unit.
        expected: gives the level of a run's dotted line.
    """
    look = drawing.styles(runs)
    figure, (panel,) = drawing.panel_row(3.6)
    ends, tops = [], []
    for run in runs:
        steps, values = run.series("probe", "step", column)
        if not len(steps):
            continue
        style = look[run.name]
        panel.plot(steps, values, ms=3, **style.line)
        ends.append((steps[-1], values[-1], run.name, style))
        tops.append(float(values.max()))
        if expected is not None:
            panel.axhline(expected(run), color=style.colour, lw=0.8, ls=":")
    if not ends:
        raise drawing.NothingToShow(f"no probe measured {column}")
    panel.set(xlabel="step", ylabel=label, ylim=(0, 1.1 * max(tops)))
    drawing.label_line_ends(panel, ends)
    return figure


def gradient_survival(runs: Sequence[Run]) -> Figure:
    """Returns the figure of the fraction of ‖∂loss/∂logits‖ that the head passes back."""

    def of_random_subspace(run: Run) -> float:  # of dimension R: R/V of a squared norm on average
        return math.sqrt(run.head_rank / run.config.model.vocab_size)

    label = "fraction of the gradient's norm"
    figure = over_training(runs, "gradient_survival", label, of_random_subspace)
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


@drawing.styled
def gap_by_w_error(runs: Sequence[Run]) -> Figure:
    """Returns the figure of the gap (nats/token) against W-error, at each run's last probe."""
    look, shown = drawing.styles(runs), probed(runs)
    figure, (panel,) = drawing.panel_row(4.6)
    for run, probe in shown:
        cut = probe.ranks < run.head_rank  # greater ranks remove nothing
        error, gap = probe.w_error[cut], probe.plain.gap[cut]
        is_measured = gap > 2 * probe.plain.gap_se[cut]
        panel.plot(error[is_measured], gap[is_measured], lw=0.8, ms=4, **look[run.name].line)
    if not any(len(line.get_xdata()) for line in panel.lines):
        raise drawing.NothingToShow("no gap is more than two standard errors from zero")
    panel.set(xscale="log", yscale="log", xlabel="W-error: fraction of the head's norm removed")
    panel.set_ylabel("gap to the untruncated head (nats/token)")
    drawing.log10_ticks(panel.xaxis)
    drawing.log10_ticks(panel.yaxis)
    drawing.legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure


@drawing.styled
def against_bounds(runs: Sequence[Run]) -> Figure:
    """Returns the figure of gaps (nats/token) and their bounds against rank, plain and whitened."""
    look, shown = drawing.styles(runs), probed(runs, least_rank=2)
    figure, panels = drawing.panel_row(4.2, 2, sharey=True)
    names = (r"bound √2·E‖h‖·√Σ$_{i>r}$ σᵢ²(W)", r"bound ¼·Σ$_{i>r}$ σᵢ²(W C$^{1/2}$)")
    for panel, kind, bound_name in zip(panels, KINDS, names, strict=True):
        for run, probe in shown:
            if kind == "plain":
                bound = plain_bound(probe.singular_values, probe.mean_hidden_norm)
            else:
                bound = whitened_bound(probe.whitened_singular_values)
            cut = np.arange(1, run.head_rank)
            cut = cut[bound[cut - 1] > SMALLEST_GAP]
            style = look[run.name]
            panel.plot(cut, bound[cut - 1], color=style.colour, lw=1, ls=(0, (4, 2)))
            ranks, predicted = probe.ranks, getattr(probe, kind).predicted
            drawn = (ranks < run.head_rank) & (predicted > SMALLEST_GAP)
            crosses = {"ls": "", "marker": "x", "ms": 6, "mec": style.colour}
            panel.plot(ranks[drawn], predicted[drawn], **crosses)
            draw_clear(panel, run, probe, kind, style)
        label_gap_panel(panel, kind, max(run.head_rank for run, _ in shown))
        looks = (
            {"marker": "o", "ms": 3.5, "label": "measured ± SE"},
            {"marker": "x", "ls": "", "label": "predicted, second order"},
            {"lw": 1, "ls": (0, (4, 2)), "label": bound_name},
        )
        panel.legend(handles=[Line2D([], [], color=drawing.GREY, **how) for how in looks])
    drawing.legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure
