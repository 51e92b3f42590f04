"""Change points: found where they were put, held by their intervals, and only where they are."""

import numpy as np
import pytest
from scipy.stats import f

from bottleneck.laws import onset as onset_module
from bottleneck.laws.onset import detect_onset
from bottleneck.paper.curves import digitised

STEPS = 5.0 * np.arange(3, 29)


def hinge(tau, slope=0.004, fall=0.001, top=30.0):
    return 3 - fall * STEPS + (slope + fall) * np.clip(STEPS - tau, 0, top)


def test_a_broken_line_breaks_where_it_was_broken():
    found = detect_onset(STEPS, hinge(72.0))
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
        result = detect_onset(STEPS, values)
        if result is not None:
            found += 1
            inside += result.low <= tau <= result.high
    assert found >= 160
    assert 0.83 * found <= inside <= 0.97 * found


def test_noise_has_an_onset_once_in_twenty_at_most():
    rng = np.random.default_rng(1)
    found = [detect_onset(STEPS, rng.standard_normal(len(STEPS))) is not None for _ in range(200)]
    assert sum(found) <= 10


def test_a_plateau_after_the_rise_does_not_move_the_onset():
    sigmoid = 1 / (1 + np.exp(-(STEPS - 90) / 4))
    found = detect_onset(STEPS, 0.2 + sigmoid)
    assert 75 < found.low <= found.step < 90


def test_without_a_turn_there_is_no_onset():
    assert detect_onset(STEPS, 2.6 + 2.5 * STEPS**-0.5) is None
    assert detect_onset(STEPS, np.full(len(STEPS), 3.0)) is None
    noise = 1e-4 * np.random.default_rng(1).standard_normal(len(STEPS))
    assert detect_onset(STEPS, 0.01 * STEPS + noise) is None


def test_four_points_are_too_few():
    assert detect_onset(STEPS[:4], np.array([1.0, 1.0, 1.0, 5.0])) is None


def test_entropies_of_the_paper_turn_where_its_figure_shows_it():
    curves = digitised()["fig5_singular_entropy"]
    steps, values = (
        {name: np.array(part(curve), float) for name, curve in curves.items()}
        for part in (lambda c: [int(k) for k in c], lambda c: list(c.values()))
    )
    # By eye: 14M after 40k, 31M and 70M after 70k, 160M after 85k.
    seen = {"14M": (40, 60), "31M": (65, 75), "70M": (70, 85), "160M": (85, 95)}
    for name, (first, last) in seen.items():
        assert first < detect_onset(steps[name], values[name]).step < last


def by_hand(t, y):
    """Step, interval and chance of the broken line over a valley, for one τ after another."""
    taus, squares = np.linspace(t[1], t[-2], 400), []
    for tau in taus:
        design = np.array([[1, min(x - tau, 0), max(x - tau, 0)] for x in t])
        (_, before, after), *_ = np.linalg.lstsq(design, y)
        rises = after > max(before, 0)
        residual = y - design @ np.linalg.lstsq(design, y)[0]
        squares.append(residual @ residual if rises else np.inf)
    squares, spare = np.array(squares), len(t) - 4
    if not np.isfinite(squares).any():
        return None, 1.0
    straight = np.polyval(np.polyfit(t, y, 1), t) - y
    gained = (straight @ straight - squares.min()) / 2 / (squares.min() / spare)
    inside = taus[(squares - squares.min()) / (squares.min() / spare) <= f.ppf(0.95, 1, spare)]
    return (taus[squares.argmin()], inside[0], inside[-1]), f.sf(gained, 2, spare)


def test_steps_intervals_and_significance_are_those_of_their_definition():
    rng = np.random.default_rng(5)
    chances = []
    for n in (5, 6, 8, 12):
        for scale in (0.03, 0.1, 0.3):
            for _ in range(8):
                # All points are the valley: the fall is below 3/4 of the rise, its half at the end.
                t = np.sort(rng.uniform(0, 10, n))
                middle = rng.uniform(t[1], t[-2])
                y = np.maximum(t - middle, 0) + 0.05 * np.maximum(middle - t, 0)
                y = y + scale * rng.standard_normal(n)
                if (part := onset_module._valley(y)) != slice(0, n):
                    t, y = t[part], y[part]
                if len(t) < 5:
                    assert detect_onset(t, y) is None
                    continue
                if onset_module._valley(y) != slice(0, len(t)):
                    continue
                expected, chance = by_hand(t, y)
                found = detect_onset(t, y)
                chances.append(chance)
                assert (found is not None) == (chance < 0.01)
                if found is not None:
                    np.testing.assert_allclose((found.step, found.low, found.high), expected)
    # On both sides of 1 %, and near it.
    assert sum(c < 0.01 for c in chances) > 15 < sum(c > 0.01 for c in chances)
    assert sum(0.003 < c < 0.03 for c in chances) > 3


@pytest.mark.parametrize(
    ("values", "first", "stop"),
    [
        # A fall of 8 before a rise of 8: from where 6 of them are left, to where 4 are gained.
        ([8, 7, 6, 5, 2, 1, 0, 1, 3, 5, 8], 2, 10),
        ([8, 7, 6.1, 5, 2, 1, 0, 1, 3, 4, 8], 3, 10),
        # A steep fall: the three points before the lowest all the same.
        ([90, 80, 70, 60, 50, 0, 1, 3, 5, 8], 2, 9),
        ([9, 0, 1, 3, 5, 8], 0, 5),
        # The highest loss of all comes first, and the greatest rise is another.
        ([50, 2, 1, 0, 4, 8, 7, 6, 5, 4], 0, 5),
        # Of two rises the greater.
        ([7, 0, 2, 1, 0.5, 0.2, 0.1, -1, 3, 5, 7], 1, 9),
    ],
)
def test_the_valley_is_what_lies_around_the_foot_of_the_greatest_rise(values, first, stop):
    assert onset_module._valley(np.array(values, float)) == slice(first, stop)
