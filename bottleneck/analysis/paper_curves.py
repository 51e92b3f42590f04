"""The curves of Godey et al. 2024, laid under those of runs that have the width of their models.

What is drawn was read off the figures of the paper (`digitised.json`), so it is good to about half
a percent of an axis. It goes no further than the runs beside it, whose axes it leaves as they are.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from bottleneck.analysis.drawing import Style
from bottleneck.analysis.runs import Run

Quantity = Literal["loss", "singular_entropy", "anisotropy"]

TOKENS_PER_STEP = 1024 * 2048  # of every Pythia model (Biderman et al. 2023)

# D → the Pythia model of the paper's figures 1a, 3, 4 and 5 with that width.
MODELS = {128: "14M", 256: "31M", 512: "70M", 768: "160M", 1024: "410M"}

_FIGURES = {
    "singular_entropy": "fig5_singular_entropy",
    "anisotropy": "fig3_last_layer_anisotropy",
}

_BAND = {"lw": 6, "alpha": 0.22, "solid_capstyle": "butt", "zorder": 1}

# Figure 4: σᵢ/σ₀ at these i, by model and step.
_INDICES = (1, 2, 10, 50, 100)
SPECTRA = {
    "14M": {40_000: (0.65, 0.46, 0.34, 0.26, 0.21), 143_000: (0.043, 0.031, 0.019, 0.011, 0.011)},
    "31M": {66_000: (0.60, 0.49, 0.38, 0.29, 0.26), 143_000: (0.035, 0.025, 0.015, 0.010, 0.010)},
    "70M": {68_000: (0.56, 0.48, 0.36, 0.27, 0.25), 143_000: (0.055, 0.043, 0.028, 0.019, 0.017)},
    "160M": {85_000: (0.56, 0.34, 0.24, 0.19, 0.17), 143_000: (0.086, 0.050, 0.027, 0.016, 0.016)},
    "410M": {143_000: (0.18, 0.17, 0.13, 0.11, 0.10)},
}


def curve(quantity: Quantity, d_model: int) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the model of a width; empty where the paper shows none.

    The loss is in nats per token of 50,000 tokens of the Pile (figure 1a); the singular entropy in
    nats (figure 5); the anisotropy is that of the last layer (figure 3).
    """
    name, read = MODELS.get(d_model), digitised()
    if name is None:
        return np.empty(0), np.empty(0)
    if quantity == "loss":
        return 1000.0 * np.array(read["fig1a_steps_k"]), np.array(read["fig1a"][name])
    points = read[_FIGURES[quantity]][name]
    return 1000.0 * np.array([float(k) for k in points]), np.array(list(points.values()))


def lay_under(
    panel: Axes,
    runs: Sequence[Run],
    look: dict[str, Style],
    quantity: Quantity,
    x_per_step: float = 1.0,
    x_from: float = 0.0,
) -> None:
    """Draws the paper's curve of each width, broad and pale, in the colour of a run of that width.

    Call it when the panel has its scales and its title, to which it adds what the pale curves are.

    Args:
        x_per_step: what the panel's axis counts for each step of the paper.
        x_from: where the panel begins.
    """
    limits, (low, high) = panel.get_xlim(), panel.get_ylim()
    by_width = {run.config.model.d_model: run for run in runs}  # of several the last, of most rank
    drawn = False
    for width, run in by_width.items():
        steps, values = curve(quantity, width)
        x = x_per_step * steps
        inside = (x >= x_from) & (x <= limits[1])
        if inside.sum() >= 2:
            panel.plot(x[inside], values[inside], color=look[run.name].colour, **_BAND)
            low = min(low, 0.98 * values[inside].min())
            high = max(high, 1.02 * values[inside].max())
            drawn = True
    panel.set(xlim=limits, ylim=(low, high))
    if drawn:
        panel.set_title(f"{panel.get_title('left')}; pale: the paper")


def lay_over(panel: Axes, run: Run, mesh: QuadMesh) -> None:
    """Draws the paper's σᵢ/σ₀ as dots on a heat map of them, in its colours."""
    limits = panel.get_xlim(), panel.get_ylim()
    spectra = SPECTRA.get(MODELS.get(run.config.model.d_model, ""), {})
    for step, ratios in spectra.items():
        if step <= run.probe_steps[-1]:
            panel.scatter(
                *([step] * len(_INDICES), _INDICES),
                c=ratios,
                norm=mesh.norm,
                cmap=mesh.cmap,
                **{"s": 42, "edgecolors": "white", "linewidths": 1.2, "clip_on": False},
                zorder=3,
            )
    panel.set(xlim=limits[0], ylim=limits[1])


@functools.cache
def digitised() -> dict[str, Any]:
    file = importlib.resources.files("bottleneck.analysis") / "digitised.json"
    return json.loads(file.read_text(encoding="utf-8"))
