"""What the figures of a gap's anatomy draw, and when they are left out."""

import numpy as np
import pytest

from bottleneck.drawing.style import NothingToShow
from bottleneck.report.gaps import against_bounds, anatomy, gradient_survival
from bottleneck.runs import load


def lines_of(panel):
    """Lines that belong to a run, by colour in the order in which they were drawn."""
    return [line for line in panel.lines if len(line.get_xdata()) > 2]


def test_shares_are_of_the_gap_and_only_of_gaps_that_are_there(make_run):
    run = load(make_run(head_rank=None))
    probe = run.probe()
    panels = anatomy([run]).axes
    rare, frequent = lines_of(panels[0])
    clear = (probe.ranks < run.head_rank) & (probe.plain.gap > 2 * probe.plain.gap_se)
    assert clear.sum() > 1
    np.testing.assert_array_equal(rare.get_xdata(), probe.ranks[clear])
    gap = probe.plain.gap[clear]
    np.testing.assert_allclose(rare.get_ydata(), probe.plain.rare[clear] / gap)
    np.testing.assert_allclose(frequent.get_ydata(), probe.plain.frequent[clear] / gap)


def test_agreement_is_drawn_below_the_heads_own_rank(make_run):
    run = load(make_run(head_rank=16))
    (line,) = lines_of(anatomy([run]).axes[1])
    assert line.get_xdata().max() < 16


def test_survival_over_training(make_run):
    run = load(make_run(head_rank=None))
    (line,) = lines_of(gradient_survival([run]).axes[0])
    np.testing.assert_array_equal(line.get_xdata(), run.probe_steps)
    assert set(line.get_ydata()) == {0.4}


def test_left_out_without_what_they_draw(make_run):
    run = load(make_run(head_rank=1))  # nothing can be cut from a head of rank 1
    with pytest.raises(NothingToShow):
        anatomy([run])


def test_figure_draws_the_bounds_beside_the_measured_gaps(make_run):
    runs = [load(make_run(f"rank{rank or 64}", head_rank=rank, steps=100)) for rank in (16, None)]
    # A gap of 1.5 standard errors is not clear of zero.
    path = runs[1].path / "probes" / f"{runs[1].probe_steps[-1]:08d}.npz"
    arrays = dict(np.load(path))
    arrays["whitened/gap_se"][2] = arrays["whitened/gap"][2] / 1.5
    np.savez(path, **arrays)
    plain_panel, whitened_panel = against_bounds(runs).axes
    for run, stop in zip(runs, (16, 64), strict=True):
        probe = run.probe()
        (drawn,) = (line for line in plain_panel.lines if len(line.get_xdata()) == stop - 1)
        values, length = probe.singular_values, probe.mean_hidden_norm
        expected = [length * np.sqrt(2 * np.sum(values[r:] ** 2)) for r in range(1, stop)]
        np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-9)
        (drawn,) = (line for line in whitened_panel.lines if len(line.get_xdata()) == stop - 1)
        values = probe.whitened_singular_values
        expected = [np.sum(values[r:] ** 2) / 4 for r in range(1, stop)]
        np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-9)
    measured = whitened_panel.containers[-1].lines[0]
    clear = (probe.ranks < 64) & (probe.whitened.gap > 2 * probe.whitened.gap_se)
    np.testing.assert_array_equal(measured.get_xdata(), probe.ranks[clear])
    np.testing.assert_array_equal(measured.get_ydata(), probe.whitened.gap[clear])
    (bars,) = whitened_panel.containers[-1].lines[2]
    lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, 2 * probe.whitened.gap_se[clear], rtol=1e-9)
    crosses = [line for line in whitened_panel.lines if line.get_marker() == "x"]
    predicted = probe.whitened.first_order + probe.whitened.second_order
    shown = (probe.ranks < 64) & (predicted > 1e-5)
    np.testing.assert_array_equal(crosses[-1].get_xdata(), probe.ranks[shown])
    np.testing.assert_array_equal(crosses[-1].get_ydata(), predicted[shown])
