"""A study of a scaling law as the record in law.json, and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bottleneck.laws.study import LawStudy
from bottleneck.terminal import count


def as_json(result: LawStudy) -> dict[str, Any]:
    """Returns the content of law.json; numbers that are not finite are null."""
    law, best, optimum = result.law, result.candidates[0], result.optimum
    of_best = [None] * len(result.gaps) if result.gaps_of_best is None else result.gaps_of_best
    record = {
        "form": law.form.name,
        "formula": law.form.formula,
        "counted_as": result.points.note,
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
        "n_points": int(result.fitted.sum()),
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
        "points": [
            {
                "name": name,
                "is_fitted": is_fitted,
                "relative_gap": gap,
                "relative_gap_of_best": gap_of_best,
            }
            for name, is_fitted, gap, gap_of_best in zip(
                result.points.names, result.fitted.tolist(), result.gaps, of_best, strict=True
            )
        ],
    }
    return _plain(record)


def show(result: LawStudy, console: Console) -> None:
    """Prints the law, the forms that it was chosen from, and the best N and T of budgets."""
    law, best = result.law, result.candidates[0]
    constants = _grid("constant", "value", "95 % interval")
    for name, value in law.constants.items():
        interval = result.interval(name)
        shown = "given" if name in law.fixed else _range(interval) if interval else "–"
        constants.add_row(name, f"{value:.5g}", shown)
    parts: list[Any] = [
        Text(f"L = {law.form.formula}, {result.fitted.sum()} points"),
        Text(result.points.note, style="dim"),
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
    if not result.fitted.all():
        gaps = _grid("smaller models", "N", "last above the law", "best above the law")
        for i in np.flatnonzero(~result.fitted).tolist():
            at_best = "–" if result.gaps_of_best is None else f"{result.gaps_of_best[i]:+.2%}"
            size = count(result.points.n_params[i])
            gaps.add_row(result.points.names[i], size, f"{result.gaps[i]:+.2%}", at_best)
        parts += [Text(), gaps]
    optimum = result.optimum
    budgets = _grid("budget C", "best N", "95 % interval", "best T", "95 % interval")
    for i, flops in enumerate(optimum.flops):
        budgets.add_row(
            f"{flops:.3g}",
            *(count(optimum.n_params[i]), _range(_column(optimum.n_params_interval, i), count)),
            *(count(optimum.n_tokens[i]), _range(_column(optimum.n_tokens_interval, i), count)),
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


def _grid(*headings: str) -> Table:
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return grid


def _column(interval: np.ndarray | None, index: int) -> list[float] | None:
    return None if interval is None else [float(end) for end in interval[:, index]]


def _range(interval: list[float] | None, form: Any = lambda end: f"{end:.5g}") -> str:
    return "–" if interval is None else f"{form(interval[0])} to {form(interval[1])}"


def _percent(error: float) -> str:
    return "–" if math.isnan(error) else f"{100 * error:.2f} %"


def _plain(value: Any) -> Any:
    """Returns the value in JSON's own types, with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
