"""A study of a scaling law as the record in law.json, and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bottleneck.laws.study import LawStudy, Optimum
from bottleneck.terminal import count


def as_json(result: LawStudy) -> dict[str, Any]:
    """Returns the content of law.json; numbers that are not finite are null."""
    law, best, optimum = result.law, result.candidates[0], result.optimum
    record = {
        "form": law.form.name,
        "formula": law.form.formula,
        "counted_as": result.points.note,
        "constants": {
            k: {"value": v, "interval_95": result.interval(k), "is_fixed": k in law.fixed}
            for k, v in law.constants.items()
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
            "budgets": _budgets(optimum),
        },
        "isoflop": result.isoflop and vars(result.isoflop),
        "points": _records(
            name=result.points.names,
            is_fitted=result.fitted,
            relative_gap=result.gaps,
            relative_gap_of_best=result.gaps_of_best,
        ),
    }
    return _plain(record)


def show(result: LawStudy, console: Console) -> None:
    """Prints the law, the forms that it was chosen from, and the best N and T of budgets."""
    law, best, optimum = result.law, result.candidates[0], result.optimum
    constants = _grid("constant", "value", "95 % interval")
    for name, value in law.constants.items():
        shown = "given" if name in law.fixed else _range(result.interval(name))
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
        aicc, bic = (min(getattr(c, key) for c in result.candidates) for key in ("aicc", "bic"))
        for c in result.candidates:
            errors = (_percent(c.held_out), _percent(c.extrapolation))
            forms.add_row(c.law.form.name, *errors, f"{c.aicc - aicc:+.1f}", f"{c.bic - bic:+.1f}")
        parts += [Text(), forms]
    if not result.fitted.all():
        gaps = _grid("smaller models", "N", "last above the law", "best above the law")
        for i in np.flatnonzero(~result.fitted).tolist():
            at_best = "–" if result.gaps_of_best is None else f"{result.gaps_of_best[i]:+.2%}"
            size = count(result.points.n_params[i])
            gaps.add_row(result.points.names[i], size, f"{result.gaps[i]:+.2%}", at_best)
        parts += [Text(), gaps]
    budgets = _grid("budget C", "best N", "95 % interval", "best T", "95 % interval")
    for row in _budgets(optimum):
        best_n = (count(row["n_params"]), _range(row["n_params_interval_95"], count))
        best_t = (count(row["n_tokens"]), _range(row["n_tokens_interval_95"], count))
        budgets.add_row(f"{row['flops']:.3g}", *best_n, *best_t)
    parts += [Text(), budgets]
    per_token, found = optimum.per_token, result.isoflop
    if per_token.misfit > 0:
        power = f"C = {per_token.factor:.3g}·N^{per_token.exponent:.3f}·T"
        off = f"which is at most {_percent(per_token.misfit)} off these points"
        parts.append(Text(f"with {power}, {off}"))
    if found is not None:
        by_law = law.beta / (law.alpha + per_token.exponent * law.beta)
        exponent = f"C^{found.exponent:.3f} ± {found.exponent_se:.3f}; by the law C^{by_law:.3f}"
        parts.append(Text(f"IsoFLOP parabolas of {len(found.flops)} budgets: N ∝ {exponent}"))
    console.print(Group(*parts))


def _grid(*headings: str) -> Table:
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return grid


def _budgets(optimum: Optimum) -> list[dict[str, Any]]:
    return _records(
        flops=optimum.flops,
        n_params=optimum.n_params,
        n_params_interval_95=optimum.n_params_interval,
        n_tokens=optimum.n_tokens,
        n_tokens_interval_95=optimum.n_tokens_interval,
    )


def _records(**columns: Any) -> list[dict[str, Any]]:
    """Returns the rows of columns [n] and intervals [2, n]; one that is None is null in each."""
    given = {k: np.transpose(v).tolist() for k, v in columns.items() if v is not None}
    rows = [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]
    return [dict.fromkeys(columns) | row for row in rows]


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
