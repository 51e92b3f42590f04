"""Best sizes for a budget: against a search, the published formula, and made-up parabolas."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from bottleneck.errors import UserError
from bottleneck.laws.budgets import FlopsPerToken, compute_optimal, isoflop
from bottleneck.laws.scaling_law import Points, ScalingLaw

LAW = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


@pytest.mark.parametrize(
    "per_token", [FlopsPerToken(), FlopsPerToken(factor=31.0, exponent=0.87)], ids=str
)
def test_no_other_size_is_better_at_the_same_budget(per_token):
    budgets = np.array([1e19, 1e23])
    sizes, tokens = compute_optimal(LAW.constants, budgets, per_token)
    used = per_token.factor * sizes**per_token.exponent * tokens
    np.testing.assert_allclose(used, budgets, rtol=1e-12)
    for budget, size in zip(budgets, sizes, strict=True):

        def loss(log_n, budget=budget):
            per = per_token.factor * np.exp(per_token.exponent * log_n)
            return float(LAW.predict(np.exp(log_n), budget / per)[0])

        best = minimize_scalar(loss, bounds=(10, 35), method="bounded", options={"xatol": 1e-9})
        assert np.log(size) == pytest.approx(best.x, abs=1e-4)  # a minimum is flat


def test_six_flops_a_parameter_gives_the_published_formula():
    flops = 5.76e23
    balance = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62)
    sizes, tokens = compute_optimal(LAW.constants, np.array([flops]))
    assert sizes[0] == pytest.approx(balance * (flops / 6) ** (0.28 / 0.62), rel=1e-12)
    assert tokens[0] == pytest.approx((flops / 6) ** (0.34 / 0.62) / balance, rel=1e-12)


def test_resampled_constants_give_resampled_sizes():
    columns = {name: np.array([value, 1.1 * value]) for name, value in LAW.constants.items()}
    sizes, _ = compute_optimal(columns, np.array([1e20, 1e21, 1e22]))
    assert sizes.shape == (2, 3)
    np.testing.assert_allclose(sizes[0], compute_optimal(LAW.constants, [1e20, 1e21, 1e22])[0])


def test_flops_per_token_are_the_power_of_the_points_and_say_how_far_off_it_is():
    sizes = np.array([1e7, 1e8, 1e9])
    points = Points(sizes, np.full(3, 1e10), np.full(3, 3.0))
    assert FlopsPerToken.of_points(points, 6 * sizes * 1e10) == FlopsPerToken(
        pytest.approx(6), 1.0, 0.0
    )
    curved = 6 * (sizes + 1e8) * 1e10  # a head of 1e8 parameters beside N
    fitted = FlopsPerToken.of_points(points, curved)
    said = np.log(fitted.factor) + fitted.exponent * np.log(sizes)
    assert fitted.misfit == pytest.approx(np.abs(np.log(curved / 1e10) - said).max())
    assert fitted.exponent < 1 and fitted.misfit > 0.1


def test_parabolas_find_the_minima_that_they_were_made_with():
    rng = np.random.default_rng(0)
    budgets, best = np.array([1e18, 1e19, 1e20, 1e21]), 0.1 * np.array([1e18, 1e19, 1e20, 1e21])
    best = 3 * best**0.46
    log_n = np.log(best)[:, None] + np.linspace(-1.2, 1.0, 7)
    noise = 1e-4 * rng.standard_normal(log_n.shape)
    log_l = 1.0 - 0.02 * np.arange(4)[:, None] + 0.03 * (log_n - np.log(best)[:, None]) ** 2
    flops = np.broadcast_to(budgets[:, None], log_n.shape).ravel()
    points = Points(
        np.exp(log_n).ravel(), flops / 6 / np.exp(log_n).ravel(), np.exp(log_l + noise).ravel()
    )
    order = rng.permutation(28)
    shuffled = Points(*(getattr(points, k)[order] for k in ("n_params", "n_tokens", "loss")))
    found = isoflop(shuffled, flops[order])
    np.testing.assert_allclose(found.flops, budgets, rtol=1e-12)
    assert np.all(np.abs(np.log(found.n_params / best)) < 4 * found.n_params_se)
    assert np.all(found.n_params_se < 0.01)
    np.testing.assert_allclose(found.n_tokens, budgets / 6 / found.n_params, rtol=1e-9)
    np.testing.assert_allclose(np.log(found.loss), 1.0 - 0.02 * np.arange(4), atol=3e-4)
    assert abs(found.exponent - 0.46) < 4 * found.exponent_se < 0.02


def test_budgets_whose_best_size_is_not_between_others_say_nothing():
    sizes = np.geomspace(1e7, 1e9, 6)
    points = Points(sizes, 1e20 / 6 / sizes, 3 - 0.1 * np.log(sizes / 1e7))
    with pytest.raises(UserError, match="four sizes of model"):
        isoflop(points, np.full(6, 1e20))
    nothing = np.empty(0)
    with pytest.raises(UserError, match="four sizes of model"):
        isoflop(Points(nothing, nothing, nothing), nothing)
