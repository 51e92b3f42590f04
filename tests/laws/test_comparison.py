"""Which law the ranks follow: on points made by one law, that law is the one chosen."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from bottleneck.laws.comparison import compare, extrapolation_error, log_likelihood
from bottleneck.laws.forms import ADDITIVE, CHINCHILLA, EFFECTIVE_DATA, EFFECTIVE_WIDTH
from bottleneck.laws.scaling_law import Points, ScalingLaw, fit

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
    law = fit(points.n_params, points.n_tokens, points.loss)
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
