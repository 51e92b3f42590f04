"""What the figures of a gap's anatomy draw, and when they are left out."""

import numpy as np
import pytest

from bottleneck.analysis.anatomy import anatomy, gradient_survival
from bottleneck.analysis.drawing import NothingToShow
from bottleneck.analysis.runs import load_run


def lines_of(panel):
    """Lines that belong to a run, by colour in the order in which they were drawn."""
    return [line for line in panel.lines if len(line.get_xdata()) > 2]


def test_shares_are_of_the_gap_and_only_of_gaps_that_are_there(make_run):
    run = load_run(make_run(head_rank=None))
    probe = run.probe()
    panels = anatomy([run]).axes
    rare, frequent = lines_of(panels[0])
    clear = (probe["ranks"] < run.head_rank) & (probe["gap_plain"] > 2 * probe["gap_plain_se"])
    assert clear.sum() > 1
    np.testing.assert_array_equal(rare.get_xdata(), probe["ranks"][clear])
    gap = probe["gap_plain"][clear]
    np.testing.assert_allclose(rare.get_ydata(), probe["gap_plain_rare"][clear] / gap)
    np.testing.assert_allclose(frequent.get_ydata(), probe["gap_plain_frequent"][clear] / gap)


def test_agreement_is_drawn_below_the_heads_own_rank(make_run):
    run = load_run(make_run(head_rank=16))
    (line,) = lines_of(anatomy([run]).axes[1])
    assert line.get_xdata().max() < 16


def test_survival_over_training(make_run):
    run = load_run(make_run(head_rank=None))
    (line,) = lines_of(gradient_survival([run]).axes[0])
    np.testing.assert_array_equal(line.get_xdata(), run.probe_steps)
    assert set(line.get_ydata()) == {0.4}


def test_left_out_without_what_they_draw(make_run):
    run = load_run(make_run(head_rank=1))  # nothing can be cut from a head of rank 1
    with pytest.raises(NothingToShow):
        anatomy([run])
