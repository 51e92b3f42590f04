"""The N and T of least loss at a compute budget, by a law and by IsoFLOP parabolas.

C: training FLOPs, C = c(N)·T; N, T: see `points`; m: budgets; S: resamples.
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
    """Training FLOPs per token, c(N) = factor·N^exponent: 6·N if C is of the parameters in N."""

    factor: float = 6.0
    exponent: float = 1.0
    misfit: float = 0.0  # the largest error of log c over the points that it was fitted to

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
        per_token: c; None takes 6·N, as in Hoffmann et al. 2022, equation 4.
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
    """The minima of parabolas of log L in log N, float64 [m], and the power a of N ∝ C^a."""

    flops: np.ndarray
    n_params: np.ndarray
    n_params_se: np.ndarray  # standard errors of log N
    n_tokens: np.ndarray
    loss: np.ndarray
    exponent: float  # a; NaN, like its standard error, if the budgets are too few
    exponent_se: float


def isoflop(points: Points) -> IsoFlop:
    """Returns the minimum along N of the points of each budget.

    Skips a budget with fewer than four model sizes, or without a minimum between its smallest and
    its largest. Budgets closer than 0.1 in log C are one.

    Raises: `UserError` if no budget is left.
    Source: Hoffmann et al. 2022, approach 2.
    """
    order = np.argsort(points.flops, kind="stable")
    gaps = np.flatnonzero(np.diff(np.log(points.flops[order])) > _SAME_BUDGET)
    found = []
    for chosen in np.split(order, gaps + 1):
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
    exponent = exponent_se = np.nan
    if len(found) > 1:
        exponent = float(np.polyfit(np.log(budgets), np.log(sizes), 1)[0])
    if len(found) > 2:
        _, covariance = np.polyfit(np.log(budgets), np.log(sizes), 1, cov=True)
        exponent_se = float(np.sqrt(covariance[0, 0]))
    return IsoFlop(budgets, sizes, errors, tokens, losses, exponent, exponent_se)
