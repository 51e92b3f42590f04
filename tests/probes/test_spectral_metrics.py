"""Entropies and ranks at spectra whose values are known in closed form."""

import numpy as np
import pytest

from bottleneck.probes import spectral_metrics as metrics

D = 64
FLAT = np.full(D, 3.0)
SINGLE = np.eye(D)[0]
HALF = np.where(np.arange(D) < D // 2, 2.0, 0.0)


def test_a_flat_spectrum():
    assert metrics.singular_entropy(FLAT) == pytest.approx(0, abs=1e-12)
    assert metrics.linear_singular_entropy(FLAT) == pytest.approx(0, abs=1e-12)
    for of in (metrics.effective_rank, metrics.stable_rank, metrics.participation_ratio):
        assert of(FLAT) == pytest.approx(D)
    assert metrics.tail_exponent(FLAT) == pytest.approx(0, abs=1e-12)


def test_a_single_direction():
    for of in (metrics.singular_entropy, metrics.linear_singular_entropy):
        assert of(SINGLE) == pytest.approx(np.log(D))
    for of in (metrics.effective_rank, metrics.stable_rank, metrics.participation_ratio):
        assert of(SINGLE) == pytest.approx(1)
    assert np.isnan(metrics.tail_exponent(SINGLE))


def test_half_of_the_directions():
    assert metrics.singular_entropy(HALF) == pytest.approx(np.log(2))
    for of in (metrics.effective_rank, metrics.stable_rank, metrics.participation_ratio):
        assert of(HALF) == pytest.approx(D / 2)


def test_squares_and_values_differ_in_their_entropies():
    values = np.array([3.0, 1.0])
    p, q = values**2 / 10, values / 4
    assert metrics.singular_entropy(values) == pytest.approx(np.log(2) + (p * np.log(p)).sum())
    linear = metrics.linear_singular_entropy(values)
    assert linear == pytest.approx(np.log(2) + (q * np.log(q)).sum())
    assert metrics.participation_ratio(values) == pytest.approx(100 / 82)


def test_a_power_law_with_outliers_and_noise():
    source = np.random.default_rng(0)
    index = np.arange(1.0, 513)
    values = index**-0.8 * np.exp(0.02 * source.standard_normal(512))
    values[:3] *= 50
    values = np.sort(values)[::-1]
    assert metrics.tail_exponent(values) == pytest.approx(0.8, abs=0.03)
    # The zeros of a factored head take no part.
    assert metrics.tail_exponent(np.append(values, np.zeros(3000))) == metrics.tail_exponent(values)


@pytest.mark.parametrize("n", [4, 16, 29])
def test_the_tail_exponent_is_a_weighted_fit_to_the_middle_alone(n):
    # Of 16 values it is the third to the twelfth: an eighth and three quarters of 16 are 2 and 12.
    values = np.sort(np.random.default_rng(n).uniform(1, 5, n))[::-1]
    middle = {4: range(1, 4), 16: range(3, 13), 29: range(4, 22)}[n]
    x, y = np.log(middle), np.log([values[i - 1] for i in middle])
    weights = 1 / np.array(middle)  # even in log i
    x, y = (a - (weights * a).sum() / weights.sum() for a in (x, y))
    slope = (weights * x * y).sum() / (weights * x * x).sum()
    assert metrics.tail_exponent(values) == pytest.approx(-slope)
    assert np.isnan(metrics.tail_exponent(values[:3]))  # of three values the middle has two


def test_w_error_is_what_is_cut_away():
    values = np.array([4.0, 2.0, 1.0, 0.5])
    expected = [np.sqrt(np.sum(values[r:] ** 2) / np.sum(values**2)) for r in (1, 2, 3, 4)]
    np.testing.assert_allclose(metrics.w_error(values), expected)
