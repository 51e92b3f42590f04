"""What a gap is made of: which tokens pay it, whose predictions change, what gradient survives.

A gap is the loss of a trained head cut to rank r, less that of the whole head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from bottleneck.analysis.drawing import (
    GREY,
    WIDTH,
    NothingToShow,
    label_line_ends,
    legend,
    log2_ticks,
    styled,
    styles,
)
from bottleneck.analysis.runs import Run


@styled
def anatomy(runs: Sequence[Run]) -> Figure:
    """At the last probe, against the rank kept: who pays the gap, and how many predictions stay."""
    look = styles(runs)
    probed = [(run, run.probe()) for run in runs if run.probe_steps and run.head_rank > 1]
    shown = [(run, probe) for run, probe in probed if "gap_plain_rare" in probe]
    if not shown:
        raise NothingToShow("no probe says which tokens a gap falls on")
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for run, probe in shown:
        style = look[run.name]
        cut = probe["ranks"] < run.head_rank  # the others take nothing away
        ranks, gap, error = (probe[name][cut] for name in ("ranks", "gap_plain", "gap_plain_se"))
        clear = gap > 2 * error
        for kind, dashes in (("rare", "-"), ("frequent", (0, (1.5, 1.5)))):
            share = probe[f"gap_plain_{kind}"][cut][clear] / gap[clear]
            panels[0].plot(ranks[clear], share, ms=3.5, **style.line | {"linestyle": dashes})
        panels[1].plot(ranks, probe["agreement_plain"][cut], ms=3.5, **style.line)
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
