"""All that is asked of some points at once: the law, how sure it is, what it predicts, as JSON too.

N, T, C: see `law_points`; m: budgets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bottleneck.analysis.compute_optimal import FlopsPerToken, IsoFlop, compute_optimal, isoflop
from bottleneck.analysis.law_bootstrap import Bootstrap, bootstrap, middle
from bottleneck.analysis.law_comparison import Candidate, compare
from bottleneck.analysis.law_forms import CHINCHILLA, FORMS, Form
from bottleneck.analysis.law_points import Measured
from bottleneck.analysis.scaling_law import Points, ScalingLaw
from bottleneck.analysis.summary import count
from bottleneck.errors import UserError

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
    """`candidates` are the forms that were compared, the best first; `law` is the first one's."""

    measured: Measured
    candidates: Sequence[Candidate]
    bootstrap: Bootstrap | None
    optimum: Optimum
    isoflop: IsoFlop | None
    gaps: np.ndarray  # float64 [n], L/L̂ − 1

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
) -> Study:
    """Fits and judges a law.

    Args:
        form: None takes Chinchilla's for full heads, and compares all forms where ranks differ.
        n_resamples: of the bootstrap; 0 leaves it out.
    """
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
    return Study(
        measured,
        candidates,
        resampled,
        Optimum(budgets, n_params, n_tokens, intervals[0], intervals[1], per_token),
        parabolas,
        law.relative_gap(points),
    )


def as_json(result: Study) -> dict[str, Any]:
    """What law.json holds; numbers that cannot be said are null."""
    law, best, optimum = result.law, result.candidates[0], result.optimum
    said = {
        "form": law.form.name,
        "formula": law.form.formula,
        "counted_as": result.measured.note,
        "constants": {
            name: {
                "value": value,
                "interval_95": result.interval(name),
                "is_fixed": name in law.fixed,
            }
            for name, value in law.constants.items()
        },
        "objective": law.objective,
        "delta": law.delta,
        "n_points": len(result.measured.points),
        "n_resamples": len(result.bootstrap.constants["E"]) if result.bootstrap else 0,
        "held_out_error": best.held_out,
        "extrapolation_error": best.extrapolation,
        "compared": [
            {
                "form": c.law.form.name,
                "held_out_error": c.held_out,
                "extrapolation_error": c.extrapolation,
                "aicc": c.aicc,
                "bic": c.bic,
                "constants": c.law.constants,
            }
            for c in result.candidates
        ],
        "compute_optimal": {
            "flops_per_token": vars(optimum.per_token),
            "budgets": [
                {
                    "flops": optimum.flops[i],
                    "n_params": optimum.n_params[i],
                    "n_params_interval_95": _column(optimum.n_params_interval, i),
                    "n_tokens": optimum.n_tokens[i],
                    "n_tokens_interval_95": _column(optimum.n_tokens_interval, i),
                }
                for i in range(len(optimum.flops))
            ],
        },
        "isoflop": result.isoflop and vars(result.isoflop),
        "relative_gap": dict(zip(result.measured.names, result.gaps.tolist(), strict=True)),
    }
    return _plain(said)


def show(result: Study, console: Console) -> None:
    """Prints the law, the forms that it was chosen from, and what a budget is best spent on."""
    law, best = result.law, result.candidates[0]
    constants = _grid("constant", "value", "95 % interval")
    for name, value in law.constants.items():
        interval = result.interval(name)
        said = "given" if name in law.fixed else _said(interval) if interval else "–"
        constants.add_row(name, f"{value:.5g}", said)
    parts: list[Any] = [
        Text(f"L = {law.form.formula}, {len(result.measured.points)} points"),
        Text(result.measured.note, style="dim"),
        constants,
        Text(
            f"error: {_percent(best.held_out)} on points held out, "
            f"{_percent(best.extrapolation)} on the largest N from the others"
        ),
    ]
    if len(result.candidates) > 1:
        forms = _grid("form", "held out", "largest N", "AICc", "BIC")
        least = [min(getattr(c, key) for c in result.candidates) for key in ("aicc", "bic")]
        for c in result.candidates:
            forms.add_row(
                *(c.law.form.name, _percent(c.held_out), _percent(c.extrapolation)),
                *(f"{c.aicc - least[0]:+.1f}", f"{c.bic - least[1]:+.1f}"),
            )
        parts += [Text(), forms]
    optimum = result.optimum
    budgets = _grid("budget C", "best N", "95 % interval", "best T", "95 % interval")
    for i, flops in enumerate(optimum.flops):
        budgets.add_row(
            f"{flops:.3g}",
            *(count(optimum.n_params[i]), _said(_column(optimum.n_params_interval, i), count)),
            *(count(optimum.n_tokens[i]), _said(_column(optimum.n_tokens_interval, i), count)),
        )
    parts += [Text(), budgets]
    if optimum.per_token.misfit > 0:
        per_token = optimum.per_token
        parts.append(
            Text(
                f"with C = {per_token.factor:.3g}·N^{per_token.exponent:.3f}·T, which is at most "
                f"{_percent(per_token.misfit)} off these points"
            )
        )
    if result.isoflop is not None:
        found = result.isoflop
        parts.append(
            Text(
                f"IsoFLOP parabolas of {len(found.flops)} budgets: N ∝ C^{found.exponent:.3f}"
                f" ± {found.exponent_se:.3f}; by the law "
                f"C^{law.beta / (law.alpha + optimum.per_token.exponent * law.beta):.3f}"
            )
        )
    console.print(Group(*parts))


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
    kept = Points(points.n_params[full], points.n_tokens[full], points.loss[full])
    return kept, measured.flops[full]


def _grid(*headings: str) -> Table:
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return grid


def _column(interval: np.ndarray | None, index: int) -> list[float] | None:
    return None if interval is None else [float(end) for end in interval[:, index]]


def _said(interval: list[float] | None, form: Any = lambda end: f"{end:.5g}") -> str:
    return "–" if interval is None else f"{form(interval[0])} to {form(interval[1])}"


def _percent(error: float) -> str:
    return "–" if math.isnan(error) else f"{100 * error:.2f} %"


def _plain(value: Any) -> Any:
    """The same in JSON's own types, null for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
