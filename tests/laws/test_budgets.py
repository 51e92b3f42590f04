"""Best sizes for a budget: against a search, the published formula, and made-up parabolas."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import gmean, linregress

from bottleneck.errors import UserError
from bottleneck.laws.budgets import FlopsPerToken, compute_optimal, isoflop
from bottleneck.laws.points import Points
from bottleneck.laws.scaling_law import ScalingLaw

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
    assert FlopsPerToken.of_points(points) == FlopsPerToken(pytest.approx(6), 1.0, 0.0)
    curved = 6 * (sizes + 1e8) * 1e10  # a head of 1e8 parameters beside N
    fitted = FlopsPerToken.of_points(replace(points, flops=curved))
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
    n_params, loss = np.exp(log_n).ravel(), np.exp(log_l + noise).ravel()
    points = Points(n_params, flops / 6 / n_params, loss)
    order = rng.permutation(28)
    found = isoflop(points.take(order))
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
        isoflop(points)
    nothing = np.empty(0)
    with pytest.raises(UserError, match="four sizes of model"):
        isoflop(Points(nothing, nothing, nothing))


def parabola(sizes, centre, noise=(), curvature=0.04, floor=3.0):
    """Losses whose logarithms lie on a parabola of log N, beside their noise."""
    noise = np.asarray(noise) if len(noise) else np.zeros(len(sizes))
    return np.exp(np.log(floor) + curvature * np.log(sizes / centre) ** 2 + noise)


def test_errors_of_the_best_size_are_those_of_polyfit_and_its_derivatives():
    sizes = np.geomspace(2e7, 1e9, 6)
    noise = 0.004 * np.random.default_rng(2).standard_normal(6)
    losses = parabola(sizes, 3e8, noise)
    flops = 1e19 * np.array([0.98, 1.0, 1.01, 1.02, 0.99, 1.03])
    found = isoflop(Points(sizes, flops / 6 / sizes, losses, flops=flops))
    x, y = np.log(sizes) - 19, np.log(losses)
    coefficients, covariance = np.polyfit(x, y, 2, cov=True)  # over n − 3

    def best(abc):
        return -abc[1] / (2 * abc[0])

    steps = 1e-6 * np.eye(3)
    slope = [(best(coefficients + s) - best(coefficients - s)) / 2e-6 for s in steps]
    assert np.log(found.n_params[0]) == pytest.approx(best(coefficients) + 19, abs=1e-9)
    assert found.n_params_se[0] == pytest.approx(np.sqrt(slope @ covariance @ slope), rel=1e-5)
    lowest = np.polyval(coefficients, best(coefficients))
    assert found.loss[0] == pytest.approx(np.exp(lowest), rel=1e-9)
    assert found.flops[0] == pytest.approx(gmean(flops), rel=1e-12)
    assert found.n_tokens[0] == pytest.approx(found.flops[0] / 6 / found.n_params[0], rel=1e-9)


def test_the_exponent_and_its_error_are_those_of_a_regression():
    rng = np.random.default_rng(3)
    budgets = np.array([1e18, 1e19, 1e20, 3e21])
    best = 2 * budgets**0.45 * np.exp(0.2 * rng.standard_normal(4))

    def found(n_budgets):
        sizes = (best[:n_budgets, None] * np.geomspace(0.3, 3, 5)).ravel()
        flops = np.repeat(budgets[:n_budgets], 5)
        losses = parabola(sizes, np.repeat(best[:n_budgets], 5))
        return isoflop(Points(sizes, flops / 6 / sizes, losses, flops=flops))

    for n_budgets in (3, 4):
        line = linregress(np.log(budgets[:n_budgets]), np.log(best[:n_budgets]))
        fitted = found(n_budgets)
        assert fitted.exponent == pytest.approx(line.slope, rel=1e-6)
        assert fitted.exponent_se == pytest.approx(line.stderr, rel=1e-6)
    two = found(2)  # a line through two points leaves no error
    slope = np.log(best[1] / best[0]) / np.log(budgets[1] / budgets[0])
    assert two.exponent == pytest.approx(slope, rel=1e-6) and np.isnan(two.exponent_se)
    assert np.isnan(found(1).exponent) and np.isnan(found(1).exponent_se)


def test_four_different_sizes_make_a_parabola_and_three_do_not():
    for sizes in (np.geomspace(1e7, 1e9, 4), np.geomspace(1e7, 1e9, 5)):
        flops = np.full(len(sizes), 1e20)
        found = isoflop(Points(sizes, flops / 6 / sizes, parabola(sizes, 1e8), flops=flops))
        assert found.n_params == pytest.approx([1e8], rel=1e-6)
    for sizes in (np.geomspace(1e7, 1e9, 3), np.repeat(np.geomspace(1e7, 1e9, 3), 2)):
        flops = np.full(len(sizes), 1e20)
        with pytest.raises(UserError, match="four sizes of model"):
            isoflop(Points(sizes, flops / 6 / sizes, parabola(sizes, 1e8), flops=flops))


@pytest.mark.parametrize(
    ("centre", "curvature"),
    [(5e6, 0.04), (2e9, 0.04), (1e8, -0.04)],
    ids=["below", "above", "hill"],
)
def test_a_parabola_without_a_lowest_point_between_the_sizes_is_passed_over(centre, curvature):
    sizes = np.tile(np.geomspace(1e7, 1e9, 6), 2)
    flops = np.repeat([1e19, 1e21], 6)
    losses = np.append(parabola(sizes[:6], centre, (), curvature), parabola(sizes[6:], 1e8))
    found = isoflop(Points(sizes, flops / 6 / sizes, losses, flops=flops))
    assert found.flops == pytest.approx([1e21]) and found.n_params == pytest.approx([1e8])


@pytest.mark.parametrize(("gap", "n_budgets"), [(0.09, 1), (0.11, 2)])
def test_budgets_part_where_neighbours_are_a_tenth_apart(gap, n_budgets):
    sizes = np.repeat(np.geomspace(1e7, 1e9, 4), 2)
    flops = 1e20 * np.exp(np.tile([0.0, gap], 4))
    found = isoflop(Points(sizes, flops / 6 / sizes, parabola(sizes, 1e8), flops=flops))
    assert len(found.flops) == n_budgets


def test_models_of_one_size_have_six_flops_or_what_else_they_took_per_parameter():
    n_tokens = np.array([1e9, 2e9])
    flops = 1e8 * n_tokens * np.array([6.0, 7.26])
    points = Points(np.full(2, 1e8), n_tokens, np.full(2, 3.0), flops=flops)
    found = FlopsPerToken.of_points(points)
    assert found == FlopsPerToken(pytest.approx(6.6, rel=1e-12), 1.0, 0.0)  # √(6 × 7.26)
