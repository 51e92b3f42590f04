"""The figure of saturation: which runs end above their minimum loss, and when rises began."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from bottleneck.drawing import style as drawing
from bottleneck.laws import saturation
from bottleneck.laws.onset import Onset, detect_onset
from bottleneck.runs.reading import Run

_RISING = {
    "loss": drawing.DISTINCT[1],
    "singular entropy": drawing.DISTINCT[0],
    "anisotropy": drawing.DISTINCT[2],
}


@drawing.styled
def saturation_figure(runs: Sequence[Run]) -> Figure:
    """Returns the figure of validation loss above its minimum, with verdicts and onsets."""
    look, least = drawing.styles(runs), saturation.FEWEST_CHECKPOINTS
    judged = []
    for run in runs:
        series = saturation.series_of_run(run)
        if series is not None and saturation.late_part(series.steps).sum() >= least:
            judged.append((run, series, saturation.detect_saturation(series)))
    if not judged:
        raise drawing.NothingToShow(f"no run has {least} validation losses in its last nine tenths")
    onsets = {run.name: _onsets(run, series, found) for run, series, found in judged}
    rising = {name: begun for name, begun in onsets.items() if begun}
    height = max(3.6, 0.35 * len(judged) + 1.4)
    figure, panels = drawing.panel_row(height, 2 if rising else 1)
    tops = []
    for run, series, found in judged:
        style, late = look[run.name], saturation.late_part(series.steps)
        above = series.loss / found.best_loss - 1
        assert found.p_end is not None
        chance = "p < 0.001" if found.p_end < 0.001 else f"p = {found.p_end:.2g}"
        label = f"{drawing.plain(run.name)}: {found.verdict} ({chance})"
        panels[0].plot(series.steps[late], above[late], ms=3, label=label, **style.line)
        if found.interval is not None:
            panels[0].vlines(found.final_step, *found.interval, color=style.colour)
        tops.append(float(above[len(above) // 2 :].max()))
    panels[0].set(xlabel="step", ylabel="validation loss above its minimum")
    # The initial fall is out of scale beside a rise of a few per cent.
    panels[0].set_ylim(top=min(panels[0].get_ylim()[1], max(1.5 * max(tops), 0.01)))
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(handles=panels[0].get_lines()[: len(judged)], loc="outside lower left")
    if rising:
        _draw_onsets(panels[1], rising, look)
    for panel in panels:
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure


def _onsets(
    run: Run, series: saturation.LossSeries, found: saturation.Saturation
) -> dict[str, Onset]:
    """Returns onsets of the rises of loss, singular entropy and anisotropy, by name."""
    column = f"anisotropy/{run.config.model.n_layers}"
    rises = {
        "singular entropy": run.series("probe", "step", "singular_entropy"),
        "anisotropy": run.series("probe", "step", column),
    }
    if found.verdict != "does not saturate":
        rises["loss"] = [series.steps, series.loss]
    begun = {}
    for name, (steps, values) in rises.items():
        if len(steps):
            late = saturation.late_part(steps)
            begun[name] = detect_onset(steps[late], values[late])
    return {name: begins for name, begins in begun.items() if begins is not None}


def _draw_onsets(
    panel: Axes, rising: dict[str, dict[str, Onset]], look: dict[str, drawing.Style]
) -> None:
    dots = {"marker": "o", "ls": ""}
    for row, begun in enumerate(rising.values()):
        for shift, (name, colour) in enumerate(_RISING.items()):
            if one := begun.get(name):
                bar = [[one.step - one.low], [one.high - one.step]]
                panel.errorbar(one.step, row + 0.22 * (shift - 1), xerr=bar, color=colour, **dots)
    for name, colour in _RISING.items():
        panel.plot([], [], color=colour, label=name, **dots)
    panel.legend()
    panel.set(title="start of a rise (about 90 %)", xlabel="step", ylim=(len(rising) - 0.4, -0.6))
    panel.set_yticks(range(len(rising)), labels=[*map(drawing.plain, rising)], size=drawing.SMALL)
    for label, name in zip(panel.get_yticklabels(), rising, strict=True):
        label.set_color(look[name].ink)
