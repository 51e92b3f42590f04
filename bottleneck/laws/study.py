"""A study of n points: their law, its intervals, its m best budgets, each point's gap to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import UserError
from bottleneck.laws.budgets import FlopsPerToken, IsoFlop, compute_optimal, isoflop
from bottleneck.laws.comparison import Bootstrap, Candidate, bootstrap, compare, middle
from bottleneck.laws.forms import Form
from bottleneck.laws.points import Points
from bottleneck.laws.scaling_law import ScalingLaw
from bottleneck.terminal import count

_BEYOND = (1.0, 10.0, 100.0)  # times the points' largest budget: the budgets to optimise for


@dataclass(frozen=True)
class Optimum:
    """The best N and T of budgets, float64 [m], and their 95 % intervals, [2, m], if resampled."""

    flops: np.ndarray
    n_params: np.ndarray
    n_tokens: np.ndarray
    n_params_interval: np.ndarray | None
    n_tokens_interval: np.ndarray | None
    per_token: FlopsPerToken


@dataclass(frozen=True)
class LawStudy:
    """A law, the points it was fitted to, and the points it is compared with."""

    points: Points
    fitted: np.ndarray  # bool [n], the points that the law was fitted to
    candidates: Sequence[Candidate]  # the forms that were compared, the best first
    bootstrap: Bootstrap | None
    optimum: Optimum
    isoflop: IsoFlop | None
    gaps: np.ndarray  # float64 [n], L/L̂ − 1 of all points
    gaps_of_best: np.ndarray | None  # the same where the loss of each was least, if known

    @property
    def law(self) -> ScalingLaw:
        """The law of the best form."""
        return self.candidates[0].law

    def interval(self, constant: str) -> list[float] | None:
        """Returns the 95 % interval of a constant; None if it was fixed or not resampled."""
        if self.bootstrap is None or constant in self.law.fixed:
            return None
        return self.bootstrap.interval(constant).tolist()


def study_points(
    points: Points,
    form: Form | str | None = None,
    fixed: Mapping[str, float] | None = None,
    n_resamples: int = 0,
    fit_from: float = 0.0,
    best: Points | None = None,
) -> LawStudy:
    """Returns a law of the points with its intervals, its best budgets and each point's gap to it.

    Args:
        form, fixed: as in `fit`; no form takes Chinchilla's, or compares all if ranks differ.
        n_resamples: of the bootstrap; 0 skips it.
        fit_from: the least N that the law is fitted to; smaller models are compared with it, as in
            figure 1b of Godey et al. 2024.
        best: the same runs where their loss is least, for `gaps_of_best`.
    Raises: `UserError` if no point has `fit_from` parameters, and for what `compare` refuses.
    """
    fitted = points.n_params >= fit_from
    if not fitted.any():
        most = count(points.n_params.max())
        raise UserError(f"no point has {count(fit_from)} parameters; the largest has {most}")
    chosen = points.take(fitted)
    candidates = compare(chosen, [form] if form else None, fixed)
    law = candidates[0].law
    resampled = bootstrap(law, chosen, n_resamples) if n_resamples else None
    per_token = FlopsPerToken.of_points(chosen)
    budgets = np.array(_BEYOND) * chosen.flops.max()
    n_params, n_tokens = compute_optimal(law.constants, budgets, per_token)
    of_n = of_t = None
    if resampled is not None:
        of_n, of_t = map(middle, compute_optimal(resampled.constants, budgets, per_token))
    try:
        parabolas = isoflop(chosen.take(chosen.is_full))  # a parabola is of one rank
    except UserError:
        parabolas = None
    optimum = Optimum(budgets, n_params, n_tokens, of_n, of_t, per_token)
    of_best = None if best is None else law.relative_gap(best)
    gaps = law.relative_gap(points)
    return LawStudy(points, fitted, candidates, resampled, optimum, parabolas, gaps, of_best)
