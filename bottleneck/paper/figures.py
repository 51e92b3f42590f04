"""The figures of the paper, redrawn from the digitised curves with other runs beside them.

N: total parameters; T: training tokens; D: hidden width; r: rank of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bottleneck.drawing import style as drawing
from bottleneck.laws.rank import fit_rank
from bottleneck.laws.saturation import late_part
from bottleneck.laws.scaling_law import ScalingLaw
from bottleneck.model.family import PYTHIA
from bottleneck.paper import values as paper_values
from bottleneck.paper.curves import digitised
from bottleneck.paper.values import FITTED, LAST_STEP, LAW, SMALL
from bottleneck.runs.reading import Run

Curve = tuple[str, np.ndarray, np.ndarray]  # a name, steps, values


@drawing.styled
def figure_1a_drawn(runs: Sequence[Run] = ()) -> Figure:
    """Loss over training for the five models, with the minimum marked, and the rise above it."""
    figure, panels = drawing.panel_row(4.0, 2, width_ratios=[3, 2])
    ends = []
    theirs = [(s.name.split()[-1], s.steps, s.loss) for s in paper_values.figure_1a().values()]
    own = [_own(run, "eval", "loss") for run in runs]
    for name, steps, loss, style in _with_styles(theirs, own):
        line = {"color": style.colour, "ls": style.dash}
        least = int(np.argmin(loss))
        panels[0].plot(steps, loss, **line)
        panels[0].plot(steps[least], loss[least], color=style.colour, marker="o")
        late = late_part(steps)
        rise = 100 * (loss[late] / loss[least] - 1)
        panels[1].plot(steps[late], rise, **line)
        ends.append((steps[-1], rise[-1], name, style))
    panels[0].set(ylabel="loss (nats/token)", title="loss; dots: the minimum", xlabel="step")
    panels[1].set(title="above the minimum, %", xlabel="step", ylim=(-0.2, 6))
    for panel in panels:
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    drawing.label_line_ends(panels[1], ends)
    return figure


@drawing.styled
def figure_1b_drawn(law: ScalingLaw) -> Figure:
    """Loss against FLOPs: last and best checkpoints, the published law and the refitted one."""
    figure, panels = drawing.panel_row(4.2, 2, width_ratios=[3, 2])
    fitted = paper_values.final_points(FITTED)
    sizes, tokens = np.geomspace(1e7, 1.5e10, 100), fitted.n_tokens[0]
    for one, colour, dash, name in (
        (LAW, "#d55e00", "-", "published: A = 119.09, α = 0.246"),
        (law, "#0072b2", (0, (4, 2)), f"refitted: A = {law.A:.1f}, α = {law.alpha:.4f}"),
    ):
        line = {"color": colour, "ls": dash, "label": name}
        panels[0].plot(6 * sizes * tokens, one.predict(sizes, tokens), **line)
    for points, marker, name in (
        (fitted, "s", "fitted to"),
        (paper_values.final_points(SMALL), "o", "last"),
        (paper_values.best_points(), "^", "best"),
    ):
        dots = {"ls": "", "marker": marker, "color": "black", "label": name}
        panels[0].plot(6 * points.n_params * points.n_tokens, points.loss, **dots)
        panels[1].plot(points.n_params, 100 * LAW.relative_gap(points), **dots)
    panels[0].set(xscale="log", yscale="log", xlabel="FLOPs, 6·N·T", ylabel="loss (nats/token)")
    drawing.log10_ticks(panels[0].yaxis)
    panels[1].axhline(0, color="#d55e00")
    panels[1].set(xscale="log", xlabel="N", title="loss above the published law, %")
    panels[1].xaxis.set_major_formatter(EngFormatter(sep=" "))
    for panel in panels:
        panel.legend()
    return figure


@drawing.styled
def figure_3_drawn(runs: Sequence[Run] = ()) -> Figure:
    """Anisotropy of the last layer over training."""
    own = [_own(run, "probe", f"anisotropy/{run.config.model.n_layers}") for run in runs]
    figure, (panel,) = drawing.panel_row(3.8)
    _over_steps(panel, digitised()["fig3_last_layer_anisotropy"], own)
    panel.set(xlabel="step", ylabel="mean cosine similarity", ylim=(0, 1.02))
    return figure


@drawing.styled
def figure_5_drawn(runs: Sequence[Run] = ()) -> Figure:
    """Singular entropy over training, with its maximum at each width, ln D."""
    figure, (panel,) = drawing.panel_row(3.8)
    curves = digitised()["fig5_singular_entropy"]
    panel.set(yscale="log")
    for index, name in enumerate(curves):
        cap = math.log(PYTHIA[name.lower()][1])
        panel.axhline(cap, color=drawing.DISTINCT[index % len(drawing.DISTINCT)], lw=0.7, ls=":")
    _over_steps(panel, curves, [_own(run, "probe", "singular_entropy") for run in runs])
    panel.set(xlabel="step", ylabel="KL(p‖u) (nats)")
    drawing.log10_ticks(panel.yaxis)
    return figure


@drawing.styled
def figure_6_drawn() -> Figure:
    """Loss against the rank of a head trained on frozen hidden states, with its power law."""
    figure, panels = drawing.panel_row(4.0, 2)
    for index, (name, curve) in enumerate(digitised()["fig6_loss"].items()):
        ranks, losses = np.array([int(r) for r in curve]), np.array(list(curve.values()))
        dots = {"marker": "o", "color": drawing.DISTINCT[index], "label": name}
        dense = np.geomspace(ranks[0], ranks[-1], 100)
        panels[0].plot(dense, fit_rank(ranks, losses)(dense), color=drawing.DISTINCT[index], lw=1)
        panels[0].plot(ranks, losses, ls="", **dots)
        panels[1].plot(ranks[:-1], losses[:-1] - losses[-1], **dots)
    panels[0].set(title="loss; lines: L∞ + c·r$^{-p}$", ylabel="loss (nats/token)")
    panels[1].set(title="above the full rank", ylabel="nats/token", yscale="log")
    drawing.log10_ticks(panels[1].yaxis)
    for panel in panels:
        panel.set(xscale="log", xlabel="rank r of the head")
        drawing.log2_ticks(panel.xaxis, 32, 4096)
        panel.axvline(1000, color=drawing.GREY, lw=1, ls=":")
        panel.legend()
    return figure


@drawing.styled
def figure_7_drawn() -> Figure:
    """W-error of 5-gram matrices against the number of dimensions kept."""
    figure, panels = drawing.panel_row(4.0, 2, sharey=True)
    corpora = ("Pile", "Wikitext", "IMDb")
    tokenizers = {"llama2": "Llama 2", "pythia": "Pythia"}
    for key, curve in digitised()["fig7_W_error"].items():
        _, tokenizer, corpus = key.split("_")
        panel = panels[[*tokenizers].index(tokenizer)]
        colour = drawing.DISTINCT[corpora.index(corpus)]
        kept = {int(d): error for d, error in curve.items() if error is not None}
        panel.plot([*kept], [*kept.values()], marker="o", ms=3, color=colour, label=corpus)
        panel.set(title=f"{tokenizers[tokenizer]}'s tokenizer", xlabel="dimensions d")
        panel.axhline(0.5, color=drawing.GREY, lw=1, ls=":")
        panel.legend()
    panels[0].set(ylabel="W-error(d)")
    return figure


@drawing.styled
def figure_8_drawn() -> Figure:
    """Loss of a head of rank r against what rank r leaves out of the model's own head."""
    figure, (panel,) = drawing.panel_row(3.8)
    points = digitised()["fig8_pythia1b"]
    errors, losses = ([point[key] for point in points] for key in ("W_error", "loss"))
    panel.plot(errors, losses, marker="o", color=drawing.DISTINCT[0])
    beside = {"xytext": (-8, 4), "textcoords": "offset points", "ha": "right"}
    for point in points:
        place = (point["W_error"], point["loss"])
        panel.annotate(f"r = {point['r']}", place, size=drawing.SMALL, **beside)
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


def _with_styles(
    theirs: Sequence[Curve], own: Sequence[Curve]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, drawing.Style]]:
    """Yields each curve that is not empty, with its style: the reader's are black and dashed."""
    for index, curve in enumerate(theirs):
        yield *curve, drawing.Style(drawing.DISTINCT[index % len(drawing.DISTINCT)], "-", "o")
    for curve in own:
        if len(curve[1]):
            yield *curve, drawing.Style("#000000", (0, (4, 2)), "o")


def _over_steps(panel: Axes, curves: dict[str, dict[str, float]], own: Sequence[Curve]) -> None:
    """Draws lines over training steps, each named at its end; the paper's count thousands."""
    theirs = [
        (name, 1000 * np.array([int(step) for step in curve]), np.array(list(curve.values())))
        for name, curve in curves.items()
    ]
    ends = []
    for name, steps, values, style in _with_styles(theirs, own):
        panel.plot(steps, values, ms=3, **style.line)
        ends.append((steps[-1], values[-1], name, style))
    panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    drawing.label_line_ends(panel, ends)
