"""All that is asked of some points at once: the law, how sure it is, what it predicts.

N, T, C: see `law_points`; m: budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import UserError
from bottleneck.laws.budgets import FlopsPerToken, IsoFlop, compute_optimal, isoflop
from bottleneck.laws.comparison import Bootstrap, Candidate, bootstrap, compare, middle
from bottleneck.laws.forms import CHINCHILLA, FORMS, Form
from bottleneck.laws.points import Measured
from bottleneck.laws.scaling_law import Points, ScalingLaw
from bottleneck.terminal import count

_BEYOND = (1.0, 10.0, 100.0)  # times the largest budget of the points, for which N and T are said


@dataclass(frozen=True)
class Optimum:
    """What to spend budgets on: float64 [m], with 95 % intervals [2, m]; None without a bootstrap.

    per_token: how C per token was taken to follow from N.
    """

    flops: np.ndarray
    n_params: np.ndarray
    n_tokens: np.ndarray
    n_params_interval: np.ndarray | None
    n_tokens_interval: np.ndarray | None
    per_token: FlopsPerToken


@dataclass(frozen=True)
class Study:
    """What a law and its points say of each other.

    measured: all points; `fitted` are those that the law was fitted to.
    candidates: the forms that were compared, the best first; `law` is the first one's.
    gaps, gaps_of_best: float64 [n], L/L̂ − 1 of all points, at their end and where they were best;
        None where only the end is known.
    """

    measured: Measured
    fitted: np.ndarray  # bool [n]
    candidates: Sequence[Candidate]
    bootstrap: Bootstrap | None
    optimum: Optimum
    isoflop: IsoFlop | None
    gaps: np.ndarray
    gaps_of_best: np.ndarray | None

    @property
    def law(self) -> ScalingLaw:
        return self.candidates[0].law

    def interval(self, constant: str) -> list[float] | None:
        if self.bootstrap is None or constant in self.law.fixed:
            return None
        return [float(end) for end in self.bootstrap.interval(constant)]


def study(
    measured: Measured,
    fixed: Mapping[str, float] | None = None,
    form: Form | None = None,
    n_resamples: int = 0,
    fit_from: float = 0.0,
) -> Study:
    """Fits and judges a law.

    Args:
        form: None takes Chinchilla's for full heads, and compares all forms where ranks differ.
        n_resamples: of the bootstrap; 0 leaves it out.
        fit_from: the least N that the law is fitted to; smaller models are held against it, as in
            figure 1b of Godey et al. 2024.
    """
    everything, fitted = measured, measured.points.n_params >= fit_from
    if not fitted.any():
        most = count(measured.points.n_params.max())
        raise UserError(f"no point has {count(fit_from)} parameters; the largest has {most}")
    measured = everything.take(fitted)
    points, forms = measured.points, [form] if form else _forms(measured)
    known = {name: None for candidate in forms for name in candidate.constants}
    for name in fixed or {}:
        if name not in known:
            raise UserError(
                f"{name} is no constant of {forms[0].formula}; there are {', '.join(known)}"
            )
    candidates = compare(points, forms, fixed)
    law = candidates[0].law
    resampled = bootstrap(law, points, n_resamples) if n_resamples else None
    per_token = FlopsPerToken.of_points(points, measured.flops)
    budgets = np.array([scale * measured.flops.max() for scale in _BEYOND])
    n_params, n_tokens = compute_optimal(law.constants, budgets, per_token)
    intervals: list[np.ndarray | None] = [None, None]
    if resampled is not None:
        resampled_optima = compute_optimal(resampled.constants, budgets, per_token)
        intervals = [middle(optima) for optima in resampled_optima]
    try:
        parabolas = isoflop(*_full_heads(measured))
    except UserError:
        parabolas = None
    best = everything.best
    return Study(
        everything,
        fitted,
        candidates,
        resampled,
        Optimum(budgets, n_params, n_tokens, intervals[0], intervals[1], per_token),
        parabolas,
        law.relative_gap(everything.points),
        None if best is None else law.relative_gap(best),
    )


def _forms(measured: Measured) -> list[Form]:
    """All forms where some head has not full rank, for the others need that."""
    points = measured.points
    if points.rank is None or points.width is None or (points.rank == points.width).all():
        return [CHINCHILLA]
    return list(FORMS.values())


def _full_heads(measured: Measured) -> tuple[Points, np.ndarray]:
    """The points with heads of full rank, and their budgets: a parabola is of one rank."""
    points = measured.points
    if points.rank is None or points.width is None:
        return points, measured.flops
    full = points.rank == points.width
    return points.take(full), measured.flops[full]
