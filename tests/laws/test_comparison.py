"""Which law the ranks follow: on points made by one law, that law is the one chosen."""

import dataclasses

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import huber as scipy_huber
from scipy.stats import norm

from bottleneck.laws import comparison as law_comparison
from bottleneck.laws.comparison import (
    compare,
    extrapolation_error,
    held_out_error,
    judge,
    log_likelihood,
)
from bottleneck.laws.forms import ADDITIVE, CHINCHILLA, EFFECTIVE_DATA, EFFECTIVE_WIDTH
from bottleneck.laws.points import Points
from bottleneck.laws.scaling_law import ScalingLaw, fit, refit

pytestmark = pytest.mark.usefixtures("optimized")

BASE = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.32}
WITH_RANK = {
    CHINCHILLA.name: ScalingLaw(**BASE),
    ADDITIVE.name: ScalingLaw(**BASE, G=1.5, gamma=0.5, form=ADDITIVE),
    EFFECTIVE_WIDTH.name: ScalingLaw(**BASE, gamma=0.15, form=EFFECTIVE_WIDTH),
    EFFECTIVE_DATA.name: ScalingLaw(**BASE, gamma=0.15, form=EFFECTIVE_DATA),
}
FORMS = [CHINCHILLA, ADDITIVE, EFFECTIVE_WIDTH]


def sweep(law: ScalingLaw, noise: float = 0.004) -> Points:
    """Four sizes, three lengths of training, four ranks: 48 points with lognormal noise."""
    rng = np.random.default_rng(5)
    widths = np.array([256.0, 512, 1024, 2048])
    size, tokens, share = np.meshgrid(np.arange(4), [3e9, 3e10, 3e11], [1 / 32, 1 / 8, 1 / 2, 1])
    width = widths[size.ravel()]
    n_params, n_tokens = 200 * width**2, tokens.ravel()
    rank = width * share.ravel()
    loss = law.predict(n_params, n_tokens, rank, width)
    return Points(n_params, n_tokens, loss * np.exp(noise * rng.normal(size=48)), rank, width)


@pytest.mark.parametrize(
    "name",
    [
        ADDITIVE.name,
        EFFECTIVE_WIDTH.name,
        pytest.param(EFFECTIVE_DATA.name, marks=pytest.mark.slow),
    ],
)
def test_the_law_that_made_the_points_is_chosen_by_every_measure(name):
    forms = FORMS if WITH_RANK[name].form in FORMS else [*FORMS, EFFECTIVE_DATA]
    candidates = compare(sweep(WITH_RANK[name]), forms)
    assert candidates[0].law.form.name == name
    for key in ("held_out", "aicc", "bic"):
        by_key = min(candidates, key=lambda c, key=key: getattr(c, key))
        assert by_key.law.form.name == name, key
    assert candidates[0].held_out < 0.8 * candidates[1].held_out


def test_a_rank_without_effect_is_not_given_one():
    points = sweep(WITH_RANK["chinchilla"])
    candidates = {c.law.form.name: c for c in compare(points, [CHINCHILLA, EFFECTIVE_WIDTH])}
    assert min(candidates.values(), key=lambda c: c.bic).law.form is CHINCHILLA
    assert candidates["effective_width"].law.gamma == pytest.approx(0, abs=0.005)


def test_extrapolation_leaves_the_largest_models_out():
    points = sweep(WITH_RANK["chinchilla"], noise=0)
    largest = points.n_params == points.n_params.max()
    loss = np.where(largest, 1.1 * points.loss, points.loss)
    changed = Points(points.n_params, points.n_tokens, loss)
    # The law of the smaller sizes is exact, so the whole tenth that was added is the error.
    law = fit(points)
    assert extrapolation_error(law, changed) == pytest.approx(np.log(1.1), rel=1e-4)


def test_likelihood_is_of_a_density_that_integrates_to_one():
    residuals = np.random.default_rng(0).standard_t(3, 200) * 0.004
    delta = 1e-3

    def negative(tau):
        def density(r):
            size = min(abs(r), delta)
            return np.exp(-size * (abs(r) - size / 2) / tau)

        normaliser = 2 * quad(density, 0, delta)[0] + 2 * quad(density, delta, np.inf)[0]
        return -sum(np.log(density(r) / normaliser) for r in residuals)

    # The grid is coarse: its best is close, and not better.
    best = min(negative(tau) for tau in np.geomspace(1e-7, 1e-4, 61))
    assert -log_likelihood(residuals, delta) == pytest.approx(best, abs=1)
    assert -log_likelihood(residuals, delta) <= best + 1e-6


def test_without_a_delta_the_likelihood_is_the_normal_distributions():
    residuals = np.random.default_rng(1).normal(0, 0.01, 100)
    expected = norm.logpdf(residuals, scale=np.sqrt(np.mean(residuals**2))).sum()
    assert log_likelihood(residuals, np.inf) == pytest.approx(expected, rel=1e-6)


def constant_law(points: Points) -> ScalingLaw:
    """Least squares with E alone to be fitted and terms of no weight: L̂ is the geometric mean."""
    fixed = {"A": 1e-40, "B": 1e-40, "alpha": 0.3, "beta": 0.3}
    return fit(points, fixed=fixed, delta=np.inf)


def scattered(n: int, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    loss = np.exp(1 + 0.1 * rng.standard_normal(n))
    return Points(rng.permutation(1e7 * np.arange(1.0, n + 1)), np.full(n, 1e10), loss)


@pytest.mark.parametrize("n", [3, 4, 40])
def test_criteria_of_least_squares_are_those_of_the_normal_distribution(n):
    points = scattered(n)
    candidate = judge(constant_law(points), points)
    log_l = np.log(points.loss)
    likelihood = norm.logpdf(log_l, log_l.mean(), log_l.std()).sum()
    # Burnham and Anderson 2002 of k = 2, E and the spread: −2 log L + 2k + 2k(k + 1)/(n − k − 1).
    assert candidate.bic == pytest.approx(2 * np.log(n) - 2 * likelihood, rel=1e-6)
    correction = {3: np.inf, 4: 12, 40: 12 / 37}[n]
    assert candidate.aicc == pytest.approx(4 - 2 * likelihood + correction, rel=1e-6)


def test_the_criteria_are_of_the_fits_own_delta():
    points = scattered(30)
    law = constant_law(points)
    huber = dataclasses.replace(law, delta=1e-2)
    residuals = np.log(points.loss) - np.log(law.E)
    expected = 2 * np.log(30) - 2 * log_likelihood(residuals, 1e-2)
    assert judge(huber, points).bic == pytest.approx(expected, rel=1e-9)


def test_a_few_points_are_held_out_one_by_one():
    points = scattered(7)
    log_l = np.log(points.loss)
    expected = [abs(np.delete(log_l, i).mean() - log_l[i]) for i in range(7)]
    assert held_out_error(constant_law(points), points) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("n", [20, 33])
def test_each_point_is_predicted_once_from_the_other_nine_tenths(n, monkeypatch):
    points, weights = scattered(n), []

    def seen(law, points, weights_Sxn):
        weights.append(weights_Sxn)
        return refit(law, points, weights_Sxn)

    monkeypatch.setattr(law_comparison, "refit", seen)
    found = held_out_error(constant_law(points), points)
    (kept,) = weights
    assert kept.shape == (10, n) and set(np.unique(kept)) == {0, 1}
    assert np.all((kept == 0).sum(axis=0) == 1)
    assert set((kept == 0).sum(axis=1)) <= {n // 10, -(-n // 10)}
    # Drawn, not by turns, as tables are often in an order.
    assert not np.array_equal(np.argmin(kept, axis=0), np.arange(n) % 10)
    log_l = np.log(points.loss)
    errors = [abs(log_l[i] - log_l[kept[np.argmin(kept[:, i])] == 1].mean()) for i in range(n)]
    assert found == pytest.approx(np.mean(errors))


def test_errors_are_not_known_where_fewer_points_are_left_than_constants():
    four = sweep(WITH_RANK["chinchilla"]).take(np.array([3, 15, 27, 39]))  # four sizes
    three = four.take(np.arange(3))
    law = fit(four, fixed={"alpha": 0.34, "beta": 0.32})
    for error in (held_out_error, extrapolation_error):
        assert np.isfinite(error(law, four)) and np.isnan(error(law, three))


def test_extrapolation_is_over_the_tenth_with_the_largest_sizes():
    points = scattered(30)
    log_l, largest = np.log(points.loss), np.argsort(points.n_params)[-3:]
    expected = np.abs(log_l[largest] - np.delete(log_l, largest).mean()).mean()
    assert extrapolation_error(constant_law(points), points) == pytest.approx(expected)


def test_the_likelihood_of_a_huber_loss_is_the_greatest_over_the_spread():
    residuals = np.random.default_rng(0).standard_t(3, 200) * 0.004
    for delta, scale in ((1e-3, 1.0), (1e-2, 1.0), (1e-3, 1e-5)):
        losses = scipy_huber(delta, scale * residuals)

        def negative(log_tau, delta=delta, losses=losses):
            tau = np.exp(log_tau)
            inside = quad(lambda r: np.exp(-(r**2) / 2 / tau), 0, min(delta, 40 * tau**0.5))[0]
            outside = quad(lambda r: np.exp(-delta * (r - delta / 2) / tau), delta, np.inf)[0]
            return losses.sum() / tau + len(losses) * np.log(2 * (inside + outside))

        centre = np.log(losses.mean())
        best = minimize_scalar(negative, bounds=(centre - 5, centre + 5), method="bounded")
        found = log_likelihood(scale * residuals, delta)
        assert found == pytest.approx(-best.fun, abs=1e-4)
