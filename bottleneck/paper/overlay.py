"""Draws the paper's curves under those of runs with the width of one of its models.

A curve ends where the axes of the runs end.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from bottleneck.drawing.style import Style
from bottleneck.paper.curves import INDICES, MODELS, SPECTRA, TOKENS_PER_STEP, Quantity, curve
from bottleneck.runs.reading import Run

_BAND = {"lw": 6, "alpha": 0.22, "solid_capstyle": "butt", "zorder": 1}


class PaperOverlay:
    """An overlay for the figures of a report; see `bottleneck.report.figures.Overlay`."""

    def under(
        self,
        panel: Axes,
        runs: Sequence[Run],
        look: dict[str, Style],
        quantity: Quantity,
        x_from: float = 0.0,
    ) -> None:
        """Draws the paper's curve of each width, pale, in the colour of a run of that width.

        Call it when the panel has its scales and its title; it adds a note to the title. The loss
        is drawn against tokens, the others against steps; `x_from` is the start of the panel.
        """
        limits, (low, high) = panel.get_xlim(), panel.get_ylim()
        by_width = {run.config.model.d_model: run for run in runs}  # the last: the highest rank
        drawn = False
        for width, run in by_width.items():
            steps, values = curve(quantity, width)
            x = steps * TOKENS_PER_STEP if quantity == "loss" else steps
            inside = (x >= x_from) & (x <= limits[1])
            if inside.sum() >= 2:
                panel.plot(x[inside], values[inside], color=look[run.name].colour, **_BAND)
                low = min(low, 0.98 * values[inside].min())
                high = max(high, 1.02 * values[inside].max())
                drawn = True
        panel.set(xlim=limits, ylim=(low, high))
        if drawn:
            panel.set_title(f"{panel.get_title('left')}; pale: the paper")

    def over(self, panel: Axes, run: Run, mesh: QuadMesh) -> None:
        """Draws the paper's σᵢ/σ₀ as dots on their heat map, in its colours."""
        limits = panel.get_xlim(), panel.get_ylim()
        dots = {"s": 42, "edgecolors": "white", "linewidths": 1.2, "clip_on": False, "zorder": 3}
        dots |= {"norm": mesh.norm, "cmap": mesh.cmap}
        spectra = SPECTRA.get(MODELS.get(run.config.model.d_model, ""), {})
        for step, ratios in spectra.items():
            if step <= run.probe_steps[-1]:
                panel.scatter([step] * len(INDICES), INDICES, c=ratios, **dots)
        panel.set(xlim=limits[0], ylim=limits[1])
