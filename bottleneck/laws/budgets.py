"""The N and T of least loss at a compute budget, by a law and by IsoFLOP parabolas.

C: training FLOPs, C = c(N)·T; N: parameters in the law's own convention; T: training tokens;
m: budgets; S: resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import UserError
from bottleneck.laws.points import Points

_SAME_BUDGET = 0.1  # of log C; points closer than this to their neighbour share a budget
_FEWEST_ON_PARABOLA = 4  # three fit any parabola and leave nothing to judge it by


@dataclass(frozen=True)
class FlopsPerToken:
    """Training FLOPs per token, c(N) = factor·N^exponent: 6·N if C and N count the same parameters.

    misfit: the largest error of log c over the points that the power was fitted to.
    """

    factor: float = 6.0
    exponent: float = 1.0
    misfit: float = 0.0

    @classmethod
    def of_points(cls, points: Points) -> FlopsPerToken:
        """Returns the power of N that is nearest to C/T of the points, in logarithms."""
        log_n, log_c = np.log(points.n_params), np.log(points.flops / points.n_tokens)
        if np.allclose(log_c - log_n, np.log(6), rtol=0, atol=1e-9) or np.ptp(log_n) == 0:
            return cls(float(np.exp((log_c - log_n).mean())))
        exponent, log_factor = np.polyfit(log_n, log_c, 1)
        misfit = np.abs(log_c - log_factor - exponent * log_n).max()
        return cls(float(np.exp(log_factor)), float(exponent), float(misfit))


def compute_optimal(
    constants: Mapping[str, np.ndarray | float],
    flops_m: np.ndarray,
    per_token: FlopsPerToken | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the N and T that minimise E + A/N^α + B/T^β at C = c(N)·T: float64 [m], or [S, m].

    For c = f·N^κ and T = C/c the derivative with respect to log N vanishes at
    N^(α+κβ) = αA/(κβB)·(C/f)^β. A rank held fixed does not move the optimum of "additive". The
    optima of the forms with ρ = R/D are those of ρ = 1.

    Args:
        constants: A, B, alpha and beta: numbers, or float64 [S] from a bootstrap.
        flops_m: budgets C.
        per_token: c; None takes 6·N.
    Source: Hoffmann et al. 2022, equation 4, for c = 6·N.
    """
    per_token = per_token or FlopsPerToken()
    A, B, alpha, beta = (np.asarray(constants[k])[..., None] for k in ("A", "B", "alpha", "beta"))
    kappa = per_token.exponent
    log_flops = np.log(np.asarray(flops_m, np.float64)) - np.log(per_token.factor)
    ratio = np.log(alpha * A) - np.log(kappa * beta * B)
    log_n = (ratio + beta * log_flops) / (alpha + kappa * beta)
    return np.exp(log_n), np.exp(log_flops - kappa * log_n)


@dataclass(frozen=True)
class IsoFlop:
    """The minima of parabolas of log L in log N, one a budget, and the power of C in N ∝ C^a.

    flops, n_params, n_tokens, loss: float64 [m], at the minimum of each parabola.
    n_params_se: float64 [m], standard errors of log N there.
    exponent, exponent_se: a over the budgets; NaN for one budget.
    """

    flops: np.ndarray
    n_params: np.ndarray
    n_params_se: np.ndarray
    n_tokens: np.ndarray
    loss: np.ndarray
    exponent: float
    exponent_se: float


def isoflop(points: Points) -> IsoFlop:
    """Returns the minimum along N of the points that share a budget, for each budget.

    Skips a budget with fewer than four model sizes, or without a minimum between its smallest and
    its largest. Budgets closer than 0.1 in log C are one.

    Raises: `UserError` if no budget is left.
    Source: Hoffmann et al. 2022, approach 2.
    """
    found = []
    for chosen in _budgets(points.flops) if len(points) else []:
        log_n, log_l = np.log(points.n_params[chosen]), np.log(points.loss[chosen])
        if len(np.unique(log_n)) < _FEWEST_ON_PARABOLA:
            continue
        centre = log_n.mean()
        (a, b, c), covariance = np.polyfit(log_n - centre, log_l, 2, cov=True)
        log_best = centre - b / (2 * a)
        if a <= 0 or not log_n.min() <= log_best <= log_n.max():
            continue
        slope = np.array([b / (2 * a**2), -1 / (2 * a), 0.0])  # ∂log_best/∂(a, b, c)
        budget = np.exp(np.log(points.flops[chosen]).mean())
        per_token = FlopsPerToken.of_points(points.take(chosen))
        tokens = budget / (per_token.factor * np.exp(per_token.exponent * log_best))
        error = np.sqrt(slope @ covariance @ slope)
        found.append([budget, np.exp(log_best), error, tokens, np.exp(c - b**2 / (4 * a))])
    if not found:
        raise UserError(
            "no budget has four sizes of model with the best one between the others, so no IsoFLOP "
            "parabola can be fitted"
        )
    budgets, sizes, errors, tokens, losses = (np.array(c) for c in zip(*found, strict=True))
    exponent, exponent_se = _power(np.log(budgets), np.log(sizes))
    return IsoFlop(budgets, sizes, errors, tokens, losses, exponent, exponent_se)


def _budgets(flops: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of the points of each budget, by ascending budget."""
    order = np.argsort(flops, kind="stable")
    gaps = np.flatnonzero(np.diff(np.log(flops[order])) > _SAME_BUDGET)
    return np.split(order, gaps + 1)


def _power(log_x: np.ndarray, log_y: np.ndarray) -> tuple[float, float]:
    """Returns the slope of a line and its standard error; NaN if the points are too few."""
    if len(log_x) < 3:
        return (float(np.polyfit(log_x, log_y, 1)[0]) if len(log_x) == 2 else np.nan), np.nan
    line, covariance = np.polyfit(log_x, log_y, 1, cov=True)
    return float(line[0]), float(np.sqrt(covariance[0, 0]))
