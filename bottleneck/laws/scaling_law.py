"""Scaling laws: the constants of L = E + A/N^α + B/T^β, and of its forms with the head's rank.

Fitted as in Hoffmann et al. 2022, approach 3: the sum of Huber losses of log-residuals, δ = 1e-3,
minimised from a grid of starts. N: parameters, total or not as the caller counts them, the same
throughout; T: training tokens; L: loss, nats per token; R: rank of the head; D: hidden width;
n: points; P: constants of a law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import logsumexp

from bottleneck.errors import UserError
from bottleneck.laws.descent import Minima, minimise
from bottleneck.laws.forms import CHINCHILLA, Form, log_quantities

DELTA = 1e-3  # of log L; below it a residual counts squared. Hoffmann et al. 2022, appendix D.3

# Of all starts that take the first steps, the lowest go on, and of those the lowest to the end.
_ROUNDS = ((4500, 20), (512, 60), (64, 2000))  # starts, most steps of each
_STEPS_OF_REFIT = 300
_MOST_MINIMA = 4
_NEAR = 1.5  # times the least objective: a resample may be lower at minima up to there
_SAME = 1e-3  # minima whose constants' logarithms and exponents are this close are one


@dataclass(frozen=True)
class Points:
    """What a law is fitted to: float64 [n] each; rank and width where a law may need them."""

    n_params: np.ndarray
    n_tokens: np.ndarray
    loss: np.ndarray
    rank: np.ndarray | None = None
    width: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if values is None:
                continue
            values = np.asarray(values, np.float64)
            if values.ndim != 1 or len(values) != len(self.n_params):
                raise UserError(f"{name} must be {len(self.n_params)} numbers, one a point")
            bad = ~(np.isfinite(values) & (values > 0))
            if bad.any():
                raise UserError(
                    f"{name} must be finite and above zero, and is {values[bad][0]:g} at point "
                    f"{int(np.argmax(bad))} (counted from 0)"
                )
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, chosen: np.ndarray) -> Points:
        """Those of the points, by a mask or by indices."""
        return Points(
            self.n_params[chosen],
            self.n_tokens[chosen],
            self.loss[chosen],
            None if self.rank is None else self.rank[chosen],
            None if self.width is None else self.width[chosen],
        )

    def log_quantities(self) -> dict[str, np.ndarray]:
        return log_quantities(self.n_params, self.n_tokens, self.rank, self.width)


@dataclass(frozen=True)
class ScalingLaw:
    """A law's constants; G and gamma are those of the rank, None where the law has none.

    fixed: names of constants that were given, not fitted.
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
        """By name, in the form's order."""
        return {name: getattr(self, name) for name in self.form.constants}

    @property
    def free(self) -> tuple[str, ...]:
        return tuple(name for name in self.form.constants if name not in self.fixed)

    def predict(
        self,
        n_params: np.ndarray | float,
        n_tokens: np.ndarray | float,
        rank: np.ndarray | float | None = None,
        width: np.ndarray | float | None = None,
    ) -> np.ndarray:
        """The law's loss, nats per token; rank and width are needed where its form has them."""
        sizes, tokens = np.broadcast_arrays(np.atleast_1d(n_params), np.atleast_1d(n_tokens))
        shares = [None if x is None else np.broadcast_to(x, sizes.shape) for x in (rank, width)]
        return np.exp(
            log_prediction(self.form, self.constants, log_quantities(sizes, tokens, *shares))
        )

    def relative_gap(self, points: Points) -> np.ndarray:
        """L/L̂ − 1 of each point: float64 [n], above 0 where the point is worse than the law.

        Source: Godey et al. 2024, section 3.2 and figure 1b.
        """
        expected = self.predict(points.n_params, points.n_tokens, points.rank, points.width)
        return points.loss / expected - 1


def fit(
    n_params: np.ndarray | Sequence[float],
    n_tokens: np.ndarray | Sequence[float],
    loss: np.ndarray | Sequence[float],
    fixed: Mapping[str, float] | None = None,
    *,
    rank: np.ndarray | None = None,
    width: np.ndarray | None = None,
    form: Form = CHINCHILLA,
    delta: float = DELTA,
) -> ScalingLaw:
    """The law whose summed Huber loss of log-residuals is the least that the grid of starts finds.

    Every start takes 20 damped Newton steps, the 512 that are then lowest take 60 more, and the
    lowest 64 go on until the decrease that the next step promises is below 1e-13 of the loss.

    Args:
        n_params, n_tokens, loss: [n].
        fixed: constants that are known, by name, such as {"B": 410.7, "beta": 0.28}.
        rank, width: [n], for the forms that have them.
        delta: in units of log L; infinity gives least squares.
    Raises:
        UserError: where a constant is unknown to the form, or there are too few points.
    """
    points = Points(np.asarray(n_params), np.asarray(n_tokens), np.asarray(loss), rank, width)
    fixed = dict(fixed or {})
    _check(form, fixed, len(points))
    free = tuple(name for name in form.constants if name not in fixed)
    starts = form.starts(free)
    for n_starts, n_steps in _ROUNDS:
        found = _minimise(form, fixed, points, starts[:n_starts], delta, n_steps)
        order = np.argsort(found.objective, kind="stable")
        starts = found.theta[order]
    objectives = found.objective[order]
    minima = _distinct(starts[objectives <= _NEAR * objectives[0]])
    return ScalingLaw(
        **_constants(form, fixed, minima[0]),
        form=form,
        fixed=tuple(fixed),
        delta=delta,
        objective=float(objectives[0]),
        minima=minima,
    )


def refit(law: ScalingLaw, points: Points, weights_Sxn: np.ndarray) -> dict[str, np.ndarray]:
    """The constants of the law fitted anew with other weights of the same points: name → [S].

    From the law's own minima, not from the grid: a resample's minimum is near one of them.

    Args:
        weights_Sxn: how often each point counts; 0 leaves it out.
    """
    n_fits, n_minima = len(weights_Sxn), len(law.minima)
    fixed = {name: law.constants[name] for name in law.fixed}
    found = _minimise(
        *(law.form, fixed, points, np.tile(law.minima, (n_fits, 1)), law.delta, _STEPS_OF_REFIT),
        weights_Sxn=np.repeat(np.asarray(weights_Sxn, np.float64), n_minima, axis=0),
    )
    objective = found.objective.reshape(n_fits, n_minima)
    theta = found.theta.reshape(n_fits, n_minima, -1)
    best = theta[np.arange(n_fits), np.argmin(objective, axis=1)]
    columns = {name: np.full(n_fits, value) for name, value in fixed.items()}
    for name, values in zip(law.free, best.T, strict=True):
        columns[name] = np.exp(values) if name in law.form.coefficients else values
    return {name: columns[name] for name in law.form.constants}


def log_prediction(
    form: Form, constants: Mapping[str, Any], quantities: Mapping[str, np.ndarray]
) -> np.ndarray:
    """log L̂: float64 [n], or [S, n] where each constant is an array [S]."""
    theta = np.stack(
        [
            np.log(constants[name]) if name in form.coefficients else np.asarray(constants[name])
            for name in form.constants
        ]
    )
    logs = np.tensordot(_design(form, quantities), theta, axes=1)  # [n, K], or [n, K, S]
    return logsumexp(logs, axis=1).T


def _check(form: Form, fixed: Mapping[str, float], n_points: int) -> None:
    for name, value in fixed.items():
        if name not in form.constants:
            raise UserError(
                f"{name} is no constant of the law {form.formula}; those are "
                f"{', '.join(form.constants)}"
            )
        if not np.isfinite(value):
            raise UserError(f"{name}={value:g} is not allowed; it must be finite")
        if name in form.coefficients and not value > 0:
            raise UserError(f"{name}={value:g} is not allowed; it must be above zero")
    n_free = len(form.constants) - len(fixed)
    if n_free == 0:
        raise UserError(f"every constant of {form.formula} is fixed; leave one to be fitted")
    if n_points < n_free:
        raise UserError(
            f"{n_points} points cannot say {n_free} constants; give more points, or fix some"
        )


def _minimise(
    form: Form,
    fixed: Mapping[str, float],
    points: Points,
    starts: np.ndarray,
    delta: float,
    n_steps: int,
    weights_Sxn: np.ndarray | None = None,
) -> Minima:
    """The minima over the constants that are free; the others go into an offset."""
    design = _design(form, points.log_quantities())
    is_fixed = np.array([name in fixed for name in form.constants])
    known = [
        np.log(fixed[name]) if name in form.coefficients else fixed[name]
        for name in form.constants
        if name in fixed
    ]
    return minimise(
        design[..., ~is_fixed],
        design[..., is_fixed] @ np.array(known),
        np.log(points.loss),
        starts,
        weights_Sxn=weights_Sxn,
        delta=delta,
        n_steps=n_steps,
    )


def _design(form: Form, quantities: Mapping[str, np.ndarray]) -> np.ndarray:
    if not form.quantities <= quantities.keys():
        needed = "rank and width" if "ρ" in form.quantities else "rank"
        raise UserError(f"the law {form.formula} needs the {needed} of every point")
    return form.design(quantities)


def _constants(form: Form, fixed: Mapping[str, float], theta: np.ndarray) -> dict[str, float]:
    free = [name for name in form.constants if name not in fixed]
    fitted = {
        name: float(np.exp(value) if name in form.coefficients else value)
        for name, value in zip(free, theta, strict=True)
    }
    return {name: {**fixed, **fitted}[name] for name in form.constants}


def _distinct(theta: np.ndarray) -> np.ndarray:
    """The first few rows that differ from all before them."""
    kept: list[np.ndarray] = []
    for row in theta:
        if all(np.abs(row - other).max() > _SAME for other in kept):
            kept.append(row)
    return np.array(kept[:_MOST_MINIMA])
