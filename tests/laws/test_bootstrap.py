"""Intervals of a law's constants: their tails, their width, and which resamples are drawn."""

import numpy as np
import pytest

from bottleneck.laws import comparison as law_bootstrap
from bottleneck.laws.comparison import bootstrap, middle
from bottleneck.laws.points import Points
from bottleneck.laws.scaling_law import ScalingLaw, fit, refit

TRUE = {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36}


def points_of(n: int, noise: float = 0.05) -> Points:
    rng = np.random.default_rng(4)
    sizes, tokens = np.geomspace(1e7, 1e10, n), 10 ** rng.uniform(9, 11, n)
    loss = ScalingLaw(**TRUE).predict(sizes, tokens) * np.exp(noise * rng.standard_normal(n))
    return Points(sizes, tokens, loss)


def test_the_middle_leaves_a_fortieth_out_at_each_end():
    values = np.random.default_rng(0).permutation(np.arange(1001.0))
    np.testing.assert_allclose(middle(values), [25, 975], rtol=1e-12)
    columns = np.stack([values, 2 * values, -values], axis=1)  # resamples come first
    np.testing.assert_allclose(middle(columns), [[25, 50, -975], [975, 1950, -25]], rtol=1e-12)


def test_resampled_constants_spread_as_a_mean_does():
    """With E alone to be fitted by least squares, log E is the mean of log L."""
    rng = np.random.default_rng(1)
    points = Points(np.full(50, 1e8), np.full(50, 1e10), np.exp(0.1 * rng.standard_normal(50)))
    fixed = {"A": 1e-40, "B": 1e-40, "alpha": 0.3, "beta": 0.3}
    law = fit(points, fixed=fixed, delta=np.inf)
    resampled = bootstrap(law, points, 2000)
    log_e, log_l = np.log(resampled.constants["E"]), np.log(points.loss)
    error = log_l.std() / np.sqrt(50)
    # A spread from 2,000 is sure to 1.6 %, a mean to 2 % of it, and an interval to 4 %.
    assert log_e.std() == pytest.approx(error, rel=0.06)
    assert log_e.mean() == pytest.approx(log_l.mean(), abs=0.1 * error)
    width = np.diff(np.log(resampled.interval("E")))[0]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert set(resampled.constants["A"]) == {1e-40}


def test_a_resample_has_as_many_different_points_as_there_are_constants(monkeypatch):
    points, drawn = points_of(4), []
    law = fit(points, fixed={"alpha": 0.34, "beta": 0.36})

    def seen(law, points, weights_Sxn):
        drawn.append(weights_Sxn)
        return refit(law, points, weights_Sxn)

    monkeypatch.setattr(law_bootstrap, "refit", seen)
    bootstrap(law, points, 300)
    (counts,) = drawn
    assert counts.shape == (300, 4) and set(counts.sum(axis=1)) == {4}
    # Of 256 draws with replacement 88 have two points or one; 24 have all four, 144 have three.
    different = (counts > 0).sum(axis=1)
    assert set(different) == {3, 4}
    assert np.mean(different == 3) == pytest.approx(144 / 168, abs=0.08)


def test_a_seed_gives_the_same_resamples_and_another_gives_others():
    points = points_of(12)
    law = fit(points, fixed={"B": 2000.0, "beta": 0.36, "E": 1.8})
    first, again, other = (bootstrap(law, points, 20, seed).constants["A"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
