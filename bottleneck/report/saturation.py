"""The figure of saturation: which runs end above their minimum loss, and when rises began."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from bottleneck.drawing.style import (
    DISTINCT,
    SMALL,
    WIDTH,
    NothingToShow,
    Style,
    plain,
    styled,
    styles,
)
from bottleneck.laws.onset import Onset, detect_onset
from bottleneck.laws.saturation import (
    FEWEST_CHECKPOINTS,
    LossSeries,
    Saturation,
    detect_saturation,
    late_part,
    series_of_run,
)
from bottleneck.runs.reading import Run

_RISING = {"loss": DISTINCT[1], "singular entropy": DISTINCT[0], "anisotropy": DISTINCT[2]}


@styled
def saturation_figure(runs: Sequence[Run]) -> Figure:
    """Returns the figure of validation loss above its minimum, with verdicts and onsets."""
    look = styles(runs)
    shown = []
    for run in runs:
        series = series_of_run(run)
        if series is not None and late_part(series.steps).sum() >= FEWEST_CHECKPOINTS:
            shown.append((run, series, detect_saturation(series)))
    if not shown:
        raise NothingToShow(
            f"no run has {FEWEST_CHECKPOINTS} validation losses in its last nine tenths"
        )
    onsets = {run.name: _onsets(run, series, found) for run, series, found in shown}
    rising = {name: begun for name, begun in onsets.items() if begun}
    height = max(3.6, 0.35 * len(shown) + 1.4)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, 2 if rising else 1, squeeze=False)[0]
    for run, series, found in shown:
        style, late = look[run.name], late_part(series.steps)
        above = series.loss[late] / found.best_loss - 1
        label = f"{plain(run.name)}: {found.verdict} ({_chance(found)})"
        panels[0].plot(series.steps[late], above, ms=3, label=label, **style.line)
        if found.interval is not None:
            panels[0].vlines(found.final_step, *found.interval, color=style.colour)
    # The initial fall is out of scale beside a rise of a few per cent.
    highest = max(
        float(series.loss[len(series.loss) // 2 :].max() / found.best_loss - 1)
        for _, series, found in shown
    )
    panels[0].set(xlabel="step", ylabel="validation loss above its minimum")
    panels[0].set_ylim(top=min(panels[0].get_ylim()[1], max(1.5 * highest, 0.01)))
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(handles=panels[0].get_lines()[: len(shown)], loc="outside lower left")
    if rising:
        _draw_onsets(panels[1], rising, look)
    for panel in panels:
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure


def _chance(found: Saturation) -> str:
    assert found.p_end is not None
    return "p < 0.001" if found.p_end < 0.001 else f"p = {found.p_end:.2g}"


def _onsets(run: Run, series: LossSeries, found: Saturation) -> dict[str, Onset]:
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
            late = late_part(steps)
            begins = detect_onset(steps[late], values[late])
            if begins is not None:
                begun[name] = begins
    return begun


def _draw_onsets(panel: Axes, rising: dict[str, dict[str, Onset]], look: dict[str, Style]) -> None:
    for row, begun in enumerate(rising.values()):
        for shift, (name, colour) in enumerate(_RISING.items()):
            if name not in begun:
                continue
            one = begun[name]
            panel.errorbar(
                *(one.step, row + 0.22 * (shift - 1)),
                xerr=[[one.step - one.low], [one.high - one.step]],
                **{"color": colour, "marker": "o", "ls": ""},
            )
    for name, colour in _RISING.items():
        panel.plot([], [], color=colour, marker="o", ls="", label=name)
    panel.legend()
    panel.set(title="start of a rise (about 90 %)", xlabel="step", ylim=(len(rising) - 0.4, -0.6))
    panel.set_yticks(range(len(rising)), labels=[*map(plain, rising)], size=SMALL)
    for label, name in zip(panel.get_yticklabels(), rising, strict=True):
        label.set_color(look[name].ink)
