"""The figures of a report: functions from runs to a matplotlib Figure.

Each skips runs that lack its data, and raises `NothingToShow` if no run is left. `exhibits` tells
how to read each figure. R: rank of the head; D: hidden width; σ: singular values of the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from bottleneck.drawing import style as drawing
from bottleneck.laws.rank import LEAST_RANKS, fit_rank
from bottleneck.report import gaps
from bottleneck.report.summary import experiment, same_but_for_rank, summary_table
from bottleneck.runs.reading import Run

_NOTE = {"color": drawing.GREY, "size": drawing.SMALL}
_SMALLEST_RATIO = 1e-3  # of singular values, the lower end of the heat map's colours


class Overlay(Protocol):
    """Published curves to draw with those of runs, such as `bottleneck.paper.overlay`."""

    def under(
        self,
        panel: Axes,
        runs: Sequence[Run],
        look: dict[str, drawing.Style],
        quantity: Literal["loss", "singular_entropy", "anisotropy"],
        x_from: float = 0.0,
    ) -> None:
        """Draws curves of a quantity under those of runs, the loss against tokens."""

    def over(self, panel: Axes, run: Run, mesh: QuadMesh) -> None:
        """Draws dots of σᵢ/σ₀ on a heat map, in its colours."""


@drawing.styled
def loss(runs: Sequence[Run], overlay: Overlay | None = None) -> Figure:
    """Returns the figure of loss (nats/token) against training tokens, second half enlarged.

    In all figures `overlay` adds published curves.
    """
    look = drawing.styles(runs)
    validation = {run.name: run.series("eval", "tokens", "loss", "loss_se") for run in runs}
    halfway = max(tokens.max(initial=0) for tokens, *_ in validation.values()) / 2
    late = {name: [c[points[0] >= halfway] for c in points] for name, points in validation.items()}
    has_detail = any(len(tokens) >= 2 for tokens, *_ in late.values())

    widths = [3, 2] if has_detail else [1]
    figure, panels = drawing.panel_row(4.2, len(widths), width_ratios=widths)
    ends = []
    for run in runs:
        style = look[run.name]
        train_tokens, train_loss = run.series("train", "tokens", "loss")
        panels[0].plot(train_tokens, train_loss, color=style.colour, lw=0.8, alpha=0.5)
        for panel, points in zip(panels, (validation, late), strict=False):
            panel.errorbar(*points[run.name], **style.bars)
        tokens, losses = late[run.name][:2] if has_detail else (train_tokens, train_loss)
        ends += [(tokens[-1], losses[-1], run.name, style)] if len(tokens) else []
    for entropy in sorted({round(run.corpus.unigram_entropy, 6) for run in runs}):
        panels[0].axhline(entropy, color=drawing.GREY, lw=1, ls=(0, (4, 3)))
        across = {"transform": panels[0].get_yaxis_transform(), "ha": "right", "va": "bottom"}
        panels[0].text(0.99, entropy, f"unigram entropy {entropy:.2f}", **across, **_NOTE)
    # A head of N(0, 1) factors starts at hundreds of nats, which are not shown.
    uniform = math.log(max(run.config.model.padded_vocab_size for run in runs))
    panels[0].set_ylim(top=min(panels[0].get_ylim()[1], 1.1 * uniform))
    panels[0].set_title("whole run: training (thin) and validation")
    if has_detail:
        panels[1].set_title("second half: validation ± SE")
    for panel, start in zip(panels, (0.0, halfway), strict=False):
        if overlay is not None:
            overlay.under(panel, runs, look, "loss", start)
        panel.set(xlabel="training tokens", ylabel="loss (nats/token)")
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
        panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    drawing.label_line_ends(panels[-1], ends)
    return figure


@drawing.styled
def spectrum(runs: Sequence[Run], overlay: Overlay | None = None) -> Figure:
    """Returns heat maps of σᵢ/σ₀ over training, one panel per run."""
    shown = [run for run in runs if len(run.probe_steps) >= 2]
    if not shown:
        raise drawing.NothingToShow("no run has two probes with singular values yet")
    ratios = {run.name: singular_value_ratios(run) for run in shown}
    least = min(float(np.nanmin(ratio, initial=0.1)) for ratio in ratios.values())
    norm = LogNorm(max(_SMALLEST_RATIO, least), 1.0, clip=True)

    n_columns = min(len(shown), 4 if len(shown) == 4 or len(shown) > 6 else 3)
    n_rows = math.ceil(len(shown) / n_columns)
    figure = Figure(figsize=(drawing.WIDTH, 0.5 + 2.9 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for panel, run in zip(grid, shown, strict=False):
        ratio = ratios[run.name]
        n_values, steps = len(ratio), np.asarray(run.probe_steps, float)
        edges = np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])
        rows = np.arange(n_values + 1) + 0.5
        mesh = panel.pcolormesh(edges, rows, ratio, norm=norm, cmap="viridis", rasterized=True)
        panel.set(facecolor="#e4e4e4", xlabel="step", yscale="log", ylim=(n_values + 0.5, 0.5))
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel("index i of σᵢ")
        drawing.log2_ticks(panel.yaxis, 1, n_values)
        if overlay is not None:
            overlay.over(panel, run, mesh)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        panel.grid(False)
        panel.set_title(drawing.plain(run.name))
        if run.head_rank <= n_values:
            middle = math.sqrt((run.head_rank - 0.5) * (n_values + 0.5))
            across = {"transform": panel.get_yaxis_transform(), "ha": "center", "va": "center"}
            panel.text(0.5, middle, f"beyond rank {run.head_rank}", **across, **_NOTE)
    for panel in grid[len(shown) :]:
        panel.remove()
    bar = figure.colorbar(mesh, ax=figure.axes, label="σᵢ / σ₀", pad=0.02, aspect=18 * n_rows)
    drawing.log10_ticks(bar.ax.yaxis)
    return figure


def singular_value_ratios(run: Run) -> np.ndarray:
    """Returns σᵢ/σ₀ of every probe: float64 [D−1, probes], i = 1 … D−1; NaN for i ≥ R."""
    values = np.stack([run.probe(step).singular_values for step in run.probe_steps], axis=1)
    ratios = np.full((run.config.model.d_model - 1, values.shape[1]), np.nan)
    ratios[: run.head_rank - 1] = values[1 : run.head_rank] / values[0]
    return ratios


@drawing.styled
def singular_entropy(runs: Sequence[Run], overlay: Overlay | None = None) -> Figure:
    """Returns the figure of singular entropy (nats) over training, of W and of W centred."""
    look = drawing.styles(runs)
    shown = [run for run in runs if len(run.series("probe", "singular_entropy")[0])]
    if not shown:
        raise drawing.NothingToShow("no run has been probed yet")
    figure, panels = drawing.panel_row(3.8, 2, sharey=True)
    kinds = {"singular_entropy": "W as it is", "singular_entropy_centred": "W centred"}
    for panel, (column, title) in zip(panels, kinds.items(), strict=True):
        ends = []
        for run in shown:
            style = look[run.name]
            steps, entropy = run.series("probe", "step", column)
            panel.plot(steps, entropy, ms=3, **style.line)
            ends += [(steps[-1], entropy[-1], run.name, style)] if len(steps) else []
            if not run.is_full_rank:
                least = math.log(run.config.model.d_model / run.head_rank)
                panel.axhline(least, color=style.colour, lw=0.8, ls=":")
        panel.set(xlabel="step", ylabel="KL(p‖u) (nats)", yscale="log", title=title)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.label_outer()
    if overlay is not None:
        overlay.under(panels[0], shown, look, "singular_entropy")
    for panel in panels:
        drawing.log10_ticks(panel.yaxis)
    drawing.label_line_ends(panels[1], ends)
    return figure


@drawing.styled
def gap_by_rank(runs: Sequence[Run]) -> Figure:
    """Returns the figure of the gap (nats/token) against rank r, plain and whitened, last probe."""
    look, shown = drawing.styles(runs), gaps.probed(runs)
    figure, panels = drawing.panel_row(4.2, 2, sharey=True)
    for panel, kind in zip(panels, gaps.KINDS, strict=True):
        for run, probe in shown:
            style = look[run.name]
            gaps.draw_clear(panel, run, probe, kind, style)
            # Gaps within two standard errors of zero get an upper limit.
            found = getattr(probe, kind)
            limit = np.maximum(found.gap, 0) + 2 * found.gap_se
            unclear = ~gaps.is_clear(found) & (limit > gaps.SMALLEST_GAP)
            unclear &= probe.ranks < run.head_rank  # greater ranks remove nothing
            hollow = {"ls": "", "marker": "v", "ms": 6, "mfc": "none", "mec": style.colour}
            panel.plot(probe.ranks[unclear], limit[unclear], **hollow)
        gaps.label_gap_panel(panel, kind, max(run.head_rank for run, _ in shown))
    drawing.legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure


@drawing.styled
def loss_by_rank(runs: Sequence[Run]) -> Figure:
    """Returns the figure of final validation loss (nats/token) against R, for finished runs."""
    look = drawing.styles(runs)
    table = {row["run"]: row for row in summary_table(runs).iter_rows(named=True)}
    shown = [run for run in runs if run.is_complete and table[run.name]["loss"] is not None]
    if len({run.head_rank for run in shown}) < 2:
        raise drawing.NothingToShow("it needs finished runs with at least two head ranks")
    shapes = {(run.head_rank, run.config.model.d_model) for run in shown}
    is_one_curve = all(same_but_for_rank(run, shown[0]) for run in shown)
    figure, (panel,) = drawing.panel_row(4.0)
    for run in shown:
        row, style = table[run.name], look[run.name]
        alike = [other for other in shown if same_but_for_rank(run, other)]
        if run is alike[0]:  # one grey line per experiment, through the mean over seeds
            ranks = sorted({other.head_rank for other in alike})
            losses = [[table[o.name]["loss"] for o in alike if o.head_rank == r] for r in ranks]
            panel.plot(ranks, [np.mean(at) for at in losses], color="#b8b8b8", lw=1, zorder=1)
        panel.errorbar(run.head_rank, row["loss"], row["loss_se"], **style.bars)
        note = f"full, D = {row['d_model']}" if run.is_full_rank else ""
        if row["gap"] is not None and is_one_curve and len(shapes) == len(shown):
            note = f"{row['gap']:+.3f}"
        beside = {"xytext": (7, 5), "textcoords": "offset points", "size": drawing.SMALL}
        panel.annotate(note, (run.head_rank, row["loss"]), color=style.ink, **beside)
    panel.margins(0.08)
    panel.set(xscale="log", xlabel="rank R of the head", ylabel="validation loss (nats/token)")
    ranks = [run.head_rank for run in shown]
    drawing.log2_ticks(panel.xaxis, min(ranks), max(ranks))
    if len(shapes) < len(shown):
        drawing.legend(figure, {run.name: look[run.name] for run in shown})
    return figure


@drawing.styled
def rank_law(runs: Sequence[Run]) -> Figure:
    """Returns the figure of final loss (nats/token) against R, with the law and above its floor."""
    losses = {row["run"]: row["loss"] for row in summary_table(runs).iter_rows(named=True)}
    finished = [run for run in runs if run.is_complete and losses[run.name] is not None]
    experiments: dict[Any, list[Run]] = {}  # runs that differ only in head rank and seed
    for run in sorted(finished, key=lambda run: (run.config.model.d_model, run.head_rank)):
        key = (experiment(run), run.config.optimizer, run.config.train)
        experiments.setdefault(key, []).append(run)
    groups = [g for g in experiments.values() if len({run.head_rank for run in g}) >= LEAST_RANKS]
    if not groups:
        raise drawing.NothingToShow(
            f"no experiment has finished runs with {LEAST_RANKS} head ranks, "
            "which a law of three constants needs"
        )
    look = drawing.styles([group[-1] for group in groups])
    figure, panels = drawing.panel_row(4.2, 2)
    drawn = [run.head_rank for group in groups for run in group]
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
        points, line = style.line | {"linestyle": ""}, style.line | {"marker": "", "lw": 1.2}
        panels[0].plot(ranks, measured, **points)
        panels[0].plot(fine, law(fine), label=name, **line)
        above = measured - law.floor
        panels[1].plot(ranks[above > 0], above[above > 0], **points)
        panels[1].plot(fine, law(fine) - law.floor, **line)
    panels[0].set(ylabel="validation loss (nats/token)", title="loss, and L∞ + c·R$^{-p}$ fitted")
    panels[0].legend(fontsize=drawing.SMALL)
    panels[1].set(ylabel="loss − L∞ (nats/token)", title="loss above its floor", yscale="log")
    for panel in panels:
        panel.set(xscale="log", xlabel="rank R of the head")
        drawing.log2_ticks(panel.xaxis, min(drawn), max(drawn))
    drawing.log10_ticks(panels[1].yaxis)
    return figure


@drawing.styled
def anisotropy(runs: Sequence[Run], overlay: Overlay | None = None) -> Figure:
    """Returns the figure of anisotropy by layer (last probe) and over training (last layer)."""
    look, shown = drawing.styles(runs), gaps.probed(runs)
    figure, panels = drawing.panel_row(3.8, 2, sharey=True)
    depths = {run.config.model.n_layers for run, _ in shown}
    ends = []
    for run, probe in shown:
        style, n_layers = look[run.name], run.config.model.n_layers
        layers = np.arange(n_layers + 1) / (1 if len(depths) == 1 else n_layers)
        panels[0].plot(layers, probe.anisotropy, ms=3, **style.line)
        steps, last = run.series("probe", "step", f"anisotropy/{n_layers}")
        panels[1].plot(steps, last, ms=3, **style.line)
        ends += [(steps[-1], last[-1], run.name, style)] if len(steps) else []
    if len(depths) == 1:
        panels[0].xaxis.set_major_locator(MaxNLocator(12, integer=True))
        where = f"layer (0: embedding, {depths.pop()}: after the final norm)"
    else:
        where = "layer / number of layers (0: embedding, 1: after the final norm)"
    panels[0].set(xlabel=where, ylabel="mean cosine similarity", title="by layer, last probe")
    panels[1].set(xlabel="step", title="last layer, after the final norm")
    panels[1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if overlay is not None:
        overlay.under(panels[1], [run for run, _ in shown], look, "anisotropy")
    drawing.label_line_ends(panels[1], ends)
    return figure
