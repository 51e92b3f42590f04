"""Scaling laws: the constants of L = E + A/N^α + B/T^β, and of its forms with the head's rank.

The fit is that of Hoffmann et al. 2022, approach 3: the sum of Huber losses of log-residuals,
δ = 1e-3, minimised from a grid of starts. N: parameters, by one convention throughout; T: training
tokens; L: loss, nats per token; R: rank of the head; D: hidden width; n: points; S: resamples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import logsumexp

from bottleneck.errors import UserError
from bottleneck.laws.descent import Minima, minimise
from bottleneck.laws.forms import CHINCHILLA, Form, form_of, log_quantities
from bottleneck.laws.points import Points

DELTA = 1e-3  # of log L; a smaller residual counts squared. Hoffmann et al. 2022, appendix D.3

# All starts take the first steps, the lowest of them more, and the lowest of those finish.
_ROUNDS = ((4500, 20), (512, 60), (64, 2000))  # starts, most steps of each
_STEPS_OF_REFIT = 300
_MOST_MINIMA = 4
_NEAR = 1.5  # times the least objective: a resample's minimum may be one that is higher up to here
_SAME = 1e-3  # minima are one if no log coefficient or exponent differs by more


@dataclass(frozen=True)
class ScalingLaw:
    """A law's constants, and how they were fitted.

    G, gamma: of the rank; None if the form has none.
    fixed: names of the constants that were given, not fitted.
    delta: where the Huber loss turns linear, in units of log L.
    objective: the sum of Huber losses at the minimum.
    minima: float64 [m, free], the best distinct minima that the starts led to, the law's own first.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    G: float | None = None
    gamma: float | None = None
    form: Form = CHINCHILLA
    fixed: tuple[str, ...] = ()
    delta: float = DELTA
    objective: float = float("nan")
    minima: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False)

    @property
    def constants(self) -> dict[str, float]:
        """The constants by name, in the form's order."""
        return {name: getattr(self, name) for name in self.form.constants}

    @property
    def free(self) -> tuple[str, ...]:
        """The names of the fitted constants."""
        return tuple(name for name in self.form.constants if name not in self.fixed)

    def predict(
        self,
        n_params: np.ndarray | float,
        n_tokens: np.ndarray | float,
        rank: np.ndarray | float | None = None,
        width: np.ndarray | float | None = None,
    ) -> np.ndarray:
        """Returns the law's loss, nats per token: float64 [n], for numbers or arrays [n].

        Raises: `UserError` if the form has the rank in it, and rank or width is missing.
        """
        sizes, tokens = np.broadcast_arrays(np.atleast_1d(n_params), np.atleast_1d(n_tokens))
        shape = [None if x is None else np.broadcast_to(x, sizes.shape) for x in (rank, width)]
        quantities = log_quantities(sizes, tokens, *shape)
        return np.exp(log_prediction(self.form, self.constants, quantities))

    def relative_gap(self, points: Points) -> np.ndarray:
        """Returns L/L̂ − 1 of each point: float64 [n], above 0 if it is worse than the law.

        Source: Godey et al. 2024, section 3.2 and figure 1b.
        """
        expected = self.predict(points.n_params, points.n_tokens, points.rank, points.width)
        return points.loss / expected - 1


def fit(
    points: Points,
    form: Form | str = CHINCHILLA,
    fixed: Mapping[str, float] | None = None,
    *,
    delta: float = DELTA,
) -> ScalingLaw:
    """Returns the law with the least sum of Huber losses of log L̂ − log L.

    Args:
        form: a form, or its name in `FORMS`.
        fixed: known constants by name, such as {"B": 410.7, "beta": 0.28}.
        delta: where the Huber loss turns linear, in units of log L; infinity gives least squares.
    Raises: `UserError` if the form or a constant is unknown, or the points are too few.
    Source: Hoffmann et al. 2022, section 3.3 and appendix D.3.
    """
    form, fixed = form_of(form), {name: float(v) for name, v in (fixed or {}).items()}
    _check(form, fixed, len(points))
    descend = _descent(form, fixed, points, delta)
    free = [name for name in form.constants if name not in fixed]
    starts = form.starts(free)
    for n_starts, n_steps in _ROUNDS:
        found = descend(starts[:n_starts], n_steps=n_steps)
        order = np.argsort(found.objective, kind="stable")
        starts = found.theta[order]
    objectives = found.objective[order]
    minima = _distinct(starts[objectives <= _NEAR * objectives[0]])
    fitted = {name: float(value) for name, value in form.named(free, minima[0]).items()}
    law: dict[str, Any] = {**fixed, **fitted, "form": form, "minima": minima}
    return ScalingLaw(**law, fixed=tuple(fixed), delta=delta, objective=float(objectives[0]))


def refit(law: ScalingLaw, points: Points, counts_Sxn: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the law's constants refitted to each resample of the points: name → float64 [S].

    Starts from the law's own minima, not the grid: the minimum of a resample is near one of them.
    `counts_Sxn` says how often each point counts; 0 leaves it out.
    """
    n_fits, n_minima = len(counts_Sxn), len(law.minima)
    fixed = {name: law.constants[name] for name in law.fixed}
    found = _descent(law.form, fixed, points, law.delta)(
        np.tile(law.minima, (n_fits, 1)),
        n_steps=_STEPS_OF_REFIT,
        weights_Sxn=np.repeat(np.asarray(counts_Sxn, np.float64), n_minima, axis=0),
    )
    lowest = np.argmin(found.objective.reshape(n_fits, n_minima), axis=1)
    theta = found.theta.reshape(n_fits, n_minima, -1)[np.arange(n_fits), lowest]
    columns = {name: np.full(n_fits, value) for name, value in fixed.items()}
    columns |= law.form.named(law.free, theta.T)
    return {name: columns[name] for name in law.form.constants}


def log_prediction(
    form: Form, constants: Mapping[str, Any], quantities: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Returns log L̂: float64 [n], or [S, n] if each constant is an array [S]."""
    logs = np.tensordot(form.design(quantities), form.theta(constants), axes=1)  # [n, K, …]
    return logsumexp(logs, axis=1).T


def _check(form: Form, fixed: Mapping[str, float], n_points: int) -> None:
    for name, value in fixed.items():
        if name not in form.constants:
            known = ", ".join(form.constants)
            raise UserError(
                f"{name} is not a constant of the law {form.formula}; those are {known}"
            )
        if not np.isfinite(value) or (name in form.coefficients and value <= 0):
            allowed = "above zero" if np.isfinite(value) else "finite"
            raise UserError(f"{name}={value:g} is not allowed; it must be {allowed}")
    n_free = len(form.constants) - len(fixed)
    if n_free == 0:
        raise UserError(f"every constant of {form.formula} is fixed; leave one to be fitted")
    if n_points < n_free:
        raise UserError(
            f"{n_points} points cannot determine {n_free} constants; give more points, or fix some"
        )


def _descent(
    form: Form, fixed: Mapping[str, float], points: Points, delta: float
) -> Callable[..., Minima]:
    """Returns `minimise` over the free constants; the fixed ones go into the offset."""
    design = form.design(points.log_quantities())
    is_fixed = np.array([name in fixed for name in form.constants])
    offset = design[..., is_fixed] @ form.theta(fixed)
    log_loss = np.log(points.loss)
    return functools.partial(minimise, design[..., ~is_fixed], offset, log_loss, delta=delta)


def _distinct(theta: np.ndarray) -> np.ndarray:
    """Returns the first few rows that differ from all before them."""
    kept: list[np.ndarray] = []
    for row in theta:
        if all(np.abs(row - other).max() > _SAME for other in kept):
            kept.append(row)
    return np.array(kept[:_MOST_MINIMA])
