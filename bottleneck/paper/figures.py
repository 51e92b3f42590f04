"""The figures of the paper, redrawn from the digitised curves with other runs beside them.

N: total parameters; T: training tokens; D: hidden width; r: rank of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bottleneck.drawing.style import (
    DISTINCT,
    GREY,
    WIDTH,
    Style,
    label_line_ends,
    log2_ticks,
    log10_ticks,
    styled,
)
from bottleneck.laws.rank import fit_rank
from bottleneck.laws.saturation import late_part
from bottleneck.laws.scaling_law import ScalingLaw
from bottleneck.model.family import PYTHIA
from bottleneck.paper.curves import digitised
from bottleneck.paper.values import (
    FITTED,
    LAST_STEP,
    LAW,
    SMALL,
    best_points,
    figure_1a,
    final_points,
)
from bottleneck.runs.reading import Run

Curve = tuple[str, np.ndarray, np.ndarray]  # a name, steps, values

_OWN = "#000000"  # runs of the reader are black and dashed


@styled
def figure_1a_drawn(runs: Sequence[Run] = ()) -> Figure:
    """Loss over training for the five models, with the minimum marked, and the rise above it."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=[3, 2])
    ends = []
    own = [_own(run, "eval", "loss") for run in runs]
    theirs = [(s.name.split()[-1], s.steps, s.loss) for s in figure_1a().values()]
    for index, (name, steps, loss) in enumerate([*theirs, *own]):
        if not len(steps):
            continue
        style = _style(index, len(theirs))
        least = int(np.argmin(loss))
        panels[0].plot(steps, loss, color=style.colour, ls=style.dash)
        panels[0].plot(steps[least], loss[least], color=style.colour, marker="o")
        late = late_part(steps)
        rise = 100 * (loss[late] / loss[least] - 1)
        panels[1].plot(steps[late], rise, color=style.colour, ls=style.dash)
        ends.append((steps[-1], rise[-1], name, style))
    panels[0].set(ylabel="loss (nats/token)", title="loss; dots: the minimum", xlabel="step")
    panels[1].set(title="above the minimum, %", xlabel="step", ylim=(-0.2, 6))
    for panel in panels:
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    label_line_ends(panels[1], ends)
    return figure


@styled
def figure_1b_drawn(law: ScalingLaw) -> Figure:
    """Loss against FLOPs: last and best checkpoints, the published law and the refitted one."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=[3, 2])
    final, best, fitted = final_points(SMALL), best_points(), final_points(FITTED)
    sizes = np.geomspace(1e7, 1.5e10, 100)
    tokens = fitted.n_tokens[0]
    for one, colour, dash, name in (
        (LAW, "#d55e00", "-", "published: A = 119.09, α = 0.246"),
        (law, "#0072b2", (0, (4, 2)), f"refitted: A = {law.A:.1f}, α = {law.alpha:.4f}"),
    ):
        flops = 6 * sizes * tokens
        panels[0].plot(flops, one.predict(sizes, tokens), color=colour, ls=dash, label=name)
    for points, marker, name in (
        (fitted, "s", "fitted to"),
        (final, "o", "last"),
        (best, "^", "best"),
    ):
        flops = 6 * points.n_params * points.n_tokens
        panels[0].plot(flops, points.loss, ls="", marker=marker, color="black", label=name)
        panels[1].plot(
            *(points.n_params, 100 * LAW.relative_gap(points)),
            **{"ls": "", "marker": marker, "color": "black", "label": name},
        )
    panels[0].set(xscale="log", yscale="log", xlabel="FLOPs, 6·N·T", ylabel="loss (nats/token)")
    log10_ticks(panels[0].yaxis)
    panels[0].legend()
    panels[1].axhline(0, color="#d55e00")
    panels[1].set(xscale="log", xlabel="N", title="loss above the published law, %")
    panels[1].xaxis.set_major_formatter(EngFormatter(sep=" "))
    panels[1].legend()
    return figure


@styled
def figure_3_drawn(runs: Sequence[Run] = ()) -> Figure:
    """Anisotropy of the last layer over training."""
    own = [_own(run, "probe", f"anisotropy/{run.config.model.n_layers}") for run in runs]
    figure, panel = _one_panel()
    _over_steps(panel, digitised()["fig3_last_layer_anisotropy"], own)
    panel.set(xlabel="step", ylabel="mean cosine similarity", ylim=(0, 1.02))
    return figure


@styled
def figure_5_drawn(runs: Sequence[Run] = ()) -> Figure:
    """Singular entropy over training, with its maximum at each width, ln D."""
    own = [_own(run, "probe", "singular_entropy") for run in runs]
    figure, panel = _one_panel()
    curves = digitised()["fig5_singular_entropy"]
    panel.set(yscale="log")
    for index, name in enumerate(curves):
        cap = math.log(PYTHIA[name.lower()][1])
        panel.axhline(cap, color=DISTINCT[index % len(DISTINCT)], lw=0.7, ls=":")
    _over_steps(panel, curves, own)
    panel.set(xlabel="step", ylabel="KL(p‖u) (nats)")
    log10_ticks(panel.yaxis)
    return figure


@styled
def figure_6_drawn() -> Figure:
    """Loss against the rank of a head trained on frozen hidden states, with its power law."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for index, (name, curve) in enumerate(digitised()["fig6_loss"].items()):
        ranks, losses = np.array([int(r) for r in curve]), np.array(list(curve.values()))
        colour = DISTINCT[index]
        dense = np.geomspace(ranks[0], ranks[-1], 100)
        panels[0].plot(dense, fit_rank(ranks, losses)(dense), color=colour, lw=1)
        panels[0].plot(ranks, losses, ls="", marker="o", color=colour, label=name)
        gaps = losses[:-1] - losses[-1]
        panels[1].plot(ranks[:-1], gaps, marker="o", color=colour, label=name)
    panels[0].set(title="loss; lines: L∞ + c·r$^{-p}$", ylabel="loss (nats/token)")
    panels[1].set(title="above the full rank", ylabel="nats/token", yscale="log")
    log10_ticks(panels[1].yaxis)
    for panel in panels:
        panel.set(xscale="log", xlabel="rank r of the head")
        log2_ticks(panel.xaxis, 32, 4096)
        panel.axvline(1000, color=GREY, lw=1, ls=":")
        panel.legend()
    return figure


@styled
def figure_7_drawn() -> Figure:
    """W-error of 5-gram matrices against the number of dimensions kept."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    corpora = ("Pile", "Wikitext", "IMDb")
    tokenizers = {"llama2": "Llama 2", "pythia": "Pythia"}
    for key, curve in digitised()["fig7_W_error"].items():
        _, tokenizer, corpus = key.split("_")
        panel, colour = panels[[*tokenizers].index(tokenizer)], DISTINCT[corpora.index(corpus)]
        kept = {int(d): error for d, error in curve.items() if error is not None}
        panel.plot([*kept], [*kept.values()], marker="o", ms=3, color=colour, label=corpus)
        panel.set(title=f"{tokenizers[tokenizer]}'s tokenizer", xlabel="dimensions d")
        panel.axhline(0.5, color=GREY, lw=1, ls=":")
    for panel in panels:
        panel.legend()
    panels[0].set(ylabel="W-error(d)")
    return figure


@styled
def figure_8_drawn() -> Figure:
    """Loss of a head of rank r against what rank r leaves out of the model's own head."""
    figure, panel = _one_panel()
    points = digitised()["fig8_pythia1b"]
    errors, losses = ([point[key] for point in points] for key in ("W_error", "loss"))
    panel.plot(errors, losses, marker="o", color=DISTINCT[0])
    for point in points:
        panel.annotate(
            *(f"r = {point['r']}", (point["W_error"], point["loss"])),
            **{"xytext": (-8, 4), "textcoords": "offset points", "ha": "right", "size": 8.5},
        )
    panel.set(xlabel="W-error of Pythia-1B's head at rank r", ylabel="loss (nats/token)")
    panel.margins(x=0.1)
    return figure


def _own(run: Run, split: str, column: str) -> Curve:
    """Returns a run's curve without the start of training; empty if the run is too short.

    Beside 143,000 steps, a run of less than a tenth of them is a vertical stroke.
    """
    steps, values = run.series(split, "step", column)
    if not len(steps) or steps[-1] < LAST_STEP / 10:
        return run.name, np.empty(0), np.empty(0)
    late = late_part(steps)
    return run.name, steps[late], values[late]


def _one_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    return figure, figure.subplots()


def _style(index: int, n_theirs: int) -> Style:
    if index >= n_theirs:
        return Style(_OWN, (0, (4, 2)), "")
    return Style(DISTINCT[index % len(DISTINCT)], "-", "o")


def _over_steps(
    panel: Axes,
    curves: dict[str, dict[str, float]],
    own: Sequence[Curve],
) -> None:
    """Draws lines over training steps, each named at its end; the paper's count thousands."""
    theirs = [
        (name, 1000 * np.array([int(step) for step in curve]), np.array(list(curve.values())))
        for name, curve in curves.items()
    ]
    ends = []
    for index, (name, steps, values) in enumerate([*theirs, *own]):
        if not len(steps):
            continue
        style = _style(index, len(theirs))
        panel.plot(
            *(steps, values), **{"color": style.colour, "ls": style.dash, "marker": "o", "ms": 3}
        )
        ends.append((steps[-1], values[-1], name, style))
    panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    label_line_ends(panel, ends)
