"""What a cut head loses, against how much of the head is cut off.

The W-error of rank r is √(Σ_{i>r} σᵢ² / Σ σᵢ²), the share of W's norm that its best rank-r copy
loses (Eckart and Young 1936); σ are the singular values of a trained head W.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from bottleneck.analysis.drawing import WIDTH, NothingToShow, legend, log10_ticks, styled, styles
from bottleneck.analysis.runs import Run
from bottleneck.probes.spectral_metrics import w_error


@styled
def gap_by_w_error(runs: Sequence[Run]) -> Figure:
    """The gap of every truncation of every run, at its last probe, against its W-error."""
    look = styles(runs)
    shown = [run for run in runs if run.probe_steps]
    if not shown:
        raise NothingToShow("no run has been probed yet")
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panel = figure.subplots()
    for run in shown:
        probe = run.probe()
        cut = probe["ranks"] < run.head_rank  # the others take nothing away
        error = w_error(probe["singular_values"])[probe["ranks"][cut] - 1]
        gap, uncertainty = (probe[name][cut] for name in ("gap_plain", "gap_plain_se"))
        is_measured = gap > 2 * uncertainty
        panel.plot(error[is_measured], gap[is_measured], lw=0.8, ms=4, **look[run.name].line)
    if not any(len(line.get_xdata()) for line in panel.lines):
        raise NothingToShow("no gap is more than two standard errors from zero")
    panel.set(xscale="log", yscale="log", xlabel="W-error: share of the head's norm cut off")
    panel.set_ylabel("gap to the untruncated head (nats/token)")
    log10_ticks(panel.xaxis)
    log10_ticks(panel.yaxis)
    legend(figure, {run.name: look[run.name] for run in shown})
    return figure
