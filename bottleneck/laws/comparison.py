"""The comparison of a law's forms by errors and information criteria, and a bootstrap over points.

n: points; S: resamples; k: free constants, and one for the spread of the residuals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import erf, huber

from bottleneck.errors import UserError
from bottleneck.laws.forms import CHINCHILLA, FORMS, Form, form_of
from bottleneck.laws.points import Points
from bottleneck.laws.scaling_law import ScalingLaw, fit, log_prediction, refit

_FOLDS = 10
_LARGEST_SHARE = 0.1  # of the points, by N, that extrapolation leaves out


@dataclass(frozen=True)
class Candidate:
    """A fitted form with its scores; lower is better.

    held_out: mean |log L̂ − log L| in ten-fold cross-validation.
    extrapolation: the same over the largest N, fitted to all others.
    aicc, bic: information criteria under the density of `log_likelihood`.
    """

    law: ScalingLaw
    held_out: float
    extrapolation: float
    aicc: float
    bic: float


def compare(
    points: Points,
    forms: Sequence[Form | str] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> list[Candidate]:
    """Returns the forms as fitted to the points, the least held-out error first.

    Args:
        forms: forms or their names; None takes all, or Chinchilla's alone if every head is full.
        fixed: known constants by name; each form takes those that it has.
    Raises: `UserError` if a fixed constant is in no form, and for what `fit` refuses.
    """
    if not forms:
        forms = [CHINCHILLA] if points.is_full.all() else list(FORMS.values())
    fixed, chosen = fixed or {}, [form_of(form) for form in forms]
    known = dict.fromkeys(name for form in chosen for name in form.constants)
    for name in fixed:
        if name not in known:
            raise UserError(
                f"{name} is not a constant of {chosen[0].formula}; known are {', '.join(known)}"
            )
    candidates = []
    for form in chosen:
        own = {name: value for name, value in fixed.items() if name in form.constants}
        candidates.append(judge(fit(points, form, own), points))
    return sorted(candidates, key=lambda candidate: candidate.held_out)


def judge(law: ScalingLaw, points: Points) -> Candidate:
    """Returns the law with its errors and its information criteria."""
    n, k = len(points), len(law.free) + 1
    log_l = log_likelihood(np.log1p(law.relative_gap(points)), law.delta)
    correction = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf
    aicc, bic = 2 * k - 2 * log_l + correction, k * math.log(n) - 2 * log_l
    return Candidate(law, held_out_error(law, points), extrapolation_error(law, points), aicc, bic)


def held_out_error(law: ScalingLaw, points: Points) -> float:
    """Returns the mean |log L̂ − log L| if each tenth of the points is predicted from the others.

    NaN if the points left are fewer than the free constants.
    """
    n_folds = min(_FOLDS, len(points))
    fold = np.random.default_rng(0).permutation(len(points)) % n_folds
    return _error_of_refits(law, points, fold != np.arange(n_folds)[:, None])


def extrapolation_error(law: ScalingLaw, points: Points) -> float:
    """Returns the mean |log L̂ − log L| over the tenth with the largest N, fitted to the others.

    All points of the N at which that tenth begins belong to it. NaN if the points left are fewer
    than the free constants.
    """
    kept = points.n_params < np.quantile(points.n_params, 1 - _LARGEST_SHARE)
    return _error_of_refits(law, points, kept[None])


def log_likelihood(residuals: np.ndarray, delta: float) -> float:
    """Returns the maximum over the spread τ of the log-likelihood under p(r) ∝ exp(−Huber_δ(r)/τ).

    At every τ the Huber fit maximises it over the law's constants, so the criteria judge the fit
    that was made. The normaliser is Z = √(2πτ)·erf(δ/√(2τ)) + (2τ/δ)·exp(−δ²/2τ).
    """
    total = float(np.sum(huber(delta, residuals)))

    def negative(log_tau: float) -> float:
        tau = math.exp(log_tau)
        normal = math.sqrt(2 * math.pi * tau) * erf(delta / math.sqrt(2 * tau))
        tails = 2 * tau / delta * math.exp(-(delta**2) / (2 * tau)) if delta < math.inf else 0.0
        return total / tau + len(residuals) * math.log(normal + tails)

    # Between residuals of 1e-8 of the loss and of ten times it.
    return -float(minimize_scalar(negative, bounds=(-37, 5), method="bounded").fun)


def _error_of_refits(law: ScalingLaw, points: Points, kept_Sxn: np.ndarray) -> float:
    """Returns the mean |log L̂ − log L| over the points that each refit left out, or NaN."""
    if kept_Sxn.sum(axis=1).min() < len(law.free):
        return math.nan
    predicted = log_prediction(law.form, refit(law, points, kept_Sxn), points.log_quantities())
    return float(np.abs(predicted - np.log(points.loss))[~kept_Sxn].mean())


@dataclass(frozen=True)
class Bootstrap:
    """The law's constants in each resample of the points: name → float64 [S]."""

    constants: Mapping[str, np.ndarray]

    def interval(self, constant: str) -> np.ndarray:
        """Returns the middle 95 % of a constant: float64 [2]."""
        return middle(self.constants[constant])


def middle(values: np.ndarray) -> np.ndarray:
    """Returns the ends of the middle 95 % of resampled values [S, …]: float64 [2, …]."""
    tail = (1 - 0.95) / 2
    return np.quantile(values, [tail, 1 - tail], axis=0)


def bootstrap(law: ScalingLaw, points: Points, n_resamples: int = 1000, seed: int = 0) -> Bootstrap:
    """Returns the law refitted to resamples of its points, drawn with replacement.

    A resample with fewer distinct points than the law has free constants is drawn again.
    """
    rng = np.random.default_rng(seed)
    n, n_free = len(points), len(law.free)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    while (poor := (counts > 0).sum(axis=1) < n_free).any():
        counts[poor] = rng.multinomial(n, np.full(n, 1 / n), size=int(poor.sum()))
    return Bootstrap(refit(law, points, counts))
