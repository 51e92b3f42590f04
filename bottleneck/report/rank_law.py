"""The figure of final validation loss against head rank, with the fitted law.

An experiment is a set of runs that differ only in head rank, such as one width of a sweep.
R: rank of the head, D for a full one; losses are in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from bottleneck.drawing.style import (
    SMALL,
    WIDTH,
    NothingToShow,
    log2_ticks,
    log10_ticks,
    styled,
    styles,
)
from bottleneck.laws.rank import LEAST_RANKS, fit_rank
from bottleneck.report.summary import same_but_for_rank, summary_table
from bottleneck.runs.reading import Run


@styled
def rank_law(runs: Sequence[Run]) -> Figure:
    """Returns the figure of final loss (nats/token) against R, with the law and above its floor."""
    losses = {row["run"]: row["loss"] for row in summary_table(runs).iter_rows(named=True)}
    finished = [run for run in runs if run.is_complete and losses[run.name] is not None]
    groups = [
        group
        for group in _experiments(finished)
        if len({run.head_rank for run in group}) >= LEAST_RANKS
    ]
    if not groups:
        raise NothingToShow(
            f"no experiment has finished runs with {LEAST_RANKS} head ranks, "
            "which a law of three constants needs"
        )
    look = styles([group[-1] for group in groups])
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    least = min(run.head_rank for group in groups for run in group)
    most = max(run.head_rank for group in groups for run in group)
    for group in groups:
        style = look[group[-1].name]
        ranks = np.array([run.head_rank for run in group])
        measured = np.array([losses[run.name] for run in group])
        law = fit_rank(ranks, measured)
        fine = np.geomspace(ranks.min(), ranks.max(), 200)
        name = (
            f"D = {group[-1].config.model.d_model}: {law.floor:.3f} + "
            f"{law.scale:.3g}·R$^{{-{law.exponent:.2f}}}$"
        )
        points = {"color": style.colour, "marker": style.marker, "linestyle": ""}
        line = {"color": style.colour, "linestyle": style.dash, "lw": 1.2}
        panels[0].plot(ranks, measured, **points)
        panels[0].plot(fine, law(fine), label=name, **line)
        above = measured - law.floor
        panels[1].plot(ranks[above > 0], above[above > 0], **points)
        panels[1].plot(fine, law(fine) - law.floor, **line)
    panels[0].set(ylabel="validation loss (nats/token)", title="loss, and L∞ + c·R$^{-p}$ fitted")
    panels[0].legend(fontsize=SMALL)
    panels[1].set(ylabel="loss − L∞ (nats/token)", title="loss above its floor", yscale="log")
    for panel in panels:
        panel.set(xscale="log", xlabel="rank R of the head")
        log2_ticks(panel.xaxis, least, most)
    log10_ticks(panels[1].yaxis)
    return figure


def _experiments(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns groups of runs that differ only in head rank, each by ascending rank."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: (run.config.model.d_model, run.head_rank)):
        for group in groups:
            if same_but_for_rank(run, group[0]) and _same_training(run, group[0]):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def _same_training(one: Run, other: Run) -> bool:
    """Returns True if two runs have the same optimizer and training config."""
    return (one.config.optimizer, one.config.train) == (other.config.optimizer, other.config.train)
