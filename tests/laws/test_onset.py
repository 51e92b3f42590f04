"""Change points: found where they were put, held by their intervals, and only where they are."""

import numpy as np
import pytest

from bottleneck.laws.onset import onset
from bottleneck.paper.curves import digitised

STEPS = 5.0 * np.arange(3, 29)


def hinge(tau, slope=0.004, fall=0.001, top=30.0):
    return 3 - fall * STEPS + (slope + fall) * np.clip(STEPS - tau, 0, top)


def test_a_broken_line_breaks_where_it_was_broken():
    found = onset(STEPS, hinge(72.0))
    assert found.step == pytest.approx(72, abs=0.2)  # between two of 400 candidates
    assert found.low <= 72.3 and found.high >= 71.7 and found.high - found.low < 1


@pytest.mark.parametrize("fall", ["straight", "bent"])
def test_intervals_hold_the_break_about_nine_times_in_ten(fall):
    rng = np.random.default_rng(0)
    inside = found = 0
    for _ in range(200):
        tau = rng.uniform(50, 100)
        straight = hinge(tau)
        bent = hinge(tau, fall=0) + 6 / STEPS
        values = (bent if fall == "bent" else straight) + 0.01 * rng.standard_normal(len(STEPS))
        result = onset(STEPS, values)
        if result is not None:
            found += 1
            inside += result.low <= tau <= result.high
    assert found >= 160
    assert 0.83 * found <= inside <= 0.97 * found


def test_noise_has_an_onset_once_in_twenty_at_most():
    rng = np.random.default_rng(1)
    found = [onset(STEPS, rng.standard_normal(len(STEPS))) is not None for _ in range(200)]
    assert sum(found) <= 10


def test_a_plateau_after_the_rise_does_not_move_the_onset():
    sigmoid = 1 / (1 + np.exp(-(STEPS - 90) / 4))
    found = onset(STEPS, 0.2 + sigmoid)
    assert 75 < found.low <= found.step < 90


def test_without_a_turn_there_is_no_onset():
    assert onset(STEPS, 2.6 + 2.5 * STEPS**-0.5) is None
    assert onset(STEPS, np.full(len(STEPS), 3.0)) is None
    noise = 1e-4 * np.random.default_rng(1).standard_normal(len(STEPS))
    assert onset(STEPS, 0.01 * STEPS + noise) is None


def test_four_points_are_too_few():
    assert onset(STEPS[:4], np.array([1.0, 1.0, 1.0, 5.0])) is None


def test_entropies_of_the_paper_turn_where_its_figure_shows_it():
    curves = digitised()["fig5_singular_entropy"]
    steps, values = (
        {name: np.array(part(curve), float) for name, curve in curves.items()}
        for part in (lambda c: [int(k) for k in c], lambda c: list(c.values()))
    )
    # By eye: 14M after 40k, 31M and 70M after 70k, 160M after 85k.
    seen = {"14M": (40, 60), "31M": (65, 75), "70M": (70, 85), "160M": (85, 95)}
    for name, (first, last) in seen.items():
        assert first < onset(steps[name], values[name]).step < last
