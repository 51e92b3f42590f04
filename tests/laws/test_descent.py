"""The descent to the minima of a Huber loss: on laws of one term, which are linear regressions."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import huber as scipy_huber

from bottleneck.laws.descent import huber, minimise


@pytest.fixture
def regression():
    """67 points and three constants; with K = 1, log L̂ = M θ + o is linear in θ."""
    rng = np.random.default_rng(0)
    design, offset = rng.standard_normal((67, 1, 3)), rng.standard_normal((67, 1))
    log_loss = (design @ [1.0, -2.0, 0.5] + offset)[:, 0] + 0.1 * rng.standard_normal(67)
    return design, offset, log_loss


def weighted_least_squares(design, offset, log_loss, weights):
    root = np.sqrt(weights)
    return np.linalg.lstsq(root[:, None] * design[:, 0], root * (log_loss - offset[:, 0]))[0]


@pytest.mark.parametrize("delta", [1e-3, 0.5, 100.0])
def test_huber_is_scipys(delta):
    residuals = np.array([-3.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.5, 10.0]) * delta
    np.testing.assert_allclose(huber(residuals, delta), scipy_huber(delta, residuals), rtol=1e-5)


def test_each_start_leads_to_the_least_squares_of_its_own_weights(regression):
    rng = np.random.default_rng(1)
    weights, starts = rng.multinomial(67, np.full(67, 1 / 67), size=70), rng.normal(0, 5, (70, 3))
    found = minimise(*regression, starts, weights_Sxn=weights, delta=np.inf, n_steps=200)
    expected = [weighted_least_squares(*regression, each) for each in weights]
    np.testing.assert_allclose(found.theta, expected, rtol=1e-6)
    residuals = np.einsum("np,sp->sn", regression[0][:, 0], np.array(expected))
    residuals += regression[1][:, 0] - regression[2]
    np.testing.assert_allclose(found.objective, np.sum(weights * residuals**2, 1) / 2, rtol=1e-9)
    assert found.is_minimum.all()


@pytest.mark.parametrize("delta", [1e-3, 0.05])
def test_all_starts_lead_to_the_one_minimum_of_a_huber_regression(regression, delta):
    design, offset, log_loss = regression
    starts = np.random.default_rng(2).normal(0, 5, (5, 3))
    found = minimise(*regression, starts, delta=delta, n_steps=500)

    def value_and_gradient(theta):
        residual = design[:, 0] @ theta + offset[:, 0] - log_loss
        slope = np.clip(residual, -delta, delta)
        return scipy_huber(delta, residual).sum(), slope @ design[:, 0]

    limits = {"ftol": 0, "gtol": 1e-12}
    start = weighted_least_squares(*regression, np.ones(67))
    other = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=limits)
    np.testing.assert_allclose(found.theta, np.tile(other.x, (5, 1)), atol=1e-6)
    np.testing.assert_allclose(found.objective, other.fun, rtol=1e-9)
    assert max(np.abs(value_and_gradient(theta)[1]).max() for theta in found.theta) < 1e-7


def test_steps_are_those_of_levenberg_and_marquardt(regression):
    """The first with a damping of 0.01 of the diagonal, the second, as that led down, an eighth."""
    design, offset, log_loss = regression
    start = np.array([4.0, 4.0, 4.0])
    theta, hessian = start, design[:, 0].T @ design[:, 0]
    for n_steps in range(3):
        found = minimise(*regression, start[None], delta=np.inf, n_steps=n_steps)
        np.testing.assert_allclose(found.theta[0], theta, rtol=1e-9)
        assert not found.is_minimum.any()
        gradient = design[:, 0].T @ (design[:, 0] @ theta + offset[:, 0] - log_loss)
        damping = 0.01 / 8**n_steps * np.diag(np.diag(hessian))
        theta = theta - np.linalg.solve(hessian + damping, gradient)


def test_no_step_leads_up_and_few_are_needed():
    """A sum of two powers whose exponents start far off: Newton alone diverges from there."""
    x = np.linspace(15, 25, 40)
    design = np.zeros((40, 2, 3))
    design[:, 0, 0] = design[:, 1, 1] = 1
    design[:, 1, 2] = -x
    log_loss = np.log(1.7 + 400 * np.exp(-0.34 * x)) + 1e-3 * np.cos(7 * x)
    starts = np.array([[-1.0, 0, 0], [0, 25, 0], [1, 25, 2], [1, 0, 2]])
    by_steps = [
        minimise(design, np.zeros((40, 2)), log_loss, starts, delta=1e-3, n_steps=n)
        for n in (0, 1, 2, 4, 8, 16, 32, 200)
    ]
    objectives = np.array([found.objective for found in by_steps])
    assert np.all(np.diff(objectives, axis=0) <= 0)
    for found in by_steps:  # each θ is where its objective was found
        again = minimise(
            design, np.zeros((40, 2)), log_loss, found.theta, delta=1e-3, n_steps=0
        ).objective
        np.testing.assert_allclose(again, found.objective, rtol=1e-9)
    np.testing.assert_allclose(objectives[-2, :2], objectives[-1].min(), rtol=1e-6)
    assert by_steps[-1].is_minimum[:2].all()


@pytest.mark.parametrize(("log_loss", "reached"), [(99.0, 99.0), (-99.0, -99.0), (150.0, 100.0)])
def test_constants_stay_within_a_hundred(log_loss, reached):
    """Of log L = θ, so that a coefficient of e^−100 is as good as none."""
    problem = np.ones((20, 1, 1)), np.zeros((20, 1)), np.full(20, log_loss)
    found = minimise(*problem, np.zeros((1, 1)), delta=np.inf, n_steps=50)
    assert found.theta[0, 0] == pytest.approx(reached, rel=1e-9)
