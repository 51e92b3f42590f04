"""How to spend a compute budget: the N and T of least loss, by a law and by IsoFLOP parabolas.

C: floating-point operations of training, C = c(N)·T; N: parameters in the law's own convention;
T: training tokens; n: points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import UserError
from bottleneck.laws.scaling_law import Points

_SAME_BUDGET = 0.1  # of log C; points closer than this to their neighbour share a budget
_FEWEST_ON_PARABOLA = 4  # three fit any parabola and leave nothing to judge it by


@dataclass(frozen=True)
class FlopsPerToken:
    """c(N) = factor·N^exponent; 6·N where C counts just the parameters that N does.

    misfit: the most that |log c| of a point is off, where the power was fitted to points.
    """

    factor: float = 6.0
    exponent: float = 1.0
    misfit: float = 0.0

    @classmethod
    def of_points(cls, points: Points, flops: np.ndarray) -> FlopsPerToken:
        """The power of N that is nearest to C/T of the points, in logarithms."""
        log_n, log_c = np.log(points.n_params), np.log(flops / points.n_tokens)
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
    """N and T that make E + A/N^α + B/T^β least at C = c(N)·T: float64 [m], or [S, m].

    With c = f·N^κ and T = C/c the derivative by log N vanishes where
    N^(α+κβ) = αA/(κβB)·(C/f)^β, which for c = 6·N is equation 4 of Hoffmann et al. 2022.
    A rank that is held fixed does not move the optimum of "additive"; those of the forms with
    ρ = R/D are for ρ = 1.

    Args:
        constants: A, B, alpha and beta: numbers, or float64 [S] as a bootstrap has them.
        flops_m: budgets C.
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
    """A parabola of log L in log N for each budget, and the power of C that their minima follow.

    flops, n_params, n_tokens, loss: float64 [b], where each parabola is least.
    n_params_se: float64 [b], standard errors of log N there; NaN without a point to spare.
    exponent, exponent_se: of N ∝ C^a over the budgets; NaN for one budget.
    """

    flops: np.ndarray
    n_params: np.ndarray
    n_params_se: np.ndarray
    n_tokens: np.ndarray
    loss: np.ndarray
    exponent: float
    exponent_se: float


def isoflop(points: Points, flops: np.ndarray) -> IsoFlop:
    """The minima along N of the points that share a budget (Hoffmann et al. 2022, approach 2).

    A budget needs four sizes of model or more, and a minimum between the smallest and the largest;
    others are passed over.

    Raises: `UserError` where no budget is left.
    """
    found = []
    for chosen in _budgets(flops) if len(points) else []:
        log_n, log_l = np.log(points.n_params[chosen]), np.log(points.loss[chosen])
        if len(np.unique(log_n)) < _FEWEST_ON_PARABOLA:
            continue
        centre = log_n.mean()
        design = np.vander(log_n - centre, 3)
        (a, b, c), *_ = np.linalg.lstsq(design, log_l, rcond=None)
        log_best = centre - b / (2 * a)
        if a <= 0 or not log_n.min() <= log_best <= log_n.max():
            continue
        spare = len(log_n) - 3
        residuals = log_l - design @ (a, b, c)
        variance = residuals @ residuals / spare
        covariance = variance * np.linalg.inv(design.T @ design)
        slope = np.array([b / (2 * a**2), -1 / (2 * a), 0.0])  # of the minimum by (a, b, c)
        budget = np.exp(np.log(flops[chosen]).mean())
        per_token = FlopsPerToken.of_points(points.take(chosen), flops[chosen])
        tokens = budget / (per_token.factor * np.exp(per_token.exponent * log_best))
        error = np.sqrt(slope @ covariance @ slope)
        found.append([budget, np.exp(log_best), error, tokens, np.exp(c - b**2 / (4 * a))])
    if not found:
        raise UserError(
            "no budget has four sizes of model with the best one between the others, so there is "
            "nothing to fit IsoFLOP parabolas to"
        )
    budgets, sizes, errors, tokens, losses = (np.array(c) for c in zip(*found, strict=True))
    exponent, exponent_se = _power(np.log(budgets), np.log(sizes))
    return IsoFlop(budgets, sizes, errors, tokens, losses, exponent, exponent_se)


def _budgets(flops: np.ndarray) -> list[np.ndarray]:
    """Indices of the points of each budget, by budget."""
    order = np.argsort(flops, kind="stable")
    gaps = np.flatnonzero(np.diff(np.log(flops[order])) > _SAME_BUDGET)
    return np.split(order, gaps + 1)


def _power(log_x: np.ndarray, log_y: np.ndarray) -> tuple[float, float]:
    """The slope of a line and its standard error; NaN where the points do not say."""
    if len(log_x) < 2:
        return np.nan, np.nan
    x = log_x - log_x.mean()
    slope = x @ log_y / (x @ x)
    if len(x) < 3:
        return float(slope), np.nan
    residuals = log_y - log_y.mean() - slope * x
    return float(slope), float(np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x)))
